"""Number formats of the weights: what is kept in float32 beside a model that is loaded in 16 or fewer bits."""

from __future__ import annotations

from typing import Any

from fl_trainers.config import Config
from fl_trainers.errors import InputError

NORMS = ("norm", "ln")


def upcast(config: Config, model: Any) -> None:
    """`upcast_layernorm`: norms in float32; `upcast_lmhead_output`: logits in float32 before anything is made of them."""
    import torch

    if config.model.upcast_layernorm:
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and any(part in name for part in NORMS):
                parameter.data = parameter.data.float()
    if config.model.upcast_lmhead_output:
        head = model.get_output_embeddings()
        if isinstance(head, torch.nn.Linear) and head.weight.dtype != torch.float32:
            head.register_forward_hook(lambda _module, _inputs, output: output.float())


def keep_masters(config: Config, model: Any) -> None:
    """Trained weights are float32, whatever the frozen ones are; pure_bf16 and BAdam keep them small (BAdam has copies of its own)."""
    if config.method.pure_bf16 or config.method.badam is not None:
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def check(config: Config) -> None:
    """What no device can do, found before the model is loaded."""
    method = config.method
    if method.pure_bf16 and config.model.upcast_layernorm:
        raise InputError(
            "upcast_layernorm with pure_bf16: without autocast the layers behind a float32 norm cannot take its output",
            "bf16: true in place of pure_bf16, or leave upcast_layernorm out",
        )
    if method.pure_bf16 and config.training.arguments.get("fp16"):
        raise InputError("pure_bf16 and fp16 exclude each other", "leave one out")
