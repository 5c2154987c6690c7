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


@triton.jit  # type: ignore[untyped-decorator]
def _norm(x, weight, y, inverse, rows, columns: tl.constexpr, eps, tall: tl.constexpr, wide: tl.constexpr):  # type: ignore[no-untyped-def]
    """`tall` rows: y = x / sqrt(mean(x²) + eps) * weight, and one over the root for the way back."""
    row = tl.program_id(0).to(tl.int64) * tall + tl.arange(0, tall)
    column = tl.arange(0, wide)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    place = row[:, None] * columns + column[None, :]
    part = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(part * part, 1) / columns + eps)
    factor = tl.load(weight + column, mask=column < columns, other=0.0)
    tl.store(y + place, part * scale[:, None] * factor[None, :], mask=inside)
    tl.store(inverse + row, scale, mask=row < rows)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_back(dy, x, weight, inverse, dx, dweight, rows, columns: tl.constexpr, each, tall: tl.constexpr, wide: tl.constexpr):  # type: ignore[no-untyped-def]
    """`each` times `tall` rows: what x gets, and the sum over these rows of what the weight gets."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, wide)
    factor = tl.load(weight + column, mask=column < columns, other=0.0)
    total = tl.zeros((wide,), dtype=tl.float32)
    for turn in range(each):
        row = (program * each + turn) * tall + tl.arange(0, tall)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        place = row[:, None] * columns + column[None, :]
        grad = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(inverse + row, mask=row < rows, other=0.0)[:, None]
        even = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * scale
        total += tl.sum(grad * even, 0)
        grad *= factor[None, :]
        tl.store(dx + place, scale * (grad - even * (tl.sum(grad * even, 1) / columns)[:, None]), mask=inside)
    tl.store(dweight + program * columns + column, total, mask=column < columns)


TILE = 4096
"""Numbers that a program of the norm's kernels has at a time."""
PROGRAMS = 1056
"""Of the way back: eight for each multiprocessor of a Hopper card."""


class RMSNorm(torch.autograd.Function):  # type: ignore[misc]
    """x [rows, columns] of 16 or 32 bits, weight float32 [columns] → [rows, columns] in dtype."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, eps: float, dtype: Any) -> Any:
        rows, columns = x.shape
        wide = triton.next_power_of_2(columns)
        tall = max(1, TILE // wide)
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
        inverse = torch.empty(rows, dtype=torch.float32, device=x.device)
        _norm[(triton.cdiv(rows, tall),)](x, weight, y, inverse, rows, columns, eps, tall, wide)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, inverse = ctx.saved_tensors
        rows, columns = x.shape
        wide = triton.next_power_of_2(columns)
        tall = max(1, TILE // wide)
        each = triton.cdiv(triton.cdiv(rows, tall), PROGRAMS)
        programs = triton.cdiv(triton.cdiv(rows, tall), each)
        dx = torch.empty_like(x)
        dweight = torch.empty((programs, columns), dtype=torch.float32, device=x.device)
        _norm_back[(programs,)](grads[0].contiguous(), x, weight, inverse, dx, dweight, rows, columns, each, tall, wide)
        return dx, dweight.sum(0), None, None
