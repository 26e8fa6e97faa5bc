"""The panel's logic without its widgets: what is asked, what is selected, and the picture that follows from it."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException
from torch import Tensor

from maskfield_ns.answers import decision
from maskfield_ns.answers.answer import Answer, Chosen
from maskfield_ns.answers.ask import judge_scores
from maskfield_ns.answers.assignments import assign_pixels
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.objects import SceneObject, full_name, list_objects
from maskfield_ns.answers.questions import (
    Question,
    answer_pixel,
    answer_queries,
    answer_question,
    ask_image,
    ask_texts,
    question_relevancy,
    valid_queries,
)
from maskfield_ns.answers.render import Outputs, feature_colours
from maskfield_ns.foundation.vocabulary import vocabulary
from maskfield_ns.selection.surface_views import places_as_trained, surface_points
from maskfield_ns.viewer import compose
from maskfield_ns.viewer.cache import KeptView, ViewCache, camera_pose, model_state, view_key
from maskfield_ns.viewer.editor import SceneEditor
from maskfield_ns.viewer.patches import read_picture
from maskfield_ns.viewer.phrases import split_phrases
from maskfield_ns.viewer.worker import Worker

PICTURE = "maskfield"
"""Name of the output that shows the panel's picture."""


@dataclass(frozen=True)
class Settings:
    """How answers are made and shown; replaced as a whole, never changed."""

    rule: DecisionRule
    mode: str = compose.MODES[0]
    level: int | None = None
    """Index into LEVELS; None lets all levels have a say."""


@dataclass(frozen=True)
class Finding:
    """The answer to one phrase."""

    name: str
    score: float
    found: bool
    colour: str
    """As in the pictures, ``#rrggbb``."""


