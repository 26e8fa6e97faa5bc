"""Public Python API: open a trained run, ask it for things, measure, edit and export them.

scene = Scene.load("outputs/.../config.yml")
(answer,) = scene.query("red mug")
if answer.found:
    view = scene.render(scene.cameras("test")[0], [answer])
    view.masks["red mug"]                              # bool [H, W]
    scene.measure(answer.selection).oriented_box()     # where it is
    scene.edit("tint", answer.selection, colour=(0, 0.4, 1))
    scene.export("mug.ply", answer.selection)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from maskfield_ns.errors import SelectionError
from maskfield_ns.runs import open_run

if TYPE_CHECKING:
    import torch
    from nerfstudio.cameras.cameras import Cameras

    from maskfield_ns.answers.ask import ActiveQuery
    from maskfield_ns.editing.edits import EditList
    from maskfield_ns.selection.coordinates import CaptureFrame
    from maskfield_ns.selection.measure import Measured
    from maskfield_ns.selection.objects import SceneObject
    from maskfield_ns.selection.selection import Selection
    from maskfield_ns.selection.selector import Level, Selector

_MAX_SIDE = 1 << 14
"""Pixels of a rendered view's side."""


@dataclass(frozen=True)
class Answer:
    """What a scene says to one phrase, picture or pixel."""

    phrase: str
    """The phrase; "picture" or "pixel (row, column)" otherwise."""
    score: float
    """Evidence (:func:`maskfield_ns.answers.decision.evidence`), in [0, 1]: LERF relevancy of the best query, where a
    tie with the best negative is 0.5, less for subparts and for things seen from few views. Of a pixel: how surely it
    belongs to the query."""
    found: bool
    """Whether the score reaches the measured threshold: False means nothing in the scene answers."""
    queries: tuple[int, ...]
    """The scene's queries nearest to the phrase (``DecisionRule.window``), best first; empty when not found.

    Masks come from every query by its relevancy (:func:`maskfield_ns.answers.decision.heat_map`), not from these alone.
    """
    negatives: tuple[str, ...]
    """What the phrase was measured against."""
    scores: Any = field(default=None, repr=False, compare=False)
    """Relevancy of every query of the scene: float tensor [Q]."""
    _select: Callable[[], Selection] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def selection(self) -> Selection:
        """What answers, in 3D; worked out at first use.

        Raises:
            SelectionError: nothing was found.
        """
        if self._select is None:
            raise SelectionError(f'the answer to "{self.phrase}" does not come from an opened scene')
        return self._select()


@dataclass(frozen=True)
class NamedCamera:
    """One view of the capture."""

    name: str
    """Image name as the capture gives it."""
    camera: Cameras
    """A single camera, shape [1]."""


@dataclass(frozen=True)
class RenderedView:
    """A rendered view with the answers in it."""

    rgb: UInt8[np.ndarray, "H W 3"]
    depth: Float32[np.ndarray, "H W"]
    """Along the ray, in the run's scene units."""
    masks: dict[str, Bool[np.ndarray, "H W"]]
    relevancy: dict[str, Float32[np.ndarray, "H W"]]
    class_map: np.ndarray
    """int [H, W]: index of the answer a pixel belongs to, -1 for none."""


