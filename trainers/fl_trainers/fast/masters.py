"""Weights that are trained in float32 and multiplied in 16 bits: the copy stays, and gradients are written where they belong.

Autocast makes the copy anew in each pass; the gradient comes in 16 bits, is made float32 and is added to what stands there. For a
model that is trained whole these are more bytes than the optimizer moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class Masters:
    """The weights that are treated so: none before `take`."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        """Weights whose layers can multiply a copy."""
        self.copies: dict[Any, Any] = {}
        """By weight; a tensor's hash is its identity."""
        self.weights: list[Any] = []
        self.together: list[tuple[Any, ...]] = []
        """Weights that are multiplied as one: their copies lie in one matrix, row after row, and so do their gradients."""
        self._joints: dict[Any, tuple[Any, ...]] = {}
        """By the first of such weights: the matrix of their copies, that of their gradients, and of each weight its rows of it."""
        self.fresh = False
        """Whether every backward pass is a step's first: what stands in a gradient is written over."""

    def take(self, weights: Iterable[Any], dtype: Any) -> None:
        """From here on these weights have copies."""
        self.copies = {weight: weight.detach().to(dtype) for weight in weights}
        self.weights = list(self.copies)
        for together in self.together:
            if len(together) > 1 and all(weight in self.copies for weight in together):
                joint = torch.cat([self.copies[weight] for weight in together])
                self.copies.update(zip(together, _rows(joint, together), strict=True))
                self._joints[together[0]] = (joint, None, ())

    def copy(self, weight: Any, dtype: Any) -> Any:
        """The weight as it is multiplied."""
        found = self.copies.get(weight)
        return weight.to(dtype) if found is None or found.dtype != dtype else found

    def joined(self, weights: Sequence[Any], dtype: Any) -> Any:
        """The weights as one matrix, row after row."""
        if len(weights) == 1:
            return self.copy(weights[0], dtype)
        found = self._joints.get(weights[0])
        if found is None or found[0].dtype != dtype or len(found[0]) != sum(len(weight) for weight in weights):
            return torch.cat([self.copy(weight, dtype) for weight in weights])
        return found[0]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def refresh(self, *_: Any) -> None:
        """After a step of an optimizer that knows nothing of the copies."""
        if self.weights:
            torch._foreach_copy_([self.copies[weight] for weight in self.weights], self.weights)

    def add(self, weight: Any, left: Any, right: Any, scale: float = 1.0) -> None:
        """scale * left @ right is added to the weight's gradient."""
        if weight.grad is None:
            weight.grad = torch.empty_like(weight)
            _product(weight.grad, left, right, scale, 0.0)
        else:
            _product(weight.grad, left, right, scale, 0.0 if self.fresh else 1.0)

    def gradients(self, weights: Sequence[Any], left: Any, right: Any, scale: float) -> list[Any]:
        """scale * left @ right, row after row, as what the weights get: None where it has been written already."""
        if all(weight in self.copies for weight in weights):
            self._add_rows(weights, left, right, scale)
            return [None] * len(weights)
        made = left.new_empty((left.shape[0], right.shape[1])).addmm_(left, right, beta=0, alpha=scale)
        return [part.to(weight.dtype) for part, weight in zip(_rows(made, weights), weights, strict=True)]

    def _add_rows(self, weights: Sequence[Any], left: Any, right: Any, scale: float) -> None:
        """As `add`, for all at once where their gradients lie in one matrix; where they do not exist yet they are made so."""
        first, known = weights[0], self._joints.get(weights[0])
        if len(weights) > 1 and known is not None and all(weight.grad is None for weight in weights):
            whole = torch.empty((left.shape[0], right.shape[1]), dtype=first.dtype, device=first.device)
            parts = _rows(whole, weights)
            for weight, part in zip(weights, parts, strict=True):
                weight.grad = part
            self._joints[first] = (known[0], whole, tuple(parts))
            _product(whole, left, right, scale, 0.0)
        elif known is not None and len(known[2]) == len(weights) and all(
            weight.grad is part for weight, part in zip(weights, known[2], strict=True)
        ):
            _product(known[1], left, right, scale, 0.0 if self.fresh else 1.0)
        else:
            for weight, part in zip(weights, _rows(left, weights), strict=True):
                self.add(weight, part, right, scale)

    def add_scaled(self, weight: Any, gradient: Any, factor: Any) -> None:
        """factor, a scalar on the device, times the gradient, which is not needed any more."""
        if weight.grad is None:
            weight.grad = gradient.mul_(factor)
        elif self.fresh:
            torch.mul(gradient, factor, out=weight.grad)
        else:
            weight.grad.addcmul_(gradient, factor)


def _rows(joint: Any, weights: Sequence[Any]) -> Any:
    """Of each weight its rows of a matrix that holds all."""
    return joint.split([len(weight) for weight in weights])


def _product(out: Any, left: Any, right: Any, scale: float, before: float) -> None:
    """out = before * out + scale * left @ right; out is float32, the others may have 16 bits."""
    if left.dtype == out.dtype:
        torch.addmm(out, left, right, beta=before, alpha=scale, out=out)
    elif out.is_cuda:
        torch.ops.aten.addmm.dtype_out(out, left, right, out.dtype, beta=before, alpha=scale, out=out)
    elif before:
        out.add_((left @ right).float(), alpha=scale)
    else:
        torch.mul((left @ right).float(), scale, out=out)


def accumulate(out: Any, left: Any, right: Any) -> None:
    """left @ right is added to out [float32]."""
    _product(out, left, right, 1.0, 1.0)


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    """x [rows, in] → [rows, out] by the copy of weight [out, in]."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, copy: Any, masters: Masters) -> Any:
        ctx.save_for_backward(x, copy)
        ctx.weight, ctx.masters, ctx.biased = weight, masters, bias is not None
        return torch.nn.functional.linear(x, copy, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), (x, copy) = grads, ctx.saved_tensors
        ctx.masters.add(ctx.weight, grad.T, x)
        before = grad @ copy if ctx.needs_input_grad[0] else None
        return before, None, grad.sum(0, dtype=torch.float32) if ctx.biased else None, None, None


def _forward(layer: Any, plain: Any, masters: Masters) -> Any:
    def forward(x: Any) -> Any:
        copy, device = masters.copies.get(layer.weight), x.device.type
        if copy is None or not torch.is_grad_enabled() or not torch.is_autocast_enabled(device):
            return plain(x)
        with torch.autocast(device, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(copy.dtype)
            return _Linear.apply(flat, layer.weight, layer.bias, copy, masters).reshape(*x.shape[:-1], -1)

    return forward


def linear_layers(model: Any) -> list[Any]:
    """Plain linear layers whose weight is trained, in float32, and of this layer alone."""
    head = model.get_output_embeddings()  # its loss is a function of its own
    layers = [
        module for module in model.modules()
        if type(module) is torch.nn.Linear and module is not head and module.weight.requires_grad and module.weight.dtype == torch.float32
    ]  # fmt: skip
    owners = [weight for module in model.modules() for weight in module._parameters.values() if weight is not None]
    held = {id(weight): 0 for weight in owners}
    for weight in owners:
        held[id(weight)] += 1
    return [layer for layer in layers if held[id(layer.weight)] == 1]


@contextmanager
def fused(model: Any, masters: Masters) -> Iterator[int]:
    """While training lasts, linear layers multiply the copies, once there are any; the value is how many layers do."""
    layers = linear_layers(model)
    masters.asked += [layer.weight for layer in layers]
    for layer in layers:
        layer.forward = _forward(layer, layer.forward, masters)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward
