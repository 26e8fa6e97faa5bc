"""Gaussian splatting for any number of channels, on a CPU and with CUDA.

`rasterize` renders; `prepare_view`, `rasterize_features` and `accumulate` serve scenes whose geometry is fixed.
Importing this package loads torch but no compiler; kernels are compiled (or loaded from the user's cache) at first use.
"""

from maskfield_ns.splatting.api import rasterize
from maskfield_ns.splatting.prepared import accumulate, prepare_view, rasterize_features
from maskfield_ns.splatting.view import PreparedView

__all__ = ["PreparedView", "accumulate", "prepare_view", "rasterize", "rasterize_features"]
