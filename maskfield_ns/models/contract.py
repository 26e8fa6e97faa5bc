"""What everything above a model may ask of it, by kind of backbone; checked by pyright, implemented in this folder.

Two kinds: Gaussians, which are primitives with a place and channels each, and fields, which say something of any place
in space. A model tells its kind by ``backbone``; type checkers narrow :data:`AnyModel` by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox, SceneBox
from torch import Tensor
from torch.nn import Parameter

if TYPE_CHECKING:
    from maskfield_ns.answers.ask import ActiveQuery
    from maskfield_ns.answers.decision import DecisionRule
    from maskfield_ns.answers.render import Outputs
    from maskfield_ns.answers.text import TextEncoder
    from maskfield_ns.data.run_info import RunInfo
    from maskfield_ns.splatting import PreparedView
    from maskfield_ns.systems.base import System
    from maskfield_ns.systems.query_head import QueryHead


class ShownEdits(Protocol):
    """Edits as a renderer wants them; made by :mod:`maskfield_ns.editing` for one kind of backbone."""

    @property
    def list(self) -> Any:
        """The edits (:class:`maskfield_ns.editing.edits.EditList`)."""
        ...

    @property
    def layers(self) -> Sequence[Any]:
        """Copies of the scene and inserted scenes (:class:`maskfield_ns.editing.edits.Layer`)."""
        ...


class ViewListener(Protocol):
    """Is told of every held-out view that nerfstudio's evaluation renders."""

    def __call__(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> None: ...


class Presenter(Protocol):
    """Shows views to a browser in place of the model's own pictures."""

    def shows_this_thread(self) -> bool:
        """Whether the caller renders for a browser."""
        ...

    def outputs(self, render: Callable[[], Outputs], camera: Cameras, box: OrientedBox | None) -> Outputs:
        """What is shown of a camera."""
        ...


class QueryableModelConfig(Protocol):
    """Options that every model that can be asked has."""

    decision: DecisionRule
    negatives: tuple[str, ...]
    phrases: tuple[str, ...]
    edit_file: str | None


class QueryableModel(Protocol):
    """A radiance field that can be asked questions."""

    edits: Any
    """:class:`ShownEdits` of this backbone, or None; see :func:`maskfield_ns.editing.show.set_edits`."""
    presenter: Presenter | None
    listener: ViewListener | None
    training: bool

    @property
    def config(self) -> QueryableModelConfig: ...
    @property
    def system(self) -> System: ...
    @property
    def query_head(self) -> QueryHead:
        """The scene's queries: what pixels and primitives may belong to."""
        ...

    @property
    def text(self) -> TextEncoder:
        """Phrases and image patches to vectors."""
        ...

    @property
    def run_info(self) -> RunInfo: ...
    @property
    def scene_box(self) -> SceneBox: ...
    @property
    def device(self) -> torch.device: ...
    def parameters(self) -> Iterator[Parameter]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def eval(self) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...

    def ask(self, phrases: Sequence[str], negatives: Sequence[str] | None = None) -> ActiveQuery:
        """Scores phrases against the scene; changes nothing."""
        ...

    def render_view(self, camera: Cameras, obb_box: OrientedBox | None = None) -> Outputs:
        """The backbone's outputs of one camera [1], with ``features``; edits applied."""
        ...

    def surface_points(self, camera: Cameras, outputs: Mapping[str, Tensor]) -> Float[Tensor, "H W 3"]:
        """Where the rays of a rendered view end, scene coordinates."""
        ...


class GaussianModel(QueryableModel, Protocol):
    """Gaussians: primitives whose channels (``gauss_params["mask_features"]``) are rendered like colors."""

    @property
    def backbone(self) -> Literal["gaussians"]: ...
    @property
    def config(self) -> GaussianConfig: ...
    @property
    def gauss_params(self) -> torch.nn.ParameterDict: ...
    def prepared_view(self, camera: Cameras) -> PreparedView:
        """The Gaussians as trained (no edits), as a camera [1] sees them."""
        ...


class GaussianConfig(QueryableModelConfig, Protocol):
    """Options of a model of Gaussians."""

    sh_degree: int


class FieldModel(QueryableModel, Protocol):
    """A field: density, color and channels of any place, rendered along rays."""

    field: Any
    """nerfstudio's: density and color of samples."""
    proposal_sampler: Any
    density_fns: list[Callable[..., Tensor]]
    collider: Callable[[RayBundle], RayBundle] | None
    renderer_rgb: Any
    renderer_accumulation: Any
    renderer_depth: Any
    renderer_expected_depth: Any

    @property
    def backbone(self) -> Literal["field"]: ...
    @property
    def config(self) -> FieldConfig: ...
    @property
    def mask_field(self) -> Callable[[Tensor], Tensor]:
        """Channels of points in the unit cube."""
        ...


class FieldConfig(QueryableModelConfig, Protocol):
    """Options of a model that is a field."""

    samples_per_ray: int
    eval_num_rays_per_chunk: int
    disable_scene_contraction: bool


AnyModel: TypeAlias = "GaussianModel | FieldModel"
"""A model of either kind; ``model.backbone == "gaussians"`` narrows it."""
