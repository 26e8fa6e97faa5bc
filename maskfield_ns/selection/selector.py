"""Makes selections in an opened run: from phrases, pixels, pictures and queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from maskfield_ns.answers.decision import evidence_weights
from maskfield_ns.errors import NothingFoundError, SelectionError
from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.selection import refine
from maskfield_ns.selection.carving import carve
from maskfield_ns.selection.geometry import aligned_box
from maskfield_ns.selection.selection import (
    FieldSelection,
    FieldTerm,
    GaussianSelection,
    Membership,
    Selection,
    phrase_membership,
    query_membership,
)
from maskfield_ns.selection.surface_views import SurveyView, surface_points, take_survey
from maskfield_ns.splatting import accumulate

Level = Literal["auto", "subpart", "part", "whole"]

FIELD_RESOLUTION = 256
"""Cells along each axis of the contracted scene; a cell is 1/64 scene unit wide where nothing is contracted."""
_DOUBTFUL = 0.35
"""Relevancy, in units of the threshold, from which what lies within or at a thing may belong to it."""
_EVIDENCE_PIXELS = 150_000
"""Pixels that are looked at, at most (and one view more)."""
_MARGIN = 3
"""Pixels around a thing's projection."""
_SEEN = 0.5
"""Pixels of the survey that a Gaussian must paint for them to count as evidence."""
_PIXEL_LEAST = 0.25
"""A pixel that belongs to nothing by more than this selects nothing."""


