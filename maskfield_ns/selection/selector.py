"""Makes selections in an opened run from answers: of texts, images, pixels and queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from maskfield_ns.answers.answer import Answer, Chosen
from maskfield_ns.answers.membership import MembershipRule
from maskfield_ns.answers.questions import Level, answer_queries, answer_question, ask_texts, level_index
from maskfield_ns.errors import NothingFoundError, SelectionError
from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.selection import refine
from maskfield_ns.selection.carving import carve
from maskfield_ns.selection.geometry import aligned_box
from maskfield_ns.selection.selection import (
    FieldSelection,
    FieldTerm,
    GaussianSelection,
    Selection,
)
from maskfield_ns.selection.surface_views import SurfaceView, render_surface_views
from maskfield_ns.splatting import accumulate

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


class Selector:
    """Selections in one opened run.

    Args:
        model: a maskfield model, in evaluation.
        cameras: the training views' [N], for the survey that fields need.
    """

    def __init__(self, model: Any, cameras: Cameras) -> None:
        self.model, self.cameras = model, cameras
        self._survey: list[SurfaceView] | None = None
        self._surveyed: Any = None
        self._owned: tuple[Any, np.ndarray] | None = None

    @property
    def surface_views(self) -> list[SurfaceView]:
        """The scene's surfaces; rendered at first use (seconds; a minute for a field on a CPU)."""
        # A training may go on between two selections.
        state = tuple((p.data_ptr(), p._version) for p in self.model.parameters())
        if self._survey is None or self._surveyed != state:
            self._survey = render_surface_views(self.model, self.cameras)
            self._surveyed = state
        return self._survey

    @property
    def gaussian(self) -> bool:
        """Whether the scene is made of Gaussians."""
        return self.model.backbone == "gaussians"

    # --- what to select -----------------------------------------------------------------------------------------------

    def select_phrase(self, phrase: str, negatives: Sequence[str] | None = None, level: Level = "auto") -> Selection:
        """Whatever answers a phrase.

        Args:
            phrase: taken verbatim.
            negatives: what relevancy is measured against; the run's by default.
            level: only objects of this mask level; "auto": as masks are made, from all levels together.

        Raises:
            SelectionError: nothing answers. WeightsError: no text model.
        """
        model = self.model
        against = tuple(negatives or model.config.negatives)
        question = ask_texts(model.text, [phrase], against)
        (answer,) = answer_question(model.query_head, question, model.config.decision, level_index(level))
        return self.select_answer(answer)

    def select_queries(self, queries: Sequence[int], name: str | None = None) -> Selection:
        """What some of the scene's queries hold.

        Raises:
            SelectionError: no such query, or nothing belongs to it.
        """
        head = self.model.query_head
        wrong = [q for q in queries if not 0 <= q < head.num_queries]
        if wrong or not len(queries):
            raise SelectionError(f"queries are numbers from 0 to {head.num_queries - 1}, not {wrong or 'none'}")
        name = name or "query " + ", ".join(map(str, queries))
        return self.select_answer(answer_queries(head, queries, self.model.config.decision, name))

    def select_answer(self, answer: Answer) -> Selection:
        """What belongs to an answer of this scene; of what was pointed at, the piece that was pointed at.

        Raises:
            NothingFoundError: it was not found, or nothing in 3D belongs to it.
        """
        if not answer.found or answer.rule is None:
            reason = answer.reason or f"nothing there answers this (evidence {answer.score:.2f}): nothing to select"
            raise NothingFoundError(f'"{answer.phrase}": {reason}')
        places = [np.asarray(place, np.float64) for place in answer.places]
        return self.from_rule(answer.rule, answer.phrase or "selection", places or None)

    def select_chosen(self, chosen: Chosen) -> Selection:
        """What several answers, added and removed in order, hold together.

        Raises:
            SelectionError: nothing in 3D belongs to it.
        """
        result: Selection | None = None
        for adds, answer in chosen.terms:
            own = self.select_answer(answer)
            if adds:
                result = own if result is None else result | own
            elif result is not None:
                result = result - own
        if result is None or result.empty:
            raise NothingFoundError("nothing in 3D belongs to the selection")
        return result.named(chosen.name or result.name)

    # --- what belongs to it -------------------------------------------------------------------------------------------

    def from_rule(
        self, membership: MembershipRule, name: str, near: Sequence[Float[np.ndarray, " 3"]] | None = None
    ) -> Selection:
        """Everything in 3D that a rule claims, without small components elsewhere.

        Args:
            membership: the rule.
            name: for the selection.
            near: of the pieces claimed, keep the one nearest to one of these points, scene coordinates.

        Raises:
            SelectionError: nothing is claimed.
        """
        make = self._gaussians if self.gaussian else self._field
        selection = make(membership, name, near)
        if selection.empty:
            raise NothingFoundError(f'nothing in 3D belongs to "{name}"')
        return selection

    @torch.no_grad()
    def _gaussians(self, membership: MembershipRule, name: str, near: Sequence[np.ndarray] | None) -> GaussianSelection:
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
        kept = refine.keep_large_components(points[claimed], mass, relevancy[claimed], disc[claimed], place)
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
        nearby = refine.adjacent(points, members, width)
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
        features = torch.cat([view.features[view.solid] for view in self.surface_views])
        area = torch.cat([view.footprint[view.solid] for view in self.surface_views])
        return self._owners(features), area.cpu().double().numpy()

    def ownership_points(self) -> Float[np.ndarray, "P 3"]:
        """The points of :meth:`ownership`, scene coordinates."""
        if self.model.backbone == "gaussians":
            return self.model.gauss_params["means"].detach().cpu().double().numpy()
        return torch.cat([view.points[view.solid] for view in self.surface_views]).cpu().double().numpy()

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

    def _evidence(self, membership: MembershipRule, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        order = sorted(range(len(self.surface_views)), key=lambda i: (i % 4, i))
        for view in (self.surface_views[i] for i in order):
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
    def _field(self, membership: MembershipRule, name: str, near: Sequence[np.ndarray] | None) -> FieldSelection:
        from maskfield_ns.selection.field import field_terms

        claims, head = [], self.model.query_head
        for view in self.surface_views:
            relevancy = membership.relevancy(head, view.features)
            claims.append((view, relevancy, view.solid & (relevancy >= 1)))

        def joined(pick: Callable[[SurfaceView, Tensor], Tensor]) -> np.ndarray:
            parts = [pick(view, heat)[chosen] for view, heat, chosen in claims]
            return torch.cat(parts).cpu().double().numpy()

        points = joined(lambda view, heat: view.points)
        area, relevancy = joined(lambda view, heat: view.footprint), joined(lambda view, heat: heat)
        kept = refine.keep_large_components(points, area, relevancy, np.sqrt(area), _nearest(points, near))
        if not kept.any():
            return FieldSelection(name, (), FIELD_RESOLUTION)
        masks, start = [], 0
        for _, _, chosen in claims:
            mask, size = torch.zeros_like(chosen), int(chosen.sum())
            mask[chosen] = torch.from_numpy(kept[start : start + size]).to(mask.device)
            masks.append(mask)
            start += size
        solid = carve(self.surface_views, masks, aligned_box(points[kept], area[kept], trim=0.002))
        cells, core = field_terms(self.model, FIELD_RESOLUTION, points[kept], solid, self.surface_views, masks)
        return FieldSelection(name, (FieldTerm(True, membership, cells, core),), FIELD_RESOLUTION)


def _nearest(points: np.ndarray, places: Sequence[np.ndarray] | None) -> np.ndarray | None:
    """The place that comes closest to any of the points."""
    if places is None or not len(points):
        return None
    return min(places, key=lambda place: float(np.linalg.norm(points - place, axis=1).min()))


def coarsest_owner(owners: Int[np.ndarray, "P L"]) -> Int[np.ndarray, " P"]:
    """The query of the coarsest level that holds each point of :meth:`Selector.ownership` for sure; -1: none."""
    result = np.full(len(owners), -1, np.int64)
    for column in range(owners.shape[1]):
        result = np.where(owners[:, column] >= 0, owners[:, column], result)
    return result
