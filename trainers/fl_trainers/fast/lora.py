"""A linear layer and its LoRA as one function: two products added in place where peft launches seven kernels and keeps three results.

Weights of 4 bits are unpacked twice, in the forward and in the backward pass, and never kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fl_trainers.fast.masters import Masters


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    """x [rows, in] → [rows, out]; base is frozen, down [rank, in] and up [out, rank] are trained."""

    @staticmethod
    def forward(ctx: Any, x: Any, base: Any, down: Any, up: Any, scale: float, masters: Masters) -> Any:
        small, large = masters.copy(down, x.dtype), masters.copy(up, x.dtype)
        inner = x @ small.T
        bias = None if base.bias is None else base.bias.to(x.dtype)
        result = torch.nn.functional.linear(x, _weight(base, x.dtype), bias)
        result.addmm_(inner, large.T, alpha=scale)
        ctx.save_for_backward(x, small, large, inner)
        ctx.base, ctx.scale, ctx.masters, ctx.trained = base, scale, masters, (down, up)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, small, large, inner = ctx.saved_tensors
        grad = grads[0]
        narrow = grad @ large
        down = _gradient(ctx.masters, ctx.trained[0], small, narrow.T, x, ctx.scale)
        up = _gradient(ctx.masters, ctx.trained[1], large, grad.T, inner, ctx.scale)
        before = None
        if ctx.needs_input_grad[0]:
            before = grad @ _weight(ctx.base, x.dtype)
            before.addmm_(narrow, small, alpha=ctx.scale)
        return before, None, down, up, None, None


def _gradient(masters: Masters, weight: Any, copy: Any, left: Any, right: Any, scale: float) -> Any:
    """scale * left @ right as the weight's gradient; None where it has been written already."""
    if weight not in masters.copies:
        return torch.empty_like(copy).addmm_(left, right, beta=0, alpha=scale).to(weight.dtype)
    masters.add(weight, left, right, scale)
    return None


def _weight(base: Any, dtype: Any) -> Any:
    """The frozen weight [out, in] as it is multiplied."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, state).to(dtype)


def _forward(layer: Any, plain: Any, name: str, masters: Masters) -> Any:
    """The layer's forward pass: fused while its adapter is on and beside the weights, else peft's own."""

    def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.disable_adapters or layer.merged or args or kwargs:
            return plain(x, *args, **kwargs)
        base, device = layer.base_layer, x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(dtype)
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            return _Linear.apply(flat, base, down, up, layer.scaling[name], masters).reshape(*x.shape[:-1], -1)

    return forward


def fits(layer: Any) -> bool:
    """Whether a peft layer is one plain LoRA on one frozen linear layer, plain or of 4 bits: no dropout, no DoRA, no bias of its own."""
    from peft.tuners.lora import Linear

    plain = type(layer) is Linear and type(layer.base_layer) is torch.nn.Linear
    if not (plain or _four_bits(layer)) or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    return (
        name in layer.lora_A and not layer.lora_variant and type(layer.lora_dropout[name]) is torch.nn.Identity
        and layer.lora_A[name].bias is None and layer.lora_B[name].bias is None and not layer.base_layer.weight.requires_grad
    )  # fmt: skip


def _four_bits(layer: Any) -> bool:
    """Whether peft's layer stands around one of bitsandbytes whose weights lie as they were quantized."""
    base = layer.base_layer
    kinds = type(layer).__name__, type(base).__name__, type(base).__module__.partition(".")[0]
    if kinds != ("Linear4bit", "Linear4bit", "bitsandbytes") or base.weight.quant_state is None:
        return False
    return not getattr(base.weight.quant_state, "packing_format_for_cpu", False)


@contextmanager
def fused(model: Any, masters: Masters | None = None) -> Iterator[int]:
    """While training lasts, layers that fit compute in one function; the value is how many do. masters: adapters whose copies are kept."""
    masters = masters or Masters()
    layers = [module for module in model.modules() if hasattr(module, "lora_A") and fits(module)]
    for layer in layers:
        name = layer.active_adapters[0]
        masters.asked += [layer.lora_A[name].weight, layer.lora_B[name].weight]
        layer.forward = _forward(layer, layer.forward, name, masters)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward
