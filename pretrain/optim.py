"""The optimiser of a run and its schedule."""

import math

import torch
from torch import nn

from .run import Optim


def groups(module: nn.Module, optim: Optim) -> list[dict[str, object]]:
    """Parameter groups: matrices decay; biases, norms and other vectors do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    decayed: dict[str, object] = {"params": matrices, "weight_decay": optim.weight_decay}
    return [decayed, {"params": vectors, "weight_decay": 0.0}]


def adamw(module: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW over the module's trained parameters; fused where a GPU is."""
    fused = torch.cuda.is_available()
    return torch.optim.AdamW(groups(module, optim), lr=optim.lr, betas=optim.betas, fused=fused)


def lr_at(optim: Optim, step: int, steps: int) -> float:
    """Learning rate of optimiser step `step` (from 0) of `steps`: warm-up, then decay to 0."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.decay == "none":
        return optim.lr
    done = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    if optim.decay == "linear":
        return optim.lr * max(0.0, 1 - done)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
