"""Imports only what the run uses.

transformers and peft import every optional package they find installed: bitsandbytes, datasets, pandas and others, about three
seconds on two cores. A package that is set to None in `sys.modules` counts as not installed, which is exactly what is wanted.
"""

from __future__ import annotations

import sys

from fl_trainers.config import Config

OPTIONAL = ("bitsandbytes", "datasets", "deepspeed", "liger_kernel", "pandas", "scipy", "sklearn", "torchvision", "torchaudio")


def needed(config: Config) -> set[str]:
    """The optional packages that this run does use."""
    names: set[str] = set()
    arguments = config.training.arguments
    optimizer = str(arguments.get("optim", ""))
    if config.model.quantization is not None or "8bit" in optimizer or "paged" in optimizer or "bnb" in optimizer:
        names |= {"bitsandbytes", "scipy"}
    if config.method.low_rank is not None:  # its package imports it
        names |= {"bitsandbytes", "scipy"}
    if arguments.get("deepspeed"):
        names.add("deepspeed")
    fast = config.run.lane == "cuda" and config.training.speed != "off" and config.method.stage in ("sft", "pt")
    if config.model.liger or arguments.get("use_liger_kernel") or fast:
        names.add("liger_kernel")
    if config.training.predict_with_generate:
        names |= {"scipy", "sklearn"}
    return names


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
