"""A crude lower estimate of the memory that training needs on one device, and the cheaper methods to name when it does not fit. Pure.

Weights, gradients and optimizer states are counted; activations follow Korthikanti et al. 2022 (34 bytes a token, layer and hidden unit in
16 bit without recomputing, 2 with it); logits are kept twice in 32 bit. It stays low on purpose: it refuses only what cannot work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fl_trainers.config import Config

_GB = 1e9
_CONTEXT = 0.7e9
"""Bytes that an accelerator's runtime itself takes."""
_UNPACKED_TOKENS = 512
"""Unpacked rows are seldom as long as cutoff_len; longer ones would be counted too high."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the estimate needs of a model."""

    parameters: int
    hidden_size: int
    layers: int
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes by part."""

    weights: float
    trained: float
    activations: float
    beside: float = 0.0
    """Models that are not trained: a reference, a reward model."""

    @property
    def gigabytes(self) -> float:
        """All of it, in 10^9 bytes."""
        return (self.weights + self.trained + self.activations + self.beside + _CONTEXT) / _GB


@dataclass(frozen=True, slots=True)
class Shares:
    """Of weights, gradients and the optimizer's state: what one device holds. 0: the host holds it."""

    weights: float = 1.0
    gradients: float = 1.0
    states: float = 1.0
    beside: float = 1.0
    """Of models that are not trained, unless they are quantized: those stay whole."""


def shares(config: Config, devices: int) -> Shares:
    """As DeepSpeed's stages and FSDP spread them over so many devices."""
    arguments, one = config.training.arguments, 1 / max(devices, 1)
    fsdp = arguments.get("fsdp")
    if fsdp:
        settings = arguments.get("fsdp_config") or {}
        if settings.get("cpu_offload", settings.get("fsdp_offload_params")) or "offload" in str(fsdp):
            return Shares(0.0, 0.0, 0.0, 0.0)
        kept = settings.get("reshard_after_forward", settings.get("fsdp_reshard_after_forward", True))
        whole = str(kept).lower() in ("false", "shard_grad_op") or "shard_grad_op" in str(fsdp)
        return Shares(1.0 if whole else one, one, one, one)
    zero = arguments.get("deepspeed")
    zero = zero.get("zero_optimization") if isinstance(zero, dict) else None
    if not isinstance(zero, dict):
        return Shares()
    stage = zero.get("stage")
    stage = stage if isinstance(stage, int) else 0
    weights = 0.0 if stage == 3 and _offloaded(zero, "offload_param") else one if stage == 3 else 1.0
    states = 0.0 if stage and _offloaded(zero, "offload_optimizer") else one if stage else 1.0
    return Shares(weights, (0.0 if states == 0.0 else one) if stage >= 2 else 1.0, states, weights)


def _offloaded(zero: dict[str, Any], key: str) -> bool:
    part = zero.get(key)
    return isinstance(part, dict) and part.get("device") not in (None, "none")


def estimate(config: Config, shape: Shape, devices: int = 1, others: Mapping[str, int] = MappingProxyType({})) -> Estimate:
    """What one of so many devices needs. others: parameters of `ref_model` and `reward_model`, where they are known."""
    kind, arguments, share = config.method.finetuning_type, config.training.arguments, shares(config, devices)
    half = _half(config)
    quantization = config.model.quantization
    tokens = int(arguments.get("per_device_train_batch_size", 8)) * (
        config.data.cutoff_len if config.data.packing else min(config.data.cutoff_len, _UNPACKED_TOKENS)
    )
    weight, gradient, states = _trained_bytes(config)
    if kind == "full":
        trained, weights = shape.parameters, 0.0
    else:
        weights = shape.parameters * (quantization.bits / 8 if quantization else 2 if half else 4) * share.weights
        trained = adapter_parameters(config, shape)
    per_unit = (2 if config.model.gradient_checkpointing else 34) * (1 if half else 2)
    logits = tokens * shape.vocabulary * (4 if config.model.liger else 8)
    return Estimate(
        weights=weights, trained=trained * (weight * share.weights + gradient * share.gradients + states * share.states),
        activations=tokens * shape.layers * shape.hidden_size * per_unit + logits, beside=_beside(config, shape, share, others),
    )  # fmt: skip


def _half(config: Config) -> bool:
    arguments = config.training.arguments
    return bool(arguments.get("bf16") or arguments.get("fp16") or config.method.pure_bf16)


def _trained_bytes(config: Config) -> tuple[int, int, int]:
    """Of each trained parameter: weight, gradient, optimizer's state. DeepSpeed counts its weight in 32 bit to the state."""
    if config.method.finetuning_type == "full" and config.method.pure_bf16:
        return 2, 2, 4
    return (2, 2, 12) if config.training.arguments.get("deepspeed") and _half(config) else (4, 4, 8)


def _beside(config: Config, shape: Shape, share: Shares, others: Mapping[str, int]) -> float:
    """Models that stand still. A model that is compared with itself as it was is a copy, unless an adapter can be switched off."""
    method, plain = config.method, 2 if _half(config) else 4
    total = 0.0
    for key, other in (("ref_model", method.reference), ("reward_model", method.ppo.reward_model)):
        if other is not None:
            bits = other.quantization.bits if other.quantization else 0
            total += others.get(key, 0) * (bits / 8 if bits else plain * share.beside)
    compared = method.stage in ("dpo", "kto", "ppo") or (method.stage == "grpo" and method.grpo.beta > 0)
    itself = method.finetuning_type in ("lora", "oft") and not method.lora.pissa_init
    if compared and method.reference is None and not itself:
        total += shape.parameters * plain * share.beside
    return total


def adapter_parameters(config: Config, shape: Shape) -> int:
    """Trained parameters of a method that freezes the base: seven projections a layer for LoRA, whole layers for freeze."""
    if config.method.finetuning_type == "freeze":
        layers = min(shape.layers, abs(config.method.freeze.trainable_layers))
        return shape.parameters * layers // max(1, shape.layers)
    return shape.layers * 7 * 2 * shape.hidden_size * config.method.lora.rank


def cheaper(
    config: Config, shape: Shape, available: float, devices: int = 1, others: Mapping[str, int] = MappingProxyType({})
) -> list[str]:
    """Settings to type that would fit into `available` bytes, cheapest change first."""
    changes: list[tuple[str, Config]] = []
    one = config.model_copy(
        update={
            "training": config.training.model_copy(update={"arguments": {**config.training.arguments, "per_device_train_batch_size": 1}})
        }
    )
    changes.append(("per_device_train_batch_size=1", one))
    checkpointed = one.model_copy(update={"model": one.model.model_copy(update={"gradient_checkpointing": True})})
    if not config.model.gradient_checkpointing:
        changes.append(("per_device_train_batch_size=1 disable_gradient_checkpointing=false", checkpointed))
    lora = checkpointed.model_copy(update={"method": checkpointed.method.model_copy(update={"finetuning_type": "lora"})})
    if config.method.finetuning_type != "lora":
        changes.append(("finetuning_type=lora per_device_train_batch_size=1", lora))
    if config.model.quantization is None or config.model.quantization.bits > 4:
        from fl_trainers.config import Quantization

        quantized = lora.model_copy(update={"model": lora.model.model_copy(update={"quantization": Quantization()})})
        changes.append(("finetuning_type=lora quantization_bit=4 per_device_train_batch_size=1", quantized))
    return [text for text, changed in changes if estimate(changed, shape, devices, others).gigabytes * _GB <= available]
