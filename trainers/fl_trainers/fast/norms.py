"""RMS norms by torch's one kernel: transformers writes them as six operations, two of which keep float32 copies of the row.

Under autocast what a norm gives is in the precision in which the next product takes it: cast once, not once for each product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _forward(layer: Any, plain: Any, compiled: bool) -> Any:
    def forward(x: Any) -> Any:
        weight, device = layer.weight, x.device.type
        if x.dtype != weight.dtype and weight.dtype != torch.float32:
            return plain(x)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.promote_types(x.dtype, weight.dtype)
        if compiled and weight.dtype == torch.float32:
            from fl_trainers.fast.kernels import RMSNorm

            rows = x.reshape(-1, x.shape[-1]).contiguous()
            return RMSNorm.apply(rows, weight, layer.variance_epsilon, dtype).view(x.shape)
        with torch.autocast(device, enabled=False):
            return torch.nn.functional.rms_norm(x.to(weight.dtype), (x.shape[-1],), weight, layer.variance_epsilon).to(dtype)

    return forward


TYPES = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "SmolLM3RMSNorm")
"""Layers that scale after the norm and add nothing."""


@contextmanager
def fused(model: Any, *, compiled: bool = False) -> Iterator[int]:
    """While training lasts; the value is how many layers do. compiled: a kernel of ours where the weight is float32."""
    layers = [module for module in model.modules() if type(module).__name__ in TYPES]
    for layer in layers:
        layer.forward = _forward(layer, layer.forward, compiled)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward
