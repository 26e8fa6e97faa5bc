"""Public Python API: open a trained run, ask it for things, measure, edit and export them.

scene = Scene.load("outputs/.../config.yml")
(answer,) = scene.query("red mug")
if answer.found:
    view = scene.render(scene.cameras("test")[0], [answer])
    view.masks["red mug"]                              # bool [H, W]
    scene.measure(answer.selection).oriented_box()     # where it is
    scene.edit("tint", answer.selection, color=(0, 0.4, 1))
    scene.export("mug.ply", answer.selection)
"""

from __future__ import annotations

import html
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from maskfield_ns.errors import NothingFoundError, QuestionError, SelectionError
from maskfield_ns.runs import open_run

if TYPE_CHECKING:
    import torch
    from nerfstudio.cameras.cameras import Cameras

    from maskfield_ns.answers.answer import Answer
    from maskfield_ns.answers.objects import SceneObject
    from maskfield_ns.answers.questions import Level
    from maskfield_ns.editing.edits import EditList
    from maskfield_ns.selection.coordinates import CaptureCoordinates
    from maskfield_ns.selection.measure import Measurement
    from maskfield_ns.selection.selection import Selection
    from maskfield_ns.selection.selector import Selector

_MAX_SIDE = 1 << 14
"""Pixels of a rendered view's side."""


@dataclass(frozen=True)
class NamedCamera:
    """One view of the capture."""

    name: str
    """Image name as the capture gives it."""
    camera: Cameras
    """A single camera, shape [1]."""


@dataclass(frozen=True, repr=False)
class RenderedView:
    """A rendered view with the answers in it."""

    rgb: UInt8[np.ndarray, "H W 3"]
    depth: Float32[np.ndarray, "H W"]
    """Along the ray, in the run's scene units."""
    masks: dict[str, Bool[np.ndarray, "H W"]]
    relevancy: dict[str, Float32[np.ndarray, "H W"]]
    class_map: np.ndarray
    """int [H, W]: index of the answer a pixel belongs to, -1 for none."""

    def __repr__(self) -> str:
        height, width = self.depth.shape
        shares = ", ".join(f'"{name}" {mask.mean():.1%}' for name, mask in self.masks.items())
        return f"RenderedView({width}x{height}{': ' + shares if shares else ''})"

    def _repr_png_(self) -> bytes:
        """For notebooks: the image, and beside it each answer's mask."""
        import io

        from PIL import Image

        from maskfield_ns.pictures.sheets import overlay

        images = [self.rgb, *(overlay(self.rgb, mask) for mask in self.masks.values())]
        file = io.BytesIO()
        Image.fromarray(np.concatenate(images, axis=1)).save(file, format="PNG")
        return file.getvalue()


