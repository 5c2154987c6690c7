"""AdamW in one pass over memory: clipping, both moments, the weight and its 16-bit copy, for all weights of a group by one launch."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from fl_trainers.fast.masters import Masters

BLOCK = 4096
"""Numbers that one program of the kernel changes."""
FIELDS = tl.constexpr(6)
"""Of a weight in the table: addresses of itself, its gradient, its moments and its copy (0: none), and how many numbers it has."""


@triton.jit  # type: ignore[untyped-decorator]
def _change(weight, grad, first, second, copy, place, inside, clip, decay, rate, correction, beta1, beta2, eps, whole: tl.constexpr):  # type: ignore[no-untyped-def]
    if whole:  # without a mask numbers are read four at a time
        g = tl.load(grad + place) * clip
        m = tl.load(first + place)
        v = tl.load(second + place)
        w = tl.load(weight + place) * decay
    else:
        g = tl.load(grad + place, mask=inside, other=0.0) * clip
        m = tl.load(first + place, mask=inside, other=0.0)
        v = tl.load(second + place, mask=inside, other=0.0)
        w = tl.load(weight + place, mask=inside, other=0.0) * decay
    m += (g - m) * (1.0 - beta1)
    v = v * beta2 + (1.0 - beta2) * g * g
    w -= rate * m / (tl.sqrt(v) / correction + eps)
    if whole:
        tl.store(first + place, m)
        tl.store(second + place, v)
        tl.store(weight + place, w)
    else:
        tl.store(first + place, m, mask=inside)
        tl.store(second + place, v, mask=inside)
        tl.store(weight + place, w, mask=inside)
    if copy != 0:
        small = copy.to(tl.pointer_type(tl.bfloat16)) + place
        if whole:
            tl.store(small, w.to(tl.bfloat16))
        else:
            tl.store(small, w.to(tl.bfloat16), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _adamw(table, owner, start, clip, decay, rate, correction, beta1, beta2, eps, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """One block of one weight."""
    program = tl.program_id(0)
    row = table + tl.load(owner + program) * FIELDS
    offset = tl.multiple_of(tl.load(start + program), block)
    size = tl.load(row + 5)
    weight = tl.multiple_of(tl.load(row), 16).to(tl.pointer_type(tl.float32))
    grad = tl.multiple_of(tl.load(row + 1), 16).to(tl.pointer_type(tl.float32))
    first = tl.multiple_of(tl.load(row + 2), 16).to(tl.pointer_type(tl.float32))
    second = tl.multiple_of(tl.load(row + 3), 16).to(tl.pointer_type(tl.float32))
    copy = tl.multiple_of(tl.load(row + 4), 16)
    place = offset + tl.arange(0, block)
    factor = tl.load(clip)
    if offset + block <= size:
        _change(weight, grad, first, second, copy, place, place < size, factor, decay, rate, correction, beta1, beta2, eps, True)
    else:
        _change(weight, grad, first, second, copy, place, place < size, factor, decay, rate, correction, beta1, beta2, eps, False)


class AdamW(torch.optim.AdamW):  # type: ignore[misc]
    """torch's AdamW by that kernel: the same state, so checkpoints of one are read by the other. Weights are float32, on one device."""

    def __init__(self, groups: Any, masters: Masters, **options: Any) -> None:
        super().__init__(groups, **options)
        self.masters = masters
        self.clip: Any = None
        """By what the next step multiplies the gradients: a float32 scalar on the device; None: 1."""
        self._tables: dict[tuple[int, ...], tuple[Any, ...]] = {}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        if closure is not None:
            raise AssertionError("no closure: the gradients are there")
        for group in self.param_groups:
            alike: dict[int, list[Any]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad = weight.grad.contiguous()
                    alike.setdefault(self._count(weight), []).append(weight)
            for count, weights in alike.items():
                self._update(group, weights, count)
        self.clip = None

    def _count(self, weight: Any) -> int:
        """Steps of the weight, this one with them."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        if state["step"].device.type != "cpu":  # of a checkpoint
            state["step"] = state["step"].cpu()
        state["step"] += 1
        return int(state["step"])

    def _update(self, group: dict[str, Any], weights: list[Any], count: int) -> None:
        device = weights[0].device
        owner, start, table = self._table(weights)
        rate, (beta1, beta2) = float(group["lr"]), group["betas"]
        clip = torch.ones((), dtype=torch.float32, device=device) if self.clip is None else self.clip
        _adamw[(owner.shape[0],)](
            table, owner, start, clip, 1.0 - rate * group["weight_decay"], rate / (1.0 - beta1**count),
            math.sqrt(1.0 - beta2**count), beta1, beta2, group["eps"], BLOCK, num_warps=8,
        )  # fmt: skip

    def _table(self, weights: list[Any]) -> tuple[Any, Any, Any]:
        """Whose each block is, where in it the block begins, and the addresses: made anew only where something lies elsewhere now."""
        rows = [self._row(weight) for weight in weights]
        key = tuple(id(weight) for weight in weights)
        known = self._tables.get(key)
        if known is not None and known[0] == rows:
            return known[1:]
        device = weights[0].device
        if known is None:
            blocks = torch.tensor([-(-weight.numel() // BLOCK) for weight in weights])
            owner = torch.repeat_interleave(torch.arange(len(weights)), blocks)
            begins = torch.cumsum(blocks, 0) - blocks
            start = (torch.arange(len(owner)) - begins[owner]) * BLOCK
            places = _send(owner, device), _send(start, device)
        else:
            places = known[1], known[2]
        self._tables[key] = (rows, *places, _send(torch.tensor(rows, dtype=torch.int64), device))
        return self._tables[key][1:]

    def _row(self, weight: Any) -> tuple[int, ...]:
        state, copy = self.state[weight], self.masters.copies.get(weight)
        parts = (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])
        return *(part.data_ptr() for part in parts), 0 if copy is None else copy.data_ptr(), weight.numel()


def _send(values: Any, device: Any) -> Any:
    """To the device, and nobody waits for it."""
    return values.pin_memory().to(device, non_blocking=True)
