"""Head and cross-entropy in one function: logits of a few rows at a time, never of all, and only where a label counts."""

from __future__ import annotations

from typing import Any

import torch

from fl_trainers.data.encode import IGNORE

CHUNK = {"cpu": 2**23}
"""Logits held at a time, by device: 2**27 elsewhere (512 MiB in float32), where fewer and larger products are faster."""


class _HeadLoss(torch.autograd.Function):  # type: ignore[misc]
    """The gradient is made in the forward pass, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, targets: Any, scale: Any, dtype: Any) -> Any:
        rows = max(64, CHUNK.get(hidden.device.type, 2**27) // weight.shape[0])
        small = weight.to(dtype)
        needs = weight.requires_grad
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs else None
        for start in range(0, hidden.shape[0], rows):
            part, target = hidden[start : start + rows].to(dtype), targets[start : start + rows]
            counted = (target != IGNORE).unsqueeze(1)
            place = target.clamp(min=0).unsqueeze(1)
            logits = (part @ small.T).float()
            norm = torch.logsumexp(logits, dim=-1, keepdim=True)
            total += ((norm - logits.gather(1, place)) * counted).sum()
            grad = logits.sub_(norm).exp_()
            grad.scatter_add_(1, place, torch.full_like(norm, -1.0))
            grad = grad.mul_(counted * scale).to(dtype)
            grad_hidden[start : start + rows] = (grad @ small).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad.T @ part
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.kind = weight.dtype
        return total * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight = ctx.saved_tensors
        return hidden * grads[0].to(hidden.dtype), None if weight is None else (weight * grads[0]).to(ctx.kind), None, None, None


def loss(hidden: Any, weight: Any, targets: Any, scale: Any) -> Any:
    """Sum of the cross-entropies of the rows that count, times scale.

    hidden: [rows, hidden size]; weight: the head's, [vocabulary, hidden size]; targets: [rows], IGNORE where nothing counts;
    scale: a float32 scalar on the device, one over the number of labels that the step counts.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _HeadLoss.apply(hidden, weight, targets, scale, dtype)
