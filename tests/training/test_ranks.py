"""Several processes on the CPU, which meet over gloo: they train what one process trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import Done, Trainer

Config = Callable[..., Path]
UNEVEN = [{"instruction": f"Count to {n}.", "input": "", "output": " ".join(str(k) for k in range(1, n + 1))} for n in range(1, 33)]
"""Answers of 1 to 32 words, so that processes never count the same number of labels."""


def passed(done: Done, *, padding_free: bool) -> list[float]:
    assert done.code == 0, done.output
    assert {said["padding_free"] for said in done.of("speed")} == {padding_free}, done.of("speed")
    return done.losses


@pytest.mark.parametrize(
    "parts",
    [
        {"arguments": {"gradient_accumulation_steps": 3, "num_train_epochs": 2, "max_steps": -1}},
        {"method": {"finetuning_type": "full"}, "arguments": {"learning_rate": 0.002}, "model": {"gradient_checkpointing": True}},
        {"arguments": {"average_tokens_across_devices": False}},
    ],
    ids=["lora, accumulation that does not divide the epoch", "full, recomputed", "each process counts its own labels"],
)
def test_two_processes_have_the_losses_of_padded_batches_without_padding(trainer: Trainer, config: Config, parts: dict[str, Any]) -> None:
    def losses(folder: str, ranks: int, speed: str) -> list[float]:
        given: dict[str, Any] = json.loads(json.dumps(parts))
        arguments = {"per_device_train_batch_size": 4 // ranks, "max_steps": 6, **given.pop("arguments")}
        made = config(folder, UNEVEN, arguments=arguments, training={"speed": speed}, **given)
        return passed(trainer.train(made, ranks), padding_free=speed == "memory")

    padded, flat = losses("padded", 2, "off"), losses("flat", 2, "memory")
    assert len(flat) == len(padded) > 4
    assert flat == pytest.approx(padded, abs=2e-3)
    assert flat[:2] == pytest.approx(padded[:2], abs=2e-5)
    if "average_tokens_across_devices" not in parts["arguments"]:
        assert flat == pytest.approx(losses("alone", 1, "memory"), abs=2e-3)


def test_gradients_of_two_processes_are_those_of_one_and_nobody_waits_for_a_batch_without_labels(trainer: Trainer, tmp_path: Path) -> None:
    for found in trainer.check("step_of_two", str(tmp_path)):
        assert max(found.values()) < 1e-6, found


def zero(stage: int) -> dict[str, Any]:
    """As LLaMA-Factory's files say it."""
    return {
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto", "zero_allow_untested_optimizer": True, "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": stage},
    }  # fmt: skip


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_without_padding(trainer_of_shards: Trainer, config: Config, stage: int) -> None:
    def losses(folder: str, speed: str, **arguments: Any) -> list[float]:
        given = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4, **arguments}
        done = trainer_of_shards.train(config(folder, UNEVEN, arguments=given, training={"speed": speed}), 2)
        return passed(done, padding_free=speed == "memory")

    alike = losses("ddp", "off")
    assert losses("padded", "off", deepspeed=zero(stage)) == pytest.approx(alike, abs=2e-3)
    assert losses("flat", "memory", deepspeed=zero(stage)) == pytest.approx(alike, abs=2e-3)
