"""PiSSA changes the base weights that its adapter stands beside; the converted adapter fits the base as it was, as any LoRA does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl_trainers.config import Config
from fl_trainers.progress import log, rank

INITIAL, CONVERTED = "pissa_init", "pissa_converted"
WARNING = (
    "the adapter fits only a base from which the same components were taken, and whoever loads it computes them anew; "
    "`pissa_convert: true` also saves one that fits the base as it was"
)


def begins(config: Config) -> bool:
    """Whether the run makes a PiSSA adapter. (One that is continued starts from no SVD.)"""
    lora, method = config.method.lora, config.method
    return method.finetuning_type == "lora" and lora.pissa_init and (not config.model.adapters or lora.create_new_adapter)


def beside(model: Any) -> bool:
    """Whether all that is learned stands beside the weights: without its adapter the model is then what it was.

    A PiSSA adapter takes components out of the weights, one that is read again as well, which says so in its own settings.
    """
    adapters = getattr(model, "peft_config", {})
    return bool(adapters) and not any(str(getattr(one, "init_lora_weights", "")).startswith("pissa") for one in adapters.values())


def converts(config: Config) -> bool:
    """Whether it is saved as an ordinary adapter too."""
    return begins(config) and config.method.lora.pissa_convert


def folder_of(config: Config, folder: str) -> str:
    """Where, in an output folder, the adapter lies that fits the base as it was."""
    return f"{folder}/{CONVERTED}" if converts(config) else folder


def keep_initial(model: Any, folder: Path) -> None:
    """The adapter as it starts: what it learned is the difference to it."""
    if rank() == 0:
        _save(model, folder / INITIAL)


def convert(model: Any, folder: Path) -> None:
    """The same change of the model as an ordinary LoRA of twice the rank, in a folder of its own."""
    _save(model, folder / CONVERTED, path_initial_model_for_weight_conversion=str(folder / INITIAL))
    log.info("converted adapter, for the base model as it was: %s", folder / CONVERTED)


def _save(model: Any, folder: Path, **options: Any) -> None:
    """Saved as weights that are loaded, not computed anew by another SVD."""
    settings = model.peft_config["default"]
    start = settings.init_lora_weights
    if not options:
        settings.init_lora_weights = True
    try:
        model.save_pretrained(str(folder), **options)
    finally:
        settings.init_lora_weights = start
