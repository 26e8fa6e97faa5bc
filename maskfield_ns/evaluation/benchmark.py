"""Evaluation on a benchmark: predictions from rendered mask features, scored by the benchmark's own protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maskfield_ns.answers.ask import ask, cosine_spread
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.render import Outputs, ViewAnswer, answer_view, class_votes
from maskfield_ns.data.undistortion import Undistortion
from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.metrics import binary_iou, mean_or_none
from maskfield_ns.evaluation.protocols.known import unexpected
from maskfield_ns.evaluation.protocols.labels import ViewLabels, check_aspect
from maskfield_ns.evaluation.protocols.predictions import ViewPrediction, write_prediction
from maskfield_ns.evaluation.protocols.registry import benchmark
from maskfield_ns.evaluation.protocols.sentences import sentences
from maskfield_ns.evaluation.worst_cases import WorstCases
from maskfield_ns.foundation.vocabulary import calibration_bank
from maskfield_ns.systems.query_head import QueryHead

_CHUNK_PIXELS = 1 << 15
"""Pixels scored at once: all queries of all pixels of a photograph would be gigabytes."""
WORST_SHEET = "worst_cases.png"
PREDICTIONS = "predictions"


class BenchmarkEvaluator:
    """Scores rendered views of a benchmark scene one by one.

    Args:
        model: a model with ``query_head``, ``text`` and ``config.decision``.
        info: what the dataparser put into the metadata under ``benchmark``.
        output: folder for predictions (in the format of ``maskfield score``) and pictures of the worst cases; None:
            nothing is written.
        undistortions: by image name, what was done to the pictures that are rendered; answers are brought back to the
            photograph's pixels, where the labels are.

    Raises:
        BenchmarkError: labels that are missing or inconsistent.
    """

    def __init__(
        self,
        model: Any,
        info: dict[str, Any],
        output: Path | None = None,
        undistortions: Mapping[str, Undistortion | None] | None = None,
    ) -> None:
        self.model, self.info, self.output = model, info, output
        self.undistortions = undistortions or {}
        self.head: QueryHead = model.query_head
        self.rule: DecisionRule = model.config.decision
        self.protocol = benchmark(info["protocol"]).under(info.get("rule"))
        self.protocol_rule = self.protocol.rule(info.get("rule"))
        class_file = info.get("class_file")
        self.labels = self.protocol.open_labels(Path(info["labels"]), Path(class_file) if class_file else None)
        known = set(self.labels.views)
        strangers = [view for view in info["views"].values() if view not in known]
        if strangers:
            raise BenchmarkError(f"{info['labels']} has no labels for {', '.join(strangers[:4])} any more.")
        self.worst = WorstCases()
        self.scorer = self.protocol.make_scorer(self.protocol_rule, self.labels.phrases, self.worst)
        self.notes: list[str] = unexpected(self.protocol.name, info["scene"], self.labels)
        self._resized = False
        self._unseen: list[float] = []
        self._own: list[float] = []
        self._sizes: set[tuple[int, int]] = set()
        self._classes: Tensor | None = None
        if info.get("views_without_camera"):
            lost = ", ".join(info["views_without_camera"])
            self.notes.append(f"labelled views without a camera are not scored: {lost}")

    def add(self, name: str, outputs: Outputs, picture: Tensor | None = None) -> None:
        """Takes in one rendered view, named by the path of its image. The picture itself is not needed.

        Raises:
            BenchmarkError: labels that do not fit the view.
        """
        view = self.info["views"].get(Path(name).stem)
        if view is None:
            return
        how = self.undistortions.get(name)
        rendered = (int(outputs.features.shape[0]), int(outputs.features.shape[1]))
        shown = rendered if how is None else how.photograph
        labels = self.labels.load(view, None if self.labels.fixed_size else shown)
        check_aspect(f"view {view} of {self.info['labels']}", labels.size, shown)
        prediction = self._predict(labels, outputs.features, how)
        self._sizes.add(labels.size)
        self.scorer.add(labels, prediction)
        colours = outputs["rgb"].detach().clamp(0, 1)
        if how is not None:
            bent, seen = how.back(colours.permute(2, 0, 1).cpu(), shown)
            colours = (bent * seen).permute(1, 2, 0)
            self._unseen.append(1 - float(seen.float().mean()))
        self.worst.picture(view, (colours * 255).byte().cpu().numpy())
        if self.output is not None:
            write_prediction(self.output / PREDICTIONS, view, prediction, labels.phrases)

    def summary(self) -> tuple[dict[str, float], dict[str, Any]]:
        """(flat figures, everything per class and view).

        Raises:
            BenchmarkError: no labelled view was rendered.
        """
        result = self.scorer.result()
        if self._own:
            result.figures["miou_own_masks"] = float(mean_or_none(self._own) or 0.0)
        notes = list(self.notes)
        if self._resized:
            notes.append("views were rendered at another size than the labels and resized (bilinear)")
        if self._unseen:
            lost = 100 * max(self._unseen)
            notes.append(
                "views were rendered without lens distortion and their answers brought back to the photographs' pixels "
                f"(bilinear); up to {lost:.1f} % of a view, along its border, was not rendered and has no answer"
            )
        details = result.to_json() | {
            "protocol": self.protocol.name,
            "rule": self.protocol_rule,
            "scene": self.info["scene"],
            "split": self.info["split"],
            "labelled_views_trained": self.info["labelled_views_trained"],
            "scored_sizes": sorted([width, height] for height, width in self._sizes),
            "notes": notes + result.notes,
        }
        return result.figures, details

    def write(self, path: Path, details: dict[str, Any]) -> None:
        """Writes details as JSON and the worst cases as a picture beside it."""
        from maskfield_ns.files import write_json

        if self.worst.write(path.parent / WORST_SHEET):
            details["worst_cases"] = str((path.parent / WORST_SHEET).resolve())
        write_json(path, {"benchmark": details})

    # --- predictions --------------------------------------------------------------------------------------------------

    def _predict(
        self, labels: ViewLabels, features: Float[Tensor, "H W D"], how: Undistortion | None
    ) -> ViewPrediction:
        if self.protocol.kind == "classes":
            # Every pixel must have a class: what was not rendered takes that of the nearest pixel that was.
            scores, _ = self._at_labels(self.class_scores(features).cpu(), labels.size, how)
            return ViewPrediction(scores=scores.numpy())
        bank = self.model.text(calibration_bank())
        answer = self._answer(labels.phrases, features, bank)
        if self.protocol.kind == "masks" and how is None:  # resized by the scorer, as the protocol says
            return ViewPrediction(masks=dict(zip(labels.phrases, answer.masks, strict=True)))
        # The protocol thresholds LERF's relevancy, whatever the range of the embedder's cosines.
        published = self._answer(labels.phrases, features, None) if self.protocol.kind == "relevancy" else answer
        maps, masks = torch.from_numpy(published.relevancy), torch.from_numpy(answer.masks)
        if maps.shape[1:] != labels.size or how is not None:
            lowest = maps.amin(dim=(1, 2), keepdim=True)
            maps, seen = self._at_labels(maps, labels.size, how)
            maps = torch.where(seen, maps, lowest)
            masks = (self._at_labels(masks.float(), labels.size, how)[0] > 0.5) & seen
        own_masks = dict(zip(labels.phrases, masks.numpy(), strict=True))
        if self.protocol.kind != "relevancy":
            return ViewPrediction(masks=own_masks)
        if labels.masks is not None:  # the method's own masks, which may also say "not here", beside the protocol's
            ious = [binary_iou(own, label) for own, label in zip(masks.numpy(), labels.masks, strict=True)]
            self._own += [0.0 if iou is None else iou for iou in ious]
        return ViewPrediction(dict(zip(labels.phrases, maps.numpy()[:, None], strict=True)), own_masks)

    def _answer(
        self, phrases: tuple[str, ...], features: Float[Tensor, "H W D"], bank: Float[Tensor, "B D"] | None
    ) -> ViewAnswer:
        negatives = self.model.text(self.model.config.negatives)
        active = ask(self.head, phrases, self.model.text(phrases), negatives, self.rule, bank)
        return answer_view(features, self.head, active, None, self.rule)

    @torch.no_grad()
    def class_scores(self, features: Float[Tensor, "H W D"]) -> Float[Tensor, "C H W"]:
        """Score of every class of the scene per pixel."""
        embeddings = self.head.embeddings.detach()
        classes = self._class_embeddings().to(embeddings)
        negatives = self.model.text(self.model.config.negatives).to(embeddings)
        spread = cosine_spread(self.head, self.model.text(calibration_bank()), self.rule)
        temperature, rows = self.rule.class_sharpness / spread, max(1, _CHUNK_PIXELS // features.shape[1])
        parts = [
            class_votes(part, self.head, classes, negatives, self.rule, temperature) for part in features.split(rows)
        ]
        scores = torch.cat(parts).permute(2, 0, 1).float()
        if not self.info.get("blank_competes", True):
            scores[0] = -1.0
        return scores

    def _class_embeddings(self) -> Float[Tensor, "C D"]:
        if self._classes is None:
            names = self.labels.phrases
            templates = sentences(self.info.get("templates", "none"))
            if len(templates) == 1:
                self._classes = self.model.text(names)
            else:
                means = [self.model.text([sentence(name) for sentence in templates]).mean(dim=0) for name in names]
                self._classes = torch.nn.functional.normalize(torch.stack(means), dim=1)
        assert self._classes is not None
        return self._classes

    def _at_labels(
        self, maps: Float[Tensor, "N h w"], size: tuple[int, int], how: Undistortion | None
    ) -> tuple[Float[Tensor, "N H W"], Bool[Tensor, "H W"]]:
        """Rendered maps at the labels' pixels, and which of these were rendered."""
        if how is not None:
            self._resized |= size != how.photograph
            return how.back(maps, size)
        if maps.shape[1:] != size:
            self._resized = True
            maps = torch.nn.functional.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
        return maps, torch.ones(size, dtype=torch.bool)
