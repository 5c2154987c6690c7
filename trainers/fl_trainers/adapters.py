"""What of the model is trained: everything, some layers, or an adapter beside it."""

from __future__ import annotations

import difflib
from typing import Any

from fl_trainers.config import Config
from fl_trainers.errors import InputError
from fl_trainers.model import checkpoint_activations
from fl_trainers.progress import log


def apply(config: Config, model: Any) -> Any:
    """Freezes and wraps the model as finetuning_type says. Trained weights become float32 unless pure_bf16 keeps them small."""
    kind = config.method.finetuning_type
    if config.model.quantization is not None:
        if kind not in ("lora", "oft"):
            raise InputError(f"finetuning_type: {kind} cannot train quantized weights", "use lora or oft, or leave quantization_bit out")
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    checkpoint_activations(config, model)
    if kind in ("lora", "oft"):
        model = _adapter(config, model)
    elif kind == "freeze":
        _freeze(config, model)
    if config.model.adapters and kind not in ("lora", "oft"):
        raise InputError(f"adapter_name_or_path with finetuning_type: {kind}", "adapters are continued by lora or oft")
    if not config.method.pure_bf16:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return model


def count(model: Any) -> tuple[int, int]:
    """All parameters and the trained ones; a 4-bit weight holds two a byte."""
    total = trained = 0
    for parameter in model.parameters():
        number = parameter.numel()
        if type(parameter).__name__ == "Params4bit":
            number *= 2
        total += number
        trained += number if parameter.requires_grad else 0
    return total, trained


def linear_names(model: Any) -> list[str]:
    """The last part of the name of every linear layer but the head: what `lora_target: all` means."""
    names = set()
    for name, module in model.named_modules():
        if "Linear" in type(module).__name__ and "Embedding" not in type(module).__name__:
            names.add(name.rsplit(".", 1)[-1])
    return sorted(names - {"lm_head", "output_layer", "score", "v_head"})


def _targets(model: Any, wanted: tuple[str, ...]) -> list[str]:
    """The modules named, or all linear ones. Raises InputError with the nearest name the model has."""
    if "all" in wanted:
        return linear_names(model)
    parts = {part for name, _ in model.named_modules() for part in (name, name.rsplit(".", 1)[-1])}
    for name in wanted:
        if name not in parts and not any(part.endswith("." + name) for part in parts):
            near = difflib.get_close_matches(name, linear_names(model), 1, 0.4)
            raise InputError(
                f"the model has no module {name}", f"did you mean {near[0]}? all: {', '.join(linear_names(model))}" if near else ""
            )
    return list(wanted)


def _adapter(config: Config, model: Any) -> Any:
    from peft import PeftModel, get_peft_model

    lora = config.method.lora
    merged = list(config.model.adapters)
    continued = None
    if merged and not lora.create_new_adapter and config.model.quantization is None:
        continued = merged.pop()
    elif merged and config.model.quantization is not None:
        if len(merged) > 1 or lora.create_new_adapter:
            raise InputError("an adapter cannot be merged into quantized weights", "give one adapter, which is then continued")
        continued = merged.pop()
    for path in merged:
        model = _load(PeftModel, model, path, trainable=False).merge_and_unload()
        log.info("merged adapter %s", path)
    if continued is not None:
        return _load(PeftModel, model, continued, trainable=True)
    settings = _lora(config, model) if config.method.finetuning_type == "lora" else _oft(config, model)
    made = get_peft_model(model, settings, autocast_adapter_dtype=not config.method.pure_bf16)
    if config.method.pure_bf16:
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(model.dtype)
    return made


def _load(peft_model: Any, model: Any, path: str, *, trainable: bool) -> Any:
    try:
        return peft_model.from_pretrained(model, path, is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"adapter {path} cannot be loaded: {first}", "a folder with adapter_config.json, trained on this base") from error


def _lora(config: Config, model: Any) -> Any:
    from peft import LoraConfig, TaskType

    lora = config.method.lora
    start: bool | str = True
    if lora.pissa_init:
        start = "pissa" if lora.pissa_iter == -1 else f"pissa_niter_{lora.pissa_iter}"
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=lora.rank, lora_alpha=lora.alpha or 2 * lora.rank, lora_dropout=lora.dropout,
        target_modules=_targets(model, lora.target), modules_to_save=list(lora.additional_target) or None,
        use_rslora=lora.rslora, use_dora=lora.dora, init_lora_weights=start,
    )  # fmt: skip


def _oft(config: Config, model: Any) -> Any:
    from peft import OFTConfig, TaskType

    oft = config.method.oft
    return OFTConfig(
        task_type=TaskType.CAUSAL_LM, r=oft.rank, oft_block_size=oft.block_size if not oft.rank else 0,
        target_modules=_targets(model, oft.target), module_dropout=oft.module_dropout,
    )  # fmt: skip


def _freeze(config: Config, model: Any) -> None:
    """Trains some layers: the last n, or with a negative number the first n; within them all modules or the named ones."""
    freeze = config.method.freeze
    layers = getattr(model.config, "num_hidden_layers", None)
    if not layers:
        raise InputError("finetuning_type: freeze: the model's config has no num_hidden_layers")
    wanted = freeze.trainable_layers
    chosen = range(max(layers - wanted, 0), layers) if wanted > 0 else range(min(-wanted, layers))
    places = [f".{index}." for index in chosen]
    trained = 0
    for name, parameter in model.named_parameters():
        inside = any(place in name for place in places)
        named = "all" in freeze.trainable_modules or any(module in name for module in freeze.trainable_modules)
        extra = any(module in name for module in freeze.extra_modules)
        parameter.requires_grad_((inside and named) or extra)
        trained += parameter.requires_grad
    if not trained:
        raise InputError(f"finetuning_type: freeze: nothing matches {', '.join(freeze.trainable_modules)} in layers {list(chosen)}")
