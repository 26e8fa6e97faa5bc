"""Open-vocabulary 3D segmentation for nerfstudio: mask-feature fields with a query head.

Importing this package must stay cheap (nerfstudio imports every plugin for every command), so nothing here
imports torch, SAM, OpenCLIP or nerfstudio.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskfield_ns.scene import Scene

__version__ = "0.1.0"
__all__ = ["Scene", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Scene":
        from maskfield_ns.scene import Scene

        return Scene
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
