"""A recipe's values → the keyword arguments of transformers' TrainingArguments. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fl.recipe import Recipe
from fl.recipe_keys import all_keys

OWN: Final = frozenset({"output_dir", "do_train", "do_eval", "do_predict", "predict_with_generate", "resume_from_checkpoint"})
"""TrainingArguments that have a field of their own in the config."""

_FSDP: Final = {"fsdp_transformer_layer_cls_to_wrap": "transformer_layer_cls_to_wrap", "fsdp_min_num_params": "min_num_params"}


def arguments(recipe: Recipe, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments that the recipe sets, as JSON values. `files`: key → content of the JSON file that the recipe names there."""
    values = recipe.values
    known = all_keys()
    result = {
        name: _plain(files.get(name, value))
        for name, value in values.items()
        if known[name].owner == "transformers" and known[name].verdict == "handled" and name not in OWN
    }
    if "warmup_ratio" in values:
        result["warmup_steps"] = values["warmup_ratio"]
    if values.get("group_by_length"):
        result["train_sampling_strategy"] = "group_by_length"
    if values.get("adafactor"):
        result["optim"] = "adafactor"
    if values.get("include_inputs_for_metrics"):
        result["include_for_metrics"] = ["inputs"]
    if "eval_num_beams" in values:
        result["generation_num_beams"] = values["eval_num_beams"]
    wrap = {new: [values[old]] if new.startswith("transformer") else values[old] for old, new in _FSDP.items() if old in values}
    if wrap:
        result["fsdp_config"] = {**wrap, **(result.get("fsdp_config") or {})}
    if "fsdp" in result:
        result["fsdp"] = _fsdp(result["fsdp"])
    return {name: value for name, value in result.items() if value is not None}


def gradient_checkpointing(recipe: Recipe) -> bool:
    """On, unless one of its three keys says no."""
    newer = [recipe.values.get(name) for name in ("gradient_checkpointing", "activation_checkpointing")]
    return not recipe.get("disable_gradient_checkpointing") and False not in newer


def reentrant(recipe: Recipe) -> bool:
    """Whether gradient checkpointing is reentrant."""
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        options = recipe.values.get(name)
        if isinstance(options, dict) and "use_reentrant" in options:
            return bool(options["use_reentrant"])
    return bool(recipe.get("use_reentrant_gc"))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _fsdp(value: Any) -> str | bool | None:
    """transformers takes true, or options in one text."""
    if isinstance(value, list):
        return " ".join(str(item) for item in value) or None
    if isinstance(value, str):
        return " ".join(value.replace(",", " ").split()) or None
    return value or None
