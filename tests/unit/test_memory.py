"""memory.py: the crude estimate, against what was measured on one H100 (bf16, batch 4)."""

from __future__ import annotations

from typing import Any

import pytest

from fl import memory, memory_check
from fl.errors import RecipeError
from fl.hardware import Accelerator, Hardware
from fl.resolve_model import ModelFacts
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


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage, **more}}}


CPU = {"device": "cpu"}


@pytest.mark.parametrize(
    ("arguments", "bytes_a_parameter"),
    [
        ({}, 16),
        (zero(0), 16),
        (zero(1), 2 + 2 + 12 / 4),
        (zero(2), 2 + (2 + 12) / 4),
        (zero(3), 16 / 4),
        (zero(2, offload_optimizer=CPU), 2),
        (zero(3, offload_optimizer=CPU), 2 / 4),
        (zero(3, offload_optimizer=CPU, offload_param=CPU), 0),
        (zero(3, offload_optimizer={"device": "none"}), 16 / 4),
        ({"fsdp": "full_shard auto_wrap"}, 16 / 4),
        ({"fsdp": "full_shard", "fsdp_config": {"reshard_after_forward": False}}, 4 + 12 / 4),
        ({"fsdp": "full_shard offload"}, 0),
    ],
)
def test_what_is_spread_over_four_devices(arguments: dict[str, Any], bytes_a_parameter: float) -> None:
    found = memory.estimate(config("full", **arguments), EIGHT, 4)
    assert found.trained == pytest.approx(EIGHT.parameters * bytes_a_parameter)


def with_others(kind: str = "full", stage: str = "dpo", arguments: dict[str, Any] | None = None, **method: Any) -> Config:
    made = config(kind, **(arguments or {}))
    return made.model_copy(update={"method": Method.model_validate({"finetuning_type": kind, "stage": stage, **method})})


OTHER = {"name": "o", "path": "o", "kind": "hub"}


@pytest.mark.parametrize(
    ("made", "gigabytes"),
    [
        (with_others(), 16.06),  # a copy, in 16 bits
        (with_others("lora"), 0),  # the adapter is switched off for it
        (with_others(stage="sft"), 0),
        (with_others(stage="orpo"), 0),
        (with_others(stage="kto"), 16.06),
        (with_others(stage="grpo"), 0),
        (with_others(stage="grpo", grpo={"beta": 0.1}), 16.06),
        (with_others("lora", reference=OTHER), 140),
        (with_others("lora", reference={**OTHER, "quantization": {"bits": 4}}), 35),
        (with_others("lora", "ppo", ppo={"reward_model": OTHER}), 14),
        (with_others(arguments=zero(2)), 16.06),  # whole on each device
        (with_others(arguments=zero(3)), 16.06 / 4),
        (with_others(arguments={"fsdp": "full_shard"}), 16.06 / 4),
        (with_others("lora", reference={**OTHER, "quantization": {"bits": 4}}, arguments={"fsdp": "full_shard"}), 35),  # stays whole
    ],
)
def test_models_that_stand_beside_the_trained_one(made: Config, gigabytes: float) -> None:
    found = memory.estimate(made, EIGHT, 4, {"ref_model": 70_000_000_000, "reward_model": 7_000_000_000})
    assert found.beside == pytest.approx(gigabytes * 1e9)


def test_a_spread_run_that_does_not_fit_is_refused_with_the_share_of_its_reference() -> None:
    card, machine = Accelerator(lane="cuda", index=0, memory_mib=24_000), Hardware(os="linux", arch="x86_64")
    facts = ModelFacts(parameters=EIGHT.parameters, hidden_size=4096, layers=32, vocab_size=128256)
    made = with_others(arguments=zero(3))
    with pytest.raises(RecipeError, match="76 GB of memory, 8 of it for models that are not trained") as refused:
        memory_check.check(made, facts, machine, (card, card), force=False)
    assert "finetuning_type=lora" in str(refused.value.remedy)
    memory_check.check(made, facts, machine, (card,) * 16, force=False)


def test_quantized_weights_take_half_a_byte() -> None:
    assert memory.estimate(config(quantized=4), EIGHT).weights == pytest.approx(EIGHT.parameters / 2)


def test_checkpointing_saves_activations() -> None:
    assert memory.estimate(config(), EIGHT).activations < memory.estimate(config(checkpointing=False), EIGHT).activations
