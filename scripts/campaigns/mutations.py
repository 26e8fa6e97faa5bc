"""Damage that files come to: bits, cuts, blocks, foreign bytes; and values that JSON ought not to hold."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np


def damaged(data: bytes, rng: np.random.Generator, others: Sequence[bytes] = ()) -> tuple[str, bytes]:
    """(kind of damage, bytes that differ from ``data``).

    Args:
        data: of a good file.
        rng: makes the choice.
        others: bytes of other good files, which may stand in its place.
    """
    kinds = ["bit", "bits", "cut", "longer", "zeros", "noise", "removed", "doubled", "number", "empty", "all noise"]
    kinds += ["another file"] if others else []
    while True:
        kind = kinds[rng.integers(len(kinds))]
        result = _damaged(bytearray(data), kind, rng, others)
        if result != data:
            return kind, result


def _damaged(data: bytearray, kind: str, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    size = len(data)
    # Headers are small and matter most: half of all places are among the first 2,000 bytes.
    start = int(rng.integers(size if rng.random() < 0.5 else min(size, 2000)))
    end = min(size, start + int(2 ** rng.uniform(0, 12)))
    if kind in ("bit", "bits"):
        for _ in range(1 if kind == "bit" else int(rng.integers(2, 50))):
            data[start] ^= 1 << int(rng.integers(8))
            start = int(rng.integers(size))
    elif kind == "cut":
        del data[start:]
    elif kind == "longer":
        data += rng.bytes(end - start)
    elif kind == "zeros":
        data[start:end] = bytes(end - start)
    elif kind == "noise":
        data[start:end] = rng.bytes(end - start)
    elif kind == "removed":
        del data[start:end]
    elif kind == "doubled":
        data[start:start] = data[start:end]
    elif kind == "number":  # one that announces more than there is
        data[start : start + 8] = int(2 ** rng.uniform(0, 63)).to_bytes(8, "little")
    elif kind == "empty":
        data.clear()
    elif kind == "all noise":
        data[:] = rng.bytes(max(size, 1))
    else:
        data[:] = others[int(rng.integers(len(others)))]
    return bytes(data)


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"),
    2**31, 2**32, 2**63, 2**64, -(2**63), 10**40, 10**400, "", "x", "7", "inf", "\ud800", "\x00", "../../etc/passwd",
    "a" * 10_000, [], {}, [[]], [1, 2, 3], {"kind": "x"}, [None], [float("nan")] * 3,
)  # fmt: skip
"""What takes the place of a value."""


def changed(data: Any, rng: np.random.Generator) -> Any:
    """A copy of plain data in which one to three places hold something else, are gone, or are there twice."""
    data = copy.deepcopy(data)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(data))
        if not places:
            break
        owner, key = places[int(rng.integers(len(places)))]
        action = rng.random()
        if action < 0.1:
            del owner[key]
        elif action < 0.2 and isinstance(owner, list):
            owner.extend([copy.deepcopy(owner[key])] * int(2 ** rng.uniform(0, 11)))
        elif action < 0.3:
            other_owner, other_key = places[int(rng.integers(len(places)))]
            owner[key] = copy.deepcopy(other_owner[other_key])
        else:
            owner[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    return data


def _places(data: Any) -> Any:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items)[:60]:
        yield data, key
        yield from _places(value)
