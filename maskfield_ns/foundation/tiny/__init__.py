"""The embedded pair: segment-anything's and OpenCLIP's own classes in small configurations.

The weights ship with the package and were trained by ``scripts/train_tiny.py`` on rendered table-tops; they make
every command work offline and on a CPU, and are no substitute for the full-size models on photographs.
"""

from pathlib import Path

from maskfield_ns.errors import WeightsError

_ASSETS = Path(__file__).resolve().parents[2] / "assets"


def packaged_weights(name: str, override: Path | None = None) -> Path:
    """Path of a packaged weight file (``tiny_sam`` or ``tiny_clip``), or of the file given instead.

    Raises:
        WeightsError: the file does not exist.
    """
    path = Path(override) if override is not None else _ASSETS / f"{name}.safetensors"
    if not path.is_file():
        hint = "the installation is incomplete: reinstall maskfield-ns" if override is None else "check the path"
        raise WeightsError(f"no embedded weights at {path}: {hint}, or train them with scripts/train_tiny.py")
    return path