class Scene:
    """A trained run, opened for queries; neither the mask cache nor SAM is needed."""

    def __init__(self, pipeline: Any, config_path: Path, step: int) -> None:
        self.pipeline, self.config_path, self.step = pipeline, config_path, step
        self.model = pipeline.model

    @classmethod
    def load(cls, run: Path | str, trust: bool = False, device: str | None = None) -> Scene:
        """Opens a run.

        Args:
            run: its config.yml, or the folder that holds it.
            trust: open it even if its config names more than settings of nerfstudio, of this package and of installed
                plugins. Such a config runs like a program.
            device: where the model shall be ("cpu", "cuda:1", ...); by default on CUDA where there is one.

        The capture's images are not needed: where they are gone, cameras and coordinates come from the run itself.

        Raises:
            CheckpointError: there is no run, no checkpoint, or one of another method or version.
            CaptureError: the capture is gone or broken, and the run is too old to have saved its cameras.
        """
        opened = open_run(Path(run), trust=trust, device=device, without_capture=True)
        scene = cls(opened.pipeline, opened.config_path, opened.step)
        if scene.model.config.edit_file and not scene.edits:
            from maskfield_ns.editing.edits import EditList

            scene.edits = EditList.load(Path(scene.model.config.edit_file))
        return scene

    def __repr__(self) -> str:
        from maskfield_ns.answers.questions import valid_queries

        kind = "Gaussians" if self.selector.gaussian else "field"
        head = self.model.query_head
        used = int(valid_queries(head, self.model.config.decision).sum())
        return f'Scene("{self.config_path}", step {self.step}, {kind}, {used} queries)'

    def _repr_html_(self) -> str:
        """For notebooks."""
        return f"<code>{html.escape(repr(self))}</code>"

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
        """Asks for objects by name, by image or by pixel; each question is answered on its own and changes nothing.

        Args:
            phrases: one or several, taken verbatim (no prompt template).
            negatives: phrases that relevancy is measured against; LERF's canonical phrases by default.
            image: uint8 RGB of what is looked for (a crop of a photograph).
            pixel: camera, row and column: the object seen there.
            level: only objects of this mask level (subpart, part, whole); "auto": all levels together.

        Returns:
            An answer per phrase; of an image or a pixel, one.

        Raises:
            QuestionError: not exactly one kind of question, an empty phrase, or something of the wrong type.
            SelectionError: no such level, or the pixel is outside the image.
            WeightsError: the run's text model cannot be loaded.
        """
        from maskfield_ns.answers.questions import answer_question, ask_image, ask_texts, level_index

        if sum(question is not None for question in (phrases, image, pixel)) != 1:
            raise QuestionError("ask for phrases, an image or a pixel: exactly one of them")
        model, of_level = self.model, level_index(level)
        if pixel is not None:
            return [self._pixel_answer(pixel, of_level)]
        if image is not None:
            question = ask_image(model.text, image)
        else:
            names = _phrases("phrases", phrases)
            against = tuple(model.config.negatives) if negatives is None else _phrases("negatives", negatives)
            question = ask_texts(model.text, names, against)
        return [self._tied(a) for a in answer_question(model.query_head, question, model.config.decision, of_level)]

    def _tied(self, answer: Answer) -> Answer:
        return replace(answer, _select=lambda own: self.selector.select_answer(own))

    def _pixel_answer(self, pixel: tuple[NamedCamera | Cameras, int, int], level: int | None) -> Answer:
        from maskfield_ns.answers.answer import Answer
        from maskfield_ns.answers.assignments import assign_pixels
        from maskfield_ns.answers.questions import answer_pixel
        from maskfield_ns.selection.surface_views import places_as_trained, surface_points

        try:
            where, row, column = pixel
            row, column = operator.index(row), operator.index(column)
        except (TypeError, ValueError) as error:
            raise QuestionError("a pixel is a camera, a row and a column (two whole numbers)") from error
        camera = _single(where).to(self.device)
        height, width = int(camera.height.item()), int(camera.width.item())
        if not (0 <= row < height and 0 <= column < width):
            raise SelectionError(f"pixel ({row}, {column}) is outside the {width}x{height} image")
        model, name = self.model, f"pixel ({row}, {column})"
        outputs = model.render_view(camera)
        if outputs["accumulation"][row, column, 0] < 0.5:
            return self._tied(Answer(name, 0.0, False, (), reason="nothing is there"))
        places = places_as_trained(model, surface_points(model, camera, outputs)[row, column])
        view = assign_pixels(outputs.features, model.query_head)
        return self._tied(answer_pixel(model.query_head, view, row, column, model.config.decision, level, name, places))

    def region(self, camera: NamedCamera | Cameras, region: Bool[np.ndarray, "H W"] | Sequence[int]) -> Answer:
        """What a region of a view shows: a mask (a scribble's pixels, somebody's segmentation) or a box.

        Args:
            camera: of the view.
            region: bool [H, W], or (top, left, bottom, right) in pixels, the last two exclusive.

        Raises:
            QuestionError: neither of them, or an empty one.
        """
        import torch

        from maskfield_ns.answers.answer import Answer
        from maskfield_ns.answers.assignments import assign_pixels
        from maskfield_ns.answers.prompts import queries_of_region
        from maskfield_ns.answers.questions import answer_queries, valid_queries

        view = _single(camera).to(self.device)
        mask = _region(region, (int(view.height.item()), int(view.width.item())))
        model = self.model
        assignments = assign_pixels(model.render_view(view).features, model.query_head)
        valid = valid_queries(model.query_head, model.config.decision)
        chosen, score = queries_of_region(assignments, torch.from_numpy(mask).to(valid.device), valid)
        queries = chosen.nonzero()[:, 0].tolist()
        if not queries:
            return self._tied(Answer("region", 0.0, False, (), reason="no mask of the training views lies there"))
        return self._tied(
            replace(answer_queries(model.query_head, queries, model.config.decision, "region"), score=score)
        )

    def alike(self, answer: Answer) -> Answer:
        """An answer and everything that looks like it: this mug and all others.

        Raises:
            NothingFoundError: the answer was not found.
        """
        from maskfield_ns.answers.prompts import alike
        from maskfield_ns.answers.questions import valid_queries

        head = self.model.query_head
        valid = valid_queries(head, self.model.config.decision)
        chosen = alike(head.embeddings.detach(), valid, _found(answer).queries)
        return self._of_queries(chosen.nonzero()[:, 0].tolist(), f"{answer.phrase} and alike")

    def grow(self, answer: Answer) -> Answer:
        """What an answer is a part of: the smallest query of a coarser level that holds most of it; else the same.

        Raises:
            NothingFoundError: the answer was not found.
        """
        from maskfield_ns.answers.prompts import larger

        queries = larger(*self.selector.ownership(), _found(answer).queries)
        return answer if queries == answer.queries else self._of_queries(queries, answer.phrase, answer)

    def shrink(self, answer: Answer) -> Answer:
        """A part of an answer: of one of a pixel the part that was pointed at, else the largest; else the same.

        Raises:
            NothingFoundError: the answer was not found.
        """
        from maskfield_ns.answers.prompts import smaller

        owners, mass = self.selector.ownership()
        distance = None
        if answer.places:
            points = self.selector.ownership_points()
            distance = np.min([np.linalg.norm(points - np.asarray(place), axis=1) for place in answer.places], axis=0)
        queries = smaller(owners, mass, _found(answer).queries, distance)
        return answer if queries == answer.queries else self._of_queries(queries, answer.phrase, answer)

    def _of_queries(self, queries: Sequence[int], name: str, was: Answer | None = None) -> Answer:
        from maskfield_ns.answers.questions import answer_queries

        made = answer_queries(self.model.query_head, queries, self.model.config.decision, name)
        return self._tied(made if was is None else replace(made, places=was.places))

    def objects(self, vocabulary: Sequence[str] | None = None, level: Level = "auto") -> list[SceneObject]:
        """What the scene contains, largest first: queries named by the best phrase of a vocabulary.

        Args:
            vocabulary: phrases to name objects by; by default some hundred everyday nouns, with colors.
            level: only objects of this mask level; "auto": whole objects, and parts that have a name of their own.

        Raises:
            QuestionError: the vocabulary is empty. WeightsError: the run's text model cannot be loaded.
        """
        from maskfield_ns.answers.assignments import assign_pixels
        from maskfield_ns.answers.objects import list_objects, overview_cameras
        from maskfield_ns.answers.questions import level_index

        model, names = self.model, None if vocabulary is None else _phrases("vocabulary", vocabulary)
        views = [
            assign_pixels(model.render_view(camera.to(self.device)).features, model.query_head)
            for camera in overview_cameras(self.pipeline.datamanager.train_dataset.cameras)
        ]
        config = model.config
        return list_objects(
            model.query_head, model.text, config.negatives, views, config.decision, names, level_index(level)
        )

    # --- objects in 3D ------------------------------------------------------------------------------------------------

    @cached_property
    def selector(self) -> Selector:
        """Makes selections; see :class:`maskfield_ns.selection.selector.Selector`."""
        from maskfield_ns.selection.selector import Selector

        return Selector(self.model, self.pipeline.datamanager.train_dataset.cameras)

    @cached_property
    def frame(self) -> CaptureCoordinates:
        """Scene coordinates to the capture's own and back."""
        from maskfield_ns.selection.coordinates import CaptureCoordinates

        return CaptureCoordinates.of(self.pipeline.datamanager)

    def select(
        self, what: str | int | Sequence[int] | SceneObject | Answer, level: Level = "auto", name: str | None = None
    ) -> Selection:
        """What belongs to a phrase, to queries, to an object of :meth:`objects` or to an answer, in 3D.

        Raises:
            SelectionError: nothing does.
        """
        from maskfield_ns.answers.answer import Answer

        if isinstance(what, Answer):
            chosen = what.selection if what._select is not None else self.selector.select_answer(what)
        elif isinstance(what, str):
            chosen = self.selector.select_phrase(what, level=level)
        elif isinstance(what, (int, np.integer)):
            chosen = self.selector.select_queries([int(what)])
        elif isinstance(what, Sequence):
            chosen = self.selector.select_queries(what)
        else:
            chosen = self.selector.select_queries([what.query], what.name)
        return chosen if name is None else chosen.named(name)

    def measure(self, selection: Selection | Answer) -> Measurement:
        """Boxes, centroid, volume, points, mesh of a selection and its mask in any camera."""
        from maskfield_ns.selection.measure import Measurement

        return Measurement(self._selection(selection), self.selector, self.frame)

    def _selection(self, what: Selection | Answer) -> Selection:
        from maskfield_ns.answers.answer import Answer

        return self.select(what) if isinstance(what, Answer) else what

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
            kind: "tint" (``color``: sRGB in 0..1, ``strength``), "delete", "extract", "move" or "duplicate"
                (``transform``, or ``translation``, ``rotation`` in degrees about ``axis``, ``scale``, all about the
                object's center, or ``at``: where its lowest point goes), "insert" (``source``, ``transform``,
                ``selection``).
            selection: what is edited.
            how: as above; ``copy`` picks one copy of a duplicated thing.

        Raises:
            EditError: it makes no sense. PlyError, CheckpointError: something inserted cannot be opened.
        """
        from maskfield_ns.editing.build import make_edit

        if "colour" in how:
            warnings.warn("colour= is called color= now", DeprecationWarning, stacklevel=2)
        elif "color" in how:
            how["colour"] = how.pop("color")

        chosen = None if selection is None else self._selection(selection)
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

        chosen = None if selection is None else self._selection(selection)
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

    def camera(
        self,
        intrinsics: Float[np.ndarray, "3 3"],
        pose: Float[np.ndarray, "4 4"],
        size: tuple[int, int],
        *,
        convention: Literal["opencv", "opengl"] = "opencv",
        frame: Literal["capture", "scene"] = "capture",
    ) -> NamedCamera:
        """A camera of one's own, such as a robot's.

        Args:
            intrinsics: K in pixels: fx, fy on the diagonal, cx, cy in the last column.
            pose: camera to world, [4, 4] or [3, 4].
            size: (width, height) in pixels.
            convention: axes of the camera: "opencv" x right, y down, z forward (as ROS and COLMAP); "opengl" x right,
                y up, z backward (as nerfstudio and Blender).
            frame: the world: the capture's own coordinates, or the scene's.

        Raises:
            QuestionError: not such matrices or sizes, or no such convention or frame.
        """
        from maskfield_ns.selection.coordinates import camera_of

        if frame not in ("capture", "scene"):
            raise QuestionError(f"a frame is capture or scene, not {frame}")
        coordinates = self.frame if frame == "capture" else None
        return NamedCamera("camera", camera_of(intrinsics, pose, size, convention, coordinates).to(self.device))

    def render(self, camera: NamedCamera | Cameras, answers: Sequence[Answer] = ()) -> RenderedView:
        """Renders colours, depth and the masks of some answers of :meth:`query` from one camera.

        Mask features are rendered once however many answers there are.
        """
        from maskfield_ns.answers.render import answers_in_view

        model = self.model
        outputs = model.render_view(_single(camera).to(self.device))
        rgb = (outputs["rgb"].clamp(0, 1) * 255).round().byte().cpu().numpy()
        depth = outputs["depth"][..., 0].float().cpu().numpy()
        found = answers_in_view(outputs.features, model.query_head, answers)
        names = [answer.phrase for answer in answers]
        masks, relevancy = (dict(zip(names, maps, strict=True)) for maps in (found.masks, found.relevancy))
        return RenderedView(rgb, depth, masks, relevancy, found.classes)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device


def _phrases(what: str, phrases: object) -> tuple[str, ...]:
    """Phrases that somebody gave, as a tuple without repetitions.

    Raises:
        QuestionError: something else, or none.
    """
    given = (phrases,) if isinstance(phrases, str) else phrases
    if not isinstance(given, Sequence) or not all(isinstance(phrase, str) for phrase in given):
        raise QuestionError(f"{what} must be texts, not {type(phrases).__name__}")
    if not given or not all(phrase.strip() for phrase in given):
        raise QuestionError(f"{what}: at least one is needed, and none may be empty")
    return tuple(dict.fromkeys(given))


def _single(camera: object) -> Cameras:
    """One camera [1].

    Raises:
        QuestionError: something else.
    """
    from nerfstudio.cameras.cameras import Cameras

    found = camera.camera if isinstance(camera, NamedCamera) else camera
    if isinstance(found, Cameras) and found.shape == ():
        found = found.reshape((1,))
    if not isinstance(found, Cameras) or found.shape != (1,):
        shape = f" of shape {tuple(found.shape)}" if isinstance(found, Cameras) else ""
        raise QuestionError(
            f"a camera is one of scene.cameras() or nerfstudio Cameras [1], not {type(found).__name__}{shape}"
        )
    return found


def _found(answer: Answer) -> Answer:
    """The answer, if it found something.

    Raises:
        NothingFoundError: it did not.
    """
    if not answer.found or not answer.queries:
        raise NothingFoundError(f'"{answer.phrase}" was not found')
    return answer


def _region(region: object, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """A region of an image as a mask.

    Raises:
        QuestionError: not a region of an image of this size.
    """
    given = np.asarray(region)
    mask = given
    if given.shape == (4,) and given.dtype.kind in "iu":
        top, left, bottom, right = (max(int(v), 0) for v in given)
        mask = np.zeros(size, bool)
        mask[top:bottom, left:right] = True
    if mask.shape != size or mask.dtype != bool:
        raise QuestionError(
            f"a region is bool {list(size)} or (top, left, bottom, right), not {given.dtype} {list(given.shape)}"
        )
    if not mask.any():
        raise QuestionError("the region is empty")
    return mask
