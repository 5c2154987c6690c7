"""Gradients of several processes have the size of one's. SGD shows it; AdamW and clipping hide gradients that are half of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_ranks import FSDP, UNEVEN, WAYS, zero
from trainer_harness import Trainer

pytestmark = pytest.mark.training
Config = Callable[..., Path]
PLAIN = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_steps": 4}


def offloading(stage: int) -> dict[str, Any]:
    """As LLaMA-Factory's ds_z2_offload and ds_z3_offload say it."""
    made = zero(stage)
    made["zero_optimization"] |= {"offload_optimizer": {"device": "cpu", "pin_memory": True}}
    made["zero_optimization"] |= {"offload_param": {"device": "cpu", "pin_memory": True}} if stage == 3 else {}
    return made


@pytest.fixture
def losses(trainer: Trainer, trainer_of_shards: Trainer, config: Config) -> Callable[..., tuple[list[float], list[str]]]:
    """Of a run with two micro-batches a step: what it logs, and the codes of its warnings."""

    def run(folder: str, ranks: int, speed: str, **arguments: Any) -> tuple[list[float], list[str]]:
        given = {"per_device_train_batch_size": 4 // ranks, "gradient_accumulation_steps": 2, **PLAIN, **arguments}
        path = config(folder, UNEVEN, method={"finetuning_type": "full"}, arguments=given, training={"speed": speed})
        done = (trainer_of_shards if "deepspeed" in given else trainer).train(path, ranks)
        assert done.code == 0, done.output
        return done.losses, [event["code"] for event in done.of("warning")]

    return run


def test_two_processes_step_as_far_as_one(losses: Callable[..., tuple[list[float], list[str]]]) -> None:
    alone, _ = losses("alone", 1, "off")
    for speed in ("off", "memory"):
        for name, more in (("ddp", {}), ("zero-0", {"deepspeed": zero(0)}), ("zero-1", {"deepspeed": zero(1)}), ("zero-2", WAYS["ZeRO-2"])):
            assert losses(f"{name}-{speed}", 2, speed, **more)[0] == pytest.approx(alone, abs=1e-4), (name, speed)
    for name in ("ZeRO-3", "FSDP2"):
        assert losses(name, 2, "off", **WAYS[name])[0] == pytest.approx(alone, abs=1e-4), name


def test_so_they_do_where_each_counts_its_own_labels(losses: Callable[..., tuple[list[float], list[str]]]) -> None:
    own = {"average_tokens_across_devices": False}
    plain, _ = losses("ddp", 2, "off", **own)
    for speed in ("off", "memory"):
        assert losses(f"zero-0-{speed}", 2, speed, deepspeed=zero(0), **own)[0] == pytest.approx(plain, abs=1e-4), speed


def test_files_that_offload_train_the_same_on_a_processor(losses: Callable[..., tuple[list[float], list[str]]]) -> None:
    """Where there is nothing to offload to; DeepSpeed's Adam for the CPU would want a compiler, torch's FSDP an accelerator."""
    plain, _ = losses("ddp", 2, "off", optim="adamw_torch", learning_rate=0.002)
    whole = {"fsdp": "full_shard auto_wrap offload", "fsdp_config": FSDP["fsdp_config"]}
    for name, more in (("z2", {"deepspeed": offloading(2)}), ("z3", {"deepspeed": offloading(3)}), ("fsdp", whole)):
        found, said = losses(name, 2, "off", optim="adamw_torch", learning_rate=0.002, **more)
        assert (found, said) == (pytest.approx(plain, abs=1e-4), ["offload"]), name


def test_deepspeed_finds_the_free_memory_of_devices_that_are_named_by_identifiers(trainer: Trainer) -> None:
    found = trainer.check("rank_checks.deepspeed_memory")
    assert list(found.values()) == [1003, 7, 7], found
