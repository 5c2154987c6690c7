"""Linear layers and their LoRA as one function: products added in place where peft launches seven kernels a layer and keeps three results.

Layers that a model asks with the same input (query, key and value; gate and up) share the products with the sides of their adapters
that take it. Weights of 4 bits are unpacked twice, in the forward and in the backward pass, and never kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fl_trainers.fast.beside import Beside
from fl_trainers.fast.masters import Masters

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers in one module that take the same input, in the order in which they are asked."""


class _Layers(torch.autograd.Function):  # type: ignore[misc]
    """x [rows, in] → [rows, out] of each layer; bases are frozen, downs [rank, in] and ups [out, rank] are trained."""

    @staticmethod
    def forward(ctx: Any, x: Any, bases: Sequence[Any], scale: float, masters: Masters, beside: Beside, *trained: Any) -> Any:
        downs, ups = trained[: len(bases)], trained[len(bases) :]
        small, large = masters.joined(downs, x.dtype), [masters.copy(up, x.dtype) for up in ups]
        inner = x.new_empty((x.shape[0], small.shape[0]))
        with beside.branch(x, small):
            torch.mm(x, small.T, out=inner)
            ready = beside.mark()
        results = []
        for base in bases:
            bias = None if base.bias is None else base.bias.to(x.dtype)
            results.append(torch.nn.functional.linear(x, _weight(base, x.dtype), bias))
        beside.wait(ready)
        for result, part, up in zip(results, _parts(inner, downs), large, strict=True):
            result.addmm_(part, up.T, alpha=scale)
        ctx.save_for_backward(x, small, inner, *large)
        ctx.bases, ctx.scale, ctx.masters, ctx.beside, ctx.trained = bases, scale, masters, beside, (downs, ups)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, small, inner, *large = ctx.saved_tensors
        (downs, ups), masters, beside = ctx.trained, ctx.masters, ctx.beside
        narrow = x.new_empty(inner.shape)
        with beside.branch(x, inner, narrow, *grads):
            for grad, up, part in zip(grads, large, _parts(narrow, downs), strict=True):
                torch.mm(grad, up, out=part)
            ready = beside.mark()
            first = masters.gradients(downs, narrow.T, x, ctx.scale)
            others = [
                masters.gradients((up,), grad.T, part, ctx.scale)[0]
                for up, grad, part in zip(ups, grads, _parts(inner, downs), strict=True)
            ]
        before = None
        if ctx.needs_input_grad[0]:
            before = grads[0] @ _weight(ctx.bases[0], x.dtype)
            for grad, base in zip(grads[1:], ctx.bases[1:], strict=True):
                before.addmm_(grad, _weight(base, x.dtype))
            beside.wait(ready)
            before.addmm_(narrow, small, alpha=ctx.scale)
        return before, None, None, None, None, *first, *others


def _parts(joined: Any, downs: Sequence[Any]) -> Any:
    """Of [rows, all ranks] the columns of each layer."""
    return joined.split([down.shape[0] for down in downs], dim=1)


def _weight(base: Any, dtype: Any) -> Any:
    """The frozen weight [out, in] as it is multiplied."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, state).to(dtype)


class _Group:
    """Layers that are computed at once when the first of them is asked; the others find their results."""

    def __init__(self, layers: Sequence[Any], masters: Masters) -> None:
        self.layers, self.masters = layers, masters
        self.names = [layer.active_adapters[0] for layer in layers]
        self.plain = [layer.forward for layer in layers]
        self.beside = Beside()
        self.given: Any = None
        self.made: dict[int, Any] = {}
        """Results by place that nobody has asked for yet, of the input `given`."""
        downs = [layer.lora_A[name].weight for layer, name in zip(layers, self.names, strict=True)]
        masters.asked += [*downs, *(layer.lora_B[name].weight for layer, name in zip(layers, self.names, strict=True))]
        masters.together.append(tuple(downs))
        for place, layer in enumerate(layers):
            layer.forward = self._forward(place)

    def _forward(self, place: int) -> Any:
        """The layer's forward pass: fused while its adapter is on and beside the weights, else peft's own."""
        layer, plain = self.layers[place], self.plain[place]

        def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
            if layer.disable_adapters or layer.merged or args or kwargs:
                return plain(x, *args, **kwargs)
            if self.given is not x or place not in self.made:
                places = range(len(self.layers)) if place == 0 else (place,)
                self.given, self.made = x, dict(zip(places, self._compute(x, places), strict=True))
            result = self.made.pop(place)
            if not self.made:
                self.given = None
            return result

        return forward

    def _compute(self, x: Any, places: Sequence[int]) -> list[Any]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        chosen = [(self.layers[place], self.names[place]) for place in places]
        trained = [*(layer.lora_A[name].weight for layer, name in chosen), *(layer.lora_B[name].weight for layer, name in chosen)]
        self.beside.on = x.is_cuda and all(weight in self.masters.copies for weight in trained)
        scale = self.layers[0].scaling[self.names[0]]
        with torch.autocast(device, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(dtype)
            found = _Layers.apply(flat, [layer.base_layer for layer, _ in chosen], scale, self.masters, self.beside, *trained)
            return [result.reshape(*x.shape[:-1], -1) for result in found]


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


def _alike(layers: Sequence[Any]) -> bool:
    """Whether their adapters can be multiplied as one: of the same scale and dtype, rows that begin where kernels read several numbers."""
    kinds = {
        (layer.scaling[name := layer.active_adapters[0]], layer.lora_A[name].weight.dtype, layer.lora_A[name].weight.requires_grad)
        for layer in layers
    }
    return len(kinds) == 1 and layers[0].in_features % 8 == 0


def _groups(model: Any) -> list[list[Any]]:
    """The layers that fit, those together that take the same input."""
    groups, seen = [], set()
    for module in model.modules():
        for names in TOGETHER:
            layers = [getattr(module, name, None) for name in names]
            if all(hasattr(layer, "lora_A") and fits(layer) for layer in layers) and _alike(layers):
                groups.append(layers)
                seen.update(layers)
    groups += [[module] for module in model.modules() if module not in seen and hasattr(module, "lora_A") and fits(module)]
    return groups


@contextmanager
def fused(model: Any, masters: Masters | None = None) -> Iterator[int]:
    """While training lasts, layers that fit compute in one function; the value is how many do. masters: adapters whose copies are kept."""
    masters = masters or Masters()
    groups = _groups(model)
    for layers in groups:
        _Group(layers, masters)
    try:
        yield sum(len(layers) for layers in groups)
    finally:
        for layers in groups:
            for layer in layers:
                del layer.forward