class Scene:
    """A trained run, opened for queries; neither the mask cache nor SAM is needed."""

    def __init__(self, pipeline: Any, config_path: Path, step: int) -> None:
        self.pipeline, self.config_path, self.step = pipeline, config_path, step
        self.model = pipeline.model

    @classmethod
    def load(cls, run: Path | str, trust: bool = False) -> Scene:
        """Opens a run.

        Args:
            run: its config.yml, or the folder that holds it.
            trust: open it even if its config names more than settings of nerfstudio, of this package and of installed
                plugins. Such a config runs like a program.

        Raises:
            CheckpointError: there is no run, no checkpoint, or one of another method or version.
            CaptureError: the capture the run was trained on is gone or broken (its cameras are needed).
        """
        opened = open_run(Path(run), trust=trust)
        return cls(opened.pipeline, opened.config_path, opened.step)

    # --- questions ----------------------------------------------------------------------------------------------------

    def query(
        self,
        phrases: str | Sequence[str] | None = None,
        negatives: Sequence[str] | None = None,
        *,
        image: UInt8[np.ndarray, "H W 3"] | None = None,
        pixel: tuple[NamedCamera | Cameras, int, int] | None = None,
        level: Level = "auto",
    ) -> list[Answer]:
        """Asks for things by name, by picture or by pixel; each question is answered on its own.

        Args:
            phrases: one or several, taken verbatim (no prompt template).
            negatives: what relevancy is measured against; LERF's canonical phrases by default.
            image: a picture of what is looked for (a crop of a photograph).
            pixel: camera, row and column: the thing seen there.
            level: only things of this mask level (subpart, part, whole); "auto": all levels together.

        Returns:
            An answer per phrase; of a picture or a pixel, one.

        Raises:
            ValueError: not exactly one kind of question, or a phrase is empty.
            SelectionError: no such level, or the pixel is outside the picture.
            WeightsError: the run's text model cannot be loaded.
        """
        if sum(question is not None for question in (phrases, image, pixel)) != 1:
            raise ValueError("ask for phrases, an image or a pixel: exactly one of them")
        against = tuple(negatives or self.model.config.negatives)
        selector = self.selector
        if image is not None:
            scores = selector.image_scores(np.asarray(image), against)
            return [self._answer("picture", scores, against, level)]
        if pixel is not None:
            return [self._pixel_answer(*pixel, level)]
        assert phrases is not None
        phrases = [phrases] if isinstance(phrases, str) else list(phrases)
        if not phrases or not all(p.strip() for p in phrases):
            raise ValueError("a query needs at least one phrase, and no phrase may be empty")
        active: ActiveQuery = self.model.ask(phrases, negatives)
        return [
            self._answer(phrase, scores, against, level)
            for phrase, scores in zip(active.phrases, active.scores, strict=True)
        ]

    def _answer(self, name: str, scores: torch.Tensor, negatives: tuple[str, ...], level: Level) -> Answer:
        from maskfield_ns.answers.decision import evidence, select_queries

        rule, selector = self.model.config.decision, self.selector
        scores = scores * selector.of_level(level)
        (chosen,) = select_queries(scores[None], rule)
        best = float(evidence(scores, selector.weights(level)))
        found = best >= rule.found_threshold
        queries = tuple(int(q) for q in scores.argsort(descending=True) if found and chosen[q])
        return Answer(
            name,
            best,
            found,
            queries,
            negatives,
            scores,
            lambda: selector.belonging_to(scores, name, level),
        )

    def _pixel_answer(self, camera: NamedCamera | Cameras, row: int, column: int, level: Level) -> Answer:
        import torch

        view = camera.camera if isinstance(camera, NamedCamera) else camera
        selector, count = self.selector, self.model.query_head.num_queries
        name = f"pixel ({row}, {column})"
        scores = torch.zeros(count, device=self.device)
        try:
            features, point = selector.look_at(view, row, column)
            query = selector.query_at(features, level)
        except SelectionError as error:
            if not (0 <= row < int(view.height.item()) and 0 <= column < int(view.width.item())):
                raise
            reason = str(error)

            def nothing() -> Selection:
                raise SelectionError(reason)

            return Answer(name, 0.0, False, (), (), scores, nothing)
        scores[query] = 1.0
        sure = float(self.model.query_head.probabilities(features[None])[0, query])
        return Answer(name, sure, True, (query,), (), scores, lambda: selector.features(features, point, level, name))

    def objects(self, vocabulary: Sequence[str] | None = None) -> list[SceneObject]:
        """What the scene contains, largest first: queries named by the best phrase of a vocabulary.

        Args:
            vocabulary: phrases to name things by; a list of everyday nouns by default.

        Raises:
            ValueError: the vocabulary is empty. WeightsError: the run's text model cannot be loaded.
        """
        from maskfield_ns.selection.objects import list_objects

        return list_objects(self.selector, vocabulary)

    # --- things in 3D -------------------------------------------------------------------------------------------------

    @cached_property
    def selector(self) -> Selector:
        """Makes selections; see :class:`maskfield_ns.selection.selector.Selector`."""
        from maskfield_ns.selection.selector import Selector

        return Selector(self.model, self.pipeline.datamanager.train_dataset.cameras)

    @cached_property
    def frame(self) -> CaptureFrame:
        """Scene coordinates to the capture's own and back."""
        from maskfield_ns.selection.coordinates import CaptureFrame

        return CaptureFrame.of(self.pipeline.datamanager)

    def select(
        self, what: str | int | Sequence[int] | SceneObject | Answer, level: Level = "auto", name: str | None = None
    ) -> Selection:
        """What belongs to a phrase, to queries, to an object of :meth:`objects` or to an answer, in 3D.

        Raises:
            SelectionError: nothing does.
        """
        if isinstance(what, Answer):
            chosen = what.selection
        elif isinstance(what, str):
            chosen = self.selector.text(what, level=level)
        elif isinstance(what, (int, np.integer)):
            chosen = self.selector.queries([int(what)])
        elif isinstance(what, Sequence):
            chosen = self.selector.queries(what)
        else:
            chosen = self.selector.queries([what.query], what.name)
        return chosen if name is None else chosen.named(name)

    def measure(self, selection: Selection | Answer) -> Measured:
        """Boxes, centroid, volume, points, mesh of a selection and its mask in any camera."""
        from maskfield_ns.selection.measure import Measured

        chosen = selection.selection if isinstance(selection, Answer) else selection
        return Measured(chosen, self.selector, self.frame)

    @property
    def edits(self) -> EditList:
        """The edits that are shown."""
        from maskfield_ns.editing.show import edits_of

        return edits_of(self.model)

    @edits.setter
    def edits(self, edits: EditList | None) -> None:
        """Shows other edits. Errors as :func:`maskfield_ns.editing.show.set_edits`."""
        from maskfield_ns.editing.show import set_edits

        set_edits(self.model, edits)

    def edit(self, kind: str, selection: Selection | Answer | None = None, **how: Any) -> EditList:
        """Adds an edit and shows it.

        Args:
            kind: "tint" (``colour``, ``strength``), "delete", "extract", "move" or "duplicate" (``transform``, or
                ``translation``, ``rotation`` in degrees about ``axis``, ``scale``, all about the thing's centre, or
                ``at``: where its lowest point goes), "insert" (``source``, ``transform``, ``selection``).
            selection: what is edited.
            how: as above; ``copy`` picks one copy of a duplicated thing.

        Raises:
            EditError: it makes no sense. PlyError, CheckpointError: something inserted cannot be opened.
        """
        from maskfield_ns.editing.build import make_edit

        chosen = selection.selection if isinstance(selection, Answer) else selection
        self.edits = self.edits.then(make_edit(self.measure, kind, chosen, **how))
        return self.edits

    def undo(self) -> EditList:
        """Takes the last edit back.

        Raises:
            EditError: there is none.
        """
        self.edits = self.edits.undone()
        return self.edits

    def save_edits(self) -> Path:
        """Keeps the edits beside the run: ``edits.json``, and ``config_edited.yml`` that nerfstudio's commands open
        to show them (``ns-render``, ``ns-viewer``). Returns the path of the latter.

        Raises:
            MaskfieldError: the run's folder cannot be written.
        """
        from maskfield_ns.editing.build import save_edits

        return save_edits(self.edits, self.config_path, self.step)

    def export(
        self,
        path: Path | str,
        selection: Selection | Answer | None = None,
        frame: Literal["scene", "capture"] = "scene",
    ) -> int:
        """Writes a selection (or, of Gaussians, the whole edited scene) as .ply, or its measures as .json.

        Args:
            path: ``*.ply`` Gaussians or points of a field, ``*mesh.ply`` a triangle mesh, ``*.json`` boxes.
            selection: what; None: everything.
            frame: coordinates of a .ply: the scene's, or the capture's own.

        Returns:
            How many Gaussians, points, triangles or objects were written.

        Raises:
            MaskfieldError: another file name, nothing to write, or the file cannot be written.
        """
        from maskfield_ns.selection.export import export

        chosen = selection.selection if isinstance(selection, Answer) else selection
        run = {"config": str(self.config_path), "step": self.step}
        return export(self.selector, self.frame, run, Path(path), chosen, frame)

    # --- views --------------------------------------------------------------------------------------------------------

    def cameras(self, split: Literal["train", "test"] = "test", scale: float = 1.0) -> list[NamedCamera]:
        """The capture's cameras.

        Args:
            split: views used for training, or held out.
            scale: of the resolution, e.g. 0.5 for half.

        Raises:
            ValueError: a scale at which pictures have no pixel, or more than anybody can hold.
        """
        datamanager = self.pipeline.datamanager
        dataset = datamanager.train_dataset if split == "train" else datamanager.eval_dataset
        names = datamanager.info.train_image_names if split == "train" else datamanager.info.eval_image_names
        named = []
        for index, name in enumerate(names):
            camera = dataset.cameras[index : index + 1].to(self.model.device)
            if scale != 1.0:
                sides = [float(side) * scale for side in (camera.width, camera.height)]
                if not min(sides) >= 1 or not max(sides) <= _MAX_SIDE:
                    raise ValueError(f"at a scale of {scale} pictures are {sides[0]:.3g} x {sides[1]:.3g} pixels")
                camera.rescale_output_resolution(scale)
            named.append(NamedCamera(name, camera))
        return named

    def render(self, camera: NamedCamera | Cameras, answers: Sequence[Answer] = ()) -> RenderedView:
        """Renders colours, depth and the masks of some answers of :meth:`query` from one camera.

        Mask features are rendered once however many answers there are.
        """
        from maskfield_ns.answers.render import answer_view

        view = camera.camera if isinstance(camera, NamedCamera) else camera
        model = self.model
        outputs = model.render_view(view)
        rgb = (outputs["rgb"].clamp(0, 1) * 255).round().byte().cpu().numpy()
        depth = outputs["depth"][..., 0].float().cpu().numpy()
        height, width = depth.shape
        masks: dict[str, np.ndarray] = {}
        heat: dict[str, np.ndarray] = {}
        class_map = np.full((height, width), -1)
        if answers:
            phrases = [a.phrase for a in answers]
            active = self._active(answers)
            result = answer_view(outputs.features, model.query_head, active, None, model.config.decision)
            masks = dict(zip(phrases, result.masks, strict=True))
            heat = dict(zip(phrases, result.relevancy, strict=True))
            class_map = result.classes
        return RenderedView(rgb, depth, masks, heat, class_map)

    def _active(self, answers: Sequence[Answer]) -> ActiveQuery:
        """What is needed to draw answers."""
        import torch

        from maskfield_ns.answers.ask import ActiveQuery, ask

        phrases = tuple(a.phrase for a in answers)
        if all(a.scores is not None for a in answers):
            scores = torch.stack([a.scores for a in answers])
            nothing = torch.zeros(0, self.model.query_head.embeddings.shape[-1], device=scores.device)
            weights = scores.new_tensor([[float(a.found)] for a in answers]).expand_as(scores)
            return ActiveQuery(phrases, scores, weights, nothing, nothing)
        model = self.model
        negatives = model.text(answers[0].negatives)
        return ask(model.query_head, phrases, model.text(phrases), negatives, model.config.decision)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device
