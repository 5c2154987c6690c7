"""What of the model is trained: everything, some layers, or an adapter beside it."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from fl_trainers import freeze, oft_dropout, precision, quantization, sharding, weight_files
from fl_trainers.config import Config
from fl_trainers.errors import InputError
from fl_trainers.model import checkpoint_activations
from fl_trainers.progress import log

WITHOUT_DROPOUT = ("dpo", "orpo", "simpo", "kto", "ppo")
"""Stages that compare what a model says now with what it said before."""


def check(config: Config) -> None:
    """What of the method cannot be, found before the model is loaded."""
    kind = config.method.finetuning_type
    if config.model.adapters and kind not in ("lora", "oft"):
        raise InputError(f"adapter_name_or_path with finetuning_type: {kind}", "adapters are continued by lora or oft")
    quantization.check(config)
    precision.check(config)
    sharding.check_beside(config)
    if sharding.zero_stage(config) == 3:
        _check_spread(config)


def _check_spread(config: Config) -> None:
    """What needs whole weights, which ZeRO-3 never has in one place."""
    method, lora, adapters = config.method, config.method.lora, config.model.adapters
    beside = method.finetuning_type in ("lora", "oft")
    asked: dict[str, Any] = {
        "pissa_init": lora.pissa_init and method.finetuning_type == "lora",
        "pure_bf16": method.pure_bf16,
        "use_asft_loss": method.use_asft_loss and not beside,
        "train_from_scratch with a reference": config.model.train_from_scratch and method.stage in ("dpo", "kto", "ppo") and not beside,
        "several adapters": len(adapters) > 1 or bool(adapters and lora.create_new_adapter),
        "quantization_bit: 8": config.model.quantization is not None and config.model.quantization.bits == 8,
    }
    for key, other in (("ref_model", method.reference), ("reward_model", method.ppo.reward_model)):
        if other is not None:
            asked |= {f"{key}_adapters": other.adapters, f"{key}_quantization_bit": other.quantization}
    for name, wanted in asked.items():
        if wanted:
            raise InputError(f"{name} needs whole weights: not with ZeRO-3", "a deepspeed file with stage 2, or leave it out")


def strangers(config: Config) -> list[str]:
    """One line for each adapter that was trained on a model of another name: it may fit by its shapes, and be of no use."""
    found = []
    for path in config.model.adapters if config.model.kind in ("folder", "hub") else ():
        try:
            base = str(json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] or "")
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of the hub, or broken: loading it tells
        known = {config.model.name, config.model.path}
        if base and not {base, _plain(base)} & (known | {_plain(name) for name in known}):
            found.append(f"adapter {path} was trained on {base}, the recipe's model is {config.model.name}")
    return found


def _plain(name: str) -> str:
    """The last part of a model's name or folder; a snapshot in the hub's cache by its repository."""
    inside = next((part for part in Path(name).parts if part.startswith("models--")), name)
    return inside.rsplit("--", 1)[-1].rstrip("/").rsplit("/", 1)[-1]


def apply(config: Config, model: Any) -> Any:
    """Freezes and wraps the model as finetuning_type says. Trained weights become float32 unless pure_bf16 keeps them small."""
    kind = config.method.finetuning_type
    check(config)
    quantization.check_model(config, model)
    precision.upcast(config, model)
    checkpoint_activations(config, model)
    if kind in ("lora", "oft"):
        model = _adapter(config, model)
    elif kind == "freeze":
        freeze.apply(config, model)
    precision.keep_masters(config, model)
    return model


def standing(config: Config, model: Any) -> Any:
    """A model that is not trained, with the config's adapters: merged, or, since quantized weights take none, one that stands on them."""
    paths = config.model.adapters
    if quantization.method_of(model) is None:
        for path in paths:
            model = _load(config, model, path, trainable=False).merge_and_unload()
    elif len(paths) > 1:
        raise InputError(f"model {config.model.name} is quantized: {len(paths)} adapters cannot be merged into it", "give one adapter")
    elif paths:
        model = _load(config, model, paths[0], trainable=False)
    return model