class Session:
    """One viewer's conversation with a model.

    Widgets call the methods below from any thread. Slow work (embedding, exports) runs on one thread of the session's
    own and never holds the training lock; results arrive in ``changed``.

    Args:
        model: a QueryableModel.
        lock: held while the model renders (the viewer's training lock); None where nothing else uses the model.
        changed: called, from any thread, when the picture or the answers have changed.
        say: called, from any thread, with one line of plain text for the user.
        editor: edits the scene; without one the scene stays as it is.
    """

    def __init__(
        self,
        model: Any,
        lock: Any = None,
        changed: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
        editor: SceneEditor | None = None,
    ) -> None:
        self.model, self.changed, self.say, self.editor = model, changed, say, editor
        self.lock = contextlib.nullcontext() if lock is None else lock
        self.settings = Settings(model.config.decision)
        self.question: Question | None = None
        self.selection = Chosen()
        self.objects: tuple[SceneObject, ...] = ()
        self.ready = False
        """Whether the text model is loaded."""
        self.cache = ViewCache()
        self.last_picture: UInt8[np.ndarray, "H W 3"] | None = None
        self._asked = 0
        self.worker = Worker(lambda text: self.say(text))

    def load_text_model(self) -> None:
        """Loads the text model in the background, and says so."""

        def load() -> None:
            self.model.text(self.model.config.negatives)
            self.ready = True
            self.say("Ready: type what you are looking for.")
            self.changed()
            self.model.text(vocabulary())  # names for clicked things

        self.say("Loading the text model …")
        self.worker.later(load)

    # --- questions ----------------------------------------------------------------------------------------------------

    def ask(self, text: str, negatives: str = "") -> None:
        """Asks for phrases separated by commas; the answer follows in the background. An empty text takes it back."""
        self._asked += 1
        number = self._asked
        wanted, against = split_phrases(text), split_phrases(negatives)

        def answer() -> None:
            if number != self._asked:  # the user has typed on
                return
            if not wanted.phrases:
                self.question = None
                self.say("Type what you are looking for." if self.ready else "Loading the text model …")
            else:
                negatives = against.phrases or tuple(self.model.config.negatives)
                self.question = ask_texts(self.model.text, wanted.phrases, negatives)
                self.ready = True
                notes = [part for part in (wanted.note, against.note) if part]
                self.say("; ".join(notes) or self._verdict())
            self.changed()

        self.worker.later(answer)

    def ask_patch(self, content: bytes | UInt8[np.ndarray, "H W 3"], name: str) -> None:
        """Asks for what an image patch shows: an image file's bytes, or pixels."""
        self._asked += 1

        def answer() -> None:
            image = read_picture(content) if isinstance(content, bytes) else content
            self.question = ask_image(self.model.text, image, name)
            self.say(self._verdict())
            self.changed()

        self.worker.later(answer)

    def scores(self, question: Question) -> Float[Tensor, "T Q"]:
        """Relevancy of every query of the head, 0 for those of other levels than the chosen one."""
        settings = self.settings
        return question_relevancy(self.model.query_head, question, settings.rule, settings.level)

    def valid(self) -> Bool[Tensor, " Q"]:
        """Queries of the head that count."""
        return valid_queries(self.model.query_head, self.settings.rule)

    def answers(self) -> list[Answer]:
        """The answers to what is being asked, as :meth:`maskfield_ns.Scene.query` gives them."""
        question, settings = self.question, self.settings
        if question is None:
            return []
        return answer_question(self.model.query_head, question, settings.rule, settings.level)

    def findings(self) -> list[Finding]:
        """What is known about each phrase asked."""
        answers = self.answers()
        colours = compose.phrase_colours(len(answers), torch.device("cpu"))
        return [
            Finding(answer.phrase, answer.score, answer.found, compose.hex_colour(colour))
            for answer, colour in zip(answers, colours, strict=True)
        ]

    def _verdict(self) -> str:
        if not bool(self.valid().any()):
            return "Nothing can be found yet: masks are learnt in the last part of the training."
        findings = self.findings()
        found = sum(f.found for f in findings)
        if len(findings) == 1:
            return "Found." if found else "Not found: nothing in this scene answers well enough."
        return f"{found} of {len(findings)} found."

    def set(self, **changes: Any) -> None:
        """Changes settings: ``mode``, ``level``, or fields of the rule (``found_threshold``, ``mask_scale``, ...)."""
        own = {k: v for k, v in changes.items() if k in ("mode", "level")}
        rule = replace(self.settings.rule, **{k: v for k, v in changes.items() if k not in own})
        self.settings = replace(self.settings, rule=rule, **own)
        self.changed()

    # --- selecting ----------------------------------------------------------------------------------------------------

    def found_objects(self) -> Chosen:
        """What answers the question: everything that is outlined."""
        return Chosen.of(*self.answers())

    def select(self, selection: Chosen, how: str = "select") -> None:
        """Makes something the selection, adds it to the selection, or takes it out.

        Args:
            selection: what was found, clicked or picked from the list.
            how: "select", "add" or "remove".
        """
        if not selection:
            self.say("There is nothing to select: ask for something that is found, or click on an object.")
            return
        if how == "add":
            selection = self.selection.union(selection)
        elif how == "remove":
            selection = self.selection.minus(selection)
        self.selection = selection
        self.say("Selected." if selection else "Nothing is selected.")
        self.changed()

    def clear(self) -> None:
        """Selects nothing."""
        self.selection = Chosen()
        self.say("Nothing is selected.")
        self.changed()

    def select_object(self, chosen: SceneObject, how: str = "select") -> None:
        """Selects an object of the list."""
        rule = self.settings.rule
        self.select(Chosen.of(answer_queries(self.model.query_head, [chosen.query], rule, chosen.name)), how)

    def object_under(self, view: KeptView, x: float, y: float) -> Answer:
        """The object at a place in a view, x and y from 0 (left, top) to 1; the same as Scene.query(pixel=...)."""
        height, width = view.assignments.size
        row, column = (min(max(int(v * n), 0), n - 1) for v, n in ((y, height), (x, width)))
        if view.pictures["accumulation"][row, column, 0] < 0.5:
            return Answer("", 0.0, False, ())
        point = surface_points(self.model, view.camera, view.pictures)[row, column]
        answer = answer_pixel(
            self.model.query_head,
            view.assignments,
            row,
            column,
            self.settings.rule,
            self.settings.level,
            places=places_as_trained(self.model, point),
        )
        return replace(answer, phrase=self.name_of(answer.queries))

    def name_of(self, queries: Sequence[int]) -> str:
        """A name from the list of objects if one of them is there, else from the vocabulary."""
        known = [listed.name for listed in self.objects if listed.query in queries]
        if known or not queries:
            return known[0] if known else ""
        if not self.ready:
            return f"object {min(queries)}"
        unit = torch.nn.functional.normalize(self.model.query_head.embeddings.detach()[list(queries)], dim=-1)
        return full_name(unit.mean(0), self.model.text)

    def click(self, camera: Cameras, x: float, y: float, how: str = "select") -> None:
        """Selects the object under a place in the image of a camera, x and y from 0 (left, top) to 1."""
        answer = self.object_under(self.view_of(camera), x, y)
        if answer.found:
            self.select(Chosen.of(answer), how)
        else:
            self.say("There is nothing at this place.")

    # --- pictures -----------------------------------------------------------------------------------------------------

    def view_of(self, camera: Cameras) -> KeptView:
        """What a camera sees: the largest picture kept of it, else one rendered now (which may wait for training)."""
        kept = self.cache.largest(camera_pose(camera), self._state())
        if kept is not None:
            return kept
        with self.lock:
            was_training = self.model.training
            self.model.eval()
            try:
                return self._kept(lambda: self.model.render_view(camera, None), camera, None)
            finally:
                self.model.train(was_training)

    def _state(self) -> Hashable:
        return model_state(self.model), 0 if self.editor is None else self.editor.version

    @torch.no_grad()
    def _kept(self, render: Callable[[], Outputs], camera: Cameras, box: Any) -> KeptView:
        key = view_key(camera, box, self._state())
        view = self.cache.get(key)
        if view is None:
            outputs = render()
            features = outputs.features
            shares = assign_pixels(features, self.model.query_head)
            view = KeptView(dict(outputs), features.half(), shares, camera)
            self.cache.put(key, view)
        return view

    @torch.no_grad()
    def outputs(self, render: Callable[[], Outputs], camera: Cameras, box: Any) -> Outputs:
        """What the viewer shows of a camera; never raises but to let an interrupted rendering end.

        Args:
            render: renders the backbone's outputs and mask features, called unless this view is kept.
            camera: a single camera [1].
            box: the viewer's crop box, or None.
        """
        try:
            view = self._kept(render, camera, box)
        except IOChangeException:  # the user has moved on
            raise
        except Exception as error:
            CONSOLE.print(traceback.format_exc(), markup=False)
            self.say(f"This view cannot be rendered: {error}")
            size = int(camera.height.item()), int(camera.width.item())
            grey = torch.full((*size, 3), 0.3, device=self.model.device)
            return LazyOutputs({PICTURE: grey, "rgb": grey, "depth": grey[..., :1] + 1, "accumulation": grey[..., :1]})
        outputs = LazyOutputs({PICTURE: self._picture(view)})
        outputs.update(view.pictures)
        outputs["mask_features"] = lambda: feature_colours(view.features.float(), self.model.query_head)
        outputs.features = view.features
        return outputs

    def _picture(self, view: KeptView) -> Float[Tensor, "H W 3"]:
        try:
            picture = self.compose(view)
        except IOChangeException:
            raise
        except Exception as error:
            CONSOLE.print(traceback.format_exc(), markup=False)
            self.say(f"This question cannot be shown: {type(error).__name__}: {error}")
            picture = view.pictures["rgb"].clamp(0, 1)
        self.last_picture = (picture * 255).byte().cpu().numpy()
        return picture

    @torch.no_grad()
    def compose(self, view: KeptView) -> Float[Tensor, "H W 3"]:
        """The picture of a view in the chosen mode, in 0..1."""
        settings, question, selection = self.settings, self.question, self.selection
        shares = view.assignments
        rgb = view.pictures["rgb"].float().clamp(0, 1)
        if settings.mode == "Photo" or not shares.by_level:
            return rgb
        if settings.mode == "Instances":
            table = compose.phrase_colours(self.model.query_head.num_queries, rgb.device)
            return compose.class_picture(shares.instances(self.valid(), settings.level), table)
        heat = owner = None
        if question is not None:
            scores = self.scores(question)
            heat = shares.heat(scores, settings.rule, settings.level)
            head = self.model.query_head
            verdict = judge_scores(head, scores, settings.rule, settings.level if head.by_level else None)
            masks = decision.phrase_masks(heat.movedim(0, -1), verdict)
            owner = decision.phrase_map(masks, heat.movedim(0, -1))
        selected = selection.mask(self.model.query_head, shares) if selection else None
        if settings.mode == "Relevancy heat map":
            picture = rgb if heat is None else compose.heat_picture(rgb, heat.amax(0))
        elif settings.mode == "Class map":
            empty = torch.full(shares.size, -1, dtype=torch.long, device=rgb.device)
            colours = compose.phrase_colours(len(question.names) if question else 1, rgb.device)
            picture = compose.class_picture(empty if owner is None else owner, colours)
        elif settings.mode == "Object alone":
            if selected is not None:
                return compose.alone(rgb, selected)
            return rgb if owner is None else compose.alone(rgb, owner >= 0)
        else:
            picture = rgb
            if owner is not None and question is not None:
                picture = compose.tinted(rgb, owner, compose.phrase_colours(len(question.names), rgb.device))
        if selected is not None:
            colour = rgb.new_tensor([compose.SELECTED])
            picture = compose.tinted(picture, selected.long() - 1, colour, strength=0.25)
        return picture

    # --- edits and files ----------------------------------------------------------------------------------------------

    def edit(self, action: str, *arguments: Any) -> None:
        """Runs an action of the editor (``tint``, ``delete``, ...) on the selection, in the background."""

        def run(editor: SceneEditor) -> str:
            said = getattr(editor, action)(self.selection, *arguments)
            name = self.selection.name
            if action == "delete":
                self.selection = Chosen()
            return f"{name}: {said}" if name else said

        self._run(run, needs_selection=True)

    def insert(self, content: bytes, *place: Any) -> None:
        """Puts an uploaded .ply into the scene; arguments as :meth:`SceneEditor.insert`."""
        self._run(lambda editor: editor.insert(content, *place))

    def undo(self) -> None:
        """Takes the last edit back."""
        self._run(lambda editor: editor.undo())

    def save_edits(self) -> None:
        """Keeps the edits beside the run."""
        self._run(lambda editor: editor.save())

    def export(self, folder: Path) -> None:
        """Exports the selection into a new folder."""
        self._run(lambda editor: editor.export(self.selection, folder), needs_selection=True)

    def _run(self, action: Callable[[SceneEditor], str], needs_selection: bool = False) -> None:
        """Something about the editor, in the background; what it returns is said."""

        def run() -> None:
            if self.editor is None:
                self.say("This scene cannot be edited here.")
            elif needs_selection and not self.selection:
                self.say("Select something first.")
            else:
                self.say("Working …")
                self.say(action(self.editor))
                self.changed()

        self.worker.later(run)

    def list_objects(self, cameras: Sequence[Cameras], phrases: Sequence[str] = ()) -> None:
        """Makes the list of what the scene contains, in the background.

        Args:
            cameras: views to look from, single cameras [1].
            phrases: names to choose from; the packaged vocabulary by default.
        """

        def run() -> None:
            self.say("Listing what the scene contains …")
            views = [self.view_of(camera).assignments for camera in cameras]
            model, settings = self.model, self.settings
            self.objects = tuple(
                list_objects(
                    model.query_head,
                    model.text,
                    model.config.negatives,
                    views,
                    settings.rule,
                    phrases or None,
                    settings.level,
                )
            )
            self.say(f"{len(self.objects)} objects listed." if self.objects else "No objects to list yet.")
            self.changed()

        self.worker.later(run)


class LazyOutputs(Outputs):
    """Outputs some of which are made only when they are looked at."""

    def __getitem__(self, name: str) -> Tensor:
        value: Any = super().__getitem__(name)
        if callable(value):
            value = value()
            self[name] = value
        return value
