"""Base classes of proposer and embedder configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

    from maskfield_ns.foundation.protocols import MaskProposer, RegionEmbedder


@dataclass(frozen=True)
class Deferred:
    """A model that is described now and loaded only when called."""

    config: ProposerConfig | EmbedderConfig
    device: Any

    def fingerprint(self) -> dict[str, Any]:
        """What the loaded model's ``fingerprint()`` will be."""
        return self.config.fingerprint()

    def __call__(self) -> Any:
        """Load the model."""
        return self.config.setup(self.device)


@dataclass(frozen=True)
class ProposerConfig:
    """Where masks come from."""

    _speed_only: ClassVar[tuple[str, ...]] = ()
    """Fields that change how fast masks are found, not which."""

    def setup(self, device: str | torch.device) -> MaskProposer:
        """Load the backend.

        Raises:
            WeightsError: its weights are missing or not what they should be.
        """
        raise NotImplementedError(f"{type(self).__name__} describes no proposer")

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the proposer that :meth:`setup` returns, without loading it.

        Raises:
            WeightsError: a weight file given by path does not exist.
        """
        raise NotImplementedError(f"{type(self).__name__} describes no proposer")

    def deferred(self, device: str | torch.device) -> Deferred:
        """For the cache builder, which loads models only when something is left to do."""
        return Deferred(self, device)


@dataclass(frozen=True)
class EmbedderConfig:
    """What turns regions and phrases into vectors."""

    _speed_only: ClassVar[tuple[str, ...]] = ("batch_size",)

    def setup(self, device: str | torch.device) -> RegionEmbedder:
        """Load the backend.

        Raises:
            WeightsError: its weights are missing or not what they should be.
        """
        raise NotImplementedError(f"{type(self).__name__} describes no embedder")

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the embedder that :meth:`setup` returns, without loading it.

        Raises:
            WeightsError: a weight file given by path does not exist.
        """
        raise NotImplementedError(f"{type(self).__name__} describes no embedder")

    def deferred(self, device: str | torch.device) -> Deferred:
        """For the cache builder, which loads models only when something is left to do."""
        return Deferred(self, device)


def describe(identity: Mapping[str, Any], config: ProposerConfig | EmbedderConfig) -> dict[str, Any]:
    """A fingerprint: who the model is, and every parameter that changes its output (JSON-serialisable, no paths)."""
    hidden = (*config._speed_only, "checkpoint", "weights", "model_type", "model", "pretrained")
    parameters = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in hidden}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}
    return {**identity, "parameters": plain}
