"""Public Python API: open a trained run, ask it for things by name.

scene = Scene.load("outputs/.../config.yml")
answer, = scene.query(["red mug"])
if answer.found:
    view = scene.render(scene.cameras("test")[0], [answer])
    view.masks["red mug"]      # bool [H, W]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from maskfield_ns.errors import CheckpointError, MaskfieldError

if TYPE_CHECKING:
    import torch
    from nerfstudio.cameras.cameras import Cameras
    from nerfstudio.engine.trainer import TrainerConfig

    from maskfield_ns.models.mask_outputs import ActiveQuery

CONFIG_NAME = "config.yml"


@dataclass(frozen=True)
class Answer:
    """What a scene says to one phrase."""

    phrase: str
    score: float
    """LERF relevancy of the best query, in [0, 1]; 0.5 is a tie with the best negative."""
    found: bool
    """Whether the score reaches the measured threshold: False means nothing in the scene answers."""
    queries: tuple[int, ...]
    """The scene's queries nearest to the phrase (``DecisionRule.window``), best first; empty when not found.

    Masks come from every query by its relevancy (:func:`maskfield_ns.queries.decision.heat_map`), not from these alone.
    """
    negatives: tuple[str, ...]
    """What the phrase was measured against."""


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
    def load(cls, run: Path | str) -> Scene:
        """Opens a run.

        Args:
            run: its config.yml, or the folder that holds it.

        Raises:
            CheckpointError: there is no run, no checkpoint, or one of another method or version.
            CaptureError: the capture the run was trained on is gone or broken (its cameras are needed).
        """
        config_path = find_config(Path(run))
        # The config names classes by import path and loading it runs their constructors: nerfstudio's format.
        # It is trusted like a program, as all nerfstudio commands do.
        from nerfstudio.utils.eval_utils import eval_setup

        checkpoints = config_path.parent / "nerfstudio_models"
        if not list(checkpoints.glob("step-*.ckpt")):
            raise CheckpointError(f"no checkpoint in {checkpoints}: the training was stopped before its first save")

        def beside_its_config(config: TrainerConfig) -> TrainerConfig:
            # nerfstudio looks below the training's working directory; the run may have moved, or we may be elsewhere.
            config.relative_model_dir = checkpoints.resolve()
            return config

        try:
            _, pipeline, _, step = eval_setup(config_path, test_mode="test", update_config_callback=beside_its_config)
        except MaskfieldError:
            raise
        except Exception as error:  # a foreign or damaged file makes yaml, pickle and torch raise anything
            reason = str(error).partition("\n")[0]  # torch goes on with advice that would be unsafe to follow
            raise CheckpointError(f"cannot open {config_path}: {type(error).__name__}: {reason}") from error
        if not hasattr(pipeline.model, "query_head"):
            raise CheckpointError(f"{config_path} is a run of another method: it has no mask field to query")
        return cls(pipeline, config_path, step)

    # --- questions ----------------------------------------------------------------------------------------------------

    def query(self, phrases: str | Sequence[str], negatives: Sequence[str] | None = None) -> list[Answer]:
        """Asks for things by name; each phrase is answered on its own.

        Args:
            phrases: taken verbatim (no prompt template).
            negatives: what relevancy is measured against; LERF's canonical phrases by default.

        Raises:
            ValueError: a phrase is empty.
            WeightsError: the run's text model cannot be loaded.
        """
        phrases = [phrases] if isinstance(phrases, str) else list(phrases)
        if not phrases or not all(p.strip() for p in phrases):
            raise ValueError("a query needs at least one phrase, and no phrase may be empty")
        active = self.model.ask(phrases, negatives)
        return self._answers(active, tuple(negatives or self.model.config.negatives))

    def _answers(self, active: ActiveQuery, negatives: tuple[str, ...]) -> list[Answer]:
        from maskfield_ns.queries.decision import select_queries

        rule = self.model.config.decision
        selected = select_queries(active.scores, rule)
        answers = []
        for phrase, scores, chosen, found in zip(
            active.phrases, active.scores, selected, active.found(rule), strict=True
        ):
            order = scores.argsort(descending=True)
            queries = tuple(int(q) for q in order if chosen[q])
            answers.append(Answer(phrase, float(scores.max()), bool(found), queries, negatives))
        return answers

    # --- views --------------------------------------------------------------------------------------------------------

    def cameras(self, split: Literal["train", "test"] = "test", scale: float = 1.0) -> list[NamedCamera]:
        """The capture's cameras.

        Args:
            split: views used for training, or held out.
            scale: of the resolution, e.g. 0.5 for half.
        """
        datamanager = self.pipeline.datamanager
        dataset = datamanager.train_dataset if split == "train" else datamanager.eval_dataset
        names = datamanager.train_dataset.metadata["train_image_names" if split == "train" else "eval_image_names"]
        named = []
        for index, name in enumerate(names):
            camera = dataset.cameras[index : index + 1].to(self.model.device)
            if scale != 1.0:
                camera.rescale_output_resolution(scale)
            named.append(NamedCamera(name, camera))
        return named

    def render(self, camera: NamedCamera | Cameras, answers: Sequence[Answer] = ()) -> RenderedView:
        """Renders colours, depth and the masks of some answers of :meth:`query` from one camera.

        Mask features are rendered once however many answers there are.
        """
        from maskfield_ns.models.mask_outputs import answer_view, ask

        view = camera.camera if isinstance(camera, NamedCamera) else camera
        model = self.model
        outputs = model.get_outputs_for_camera(view)
        rgb = (outputs["rgb"].clamp(0, 1) * 255).round().byte().cpu().numpy()
        depth = outputs["depth"][..., 0].float().cpu().numpy()
        height, width = depth.shape
        masks: dict[str, np.ndarray] = {}
        heat: dict[str, np.ndarray] = {}
        class_map = np.full((height, width), -1)
        if answers:
            phrases = [a.phrase for a in answers]
            negatives = model.text(answers[0].negatives)
            active = ask(model.query_head, phrases, model.text(phrases), negatives, model.config.decision)
            result = answer_view(outputs.features, model.query_head, active, None, model.config.decision)
            masks = dict(zip(phrases, result.masks, strict=True))
            heat = dict(zip(phrases, result.relevancy, strict=True))
            class_map = result.classes
        return RenderedView(rgb, depth, masks, heat, class_map)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device


def find_config(run: Path) -> Path:
    """The config.yml of a run given by file or folder.

    Raises:
        CheckpointError: there is none, or several.
    """
    if run.is_file():
        if run.suffix not in (".yml", ".yaml"):
            raise CheckpointError(f"{run} is no {CONFIG_NAME}: pass the one that ns-train wrote")
        return run
    if not run.exists():
        raise CheckpointError(f"no such run: {run}. Pass the config.yml that ns-train wrote")
    found = sorted(run.rglob(CONFIG_NAME))
    if len(found) != 1:
        what = "no" if not found else f"{len(found)}"
        raise CheckpointError(f"{run} holds {what} {CONFIG_NAME}: pass the path of one run's {CONFIG_NAME}")
    return found[0]
