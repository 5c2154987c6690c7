"""Triton kernels of the fast steps: what torch does in many passes over memory, in as few as there can be."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fl_trainers.data.encode import IGNORE

BLOCK = 16384
"""Columns at a time."""


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(logits, targets, losses, stride, columns: tl.constexpr, ignored: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row: the loss, and softmax minus one-hot in place of the logits. Reads them twice, writes them once."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    logits += row * stride
    place = tl.arange(0, block)
    if target == ignored:
        for start in range(0, columns, block):
            tl.store(logits + start + place, 0.0, mask=start + place < columns)
        tl.store(losses + row, 0.0)
        return
    chosen = tl.load(logits + target).to(tl.float32)
    largest = float("-inf")
    total = 0.0
    for start in range(0, columns, block):
        part = tl.load(logits + start + place, mask=start + place < columns, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(part))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(part - larger))
        largest = larger
    norm = largest + tl.log(total)
    tl.debug_barrier()  # the chosen logit is read before it is written over
    for start in range(0, columns, block):
        part = tl.load(logits + start + place, mask=start + place < columns, other=float("-inf")).to(tl.float32)
        grad = tl.exp(part - norm) - tl.where(start + place == target, 1.0, 0.0)
        tl.store(logits + start + place, grad, mask=start + place < columns)
    tl.store(losses + row, norm - chosen)


def cross_entropy(logits: Any, targets: Any) -> Any:
    """Losses, float32 [rows]; logits [rows, vocabulary] become their gradients. targets: int64 [rows], IGNORE where nothing counts."""
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _cross_entropy[(logits.shape[0],)](logits, targets, losses, logits.stride(0), logits.shape[1], IGNORE, BLOCK, num_warps=16)
    return losses
