"""Head and cross-entropy in one function: logits of a few rows at a time, never of all, and only where a label counts."""

from __future__ import annotations

from typing import Any

import torch

from fl_trainers.data.encode import IGNORE
from fl_trainers.fast.masters import Masters, accumulate

CHUNK = {"cpu": 2**23}
"""Logits held at a time, by device: elsewhere, where fewer and larger products are faster, 512 MiB: 2**27 in float32, 2**28 in 16 bits.

Twice that where the head is trained: its gradient is added up over the chunks."""


class _HeadLoss(torch.autograd.Function):  # type: ignore[misc]
    """The gradient is made in the forward pass, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, targets: Any, scale: Any, dtype: Any, compiled: bool, masters: Masters) -> Any:
        usual = (2**29 if weight.requires_grad else 2**28) if compiled else 2**27
        rows = max(64, CHUNK.get(hidden.device.type, usual) // weight.shape[0])
        small = masters.copy(weight, dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if weight.requires_grad else None
        for start in range(0, hidden.shape[0], rows):
            part = hidden[start : start + rows].to(dtype)
            losses, grad = (_compiled if compiled else _by_torch)(part @ small.T, targets[start : start + rows])
            total += losses
            grad_hidden[start : start + rows] = (grad @ small).to(hidden.dtype)
            if grad_weight is not None:
                accumulate(grad_weight, grad.T, part)
        ctx.save_for_backward(grad_hidden, grad_weight, scale)
        ctx.weight, ctx.masters = weight, masters
        return total * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, gradient, scale = ctx.saved_tensors
        factor = grads[0] * scale
        before = (hidden.float() * factor).to(hidden.dtype)  # not in 16 bits: the factor itself would be rounded
        if gradient is not None and ctx.weight in ctx.masters.copies:
            ctx.masters.add_scaled(ctx.weight, gradient, factor)
            gradient = None
        return before, None if gradient is None else (gradient * factor).to(ctx.weight.dtype), None, None, None, None, None


def _by_torch(logits: Any, target: Any) -> tuple[Any, Any]:
    """The sum of the cross-entropies, and what it changes by with each logit."""
    dtype, logits = logits.dtype, logits.float()
    counted = (target != IGNORE).unsqueeze(1)
    place = target.clamp(min=0).unsqueeze(1)
    norm = torch.logsumexp(logits, dim=-1, keepdim=True)
    total = ((norm - logits.gather(1, place)) * counted).sum()
    grad = logits.sub_(norm).exp_()
    grad.scatter_add_(1, place, torch.full_like(norm, -1.0))
    return total, grad.mul_(counted).to(dtype)


def _compiled(logits: Any, target: Any) -> tuple[Any, Any]:
    """The same by one kernel."""
    from fl_trainers.fast.kernels import cross_entropy

    losses = cross_entropy(logits, target)
    return losses.sum(), logits


def loss(hidden: Any, weight: Any, targets: Any, scale: Any, *, compiled: bool = False, masters: Masters | None = None) -> Any:
    """Sum of the cross-entropies of the rows that count, times scale.

    hidden: [rows, hidden size]; weight: the head's, [vocabulary, hidden size]; targets: [rows], IGNORE where nothing counts;
    scale: a float32 scalar on the device, one over the number of labels that the step counts; compiled: by a Triton kernel,
    which costs seconds at the first step.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _HeadLoss.apply(hidden, weight, targets, scale, dtype, compiled, masters or Masters())
