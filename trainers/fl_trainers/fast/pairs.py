"""Stages that compare answers, in batches without padding: the model's body over all rows, the head where answers count."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer

from fl_trainers import value_head
from fl_trainers.data.encode import IGNORE
from fl_trainers.fast import attention
from fl_trainers.fast.step import Step


class InStep:
    """Before a Loop in the bases of one whose batches hold two answers a row: what is noted of them is by row.

    Its batches stay padded, and what asks the model makes them flat.
    """

    accelerator: Any

    def _flat_step(self, model: Any, inputs: dict[str, Any], count: Any) -> Any:
        """As any other step; layers are recomputed in its backward pass, which must see documents too."""
        inputs.pop("num_tokens", None)
        attention.register()
        with attention.switched(value_head.plain(self.accelerator.unwrap_model(model)).config):
            return Trainer.training_step(self, model, inputs, count)


def flat(inputs: dict[str, Any]) -> dict[str, Any]:
    """A right-padded batch as rows one after another, with the borders between them and what each counted token must foretell."""
    mask, labels = inputs["attention_mask"].bool(), inputs["labels"]
    following = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORE)], dim=1)
    counted = following != IGNORE
    kept = torch.nonzero(counted[mask]).squeeze(1)
    return {
        **value_head.joined(inputs["input_ids"], mask),
        "kept": kept, "targets": following[mask][kept], "counts": counted.sum(1),
        "rows": torch.arange(len(labels), device=labels.device)[:, None].expand_as(mask)[mask][kept],
        "places": counted.cumsum(1)[mask][kept],
    }  # fmt: skip


class Pairs(Step):
    """A model that is asked for flat batches. What recomputes its layers does so within `attention.switched`."""

    def log_probabilities(self, batch: dict[str, Any], ld_alpha: float | None = None) -> tuple[Any, Any]:
        """Of each row: the sum over its labels, and how many there are. ld_alpha: as preference.log_probabilities has it."""
        found: tuple[Any, Any] = self._through(batch, ld_alpha)
        return found

    def loss(self, batch: dict[str, Any], *more: Any, **_: Any) -> Any:
        """What stands around the model sees this as its forward pass."""
        (ld_alpha,) = more
        with attention.switched(self.causal.config), self._autocast():
            given = {name: batch[name] for name in value_head.JOINED}
            hidden = self.body(**given, use_cache=False).last_hidden_state.squeeze(0)
            logits = self.head(self.scaled(hidden[batch["kept"]]))
        each = -functional.cross_entropy(logits.float(), batch["targets"], reduction="none")
        counts, rows = batch["counts"], batch["rows"]
        if ld_alpha is not None:
            common = torch.stack(counts.chunk(2)).min(0).values.repeat(2)
            each = torch.where(batch["places"] > common[rows], ld_alpha * each, each)
        return each.new_zeros(len(counts)).index_add(0, rows, each), counts
