"""Render labelled captures of random tables: for every seed other objects on another table, with phrases for them.

    python scripts/render_layouts.py --output CAPTURE --seed 3

They are for measuring what was tuned elsewhere: no two seeds share a layout, and none is one of the training pictures.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pybullet as p
import tyro
from render_scenes import photograph, prepare, random_light
from scene_catalogue import ASSETS, SHAPES, Asset
from scene_world import Instance, Layout, Stock, add_object, add_surroundings, add_table
from tiny_phrases import Phrase, nouns_of, truth

SEED_SPACE = 0x1A70
"""First word of the seed sequence: these layouts share nothing with the training pictures' ones."""


def random_table(rng: np.random.Generator, stock: Stock, objects: int) -> Layout:
    """A floor, a table and so many objects on it, some of them on or in others."""
    p.resetSimulation()
    stock.loaded.clear()
    layout = Layout()
    while True:  # the camera walks around the table: no walls
        add_surroundings(rng, stock, layout, str(rng.choice(["plane", "plane100", "quad"], p=[0.5, 0.1, 0.4])))
        if not layout.walls:
            break
        p.resetSimulation()
        stock.loaded.clear()
        layout = Layout()
    add_table(rng, stock, layout, str(rng.choice(["table", "square", "box", "round"], p=[0.5, 0.15, 0.2, 0.15])))
    choices: list[Asset | str] = [*ASSETS, *SHAPES]
    weights = np.array([c.weight if isinstance(c, Asset) else SHAPES[c][3] for c in choices])
    for _ in range(20 * objects):
        what = choices[rng.choice(len(choices), p=weights / weights.sum())]
        add_object(rng, stock, layout, what, str(rng.choice(["rest", "stack"], p=[0.8, 0.2])))
        if len(layout.objects) == objects:
            return layout
    raise RuntimeError(f"no room for {objects} objects on this table: choose another seed")


def phrases_of(instances: list[Instance]) -> list[list[str]]:
    """Per instance the phrases that find it: a noun, a synonym and both with its color. What is true of several
    instances is said of all of them, and what is neither true nor false of one is not said at all."""
    metas = [instance.meta() for instance in instances]
    asked: dict[str, Phrase] = {}
    for meta in metas:
        nouns = nouns_of(meta)
        for noun in dict.fromkeys([*nouns[:1], *nouns[-1:]]):
            asked[noun] = Phrase(noun, noun)
            if meta["colour"]:
                asked[f"{meta['colour']} {noun}"] = Phrase(f"{meta['colour']} {noun}", noun, meta["colour"])
    found: list[list[str]] = [[] for _ in metas]
    for text, phrase in asked.items():
        verdicts = [truth(phrase, meta) for meta in metas]
        if all(weight >= 0.5 for _, weight in verdicts):
            for words, (target, _) in zip(found, verdicts, strict=True):
                words += [text] * (target > 0.5)
    return found


def main(
    output: Path, seed: int = 0, views: int = 48, test_views: int = 6, width: int = 320, height: int = 240
) -> None:
    """Write one labelled capture."""
    rng = np.random.default_rng([SEED_SPACE, seed])
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        stock = Stock(rng, Path(folder))
        layout = random_table(rng, stock, int(rng.integers(7, 13)))
        bodies = list(layout.instances)
        instances = [layout.instances[body] for body in bodies]
        labels: dict[int, dict[str, Any]] = {
            body: {"name": f"{instance.cls}_{body}".replace(" ", "_"), "class": instance.cls, "queries": words}
            for body, instance, words in zip(bodies, instances, phrases_of(instances), strict=True)
        }
        light = random_light(rng)
        cx, cy, hx, hy, top = layout.surface
        spread = float(max(hx, hy)) / 0.75
        photograph(
            output, rng, labels, light, np.array([cx, cy, top + 0.055]), spread, (views, test_views), (width, height)
        )


if __name__ == "__main__":
    tyro.cli(main)
