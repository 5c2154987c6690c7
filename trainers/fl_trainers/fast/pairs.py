"""Log-probabilities of answers in batches without padding: the model's body over all rows, the head where answers count."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from fl_trainers.data.encode import IGNORE
from fl_trainers.fast import attention
from fl_trainers.fast.step import Step


def flat(inputs: dict[str, Any]) -> dict[str, Any]:
    """A right-padded batch as rows one after another, with the borders between them and what each counted token must foretell."""
    mask, labels = inputs["attention_mask"].bool(), inputs["labels"]
    lengths = mask.sum(1)
    following = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORE)], dim=1)
    counted = following != IGNORE
    kept = torch.nonzero(counted[mask]).squeeze(1)
    return {
        "input_ids": inputs["input_ids"][mask][None], "position_ids": (mask.cumsum(1) - 1)[mask][None],
        "borders": functional.pad(lengths.cumsum(0), (1, 0)).int(), "longest": int(lengths.max()),
        "kept": kept, "targets": following[mask][kept], "counts": counted.sum(1),
        "rows": torch.arange(len(labels), device=labels.device)[:, None].expand_as(mask)[mask][kept],
        "places": counted.cumsum(1)[mask][kept],
    }  # fmt: skip


class Pairs(Step):
    """A model that is asked for flat batches. What recomputes its layers does so within `attention.switched`."""

    def log_probabilities(self, batch: dict[str, Any], ld_alpha: float | None = None) -> tuple[Any, Any]:
        """Of each row: the sum over its labels, and how many there are. ld_alpha: as preference.log_probabilities has it."""
        with attention.switched(self.causal.config), self._autocast():
            hidden = self.body(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False,
                cu_seq_lens_q=batch["borders"], cu_seq_lens_k=batch["borders"],
                max_length_q=batch["longest"], max_length_k=batch["longest"],
            ).last_hidden_state.squeeze(0)  # fmt: skip
            logits = self.head(hidden[batch["kept"]])
        each = -functional.cross_entropy(logits.float(), batch["targets"], reduction="none")
        counts, rows = batch["counts"], batch["rows"]
        if ld_alpha is not None:
            common = torch.stack(counts.chunk(2)).min(0).values.repeat(2)
            each = torch.where(batch["places"] > common[rows], ld_alpha * each, each)
        return each.new_zeros(len(counts)).index_add(0, rows, each), counts
