"""BAdam's optimizers with what a checkpoint needs: which block was trained, since when, and its weights in float32.

The package saves the moments alone. A run that went on would put those of one block on another, begin at the first block again, and
take one step with the learning rate of the beginning.
"""

from __future__ import annotations

from typing import Any

import torch
from badam import BlockOptimizer, BlockOptimizerRatio

from fl_trainers.errors import InputError


class Blocks(BlockOptimizer):  # type: ignore[misc]
    """One block of layers at a time."""

    def __init__(self, *, verbose: int, start_block: int | None, **more: Any) -> None:
        self.block_order: list[int] = []
        self.trained_block = 0
        names = [name for name, _ in more["named_parameters_list"]]
        count = len(self.infer_param_groups(names, False, False))
        if start_block is not None and start_block >= count:
            raise InputError(f"badam_start_block: {start_block}, but the model has {count} blocks", f"0 to {count - 1}")
        super().__init__(verbose=verbose, start_block=start_block, **more)
        self.state_dict = self._whole  # over the base optimizer's, which BlockOptimizer has put there

    def switch_trainable_params(self, verbose: int | None = None) -> None:
        """The package says each switch on the standard output, whatever `badam_verbose` is."""
        self.trained_block = self.current_block_idx
        super().switch_trainable_params(verbose)

    def _whole(self) -> dict[str, Any]:
        block = {
            "trained": self.trained_block, "next": self.current_block_idx, "order": list(self.block_order), "step": self.global_step,
            "rates": [group["lr"] for group in self.param_groups],
            "weights": {number: weight.detach() for number, weight in self.param_idx2hp.items()},
        }  # fmt: skip
        return {**self.base_optimizer.state_dict(), "block": block}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        moments = dict(state_dict)
        block = moments.pop("block")
        self.current_block_idx = block["trained"]
        self.switch_trainable_params()
        self.block_order, self.current_block_idx, self.global_step = list(block["order"]), block["next"], block["step"]
        self.base_optimizer.load_state_dict(moments)
        for number, weight in self.param_idx2hp.items():
            weight.data.copy_(block["weights"][number])
        for group, rate in zip(self.param_groups, block["rates"], strict=True):
            group["lr"] = rate


class Share(BlockOptimizerRatio):  # type: ignore[misc]
    """A share of each matrix at a time."""

    @property
    def lm_head_layer(self) -> Any:
        """The package takes gradients from it, also where the embedding is the head and none has this name."""
        found = super().lm_head_layer
        return torch.zeros(()) if found is None else found

    def state_dict(self) -> dict[str, Any]:
        weights = [weight for _, weight in self.named_parameters_list]
        share = {
            "step": self.global_step, "offsets": [self.sparse_dict[weight]["offset"] for weight in weights],
            "seeds": [self.sparse_dict[weight]["seed"] for weight in weights],
        }  # fmt: skip
        made = super().state_dict()  # in which the package leaves a defaultdict, that torch does not read again
        return {**made, "state": {number: dict(state) for number, state in made["state"].items()}, "share": share}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        moments = dict(state_dict)
        share = moments.pop("share")
        super().load_state_dict(moments)
        self.global_step = share["step"]
        self.mask_dict.clear()
        for (_, weight), offset, seed in zip(self.named_parameters_list, share["offsets"], share["seeds"], strict=True):
            self.sparse_dict[weight].update(offset=offset, seed=seed)
