"""PiSSA changes the base weights that its adapter stands beside; the converted adapter fits the base as it was, as any LoRA does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl_trainers.progress import log, rank

INITIAL, CONVERTED = "pissa_init", "pissa_converted"


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
