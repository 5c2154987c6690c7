"""LLaMA-Pro's expansion: `python -m fl_trainers.expand MODEL FOLDER LAYERS` puts new layers between those of a model, at equal distances.

A new layer is a copy of the one before it whose two outputs are zero, so the model answers as before until it is trained, with
`use_llama_pro: true` and `freeze_trainable_layers: LAYERS`.
"""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

from fl_trainers.errors import InputError, TrainerError
from fl_trainers.progress import log, start_log

OUTPUTS = ("o_proj.weight", "down_proj.weight", "o_proj.bias", "down_proj.bias")
_LAYER = re.compile(r"^(.*\blayers\.)(\d+)(\..+)$")


def expand(source: str, target: Path, added: int) -> None:
    """Writes the larger model and the tokenizer into `target`, a folder that is not there or is empty."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if target.exists() and any(target.iterdir()):
        raise InputError(f"{target} is not empty", "a folder that is not there yet")
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {source} cannot be loaded: {str(error).splitlines()[0]}", "a folder with config.json, or a hub name"
        ) from error
    larger = grown(model, added)
    larger.save_pretrained(target)
    tokenizer.save_pretrained(target)
    log.info("%s: %d layers, %d of them new; train them with use_llama_pro: true and freeze_trainable_layers: %d", target,
             larger.config.num_hidden_layers, added, added)  # fmt: skip


def grown(model: Any, added: int) -> Any:
    """The model with `added` more layers, each after as many old ones."""
    count = model.config.num_hidden_layers
    if added < 1 or count % added:
        fitting = ", ".join(str(number) for number in range(1, count + 1) if count % number == 0)
        raise InputError(f"{added} new layers do not stand at equal distances among {count} layers", f"one of {fitting}")
    stride = count // added
    settings = copy.deepcopy(model.config)
    settings.num_hidden_layers = count + added
    if getattr(settings, "layer_types", None):
        settings.layer_types = [kind for number, kind in enumerate(settings.layer_types) for kind in [kind] * (1 + _ends(number, stride))]
    weights: dict[str, Any] = {}
    zeros = 0
    for name, weight in model.state_dict().items():
        found = _LAYER.match(name)
        if found is None:
            weights[name] = weight
            continue
        number = int(found[2])
        place = number + number // stride
        weights[f"{found[1]}{place}{found[3]}"] = weight
        if _ends(number, stride):
            silent = name.endswith(OUTPUTS)
            zeros += silent
            weights[f"{found[1]}{place + 1}{found[3]}"] = weight.new_zeros(weight.shape) if silent else weight.clone()
    if zeros < 2 * added:
        raise InputError(f"model type {settings.model_type}: its layers have no o_proj and down_proj", "a model of the Llama kind")
    larger = type(model)._from_config(settings, dtype=model.dtype)
    larger.load_state_dict(weights)
    larger.generation_config = model.generation_config
    return larger


def _ends(number: int, stride: int) -> bool:
    """Whether a new layer comes after this one."""
    return (number + 1) % stride == 0


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 usage, 5 input."""
    start_log()
    if len(arguments) != 3 or not arguments[2].isdecimal():
        log.error("usage: python -m fl_trainers.expand MODEL FOLDER LAYERS")
        return 2
    from transformers.utils import logging as of_library

    of_library.set_verbosity_error()
    of_library.disable_progress_bar()
    try:
        expand(arguments[0], Path(arguments[1]), int(arguments[2]))
    except TrainerError as error:
        log.error("error: %s\n  try: %s", error.message, error.remedy)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
