"""A crude lower estimate of the memory that training needs on one device, and the cheaper methods to name when it does not fit. Pure.

Weights, gradients and optimizer states are counted; activations follow Korthikanti et al. 2022 (34 bytes a token, layer and hidden unit in
16 bit without recomputing, 2 with it); logits are kept twice in 32 bit. It stays low on purpose: it refuses only what cannot work.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def gigabytes(self) -> float:
        """All of it, in 10^9 bytes."""
        return (self.weights + self.trained + self.activations + _CONTEXT) / _GB


def estimate(config: Config, shape: Shape) -> Estimate:
    """What one device needs when nothing is sharded."""
    kind, arguments = config.method.finetuning_type, config.training.arguments
    half = bool(arguments.get("bf16") or arguments.get("fp16") or config.method.pure_bf16)
    quantization = config.model.quantization
    tokens = int(arguments.get("per_device_train_batch_size", 8)) * (
        config.data.cutoff_len if config.data.packing else min(config.data.cutoff_len, _UNPACKED_TOKENS)
    )
    if kind == "full":
        trained, weights = shape.parameters, 0.0
        # 16 bytes: weight, gradient and two moments in 32 bit; all four in 16 bit with pure_bf16
        trained_bytes = trained * (8 if config.method.pure_bf16 else 16)
    else:
        weights = shape.parameters * (quantization.bits / 8 if quantization else 2 if half else 4)
        trained_bytes = adapter_parameters(config, shape) * 16
    per_unit = (2 if config.model.gradient_checkpointing else 34) * (1 if half else 2)
    logits = tokens * shape.vocabulary * (4 if config.model.liger else 8)
    return Estimate(weights=weights, trained=trained_bytes, activations=tokens * shape.layers * shape.hidden_size * per_unit + logits)


def adapter_parameters(config: Config, shape: Shape) -> int:
    """Trained parameters of a method that freezes the base: seven projections a layer for LoRA, whole layers for freeze."""
    if config.method.finetuning_type == "freeze":
        layers = min(shape.layers, abs(config.method.freeze.trainable_layers))
        return shape.parameters * layers // max(1, shape.layers)
    return shape.layers * 7 * 2 * shape.hidden_size * config.method.lora.rank


def sharded(config: Config) -> bool:
    """True when weights or states are spread over devices or the host, so that one device's share is not known here."""
    return bool(config.training.arguments.get("deepspeed") or config.training.arguments.get("fsdp"))


def cheaper(config: Config, shape: Shape, available: float) -> list[str]:
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
    return [text for text, changed in changes if estimate(changed, shape).gigabytes * _GB <= available]