class Selector:
    """Selections in one opened run.

    Args:
        model: a maskfield model, in evaluation.
        cameras: the training views' [N], for the survey that fields need.
    """

    def __init__(self, model: Any, cameras: Cameras) -> None:
        self.model, self.cameras = model, cameras
        self._survey: list[SurveyView] | None = None
        self._surveyed: Any = None
        self._owned: tuple[Any, np.ndarray] | None = None

    @property
    def survey(self) -> list[SurveyView]:
        """The scene's surfaces; rendered at first use (seconds; a minute for a field on a CPU)."""
        # A training may go on between two selections.
        state = tuple((p.data_ptr(), p._version) for p in self.model.parameters())
        if self._survey is None or self._surveyed != state:
            self._survey = take_survey(self.model, self.cameras)
            self._surveyed = state
        return self._survey

    @property
    def gaussian(self) -> bool:
        """Whether the scene is made of Gaussians."""
        return self.model.backbone == "gaussians"

    # --- what to select -----------------------------------------------------------------------------------------------

    def text(self, phrase: str, negatives: Sequence[str] | None = None, level: Level = "auto") -> Selection:
        """Whatever answers a phrase.

        Args:
            phrase: taken verbatim.
            negatives: what relevancy is measured against; the run's by default.
            level: only things of this mask level; "auto": as masks are made, from all levels together.

        Raises:
            SelectionError: nothing answers. WeightsError: no text model.
        """
        embedding = self.model.text([phrase])
        return self.embedding(embedding[0], phrase, negatives, level)

    def embedding(
        self, embedding: Float[Tensor, " C"], name: str, negatives: Sequence[str] | None = None, level: Level = "auto"
    ) -> Selection:
        """Whatever answers a vector of the run's embedder (of a phrase or a picture). Errors as :meth:`text`."""
        from maskfield_ns.answers.ask import ask

        model = self.model
        texts = model.text(tuple(negatives) if negatives else model.config.negatives)
        active = ask(model.query_head, [name], embedding[None], texts, model.config.decision)
        return self.belonging_to(active.scores[0], name, level)

    def belonging_to(self, scores: Float[Tensor, " Q"], name: str, level: Level = "auto") -> Selection:
        """Whatever belongs to queries by their relevancy. Errors as :meth:`text`."""
        head, rule = self.model.query_head, self.model.config.decision
        valid = self.of_level(level)
        try:
            membership = phrase_membership(scores, head.levels, valid, self.weights(level), rule)
        except SelectionError as error:
            where = "" if level == "auto" else f" at level {level}"
            raise type(error)(f'"{name}"{where}: {error}') from error
        return self.belonging(membership, name)

    def queries(self, queries: Sequence[int], name: str | None = None) -> Selection:
        """What some of the scene's queries hold.

        Raises:
            SelectionError: no such query, or nothing belongs to it.
        """
        count = self.model.query_head.num_queries
        wrong = [q for q in queries if not 0 <= q < count]
        if wrong or not len(queries):
            raise SelectionError(f"queries are numbers from 0 to {count - 1}, not {wrong or 'none'}")
        name = name or "query " + ", ".join(map(str, queries))
        return self.belonging(query_membership([int(q) for q in queries]), name)

    def pixel(self, camera: Cameras, row: int, column: int, level: Level = "auto") -> Selection:
        """The thing under a pixel, in the scene as it is shown (with its edits).

        Args:
            camera: a single one [1].
            row, column: of its picture.
            level: whether the pixel's subpart, part or whole is meant; "auto": the largest that holds it for sure.

        Raises:
            SelectionError: outside the picture, or nothing is known there.
        """
        features, point = self.look_at(camera, row, column)
        return self.features(features, point, level, f"pixel ({row}, {column})")

    def look_at(self, camera: Cameras, row: int, column: int) -> tuple[Float[Tensor, " D"], Float[np.ndarray, " 3"]]:
        """Mask features of a pixel, and where its ray ends. Errors as :meth:`pixel`."""
        model = self.model
        height, width = int(camera.height.item()), int(camera.width.item())
        if not (0 <= row < height and 0 <= column < width):
            raise SelectionError(f"pixel ({row}, {column}) is outside the {width}x{height} picture")
        camera = camera.to(model.device)
        outputs = model.render_view(camera)
        if outputs["accumulation"][row, column, 0] < 0.5:
            raise SelectionError(f"nothing is there at pixel ({row}, {column})")
        point = surface_points(model, camera, outputs)[row, column]
        return outputs.features[row, column], point.cpu().double().numpy()

    def features(
        self, features: Float[Tensor, " D"], near: Float[np.ndarray, " 3"], level: Level = "auto", name: str = "thing"
    ) -> Selection:
        """The thing that rendered mask features speak of, as :meth:`pixel` for callers that have rendered already.

        Args:
            features: of the pixel.
            near: where its ray ends, scene coordinates of the scene as it is shown.
            level: as for :meth:`pixel`.
            name: for the selection.

        Raises:
            SelectionError: nothing is known there.
        """
        query = self.query_at(features, level)
        near = np.asarray(near, np.float64)
        edits = self.model.edits
        places = [near] if edits is None else [layer.transform.inverse(near) for layer in edits.layers]
        return self.belonging(query_membership([query]), name, places)

    def query_at(self, features: Float[Tensor, " D"], level: Level = "auto") -> int:
        """The query that holds a pixel. Errors as :meth:`features`."""
        head = self.model.query_head
        order = (2, 1, 0) if level == "auto" else (LEVELS.index(level),)
        best: tuple[float, int] = (0.0, -1)
        probabilities = head.probabilities(features[None])[0]
        for number in order:
            of_level = self.of_level(LEVELS[number] if head.by_level else "auto").nonzero()[:, 0]
            if not len(of_level):
                continue
            value, place = probabilities[of_level].max(dim=0)
            found = (float(value), int(of_level[place]))
            if found[0] > 0.5:
                return found[1]
            best = max(best, found)
        if best[0] < _PIXEL_LEAST:
            raise SelectionError("nothing was learnt about that pixel: no mask of the training views covers it")
        return best[1]

    def image(
        self, picture: UInt8[np.ndarray, "H W 3"], negatives: Sequence[str] | None = None, level: Level = "auto"
    ) -> Selection:
        """Whatever looks like a picture (a crop of something). Errors as :meth:`text`."""
        return self.belonging_to(self.image_scores(picture, negatives), "picture", level)

    def image_scores(
        self, picture: UInt8[np.ndarray, "H W 3"], negatives: Sequence[str] | None = None
    ) -> Float[Tensor, " Q"]:
        """Relevancy of every query to a picture, in [0, 1]; 0 for queries that stand for nothing.

        Pictures are more like each other than like any phrase, so besides the negative phrases the typical query of the
        scene itself (the 75th percentile of their similarities to the picture) is what a query has to surpass.
        """
        model = self.model
        embeddings = torch.nn.functional.normalize(model.query_head.embeddings.detach(), dim=-1)
        texts = model.text(tuple(negatives) if negatives else model.config.negatives).to(embeddings)
        cosines = embeddings @ self.image_embedding(picture).to(embeddings)
        valid = self.of_level("auto")
        usual = cosines[valid].quantile(0.75) if valid.any() else cosines.new_zeros(())
        hardest = torch.maximum((embeddings @ texts.T).amax(dim=-1), usual)
        return torch.sigmoid(model.config.decision.temperature * (cosines - hardest)) * valid

    def image_embedding(self, picture: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, " C"]:
        """A picture in the run's embedding space: a mask of all of it, embedded as the masks of the cache were.

        Raises:
            SelectionError: not a picture. CheckpointError, WeightsError: no embedder.
        """
        array = np.asarray(picture)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or min(array.shape[:2]) < 4:
            raise SelectionError(f"a picture is uint8 [H, W, 3] of 4 pixels or more, not {array.dtype} {array.shape}")
        return self.model.text.picture(array)

    # --- what belongs to it -------------------------------------------------------------------------------------------

    def belonging(
        self, membership: Membership, name: str, near: Sequence[Float[np.ndarray, " 3"]] | None = None
    ) -> Selection:
        """Everything in 3D that a rule claims, without crumbs elsewhere.

        Args:
            membership: the rule.
            name: for the selection.
            near: of the pieces claimed, keep the one at one of these points.

        Raises:
            SelectionError: nothing is claimed.
        """
        make = self._gaussians if self.gaussian else self._field
        selection = make(membership, name, near)
        if selection.empty:
            raise NothingFoundError(f'nothing in 3D belongs to "{name}"')
        return selection

    def of_level(self, level: str) -> Bool[Tensor, " Q"]:
        """Queries that count, of one level or ("auto") of all.

        Raises:
            SelectionError: no such level.
        """
        head, rule = self.model.query_head, self.model.config.decision
        if level != "auto" and level not in LEVELS:
            raise SelectionError(f"a level is auto, {', '.join(LEVELS)}, not {level}")
        valid = head.valid(rule.min_support, rule.min_share)
        return valid if level == "auto" else valid & (head.levels == LEVELS.index(level))

    def weights(self, level: Level = "auto") -> Float[Tensor, " Q"]:
        """How much each query counts as evidence that a scene has something."""
        head = self.model.query_head
        return evidence_weights(head.support, head.levels, self.model.config.decision, subparts=level == LEVELS[0])

    @torch.no_grad()
    def _gaussians(self, membership: Membership, name: str, near: Sequence[np.ndarray] | None) -> GaussianSelection:
        params = self.model.gauss_params
        relevancy = membership.relevancy(self.model.query_head, params["mask_features"].detach()).cpu().numpy()
        points = params["means"].detach().cpu().double().numpy()
        scales = np.sort(params["scales"].detach().exp().cpu().double().numpy(), axis=1)
        opacity = torch.sigmoid(params["opacities"].detach())[:, 0].cpu().double().numpy()
        disc, width = scales[:, 1], scales[:, 2]  # a Gaussian on a surface is flat: the disc's smaller and larger axis
        chosen = relevancy >= 1
        claimed = chosen.nonzero()[0]
        claimed = claimed[refine.not_oversize(points[claimed], width[claimed])]
        place = _nearest(points[claimed], near)
        # By area, but a wide Gaussian stands for what is behind the thing rather than for much of it.
        mass = opacity[claimed] * np.minimum(disc[claimed], 3 * np.median(disc[claimed] if len(claimed) else 1)) ** 2
        kept = refine.whole_pieces(points[claimed], mass, relevancy[claimed], disc[claimed], place)
        chosen[:] = False
        chosen[claimed[kept]] = True
        chosen = refine.smoothed(points, chosen, relevancy)
        patched = refine.filled(points, chosen, relevancy, width, _DOUBTFUL)
        for_sure, perhaps, seen = self._evidence(membership, points[patched])
        known = seen >= _SEEN
        for_sure, perhaps = for_sure / np.maximum(seen, 1e-6), perhaps / np.maximum(seen, 1e-6)
        members = patched & (~known | np.where(chosen, for_sure >= 0.5, perhaps >= 0.5))
        if not members.any():
            members = patched
        members = refine.enclosed(points, members, width, self.ownership()[0])
        nearby = refine.touching(points, members, width)
        hidden = ~known & refine.within_hulls(points, members, width)
        fringe = nearby & (hidden | (known & (for_sure >= 0.5)) | (patched & (for_sure >= 0.25)))
        return GaussianSelection(name, members.nonzero()[0], fringe.nonzero()[0], len(points))

    @torch.no_grad()
    def ownership(self) -> tuple[Int[np.ndarray, "P L"], Float[np.ndarray, " P"]]:
        """What belongs to which query for sure.

        Returns:
            (query per point and level, fine to coarse, -1 for none; mass per point). Points are Gaussians, or
            the survey's pixels in a field; masses are areas.
        """
        model = self.model
        if self.gaussian:
            params = model.gauss_params
            scales = params["scales"].detach().exp().sort(dim=1).values
            area = torch.sigmoid(params["opacities"].detach())[:, 0] * scales[:, 1] * scales[:, 2]
            return self._owners(params["mask_features"].detach()), area.cpu().double().numpy()
        features = torch.cat([view.features[view.solid] for view in self.survey])
        area = torch.cat([view.footprint[view.solid] for view in self.survey])
        return self._owners(features), area.cpu().double().numpy()

    def _owners(self, features: Float[Tensor, "P D"]) -> Int[np.ndarray, "P L"]:
        head = self.model.query_head
        key = (features.data_ptr(), features._version, len(features))
        if self._owned is None or self._owned[0] != key or not self.gaussian:
            columns = []
            for level in range(len(LEVELS) if head.by_level else 1):
                bank = head.bank(level)
                bank = bank[head.support[bank] > 0]
                column = torch.full((len(features),), -1, device=features.device)
                if len(bank):
                    best = [head.probabilities(part, bank).max(dim=-1) for part in features.split(1 << 15)]
                    sure = [torch.where(b.values > 0.5, bank[b.indices], -1) for b in best]
                    column = torch.cat([column[:0], *sure])
                columns.append(column)
            self._owned = (key, torch.stack(columns, dim=1).cpu().numpy())
        return self._owned[1]

    def _evidence(self, membership: Membership, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What each Gaussian paints in the survey, in pixels: within the thing's rendered masks, within masks of a
        lower threshold, and in all.

        Args:
            membership: makes the masks.
            points: the thing is around these; masks are only made near them.
        """
        head, cloud = self.model.query_head, torch.from_numpy(points).float().to(self.model.device)
        totals = np.zeros((3, len(self.model.gauss_params["means"])))
        looked_at = 0
        # Neighbours last: a floor, which fills every picture, is told from a few spread views.
        order = sorted(range(len(self.survey)), key=lambda i: (i % 4, i))
        for view in (self.survey[i] for i in order):
            row, column, _ = view.project(cloud)
            row, column = row[row >= 0], column[column >= 0]
            if looked_at > _EVIDENCE_PIXELS or not len(row):
                continue
            r0, r1 = max(0, int(row.min()) - _MARGIN), int(row.max()) + _MARGIN + 1
            c0, c1 = max(0, int(column.min()) - _MARGIN), int(column.max()) + _MARGIN + 1
            heat = membership.relevancy(head, view.features[r0:r1, c0:c1])
            looked_at += heat.numel()
            masks = view.depth.new_zeros(*view.depth.shape, 2)
            masks[r0:r1, c0:c1] = torch.stack([heat >= 1, heat >= _DOUBTFUL], dim=-1).to(masks)
            sums, weights = accumulate(view.prepared, masks)
            totals += torch.cat([sums, weights[:, None]], dim=1).T.cpu().double().numpy()
        return totals[0], totals[1], totals[2]

    @torch.no_grad()
    def _field(self, membership: Membership, name: str, near: Sequence[np.ndarray] | None) -> FieldSelection:
        from maskfield_ns.selection.field import field_terms

        claims, head = [], self.model.query_head
        for view in self.survey:
            relevancy = membership.relevancy(head, view.features)
            claims.append((view, relevancy, view.solid & (relevancy >= 1)))

        def joined(pick: Callable[[SurveyView, Tensor], Tensor]) -> np.ndarray:
            parts = [pick(view, heat)[chosen] for view, heat, chosen in claims]
            return torch.cat(parts).cpu().double().numpy()

        points = joined(lambda view, heat: view.points)
        area, relevancy = joined(lambda view, heat: view.footprint), joined(lambda view, heat: heat)
        kept = refine.whole_pieces(points, area, relevancy, np.sqrt(area), _nearest(points, near))
        if not kept.any():
            return FieldSelection(name, (), FIELD_RESOLUTION)
        masks, start = [], 0
        for _, _, chosen in claims:
            mask, size = torch.zeros_like(chosen), int(chosen.sum())
            mask[chosen] = torch.from_numpy(kept[start : start + size]).to(mask.device)
            masks.append(mask)
            start += size
        solid = carve(self.survey, masks, aligned_box(points[kept], area[kept], trim=0.002))
        cells, core = field_terms(self.model, FIELD_RESOLUTION, points[kept], solid, self.survey, masks)
        return FieldSelection(name, (FieldTerm(True, membership, cells, core),), FIELD_RESOLUTION)


def _nearest(points: np.ndarray, places: Sequence[np.ndarray] | None) -> np.ndarray | None:
    """The place that comes closest to any of the points."""
    if places is None or not len(points):
        return None
    return min(places, key=lambda place: float(np.linalg.norm(points - place, axis=1).min()))
