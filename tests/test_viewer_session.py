"""The panel's logic on a small made-up scene: what is typed, asked, selected, clicked, shown and kept."""

from __future__ import annotations

import copy
import functools
import io
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException
from PIL import Image

from maskfield_ns.answers import decision
from maskfield_ns.answers.assignments import assign_pixels
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.render import Outputs
from maskfield_ns.errors import MaskfieldError
from maskfield_ns.foundation.vocabulary import calibration_bank
from maskfield_ns.systems.query_head import QueryHead
from maskfield_ns.viewer.cache import ViewCache, camera_pose, model_state
from maskfield_ns.viewer.compose import MODES
from maskfield_ns.viewer.patches import read_picture
from maskfield_ns.viewer.phrases import MAX_LENGTH, MAX_PHRASES, panel_text, split_phrases
from maskfield_ns.viewer.session import PICTURE, Session

H, W = 24, 32
WORDS = {"duck": 0, "mug": 1, "table": 2, "object": 7}
CHANNELS = 8


class Text:
    """Words of the scene have a direction each, all others one far away from everything."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, phrases: Any) -> torch.Tensor:
        self.calls.append(tuple(phrases))
        return torch.stack([torch.eye(CHANNELS)[WORDS.get(p, 6)] for p in phrases])

    def image(self, patch: np.ndarray) -> torch.Tensor:
        """Yellow is a duck, red a mug; colorless images are of nothing."""
        red, green, blue = patch.reshape(-1, 3).mean(0)
        return torch.eye(CHANNELS)[5 if red < blue + 50 else 0 if green > 100 else 1]


@functools.lru_cache(maxsize=1)
def small_head() -> QueryHead:
    """Three queries on each of three levels."""
    return QueryHead(9, 4, CHANNELS)


class Model(torch.nn.Module):
    """A table across the picture with a duck on its left and a mug on its right, on each level one query of a thing."""

    def __init__(self) -> None:
        super().__init__()
        self.query_head = copy.deepcopy(small_head())
        self.config = SimpleNamespace(decision=DecisionRule(min_support=1, min_share=0.0), negatives=("object",))
        self.text, self.device, self.rendered = Text(), torch.device("cpu"), 0
        self.failure: Exception | None = None
        self.edits = None
        for query in range(9):
            # Everything is a bit of an object.
            self.query_head.adopt(query, torch.eye(CHANNELS)[query % 3] + 0.5 * torch.eye(CHANNELS)[7], 10.0, 10.0)
        things = torch.full((H, W), 2)
        things[8:16, 4:12], things[8:16, 20:28] = 0, 1
        self.things = things
        vectors = self.query_head.mask_vectors.detach().unflatten(0, (3, 3))
        blocks = [2 * vectors[k][things] / vectors[k][0].norm() for k in range(3)]
        self.features = torch.nn.Parameter(torch.cat(blocks, dim=-1))

    def render_view(self, camera: Cameras, box: Any) -> Outputs:
        self.rendered += 1
        if self.failure:
            raise self.failure
        outputs = Outputs(rgb=torch.full((H, W, 3), 0.5), depth=torch.ones(H, W, 1), accumulation=torch.ones(H, W, 1))
        outputs.features = self.features.detach()
        return outputs

    def surface_points(self, camera: Cameras, outputs: Any) -> torch.Tensor:
        return torch.zeros(H, W, 3)


def camera(x: float = 0.0, size: tuple[int, int] = (H, W)) -> Cameras:
    pose = torch.eye(4)[None, :3].clone()
    pose[0, 0, 3] = x
    height, width = size
    return Cameras(
        pose, fx=30.0 * height / H, fy=30.0 * height / H, cx=width / 2, cy=height / 2, width=width, height=height
    )


class Show:
    """A session with a picture of it, as a viewer would have."""

    def __init__(self) -> None:
        self.model = Model()
        self.said: list[str] = []
        self.changes = 0
        self.session = Session(self.model, threading.Lock(), self._changed, self.said.append)

    def _changed(self) -> None:
        self.changes += 1

    def picture(self, where: Cameras | None = None) -> np.ndarray:
        where = camera() if where is None else where
        outputs = self.session.outputs(lambda: self.model.render_view(where, None), where, None)
        picture = outputs[PICTURE]
        assert picture.shape == (H, W, 3)
        assert picture.dtype == torch.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
        for key in list(outputs):
            assert outputs[key].dtype.is_floating_point, "what a dropdown offers must be showable"
            assert outputs[key].shape[-1] in (1, 3)
        return picture.numpy()

    def ask(self, text: str) -> None:
        self.session.ask(text)
        self.session.worker.settle()


@pytest.fixture
def show() -> Iterator[Show]:
    yield Show()


def where_changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.abs(before - after).max(-1) > 0.01


# --- pixel assignments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_level", [True, False])
def test_sparse_answers_equal_dense_ones(by_level: bool) -> None:
    """Against the functions that rendering and evaluation use."""
    generator = torch.Generator().manual_seed(0)
    head = QueryHead(30, 6, CHANNELS, by_level=by_level)
    head.support[:] = torch.where(torch.rand(30, generator=generator) < 0.8, 5.0, 0.0)
    features = 0.4 * torch.randn(70, 90, head.channels, generator=generator)
    rule = DecisionRule()
    scores = torch.rand(4, 30, generator=generator) * (head.support > 0)
    view = assign_pixels(features, head)
    used = (head.support > 0).nonzero()[:, 0]
    dense = head.probabilities(features, used)
    heat = decision.heat_map(dense, scores[:, used], head.levels[used], rule)
    assert (view.heat(scores, rule).movedim(0, -1) - heat).abs().max() < 0.03
    valid = head.support > 0
    expected = decision.instance_map(dense, valid[used], head.levels[used])
    if by_level:
        assert torch.equal(view.instances(valid), torch.where(expected >= 0, used[expected.clamp(min=0)], -1))
        alone = view.heat(scores, rule, level=1).movedim(0, -1)
        bank = head.levels[used] == 1
        assert (alone - dense[..., bank] @ scores[:, used[bank]].T).abs().max() < 0.03


def test_pooling_is_the_mean_of_the_best() -> None:
    opinions = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(1))
    for agreeing in (1, 2, 3, 4):
        expected = opinions.sort(dim=0, descending=True).values[:agreeing].mean(dim=0)
        torch.testing.assert_close(decision.pool_opinions(opinions, agreeing), expected)


# --- what people type -------------------------------------------------------------------------------------------------

NASTY = [
    "",
    " , ,, ",
    "x" * 10_000,
    ", ".join(f"phrase {i}" for i in range(70)),
    "🦆🏽‍🚀, 👩‍👩‍👧, é́́́",
    "\x00\x07\x1b[31m, \u202egnp.exe, \ud800",
    "красная кружка, 红色杯子、鸭子\uff0c бутылка; كوب، بطة",
    "{process.exit()}, <script>alert(1)</script>, ![x](/etc/passwd), `a`, </div>, import x from 'y', {",
    "%s %n {0} ${x} ../../etc/passwd",
    "duck,\nmug\r\n",
]


@pytest.mark.parametrize("text", NASTY)
def test_nothing_typed_breaks_a_picture(show: Show, text: str) -> None:
    show.ask(text)
    for mode in MODES:
        show.session.set(mode=mode)
        show.picture()
    assert show.said
    assert show.changes
    assert not any("did not work" in said or "cannot be" in said for said in show.said)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(), max_size=200))
def test_any_text_becomes_harmless(text: str) -> None:
    parsed = split_phrases(text)
    assert len(parsed.phrases) <= MAX_PHRASES
    assert len(set(parsed.phrases)) == len(parsed.phrases)
    for phrase in parsed.phrases:
        assert phrase == phrase.strip() != ""
        assert len(phrase) <= MAX_LENGTH
        assert phrase.isprintable() or any(c in phrase for c in "\u200c\u200d")
        phrase.encode("utf-8")
    shown = panel_text(text, limit=10**6)
    shown.encode("utf-8")
    plain = shown.replace("&#", "")
    assert not set(plain) & set("{}<>[]()`*_!$\\\"'=/|~\n")
    assert "&" not in plain


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(), max_size=60), mode=st.sampled_from(MODES), threshold=st.floats(0, 1))
def test_any_text_in_any_mode_gives_a_picture(show: Show, text: str, mode: str, threshold: float) -> None:
    show.ask(text)
    show.session.set(mode=mode, found_threshold=threshold)
    show.picture()
    assert not any("did not work" in said or "cannot be" in said for said in show.said)


def test_phrases_are_split_as_people_write_them() -> None:
    assert split_phrases(" red  mug,duck ,, Duck,duck").phrases == ("red mug", "duck", "Duck")
    assert split_phrases("红色杯子、鸭子\uff0c桌子").phrases == ("红色杯子", "鸭子", "桌子")
    many = split_phrases(",".join(map(str, range(60))))
    assert len(many.phrases) == 50
    assert "60" in many.note
    assert "200" in split_phrases("y" * 300).note


def test_text_of_the_panel_stays_what_it_was() -> None:
    import html

    for text in ("a {b} <c> & `d` *e* [f](g)", "ünï 🦆 'quoted'", "红色杯子"):
        assert html.unescape(panel_text(text)) == text
    assert len(html.unescape(panel_text("long " * 100, limit=20))) <= 20


# --- questions and pictures -------------------------------------------------------------------------------------------


def test_a_phrase_changes_the_picture_where_the_thing_is(show: Show) -> None:
    before = show.picture()
    show.ask("duck")
    changed = where_changed(before, show.picture())
    duck = (show.model.things == 0).numpy()
    assert changed[duck].all()
    assert not changed[:, 16:].any()
    (finding,) = show.session.findings()
    assert finding.found
    assert show.said[-1] == "Found."


def test_absent_things_are_not_found(show: Show) -> None:
    before = show.picture()
    show.ask("elephant, mug")
    absent, present = show.session.findings()
    assert not absent.found
    assert present.found
    assert show.said[-1] == "1 of 2 found."
    show.ask("elephant")
    assert not where_changed(before, show.picture()).any()
    assert "Not found" in show.said[-1]


def test_an_empty_text_takes_the_question_back(show: Show) -> None:
    before = show.picture()
    show.ask("duck")
    show.ask(" ")
    assert show.session.question is None
    assert not where_changed(before, show.picture()).any()


def test_modes_show_different_things(show: Show) -> None:
    show.ask("duck, mug")
    pictures = {}
    for mode in MODES:
        show.session.set(mode=mode)
        pictures[mode] = show.picture()
    for i, mode in enumerate(MODES):
        for other in MODES[:i]:
            assert where_changed(pictures[mode], pictures[other]).any(), (mode, other)
    duck, table = (12, 8), (2, 2)
    assert (pictures["Photo"] == 0.5).all()
    assert (pictures["Object alone"][duck] == 0.5).all()
    assert (pictures["Object alone"][table] < 0.2).all()
    heat = pictures["Relevancy heat map"]
    assert heat[duck][0] > heat[duck][2], "hot is red"
    assert heat[table][2] > heat[table][0], "cold is blue"
    legend = {f.name: f.colour for f in show.session.findings()}
    colour = "#" + "".join(f"{round(float(c) * 255):02x}" for c in pictures["Class map"][duck])
    assert colour == legend["duck"]


def test_negatives_threshold_and_level_matter(show: Show) -> None:
    show.ask("duck")
    score = show.session.findings()[0].score
    show.session.set(found_threshold=min(1.0, score + 1e-3))
    assert not show.session.findings()[0].found
    show.session.set(found_threshold=0.35, sharpness=0.4)
    assert show.session.findings()[0].score < score
    show.session.ask("duck", negatives="duck, object")
    show.session.worker.settle()
    assert show.session.findings()[0].score == pytest.approx(0.5)
    show.session.ask("duck")
    show.session.worker.settle()
    show.session.set(level=1)
    assert (show.model.query_head.levels[list(show.session.found_objects().queries)] == 1).all()
    show.picture()


def test_fast_typing_asks_only_the_last(show: Show) -> None:
    gate = threading.Event()
    show.session.worker.later(lambda: gate.wait(10) and None)
    for text in ("d", "du", "duc", "duck"):
        show.session.ask(text)
    gate.set()
    show.session.worker.settle()
    assert [call for call in show.model.text.calls if call not in (("object",), calibration_bank())] == [("duck",)]


def test_a_new_phrase_renders_nothing(show: Show) -> None:
    show.picture()
    for text in ("duck", "mug", "duck, mug"):
        show.ask(text)
        show.picture()
    assert show.model.rendered == 1
    show.picture(camera(1.0))
    assert show.model.rendered == 2
    show.picture()
    assert show.model.rendered == 2


def test_training_makes_kept_views_stale(show: Show) -> None:
    show.picture()
    with torch.no_grad():
        show.model.features.add_(0.0)
    show.picture()
    assert show.model.rendered == 2
    show.model.features.data = show.model.features.data.clone()
    assert model_state(show.model) != model_state(Model())
    show.picture()
    assert show.model.rendered == 3


def test_kept_views_are_bounded() -> None:
    show = Show()
    show.session.cache = ViewCache(max_views=3)
    for x in range(5):
        show.picture(camera(float(x)))
    assert len(show.session.cache) == 3
    size = show.session.cache.largest(camera_pose(camera(4.0)), show.session._state())
    assert size is not None
    show.session.cache = ViewCache(max_bytes=size.nbytes * 2)
    for x in range(5):
        show.picture(camera(float(x)))
    assert len(show.session.cache) == 2


# --- what may go wrong ------------------------------------------------------------------------------------------------


def test_a_failing_render_gives_a_grey_picture_and_a_message(show: Show) -> None:
    show.model.failure = RuntimeError("no such luck")
    show.picture()
    assert "no such luck" in show.said[-1]
    show.model.failure = None
    assert (show.picture() == 0.5).all()


def test_an_interrupted_render_is_passed_on(show: Show) -> None:
    show.model.failure = IOChangeException()
    with pytest.raises(IOChangeException):
        show.picture()


def test_a_failing_answer_gives_the_photo_and_a_message(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    show.ask("duck")

    def fail(*arguments: Any) -> None:
        raise ValueError("bad luck")

    monkeypatch.setattr(show.session, "scores", fail)
    assert (show.picture() == 0.5).all()
    assert "bad luck" in show.said[-1]


def test_a_text_model_that_cannot_be_had_is_said(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(phrases: Any) -> None:
        raise MaskfieldError("cannot download")

    monkeypatch.setattr(show.model, "text", fail)
    show.session.load_text_model()
    show.ask("duck")
    assert show.said[0].startswith("Loading")
    assert show.said[-1] == "cannot download"
    show.picture()


# --- selecting --------------------------------------------------------------------------------------------------------


def test_selecting_what_was_found(show: Show) -> None:
    show.ask("duck")
    session = show.session
    session.select(session.found_objects())
    assert set(session.selection.queries) == {0, 3, 6}
    show.ask("mug")
    session.select(session.found_objects(), "add")
    assert set(session.selection.queries) == {0, 1, 3, 4, 6, 7}
    session.select(session.found_objects(), "remove")
    assert set(session.selection.queries) == {0, 3, 6}
    assert not session.selection.mask(show.model.query_head, session.view_of(camera()).assignments)[:, 16:].any()
    show.ask("duck")
    session.select(session.found_objects(), "remove")
    assert not session.selection, "what was added has been removed"
    session.clear()
    assert not session.selection
    show.ask("elephant")
    session.select(session.found_objects())
    assert not session.selection
    assert "nothing to select" in show.said[-1]


@pytest.mark.parametrize(("x", "y", "thing"), [(8 / W, 12 / H, 0), (24 / W, 12 / H, 1), (0.5, 0.95, 2), (1.0, 1.0, 2)])
def test_a_click_selects_what_is_under_it(show: Show, x: float, y: float, thing: int) -> None:
    before = show.picture()
    show.session.click(camera(), x, y)
    assert {q % 3 for q in show.session.selection.queries} == {thing}
    assert show.model.rendered == 1, "the view that is shown is used"
    changed = where_changed(before, show.picture())
    assert changed[(show.model.things == thing).numpy()].all()
    show.session.click(camera(), 8 / W, 12 / H, "add")
    assert {q % 3 for q in show.session.selection.queries} == {thing, 0}


def test_a_click_finds_the_picture_in_any_size(show: Show) -> None:
    show.picture()
    show.session.click(camera(size=(2 * H, 2 * W)), 8 / W, 12 / H)
    assert show.model.rendered == 1
    show.session.click(camera(5.0), 8 / W, 12 / H)
    assert show.model.rendered == 2, "a camera that was never shown is rendered"


def test_a_click_of_one_level(show: Show) -> None:
    show.session.set(level=0)
    show.session.click(camera(), 8 / W, 12 / H)
    assert show.session.selection.queries == (0,)


# --- patches, lists, edits --------------------------------------------------------------------------------------------


def png(colour: tuple[int, int, int], size: tuple[int, int] = (20, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="PNG")
    return file.getvalue()


def test_a_patch_is_a_question(show: Show) -> None:
    before = show.picture()
    show.session.ask_patch(png((250, 220, 0)), "yellow")
    show.session.worker.settle()
    changed = where_changed(before, show.picture())
    assert changed[(show.model.things == 0).numpy()].all()
    assert not changed[:, 16:].any()
    show.session.ask_patch(np.zeros((3, 3, 3), np.uint8), "speck")
    show.session.worker.settle()
    assert "too small" in show.said[-1]


def test_uploads_are_judged(show: Show) -> None:
    for content in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"x" * 100, b"<svg/>" * 50, png((1, 2, 3))[:60]):
        with pytest.raises(MaskfieldError, match="cannot be read as a picture"):
            read_picture(content)
    with pytest.raises(MaskfieldError, match="million pixels"):
        read_picture(png((1, 2, 3), (7000, 6000)))
    assert max(read_picture(png((1, 2, 3), (3000, 1000))).shape) == 1024
    show.session.ask_patch(b"nonsense", "x")
    show.session.worker.settle()
    assert "cannot be read" in show.said[-1]


def test_the_list_of_objects(show: Show) -> None:
    show.session.list_objects([camera()], phrases=("duck", "mug", "table", "elephant"))
    show.session.worker.settle()
    things = show.session.objects
    assert [t.name for t in things] == ["table", "duck", "mug"]
    assert [t.query for t in things] == [8, 6, 7], "wholes"
    assert things[1].size == pytest.approx(64 / (H * W))
    assert all(t.confidence > 0.9 for t in things)
    assert things[1].label().startswith("duck · 8.3 %")


def test_without_an_editor_nothing_is_edited(show: Show) -> None:
    photo = show.picture()
    show.session.click(camera(), 8 / W, 12 / H)
    show.session.edit("delete")
    show.session.worker.settle()
    assert "cannot be edited" in show.said[-1]
    show.session.clear()
    assert np.array_equal(show.picture(), photo)


def test_callbacks_hold_no_lock(show: Show) -> None:
    """A training step in progress must not keep a question waiting, nor the other way round."""
    lock: Callable[[], Any] = show.session.lock.acquire
    show.picture()
    lock()
    try:
        show.ask("duck")
        show.session.click(camera(), 8 / W, 12 / H)
        assert show.session.selection
        assert show.session.findings()[0].found
    finally:
        show.session.lock.release()
