"""RMS norms by torch's one kernel: transformers writes them as six operations, two of which keep float32 copies of the row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _forward(layer: Any, plain: Any) -> Any:
    def forward(x: Any) -> Any:
        if x.dtype != layer.weight.dtype:
            return plain(x)
        with torch.autocast(x.device.type, enabled=False):
            return torch.nn.functional.rms_norm(x, (x.shape[-1],), layer.weight, layer.variance_epsilon)

    return forward


TYPES = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "SmolLM3RMSNorm")
"""Layers that scale after the norm and add nothing."""


@contextmanager
def fused(model: Any) -> Iterator[int]:
    """While training lasts; the value is how many layers do."""
    layers = [module for module in model.modules() if type(module).__name__ in TYPES]
    for layer in layers:
        layer.forward = _forward(layer, layer.forward)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward
