"""Imports only what the run uses.

transformers and peft import every optional package they find installed: bitsandbytes, datasets, pandas and others, about three
seconds on two cores. A package that is set to None in `sys.modules` counts as not installed, which is exactly what is wanted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fl_trainers.config import Config
from fl_trainers.optimizers import BITSANDBYTES

OPTIONAL = ("bitsandbytes", "datasets", "deepspeed", "liger_kernel", "pandas", "scipy", "sklearn", "torchvision", "torchaudio")


def needed(config: Config) -> set[str]:
    """The optional packages that this run does use."""
    names: set[str] = set()
    arguments = config.training.arguments
    optimizer = str(arguments.get("optim", ""))
    if config.model.quantization is not None or any(part in optimizer for part in (*BITSANDBYTES, "bnb", "galore", "apollo")):
        names |= {"bitsandbytes", "scipy"}
    if _saved_quantized(config):
        names |= {"bitsandbytes", "scipy"}
    others = (config.method.reference, config.method.ppo.reward_model)
    if any(other is not None and other.quantization is not None for other in others):
        names |= {"bitsandbytes", "scipy"}
    if config.method.low_rank is not None:  # its package imports it, as for optim: galore_adamw
        names |= {"bitsandbytes", "scipy"}
    if arguments.get("deepspeed"):
        names.add("deepspeed")
    fast = config.run.lane == "cuda" and config.training.speed != "off" and config.method.stage in ("sft", "pt")
    if config.model.liger or arguments.get("use_liger_kernel") or fast:
        names.add("liger_kernel")
    if config.method.stage == "grpo" and config.method.grpo.backend == "vllm":
        names |= set(OPTIONAL)  # vLLM imports most of them
    if config.method.stage == "grpo":
        names |= {"datasets", "pandas"}  # TRL imports them
    if config.training.predict_with_generate:
        names |= {"scipy", "sklearn"}
    return names


def _saved_quantized(config: Config) -> bool:
    """Whether the checkpoint says that it is quantized; of one that is not here yet nobody knows."""
    model = config.model
    if model.kind not in ("folder", "hub"):
        return False
    try:
        path: Any = Path(model.path) / "config.json"
        if model.kind == "hub":
            from huggingface_hub import try_to_load_from_cache

            path = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
        return not isinstance(path, (str, Path)) or "quantization_config" in json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # the fault is told when the model is opened


def hide(config: Config) -> None:
    """Call before the first import of transformers."""
    for name in OPTIONAL:
        if name not in needed(config) and name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]


def reveal(*names: str) -> None:
    """Makes hidden packages importable again."""
    for name in names:
        if sys.modules.get(name, 0) is None:
            del sys.modules[name]
