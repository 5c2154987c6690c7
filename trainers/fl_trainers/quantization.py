"""The base model in 4 or 8 bits (QLoRA, QOFT), by bitsandbytes, on any device that it has kernels for, the CPU among them."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from typing import Any

from fl_trainers.config import Config
from fl_trainers.device import Device
from fl_trainers.errors import InputError
from fl_trainers.progress import log


def check(config: Config) -> None:
    """Before anything is loaded: the method fits, and the library is there."""
    if config.model.quantization is None:
        return
    kind = config.method.finetuning_type
    if kind not in ("lora", "oft"):
        raise InputError(f"finetuning_type: {kind} cannot train quantized weights", "use lora or oft, or leave quantization_bit out")
    if config.method.lora.pissa_init and kind == "lora":
        raise InputError("pissa_init needs the weights as they are: not together with quantization_bit", "leave one of the two out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("quantization_bit needs the package bitsandbytes, which is not installed here", "leave quantization_bit out")


def method_of(model: Any) -> str | None:
    """How a loaded model is quantized, by the recipe's wish or as it was saved; None: it is not."""
    method = getattr(model, "quantization_method", None)
    return None if method is None else str(getattr(method, "value", method))


def check_model(config: Config, model: Any) -> None:
    """A checkpoint that was quantized when it was saved can only carry an adapter, as one that is quantized here."""
    method, kind = method_of(model), config.method.finetuning_type
    if method is None:
        return
    if kind not in ("lora", "oft"):
        raise InputError(
            f"model {config.model.name} is quantized ({method}): finetuning_type: {kind} cannot train its weights",
            "finetuning_type: lora or oft, or the same model in 16 bits",
        )
    if config.method.lora.pissa_init:
        raise InputError(f"model {config.model.name} is quantized ({method}): pissa_init needs the weights as they are", "leave it out")


def options(config: Config, device: Device, settings: Any) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`. settings: the model's own config; one that is quantized already stays as it is."""
    from transformers import BitsAndBytesConfig

    wanted = config.model.quantization
    found = getattr(settings, "quantization_config", None)
    if found:
        return _as_saved(config, found)
    if wanted is None:
        return {}
    if wanted.bits == 8:
        made = BitsAndBytesConfig(load_in_8bit=True)
    else:
        made = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=wanted.type, bnb_4bit_use_double_quant=wanted.double,
            bnb_4bit_compute_dtype=device.dtype, bnb_4bit_quant_storage=device.dtype if config.training.arguments.get("fsdp") else "uint8",
        )  # fmt: skip
    if config.training.arguments.get("fsdp"):  # which spreads the weights itself
        return {"quantization_config": made}
    place = "cpu" if device.type == "cpu" else f"{device.type}:{os.environ.get('LOCAL_RANK', '0')}"
    return {"quantization_config": made, "device_map": {"": place}}


def _as_saved(config: Config, found: Any) -> dict[str, Any]:
    """A checkpoint in FP8 is trained in the format of the run, since FP8 weights have no gradients; others stay as they are."""
    method = found.get("quant_method", "unknown") if isinstance(found, dict) else type(found).__name__
    if config.model.quantization is not None:
        log.warning("quantization_bit: %d has no effect: the checkpoint is quantized already (%s)", config.model.quantization.bits, method)
    if method != "fp8":
        return {}
    from transformers import FineGrainedFP8Config

    log.info("the checkpoint's FP8 weights are unpacked")
    kept = {key: value for key, value in found.items() if key not in ("quant_method", "dequantize")}
    return {"quantization_config": FineGrainedFP8Config(**kept, dequantize=True)}


def built_in(config: Config, device: Device, model: Any) -> Any:
    """A model that was made in memory, quantized: bitsandbytes quantizes while it reads files."""
    if config.model.quantization is None:
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder, dtype=device.dtype, **options(config, device, model.config))