def count(model: Any) -> tuple[int, int]:
    """All parameters and the trained ones; a 4-bit weight holds two a byte, and ZeRO-3 says how many there were."""
    total = trained = 0
    for parameter in model.parameters():
        number = getattr(parameter, "ds_numel", None) or parameter.numel()
        if type(parameter).__name__ == "Params4bit":
            number *= 2 * parameter.element_size()
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


EXPERTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Names of what experts were before they became one tensor; peft still knows them."""


def stacked(model: Any) -> list[str]:
    """Names of modules whose weights are a stack of matrices: experts."""
    return sorted({name.rpartition(".")[0].rsplit(".", 1)[-1] for name, weight in model.named_parameters() if weight.ndim > 2})


def targets(model: Any, key: str, wanted: tuple[str, ...]) -> list[str]:
    """The modules named, or all linear ones. Raises InputError with the nearest name the model has."""
    if "all" in wanted:
        found = linear_names(model)
        if key == "lora_target" and stacked(model) and not set(found) & set(EXPERTS):
            log.info("%s: all: the experts are one tensor and stay out; %s beside %s adapt them too", key, ",".join(EXPERTS[:3]),
                     ",".join(found))  # fmt: skip
        return found
    parts = {part for name, _ in model.named_modules() for part in (name, name.rsplit(".", 1)[-1])}
    known = linear_names(model)
    experts = EXPERTS if key == "lora_target" and stacked(model) else ()
    for name in wanted:
        if name not in (*parts, *experts) and not any(part.endswith("." + name) for part in parts):
            near = difflib.get_close_matches(name, known if key != "additional_target" else sorted(parts), 1, 0.4)
            every = ", ".join(known)
            raise InputError(f"{key}: the model has no module {name}", f"did you mean {near[0]}? Linear layers: {every}" if near else every)
    return list(wanted)


def _adapter(config: Config, model: Any) -> Any:
    from peft import get_peft_model

    merged = list(config.model.adapters)
    continued = None
    if quantization.method_of(model) and merged and (len(merged) > 1 or config.method.lora.create_new_adapter):
        raise InputError("an adapter cannot be merged into quantized weights", "give one adapter, which is then continued")
    if merged and not config.method.lora.create_new_adapter:
        continued = merged.pop()
    for path in merged:
        model = _load(config, model, path, trainable=False).merge_and_unload()
        log.info("merged adapter %s", path)
    if continued is not None:
        return _ready(config, _load(config, model, continued, trainable=True))
    settings = _lora(config, model) if config.method.finetuning_type == "lora" else _oft(config, model)
    linear = linear_names(model)  # peft changes the model before it finds that it cannot
    try:
        made = get_peft_model(model, settings, autocast_adapter_dtype=not config.method.pure_bf16)
    except (ValueError, AttributeError, TypeError, NotImplementedError) as error:
        raise _impossible(config, model, linear, error) from error
    return _ready(config, made)


def _impossible(config: Config, model: Any, linear: list[str], error: Exception) -> InputError:
    """Why peft makes no such adapter. Experts that are one tensor take a plain LoRA only, since they are no linear layers."""
    lora, kind = config.method.lora, config.method.finetuning_type
    asked = {"use_dora": lora.dora, "pissa_init": lora.pissa_init, "lora_dropout": lora.dropout > 0} if kind == "lora" else {}
    if (experts := stacked(model)) and (named := [name for name, wanted in asked.items() if wanted]):
        return InputError(
            f"{' and '.join(named)}: not on the experts of {config.model.name}, which are one tensor ({', '.join(experts)})",
            f"{kind}_target: {','.join(name for name in linear if name not in EXPERTS)}, which leaves the experts out",
        )
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InputError(f"finetuning_type: {kind}: peft makes no such adapter for {config.model.name}: {first}", f"another {kind}_target")


def _ready(config: Config, model: Any) -> Any:
    """An adapter that is to be trained: in the run's number format, and with OFT's dropout, which the stages have that have any."""
    if config.method.finetuning_type == "oft" and config.method.stage not in WITHOUT_DROPOUT:
        oft_dropout.add(model, model.peft_config["default"].module_dropout)
    return keep_small(config, model)


def keep_small(config: Config, model: Any) -> Any:
    """pure_bf16: the adapter too. peft makes it float32 whenever it reads one, from a checkpoint as well."""
    if config.method.pure_bf16 and hasattr(model, "get_base_model"):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(model.get_base_model().dtype)
    return model


def _load(config: Config, model: Any, path: str, *, trainable: bool) -> Any:
    """An adapter on this model. InputError for one of another kind, or that was trained on a model of another shape."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    remedy = "a folder with adapter_config.json, trained on this base"
    broken = weight_files.fault_of_adapter(Path(path))
    if broken:
        raise InputError(f"adapter {path}: {broken}", "copy the adapter again")
    try:
        settings = PeftConfig.from_pretrained(path)
        kind = str(getattr(settings.peft_type, "value", settings.peft_type)).lower()
        if trainable and kind != config.method.finetuning_type:
            raise InputError(
                f"adapter {path} is of type {kind}, the recipe says {config.method.finetuning_type}", f"finetuning_type: {kind}"
            )
        remedy = f"it was trained on {settings.base_model_name_or_path}; {remedy}"
        loaded = PeftModel.from_pretrained(model, path, is_trainable=trainable, autocast_adapter_dtype=not config.method.pure_bf16)
        apart = set(load_peft_weights(path, device="cpu")) ^ set(get_peft_model_state_dict(loaded))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        found = next((line for line in lines if "size mismatch" in line), lines[0])
        raise InputError(f"adapter {path} does not fit model {config.model.name}: {found}", remedy) from error
    if apart:
        names = f"{len(apart)} weights stand on one side only, {sorted(apart)[0]} among them"
        raise InputError(f"adapter {path} does not fit model {config.model.name}: {names}", remedy)
    log.info("adapter %s: %s", path, "continued, with the shape it has" if trainable else "loaded")
    return loaded


