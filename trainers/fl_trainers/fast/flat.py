"""Batches without padding: the rows of a batch one after another, with the borders between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fl_trainers.data.encode import IGNORE


@dataclass(frozen=True)
class Flat:
    """Joins rows. apart: a row is a pack whose parts must not see each other."""

    apart: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """input_ids, labels, position_ids: int64 [1, tokens]; borders: int32 [documents + 1]; longest and num_tokens: numbers.

        targets: int64 [tokens], what each token must foretell; kept: the places where that counts. Both are made here, not on the device,
        which would have to be waited for. The first label of each document is IGNORE: it does not follow from the document before.
        A row not kept apart is one document.
        """
        import torch

        lengths: list[int] = []
        for row in rows:
            lengths += (row.get("parts") if self.apart else None) or [len(row["input_ids"])]
        ids = torch.cat([torch.frombuffer(row["input_ids"], dtype=torch.int32) for row in rows]).long()
        labels = torch.cat([torch.frombuffer(row["labels"], dtype=torch.int32) for row in rows]).long()
        borders = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        borders[1:] = torch.tensor(lengths).cumsum(0)
        labels[borders[:-1].long()] = IGNORE
        positions = torch.cat([torch.arange(length) for length in lengths])
        targets = torch.cat([labels[1:], labels.new_full((1,), IGNORE)])
        return {
            "input_ids": ids[None], "labels": labels[None], "position_ids": positions[None], "borders": borders,
            "targets": targets, "kept": torch.nonzero(targets != IGNORE).squeeze(1), "longest": max(lengths), "num_tokens": len(ids),
        }  # fmt: skip
