"""Edit lists without any scene: what they make of layers, their file, undo, and what is refused."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from maskfield_ns.editing import edits as e
from maskfield_ns.editing.edits import Edit, EditList, layers_of, tint_matrix
from maskfield_ns.errors import EditError, MaskfieldError, SelectionError
from maskfield_ns.selection.selection import (
    FieldSelection,
    FieldTerm,
    GaussianSelection,
    MembershipRule,
    Selection,
    selection_from_json,
)
from maskfield_ns.selection.transform import Similarity


def some(name: str, *members: int, count: int = 10) -> GaussianSelection:
    return GaussianSelection(name, np.array(members, np.int64), np.array([9]), count)


MUG, DUCK = some("mug", 1, 2, 3), some("duck", 5)
UP = Similarity(translation=np.array([0.0, 0, 1]))
FIELD = FieldSelection(
    "f", (FieldTerm(True, MembershipRule((3, 4), (0.9, 0.1), 0.3, 2), np.array([5, 7]), np.array([7])),), 8
)


def shapes(edits: EditList) -> list[tuple]:
    return [
        (layer.origin, [(c.kind, c.selection.name) for c in layer.changes], layer.transform.translation[2])
        for layer in edits.layers
    ]


# --- selections -------------------------------------------------------------------------------------------------------


def test_selections_add_and_remove() -> None:
    both = MUG | DUCK
    assert both.members.tolist() == [1, 2, 3, 5] and both.name == "mug, duck"
    assert (both - MUG).members.tolist() == [5]
    assert MUG.mask.sum() == 3 and not MUG.empty and (MUG - MUG).empty
    assert some("x", 3, 9).fringe.tolist() == [], "what is selected is no fringe"
    with pytest.raises(SelectionError, match="does not exist"):
        some("x", 10)
    for other in (some("x", 1, count=11), FIELD):
        with pytest.raises(SelectionError, match="different scenes"):
            MUG | other
    with pytest.raises(SelectionError):
        FIELD | MUG


def test_field_selections_keep_their_order() -> None:
    less = FIELD - FIELD.named("g")
    assert [term.adds for term in less.terms] == [True, False]
    assert [term.adds for term in (less | FIELD).terms] == [True, False, True]
    with pytest.raises(SelectionError, match="removing"):
        FIELD | less
    assert FIELD.cells.tolist() == [5, 7] and FIELD.terms[0].kinds(torch.tensor([5, 7, 0])).tolist() == [1, 2, 0]


@pytest.mark.parametrize("selection", [MUG, FIELD, FIELD - FIELD])
def test_selections_survive_json(selection: Selection) -> None:
    data = json.loads(json.dumps(selection.to_json()))
    assert selection_from_json(data).to_json() == selection.to_json()
    for damage in ({"kind": "other"}, {"members": "?"}, {"count": 2}, {"terms": [{}]}, {"resolution": 10**9}):
        if set(damage) <= set(data):
            with pytest.raises(EditError):
                selection_from_json(data | damage)


# --- layers -----------------------------------------------------------------------------------------------------------


def test_nothing_is_one_layer() -> None:
    assert shapes(EditList()) == [(0, [], 0)]
    assert not EditList() and len(EditList()) == 0


def test_moving_takes_a_thing_along_as_one() -> None:
    edits = EditList().then(e.move(MUG, UP))
    moved = [(0, [("remove", "mug")], 0), (0, [("keep", "mug")], 1)]
    assert shapes(edits) == moved
    again = edits.then(e.move(some("mug", 1, 2, 3), UP))  # equal, though not the same object
    assert shapes(again) == [moved[0], (0, [("keep", "mug")], 2)]
    assert shapes(again.then(e.delete(MUG))) == [moved[0]]
    assert shapes(again.undone()) == moved


def test_copies_can_be_told_apart() -> None:
    edits = EditList().then(e.duplicate(MUG, UP)).then(e.tint(MUG, (1, 0, 0), copy=1))
    assert shapes(edits) == [(0, [], 0), (1, [("keep", "mug"), ("tint", "mug")], 1)]
    assert shapes(edits.then(e.delete(MUG, copy=0))) == [
        (0, [("remove", "mug")], 0),
        (1, [("keep", "mug"), ("tint", "mug")], 1),
    ]
    assert [s[2] for s in shapes(edits.then(e.move(MUG, UP)))] == [0, 1, 2]
    with pytest.raises(EditError, match="no copy 2"):
        edits.then(e.delete(MUG, copy=2))


def test_extraction_leaves_one_thing() -> None:
    edits = EditList().then(e.insert("other.ply")).then(e.extract(DUCK))
    assert shapes(edits) == [(0, [("keep", "duck")], 0)]
    assert shapes(EditList().then(e.delete(DUCK)).then(e.extract(DUCK))) == []


def test_insertions_are_layers_of_their_own() -> None:
    layers = layers_of([e.insert("a.ply", UP), e.delete(MUG)])
    assert [layer.source is not None for layer in layers] == [False, True]
    assert layers[1].transform.translation[2] == 1 and layers[1].origin == 1


# --- colours ----------------------------------------------------------------------------------------------------------


def test_a_tint_keeps_light_and_dark() -> None:
    luma = np.array([0.299, 0.587, 0.114])
    matrix = tint_matrix((0.1, 0.3, 0.9), 1.0)
    for colour in ([0.8, 0.1, 0.1], [0.2, 0.6, 0.3]):
        painted = matrix @ colour
        assert painted @ luma == pytest.approx(np.dot(colour, luma))
        np.testing.assert_allclose(painted / painted.max(), np.array([0.1, 0.3, 0.9]) / 0.9)
    np.testing.assert_array_equal(tint_matrix((1, 0, 0), 0.0), np.eye(3))
    assert (tint_matrix((0, 0, 0), 1.0) == 0).all()


# --- the file ---------------------------------------------------------------------------------------------------------


def every_kind() -> EditList:
    edits = EditList()
    for edit in (
        e.tint(MUG, (0.1, 0.2, 1), 0.5),
        e.duplicate(MUG, Similarity.about((1, 2, 3), 2.0)),
        e.move(DUCK, UP),
        e.delete(DUCK),
        e.insert("things/a.ply", UP),
        e.insert("run/config.yml", UP, FIELD),
        e.extract(MUG, copy=2),
    ):
        edits = edits.then(edit)
    return edits


def test_the_file_is_read_back(tmp_path: Path) -> None:
    path, edits = tmp_path / "edits.json", every_kind()
    edits.save(path, {"config": "config.yml"})
    read = EditList.load(path)
    assert [a.to_json() for a in read.edits] == [b.to_json() for b in edits.edits]
    assert [a.describe() for a in read.edits] == [b.describe() for b in edits.edits]
    assert shapes(read) == shapes(edits)
    assert json.loads(path.read_text())["schema_version"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["edits.json"]
    with pytest.raises(MaskfieldError, match="cannot write"):
        edits.save(path / "edits.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d | {"format": "x"},
        lambda d: d | {"schema_version": 2},
        lambda d: d | {"edits": None},
        lambda d: d | {"edits": [{"kind": "explode"}]},
        lambda d: d | {"edits": [d["edits"][0] | {"colour": [2, 0, 0]}]},
        lambda d: d | {"edits": [d["edits"][0] | {"colour": "red"}]},
        lambda d: d | {"edits": [{k: v for k, v in d["edits"][0].items() if k != "selection"}]},
        lambda d: d | {"edits": [{k: v for k, v in d["edits"][2].items() if k != "transform"}]},
        lambda d: d | {"edits": [d["edits"][3] | {"copy": 4}]},
        lambda d: [],
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "edits.json"
    every_kind().save(path)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))  # type: ignore[operator]
    with pytest.raises(EditError, match=r"edits\.json"):
        EditList.load(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "edits.json").write_text(text)
    with pytest.raises(EditError):
        EditList.load(tmp_path / "edits.json")
    with pytest.raises(EditError):
        EditList.load(tmp_path / "missing.json")


def test_edits_that_make_no_sense_are_refused() -> None:
    nothing = MUG - MUG
    for make in (
        lambda: e.delete(nothing),
        lambda: e.tint(MUG, (1, 0)),
        lambda: e.tint(MUG, (1, 0, float("nan"))),
        lambda: e.tint(MUG, (1, 0, 0), 1.5),
        lambda: e.delete(MUG, copy=-1),
        lambda: e.insert("run/config.yml"),
        lambda: Edit.from_json({"kind": "move", "selection": MUG.to_json()}),
        lambda: EditList().undone(),
    ):
        with pytest.raises(EditError):
            make()


# --- what a file may ask for ------------------------------------------------------------------------------------------


def saved_edit(**changes: object) -> dict:
    return e.tint(MUG, (1, 0, 0)).to_json() | changes


def write(path: Path, *edits: dict) -> Path:
    data = {"format": "maskfield edits", "schema_version": 1, "run": {}, "edits": list(edits)}
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    "edit",
    [
        saved_edit(copy=float("inf")),
        saved_edit(copy=0.5),
        saved_edit(copy=True),
        saved_edit(strength=10**40),
        saved_edit(colour=[10**90, 0, 0]),
        saved_edit(colour={}),
        saved_edit(selection=MUG.to_json() | {"count": float("inf")}),
        saved_edit(selection=MUG.to_json() | {"count": 10**12}),
        saved_edit(selection=MUG.to_json() | {"count": "10"}),
        saved_edit(selection=MUG.to_json() | {"name": ["mug"]}),
        saved_edit(selection=MUG.to_json() | {"name": "\ud800"}),
        saved_edit(selection=MUG.to_json() | {"members": 7}),
        saved_edit(selection=FIELD.to_json() | {"resolution": 2000}),
        saved_edit(selection=FIELD.to_json() | {"terms": [FIELD.to_json()["terms"][0] | {"adds": "false"}]}),
        saved_edit(kind="move", transform={"scale": 10**400, "rotation": 1, "translation": 2}),
        saved_edit(
            kind="move", transform=UP.to_json() | {"rotation": [[1e200, -1e200, 0], [1e200, 1e200, 0], [0, 0, 1]]}
        ),
        saved_edit(kind="insert", source=7, transform=UP.to_json()),
    ],
)
def test_values_of_another_type_or_size_are_refused(tmp_path: Path, edit: dict) -> None:
    with pytest.raises(EditError, match=r"edits\.json") as caught:
        EditList.load(write(tmp_path / "edits.json", edit))
    assert "\n" not in str(caught.value)


def test_memory_is_bounded_by_the_size_of_the_file(tmp_path: Path) -> None:
    """Neighbouring indices pack a thousandfold: 90 kB ask for 64 MB, and for thrice that once they are numbers."""
    count = 1 << 24
    packed = base64.b64encode(zlib.compress(np.ones(count, "<u4").tobytes(), 9)).decode()
    bomb = {"kind": "gaussians", "name": "all", "count": 1 << 31, "members": packed, "fringe": ""}
    path = write(tmp_path / "edits.json", saved_edit(selection=bomb))
    tracemalloc.start()
    with pytest.raises(EditError, match="too large to be read from a file of this size"):
        EditList.load(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size < 1 << 18 and most < 80 << 20


def whole_scene(count: int = 100_000) -> GaussianSelection:
    """Neighbouring indices, which pack well: a few hundred bytes."""
    return GaussianSelection("all", np.arange(count), np.zeros(0, np.int64), count)


def test_selections_that_are_used_again_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e, "_LEAST_INDICES", 150_000)
    large = whole_scene()
    edits = EditList().then(*(e.tint(large, (1, 0, k / 10)) for k in range(10)))
    edits.save(tmp_path / "edits.json")
    assert len(EditList.load(tmp_path / "edits.json")) == 10


def test_what_could_not_be_read_again_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e, "_LEAST_INDICES", 50_000)
    with pytest.raises(EditError, match="too large"):
        EditList().then(e.tint(whole_scene(), (1, 0, 0))).save(tmp_path / "edits.json")
    assert not (tmp_path / "edits.json").exists()


def test_lists_cannot_double_without_end(tmp_path: Path) -> None:
    copy = e.duplicate(MUG, UP).to_json()
    with pytest.raises(EditError, match="more than 1000 copies"):
        EditList.load(write(tmp_path / "edits.json", *[copy] * 40))
    with pytest.raises(EditError, match="1001 edits; 1000"):
        EditList.load(write(tmp_path / "edits.json", *[saved_edit()] * 1001))
    with pytest.raises(EditError, match="changes"):
        EditList.load(write(tmp_path / "edits.json", *[copy] * 9, *[saved_edit()] * 100))