def _saved_whole(config: Config, model: Any) -> list[str] | None:
    """Modules trained in full beside the adapter; a vocabulary that may grow brings its embeddings."""
    wanted = config.method.lora.additional_target
    if not wanted and config.model.resize_vocab:
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        wanted = tuple(sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if any(module is end for end in ends)}))
        log.info("resize_vocab: %s are trained in full", ", ".join(wanted))
    return targets(model, "additional_target", wanted) or None


def _lora(config: Config, model: Any) -> Any:
    from peft import LoraConfig, TaskType

    lora = config.method.lora
    start: bool | str = True
    if lora.pissa_init:
        start = "pissa" if lora.pissa_iter == -1 else f"pissa_niter_{lora.pissa_iter}"
    modules = targets(model, "lora_target", lora.target)
    if config.method.use_llama_pro:
        modules = freeze.expanded(model, modules, config.method.freeze)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=lora.rank, lora_alpha=lora.alpha or 2 * lora.rank, lora_dropout=lora.dropout,
        target_modules=modules, modules_to_save=_saved_whole(config, model),
        use_rslora=lora.rslora, use_dora=lora.dora, init_lora_weights=start,
    )  # fmt: skip


def _oft(config: Config, model: Any) -> Any:
    from peft import OFTConfig, TaskType

    oft = config.method.oft
    return OFTConfig(
        task_type=TaskType.CAUSAL_LM, r=oft.rank, oft_block_size=oft.block_size if not oft.rank else 0,
        target_modules=targets(model, "oft_target", oft.target), modules_to_save=_saved_whole(config, model),
        module_dropout=oft.module_dropout,
    )  # fmt: skip
