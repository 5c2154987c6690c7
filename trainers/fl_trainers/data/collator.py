"""Rows become batches: right-padded, with the number of real tokens in them as a plain number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fl_trainers.data.encode import IGNORE


@dataclass(frozen=True)
class Collator:
    """Pads to the longest row, rounded up to `multiple`.

    apart: rows are packs whose parts must not see each other. They carry no mask but positions that start anew with each part,
    from which every attention implementation of transformers makes its own block-diagonal form.
    """

    pad: int
    multiple: int = 1
    apart: bool = False
    filler: int = IGNORE
    """Label of the padding: `ignore_pad_token_for_loss: false` counts it."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        width = -(-longest // self.multiple) * self.multiple
        ids = torch.full((len(rows), width), self.pad, dtype=torch.long)
        labels = torch.full((len(rows), width), self.filler, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        positions = torch.zeros((len(rows), width), dtype=torch.long)
        tokens = 0
        for number, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[number, :length] = torch.frombuffer(row["input_ids"], dtype=torch.int32)
            labels[number, :length] = torch.frombuffer(row["labels"], dtype=torch.int32)
            mask[number, :length] = 1
            tokens += length
            if self.apart:
                at = 0
                for part in [*(row.get("parts") or [length]), width - length]:
                    positions[number, at : at + part] = torch.arange(part)
                    if at < width:
                        labels[number, at] = IGNORE  # the first token of a part does not follow from the part before
                    at += part
        batch: dict[str, Any] = {"input_ids": ids, "labels": labels, "num_tokens": tokens}
        return {**batch, "position_ids": positions} if self.apart else {**batch, "attention_mask": mask}
