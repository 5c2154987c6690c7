"""PiSSA changes the base weights that its adapter stands beside; the converted adapter fits the base as it was, as any LoRA does."""

from __future__ import annotations

import shutil
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
        _save(_inner(model), folder / INITIAL)


def convert(model: Any, folder: Path) -> None:
    """The same change of the model as an ordinary LoRA of twice the rank, in a folder of its own."""
    model = _inner(model)
    _save(model, folder / CONVERTED, path_initial_model_for_weight_conversion=str(folder / INITIAL))
    _complete(model, folder / CONVERTED / "adapter_model.safetensors")
    for head in folder.glob("value_head.*"):
        shutil.copy2(head, folder / CONVERTED / head.name)
    log.info("converted adapter, for the base model as it was: %s", folder / CONVERTED)


def _inner(model: Any) -> Any:
    """The model that has the adapter, without a value head around it."""
    return getattr(model, "pretrained_model", model)


def _complete(model: Any, file: Path) -> None:
    """peft converts A and B and leaves out all else: DoRA's magnitudes, modules that are trained in full."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file

    made = load_file(file)
    rest = {name: weight.detach().cpu().contiguous() for name, weight in get_peft_model_state_dict(model).items() if not _of_pair(name)}
    if set(rest) - set(made):
        save_file({**made, **{name: weight.clone() for name, weight in rest.items()}}, file, metadata={"format": "pt"})


def _of_pair(name: str) -> bool:
    return "lora_A" in name or "lora_B" in name or "lora_embedding" in name


def _save(model: Any, folder: Path, **options: Any) -> None:
    """Saved as weights that are loaded, not computed anew by another SVD."""
    settings = model.peft_config["default"]
    start = settings.init_lora_weights
    if not options:
        settings.init_lora_weights = True
    try:
        model.save_pretrained(str(folder), selected_adapters=["default"], **options)  # others judge, or are compared with
    finally:
        settings.init_lora_weights = start
