"""memory.py: the crude estimate, against what was measured on one H100 (bf16, batch 4)."""

from __future__ import annotations

from typing import Any

import pytest

from fl import memory
from fl_trainers.config import Config, Data, Method, Model, Quantization, Run, Training

EIGHT = memory.Shape(parameters=8_030_000_000, hidden_size=4096, layers=32, vocabulary=128256)
SMALL = memory.Shape(parameters=1_721_000_000, hidden_size=2048, layers=28, vocabulary=151936)


def config(kind: str = "lora", packing: bool = False, quantized: int | None = None, checkpointing: bool = True, **arguments: Any) -> Config:
    quantization = None if quantized is None else Quantization(bits=quantized)
    return Config(
        run=Run(name="r", lane="cuda", stack="s", events="/e"),
        model=Model(name="m", path="m", kind="hub", quantization=quantization, gradient_checkpointing=checkpointing),
        data=Data(packing=packing, cutoff_len=2048),
        method=Method.model_validate({"finetuning_type": kind}),
        training=Training(output_dir="/o", arguments={"bf16": True, "per_device_train_batch_size": 4, **arguments}),
    )


@pytest.mark.parametrize(
    ("made", "shape", "measured_gib"),
    [
        (config(), EIGHT, 19.2),
        (config(packing=True), EIGHT, 29.4),
        (config("full"), SMALL, 26.9),
        (config("full", packing=True), SMALL, 36.1),
    ],
)
def test_estimates_are_near_what_was_measured_and_not_above(made: Config, shape: memory.Shape, measured_gib: float) -> None:
    measured = measured_gib * 1024**3 / 1e9
    estimate = memory.estimate(made, shape).gigabytes
    assert 0.75 * measured <= estimate <= 1.12 * measured


def test_cheaper_methods_fit_and_are_ordered() -> None:
    found = memory.cheaper(config("full"), EIGHT, 24e9)
    assert found
    assert any("quantization_bit=4" in text for text in found)
    assert "finetuning_type=lora" in found[0]


def test_nothing_is_named_where_nothing_fits() -> None:
    assert memory.cheaper(config("full"), EIGHT, 2e9) == []


@pytest.mark.parametrize(("key", "value", "known"), [("deepspeed", "ds.json", True), ("fsdp", "full_shard", True), ("seed", 1, False)])
def test_sharded_runs_are_not_estimated(key: str, value: object, known: bool) -> None:
    assert memory.sharded(config(**{key: value})) is known


def test_quantized_weights_take_half_a_byte() -> None:
    assert memory.estimate(config(quantized=4), EIGHT).weights == pytest.approx(EIGHT.parameters / 2)


def test_checkpointing_saves_activations() -> None:
    assert memory.estimate(config(), EIGHT).activations < memory.estimate(config(checkpointing=False), EIGHT).activations
