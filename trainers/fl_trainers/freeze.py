"""Training of some layers only: the first or last ones, or the ones that LLaMA-Pro put between the others."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from fl_trainers.config import Config, Freeze
from fl_trainers.errors import InputError
from fl_trainers.progress import log

_LAYER = re.compile(r"\.(\d+)\.")


def apply(config: Config, model: Any) -> None:
    """Only the chosen parameters need gradients afterwards. InputError with the nearest name where a module is not there."""
    freeze = config.method.freeze
    count = layers_of(model)
    chosen = set(trained_layers(freeze, count, pro=config.method.use_llama_pro))
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    inside = {part for name in names if (found := _LAYER.search(name)) for part in name[found.end() :].split(".")[:-1]}
    outside = {part for name in names if not _LAYER.search(name) for part in name.split(".")[:-1]}
    check_names("freeze_trainable_modules", [name for name in freeze.trainable_modules if name != "all"], inside)
    check_names("freeze_extra_modules", freeze.extra_modules, outside)
    trained: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if _wanted(name, freeze, chosen):
            trained.add(id(parameter))
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    log.info("trained layers: %s of %d", ", ".join(str(number) for number in sorted(chosen)), count)


def layers_of(model: Any) -> int:
    """How many layers the model's config names."""
    settings = getattr(model.config, "text_config", None) or model.config
    count = next((value for key in ("num_hidden_layers", "num_layers", "n_layer") if (value := getattr(settings, key, None))), None)
    if not count:
        raise InputError("finetuning_type: freeze: the model's config has no num_hidden_layers", "finetuning_type: lora")
    return int(count)


def trained_layers(freeze: Freeze, count: int, *, pro: bool) -> list[int]:
    """The numbers of the layers that are trained.

    n: the last n; -n: the first n; LLaMA-Pro: n at equal distances, the last one among them, which is where its expansion puts new layers.
    """
    wanted = freeze.trainable_layers
    if not pro:
        return list(range(max(count - wanted, 0), count) if wanted > 0 else range(min(-wanted, count)))
    if wanted <= 0 or count % wanted:
        fitting = ", ".join(str(number) for number in range(1, count + 1) if count % number == 0)
        raise InputError(f"use_llama_pro: {wanted} of {count} layers is no whole distance", f"freeze_trainable_layers: one of {fitting}")
    stride = count // wanted
    return list(range(stride - 1, count, stride))


def expanded(model: Any, targets: Iterable[str], freeze: Freeze) -> list[str]:
    """LLaMA-Pro with an adapter: the full names of the target modules inside the layers that were added."""
    layers = set(trained_layers(freeze, layers_of(model), pro=True))
    wanted = set(targets)
    return [
        name
        for name, _ in model.named_modules()
        if name.rsplit(".", 1)[-1] in wanted and (found := _LAYER.search(name)) and int(found[1]) in layers
    ]


def check_names(key: str, wanted: Iterable[str], known: set[str]) -> None:
    """InputError for a module the model does not have, with the nearest that it has."""
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1, 0.4)
            every = ", ".join(sorted(known))
            raise InputError(f"{key}: the model has no module {name}", f"did you mean {near[0]}? There are {every}" if near else every)


def _wanted(name: str, freeze: Freeze, layers: set[int]) -> bool:
    found = _LAYER.search(name)
    parts = set(name.split("."))
    if found is None:
        return bool(parts & set(freeze.extra_modules))
    return int(found[1]) in layers and ("all" in freeze.trainable_modules or bool(parts & set(freeze.trainable_modules)))
