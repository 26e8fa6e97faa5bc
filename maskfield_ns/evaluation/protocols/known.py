"""What the released scenes must hold, so that a half-downloaded or altered one is noticed."""

from __future__ import annotations

from collections.abc import Callable

from maskfield_ns.evaluation.protocols.labels import LabelSet

_PAIRS = "(frame, category) pairs"
_VIEWS = "test views"
_PROMPTS = "prompts"

EXPECTED: dict[tuple[str, str], dict[str, int]] = {
    # Every localisation accuracy printed for LERF-OVS and Mip-NeRF360 is a whole number over these pairs.
    ("lerf-ovs", "figurines"): {_VIEWS: 4, _PAIRS: 56},
    ("lerf-ovs", "ramen"): {_VIEWS: 7, _PAIRS: 71},
    ("lerf-ovs", "teatime"): {_VIEWS: 6, _PAIRS: 59},
    ("lerf-ovs", "waldo_kitchen"): {_VIEWS: 5, _PAIRS: 22},
    ("mipnerf360", "room"): {_PAIRS: 29},
    ("mipnerf360", "counter"): {_PAIRS: 37},
    ("mipnerf360", "garden"): {_PAIRS: 21},
    ("mipnerf360", "bonsai"): {_PAIRS: 18},
    ("lerf-mask", "figurines"): {_PROMPTS: 7},
    ("lerf-mask", "ramen"): {_PROMPTS: 6},
    ("lerf-mask", "teatime"): {_PROMPTS: 10},
    ("scannet", "scene0004_00"): {_VIEWS: 24},
    **{
        ("replica", room): {_VIEWS: 30}
        for room in ("room0", "room1", "room2", "office0", "office1", "office2", "office3", "office4")
    },
}
"""(protocol, scene) -> counts. Sources: docs/benchmarks.md."""

_COUNTS: dict[str, Callable[[LabelSet], int]] = {
    _PAIRS: lambda labels: sum(len(labels.phrases_of(view)) for view in labels.views),
    _VIEWS: lambda labels: len(labels.views),
    _PROMPTS: lambda labels: len(labels.phrases),
}


def unexpected(protocol: str, scene: str, labels: LabelSet) -> list[str]:
    """Notes on a released scene (known by its name) whose counts are not those of the published evaluations."""
    notes = []
    for what, wanted in EXPECTED.get((protocol, scene), {}).items():
        found = _COUNTS[what](labels)
        if found != wanted:
            notes.append(f"{scene} has {found} {what}, published evaluations have {wanted}: is the download complete?")
    return notes
