"""The pipeline: colour steps, then mask steps, and evaluation that adds segmentation figures to nerfstudio's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from maskfield_ns.answers.render import Outputs
from maskfield_ns.data.datamanager import MaskfieldDataManager
from maskfield_ns.data.mask_source import MaskSourceConfig
from maskfield_ns.data.run_info import RunInfo
from maskfield_ns.editing.edits import EditList
from maskfield_ns.editing.show import set_edits
from maskfield_ns.evaluation.benchmark import BenchmarkEvaluator
from maskfield_ns.evaluation.evaluators import AgreementEvaluator, Evaluator, LabelEvaluator
from maskfield_ns.evaluation.labels import LabelledCapture
from maskfield_ns.evaluation.undistorted_labels import ServedLabels
from maskfield_ns.models.base_run import adopt_config, open_base_run, start_at_mask_stage
from maskfield_ns.models.contract import AnyModel
from maskfield_ns.models.queryable import QueryableConfig, QueryableMixin
from maskfield_ns.runs import note_data, save_again
from maskfield_ns.viewer.control import PanelControl


@dataclass
class MaskfieldPipelineConfig(VanillaPipelineConfig):
    """Pipeline of the maskfield methods."""

    _target: type = field(default_factory=lambda: MaskfieldPipeline)
    """Target class to instantiate."""


class MaskfieldPipeline(VanillaPipeline):
    """Routes batches by their kind; the model holds everything that is learnt."""

    config: MaskfieldPipelineConfig

    def __init__(self, config: MaskfieldPipelineConfig, device: str, test_mode: str = "val", **kwargs: Any) -> None:
        model = config.model
        # An opened run has everything in its own config and checkpoint; only training looks at the base run.
        path = model.base_run if test_mode == "val" and isinstance(model, QueryableConfig) else None
        self._base = None if path is None else open_base_run(path, model._target.base_config)
        if self._base is not None:
            adopt_config(config, self._base)
        if isinstance(model, QueryableConfig) and model.system.needs().dense:
            cast(MaskSourceConfig, config.datamanager).dense_maps = True
        super().__init__(config, device, test_mode, **kwargs)  # type: ignore[arg-type]
        if self._base is not None:
            self._asked.load_base(self._base.tensors())
            self.model.to(device)
            CONSOLE.print(f"Colours and geometry: {self._base.checkpoint}")
        self._asked.presenter = PanelControl(cast(AnyModel, self.model))

    @property
    def _asked(self) -> QueryableMixin:
        """The model, by what makes it answer questions."""
        return cast(QueryableMixin, self.model)

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Loads a checkpoint, and in an opened run shows the edits that the config names.

        Raises:
            EditError: the edit file cannot be read, or was made in another run.
        """
        super().load_pipeline(loaded_state, step)
        model = self._asked
        if model.config.edit_file and self.test_mode != "val":
            set_edits(cast(AnyModel, self.model), EditList.load(Path(model.config.edit_file)))

    def get_training_callbacks(self, training_callback_attributes: TrainingCallbackAttributes) -> list:
        """The model's and the datamanager's; with a base run the training begins at the mask stage."""
        trainer = training_callback_attributes.trainer
        if trainer is not None and (note_data(trainer.config) or self._base is not None):
            # The run is opened from other folders, and what was taken over from a base run when that is gone.
            save_again(trainer.config)
        if self._base is not None and trainer is not None:
            start_at_mask_stage(trainer, cast(MaskSourceConfig, self.config.datamanager).mask_start)

        def end(step: int) -> None:
            if trainer is not None and step == trainer._start_step + trainer.config.max_num_iterations - 1:
                self._asked.end_mask_stage(cast(MaskfieldDataManager, self.datamanager).look)

        callbacks = super().get_training_callbacks(training_callback_attributes)
        return [*callbacks, TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], end, 1)]

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict, dict]:
        """A colour step, or from the datamanager's ``mask_start`` on a mask step."""
        ray_bundle, batch = self.datamanager.next_train(step)
        if "mask_view" in batch:
            return self._asked.mask_step(int(batch["mask_view"]), cast(MaskfieldDataManager, self.datamanager).look)
        outputs = self._model(ray_bundle)
        metrics = self.model.get_metrics_dict(outputs, batch)
        return outputs, self.model.get_loss_dict(outputs, batch, metrics), metrics

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, Any]:
        """nerfstudio's averages and the segmentation figures of the held-out views.

        A benchmark scene (read by one of :mod:`maskfield_ns.data.dataparsers`) is scored by its own protocol, a
        labelled capture (``gt/`` beside the images) against its labels. Labels are read here and nowhere else. Without
        labels the figure is agreement: masks proposed on held-out views against rendered masks.
        """
        assert self.datamanager.train_dataset is not None
        metadata = self.datamanager.train_dataset.metadata
        info, benchmark = RunInfo.of(metadata), metadata.get("benchmark")
        served = info.eval_views
        assert info.capture_dir is not None and info.proposer is not None
        labels = None if benchmark else LabelledCapture.load(info.capture_dir)
        model = cast(AnyModel, self.model)
        evaluator: Evaluator | BenchmarkEvaluator
        if benchmark:
            evaluator = BenchmarkEvaluator(model, benchmark, output_path, served)
        elif labels is not None:
            evaluator = LabelEvaluator(model, ServedLabels(labels, served))
        else:
            evaluator = AgreementEvaluator(model, info.proposer)

        def score(outputs: Outputs, batch: Mapping[str, Tensor]) -> None:
            evaluator.add(info.eval_image_names[int(batch["image_idx"])], outputs, batch["image"])

        # The views are rendered once, inside nerfstudio's loop: scoring listens in on it. Images of masks and phrases,
        # a third of the work, are made where they are written.
        with self._asked.listening(score, images=output_path is not None):
            metrics = super().get_average_eval_image_metrics(step, output_path, get_std)
        figures, details = evaluator.summary()
        if output_path is not None:
            evaluator.write(output_path / "segmentation.json", details)
            CONSOLE.print(f"Per-view segmentation figures: {output_path / 'segmentation.json'}")
        # std is not defined with a single held-out view, and NaN is not JSON.
        result: dict[str, Any] = {k: v for k, v in (metrics | figures).items() if np.isfinite(v)}
        if benchmark and get_std:  # ns-eval, which writes JSON; the trainer's own evaluations want numbers only
            result["benchmark"] = details
        return result
