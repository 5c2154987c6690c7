"""Dropout of OFT: in training, blocks of the rotation are left out. peft takes `module_dropout` and never applies it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def add(model: Any, chance: float) -> None:
    """Each block turns nothing with this chance, in each forward pass of a layer anew."""
    from peft.tuners.oft.layer import OFTRotationModule

    for module in model.modules():
        if chance > 0 and isinstance(module, OFTRotationModule):
            module._cayley_batch = _dropped(module, module._cayley_batch, chance)


def _dropped(module: Any, rotation: Callable[..., Any], chance: float) -> Callable[..., Any]:
    import torch

    def made(blocks: Any, *more: Any) -> Any:
        """A block whose numbers are all 0 is the identity."""
        if module.training:
            blocks = blocks * (torch.rand(len(blocks), 1, device=blocks.device) >= chance).to(blocks.dtype)
        return rotation(blocks, *more)

    return made
