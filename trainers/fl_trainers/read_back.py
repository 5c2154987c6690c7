"""Whole weights of a checkpoint whose files name some of them otherwise than the model in memory does.

Experts lie in files one by one, as on the hub, and in memory as one tensor. transformers' Trainer compares names, finds none of the
experts, and goes on with those of the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl_trainers import weight_files


def otherwise_named(model: Any, folder: str) -> bool:
    """Whether the Trainer's own way would leave weights out."""
    files = [*Path(folder).glob("model*.safetensors")]
    there = {name for path in files for name in weight_files.tensors(path)}
    return bool(there - set(model.state_dict()))


def into(model: Any, folder: str) -> None:
    """Fills the model, each weight in the format that it has: read in float32, in which masters lose nothing."""
    import torch

    read = type(model).from_pretrained(folder, config=model.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
