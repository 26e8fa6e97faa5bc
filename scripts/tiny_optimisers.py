"""The optimisers both embedded models are trained with."""

from __future__ import annotations

import torch


def build_optimisers(
    model: torch.nn.Module, lr: float, muon_lr: float, weight_decay: float, extra: tuple[torch.nn.Parameter, ...] = ()
) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum, Jordan et al. 2024) for the weight matrices, AdamW for everything else.

    ``extra`` parameters outside the model are trained without weight decay. Every group remembers its ``base_lr``.
    """
    matrices, decayed, plain = [], [], list(extra)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "token" not in name and "embed" not in name:
            matrices.append(parameter)
        elif parameter.ndim > 1:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    optimisers = [muon, torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))]
    for optimiser, base in zip(optimisers, (muon_lr, lr), strict=True):
        for group in optimiser.param_groups:
            group["base_lr"] = base
    return optimisers


def set_rate(optimisers: list[torch.optim.Optimizer], factor: float) -> None:
    """Scales every group's learning rate relative to its base."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * max(factor, 1e-3)
