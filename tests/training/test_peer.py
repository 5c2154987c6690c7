"""Losses beside LLaMA-Factory's: the same model, rows, seed and recipe give the same numbers, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Trainer

PAIRS = [
    {"instruction": row["instruction"], "chosen": row["output"], "rejected": SUMS[(number * 7 + 1) % 36]["output"]}
    for number, row in enumerate(SUMS)
]
RECIPES: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"rows": PAIRS, "dataset": {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}},
    "pt": {"dataset": {"columns": {"prompt": "output"}}, "data": {"template": "qwen3", "packing": True, "cutoff_len": 16}},
}
PEERS = {
    # LLaMA-Factory 0.9.5 with transformers 5.6.0 and torch 2.13.0 on a CPU: the built-in model and tokenizer saved by a run with
    # learning_rate 0, the same rows in files, `llamafactory-cli train` with the keys below and finetuning_type full
    "sft": (5.693470, 5.147349, 4.909229, 4.788818, 4.695570, 4.604464),
    "dpo": (0.693147, 0.698120, 0.703732, 0.706766, 0.724879, 0.681482),
    "pt": (5.295376, 4.875621, 4.650334, 4.491479, 4.364654, 4.291585),
}
DIVISOR = {"pt": 16 / 15}
"""Its transformers divides by 16 labels a block, of which 15 are foretold."""
KEYS = {"max_steps": 6, "learning_rate": 0.002, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("stage", PEERS)
@pytest.mark.parametrize("speed", ["auto", "off"])
def test_losses_are_the_peers(trainer: Trainer, config: Callable[..., Path], stage: str, speed: str) -> None:
    parts = {"data": {"template": "qwen3"}, **RECIPES[stage]}
    path = config(stage, method={"stage": stage, "finetuning_type": "full"}, arguments=KEYS, training={"speed": speed}, **parts)
    done = trainer.train(path)
    assert done.code == 0, done.output
    assert done.losses == pytest.approx([loss * DIVISOR.get(stage, 1) for loss in PEERS[stage]], abs=1e-3)
