"""A linear layer and its LoRA as one function: two products added in place where peft launches seven kernels and keeps three results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    """x [rows, in] → [rows, out]; weight and bias are frozen, down [rank, in] and up [out, rank] are trained."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, down: Any, up: Any, scale: float) -> Any:
        small, large = down.to(x.dtype), up.to(x.dtype)
        inner = x @ small.T
        result = torch.nn.functional.linear(x, weight, bias)
        result.addmm_(inner, large.T, alpha=scale)
        ctx.save_for_backward(x, weight, small, large, inner)
        ctx.scale, ctx.kinds = scale, (down.dtype, up.dtype)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, small, large, inner = ctx.saved_tensors
        grad = grads[0]
        narrow = grad @ large
        down = (narrow.T @ x).mul_(ctx.scale).to(ctx.kinds[0])
        up = (grad.T @ inner).mul_(ctx.scale).to(ctx.kinds[1])
        before = None
        if ctx.needs_input_grad[0]:
            before = grad @ weight
            before.addmm_(narrow, small, alpha=ctx.scale)
        return before, None, None, down, up, None


def _forward(layer: Any, plain: Any, name: str) -> Any:
    """The layer's forward pass: fused while its adapter is on and beside the weights, else peft's own."""

    def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.disable_adapters or layer.merged or args or kwargs:
            return plain(x, *args, **kwargs)
        base, device = layer.base_layer, x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(dtype)
            bias = None if base.bias is None else base.bias.to(dtype)
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            return _Linear.apply(flat, base.weight.to(dtype), bias, down, up, layer.scaling[name]).reshape(*x.shape[:-1], -1)

    return forward


def fits(layer: Any) -> bool:
    """Whether a peft layer is one plain LoRA on one frozen plain linear layer: no dropout, no DoRA, no bias of its own."""
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or type(layer.base_layer) is not torch.nn.Linear or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    return (
        name in layer.lora_A and not layer.lora_variant and type(layer.lora_dropout[name]) is torch.nn.Identity
        and layer.lora_A[name].bias is None and layer.lora_B[name].bias is None and not layer.base_layer.weight.requires_grad
    )  # fmt: skip


@contextmanager
def fused(model: Any) -> Iterator[int]:
    """While training lasts, layers that fit compute in one function; the value is how many do."""
    layers = [module for module in model.modules() if hasattr(module, "lora_A") and fits(module)]
    for layer in layers:
        layer.forward = _forward(layer, layer.forward, layer.active_adapters[0])
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward
