"""Class maps against labels: 3D-OVS (one indicator per class), OV-NeRF and Semantic-NeRF (one class index per pixel).

Sources: Kunhao-Liu/3D-OVS ``renderer.py`` (Liu et al., NeurIPS 2023), keloee/MaskField ``train_seg_3dovs.py``,
pcl3dv/OV-NeRF ``renderer.py`` and ``funcs.py``, Harry-Zhi/semantic_nerf ``SSR/training/trainer.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from maskfield_ns.evaluation.metrics import confusion_matrix
from maskfield_ns.evaluation.protocols import filters

MASKFIELD_BOX = 15
"""Side of MaskField's mean filter, in pixels."""


class IndicatorScore(NamedTuple):
    """One view of 3D-OVS."""

    iou: Float[np.ndarray, " C"]
    """Per class; 0 where neither labels nor prediction have the class, as scikit-learn's ``jaccard_score`` says."""
    accuracy: float
    """Subset accuracy: share of pixels whose labels are exactly the predicted class. A pixel with no label or with two
    can never be right."""
    undefined: tuple[int, ...]
    """Classes that neither labels nor prediction have; they count as 0 all the same."""


class ConfusionScore(NamedTuple):
    """Figures of a confusion matrix; None where there is nothing to divide by."""

    miou: float | None
    """Mean over classes that labels or prediction have."""
    miou_labelled: float | None
    """Mean over classes that the labels have."""
    accuracy: float | None
    """Share of labelled pixels that are right. OV-NeRF prints this as mAcc."""
    class_accuracy: float | None
    """Mean over labelled classes of the share of their pixels that are right."""
    iou: dict[int, float]
    """Per class, those without any pixel left out."""


def argmax(scores: Float[np.ndarray, "C H W"]) -> Int64[np.ndarray, "H W"]:
    """Class of highest score per pixel; the first one of equals.

    Raises:
        ValueError: scores that are NaN, or not [C, H, W].
    """
    if scores.ndim != 3 or 0 in scores.shape:
        raise ValueError(f"class scores must be [classes, height, width], not {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError("class scores have NaN")
    return scores.argmax(axis=0)


def maskfield_classes(scores: Float[np.ndarray, "C H W"]) -> Int64[np.ndarray, "H W"]:
    """MaskField's rule: scores blended half and half with their 15x15 mean, argmax, 7x7 majority.

    Their code blends each query's mask before it sums masks by class score; both steps are linear, so blending the
    sums is the same.

    Raises:
        ValueError: scores that are not finite, not [C, H, W], or smaller than 2x2 pixels.
    """
    if scores.ndim == 3 and not np.isfinite(scores).all():
        raise ValueError("class scores have NaN or infinity")
    blended = [0.5 * (row + filters.box_mean(row, MASKFIELD_BOX)) for row in scores.astype(np.float32)]
    return filters.majority(argmax(np.stack(blended)) if blended else argmax(scores), len(scores))


def indicator_score(pred: Int[np.ndarray, "H W"], label: Bool[np.ndarray, "C H W"]) -> IndicatorScore:
    """A class map against one mask per class, which may overlap or leave pixels without a class.

    Raises:
        ValueError: sizes that differ, or a prediction outside the classes.
    """
    count = len(label)
    if label.ndim != 3 or label.dtype != bool or pred.shape != label.shape[1:]:
        raise ValueError(f"class map {pred.shape} and labels {label.dtype}{label.shape} do not fit")
    if pred.size == 0 or pred.min() < 0 or pred.max() >= count:
        raise ValueError(f"the class map is empty or has values outside the {count} classes")
    flat, labels = pred.ravel(), label.reshape(count, -1)
    at_prediction = labels[flat, np.arange(flat.size)]
    hits = np.bincount(flat[at_prediction], minlength=count)
    unions = np.bincount(flat, minlength=count) + labels.sum(axis=1) - hits
    iou = np.divide(hits, unions, out=np.zeros(count), where=unions > 0)
    exact = at_prediction & (labels.sum(axis=0) == 1)
    return IndicatorScore(iou, float(exact.mean()), tuple(np.flatnonzero(unions == 0).tolist()))


def confusion(
    pred: Int[np.ndarray, "H W"], label: Int[np.ndarray, "H W"], num_classes: int, void: int = 0
) -> Int64[np.ndarray, "C C"]:
    """Pixel counts of one view, row = label, column = prediction; pixels labelled ``void`` do not count.

    A prediction of ``void`` on a labelled pixel counts, as an error.

    Raises:
        ValueError: sizes that differ, or a value outside the classes.
    """
    if pred.size and (pred.min() < 0 or pred.max() >= num_classes):
        raise ValueError(f"a prediction is outside the {num_classes} classes: {pred.min()}..{pred.max()}")
    counted = label != void
    # Predictions of the void class are moved aside and back: the shared function reads them as "no answer".
    return confusion_matrix(pred[counted] + 1, label[counted] + 1, num_classes + 1, ignore=-2)[1:, 1 : num_classes + 1]


def confusion_score(matrix: Int[np.ndarray, "C C"]) -> ConfusionScore:
    """Figures of a confusion matrix.

    OV-NeRF: of every image, then the mean over images. Semantic-NeRF: of the sum over all test images.
    """
    hits, labelled, predicted = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    unions, total = labelled + predicted - hits, int(matrix.sum())
    iou = {int(index): float(hits[index] / unions[index]) for index in np.flatnonzero(unions)}
    present = np.flatnonzero(labelled)
    return ConfusionScore(
        miou=_mean(list(iou.values())),
        miou_labelled=_mean([iou[int(index)] for index in present]),
        accuracy=int(hits.sum()) / total if total else None,
        class_accuracy=_mean([float(hits[index] / labelled[index]) for index in present]),
        iou=iou,
    )


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
