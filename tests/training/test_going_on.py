"""A run that goes on from a checkpoint ends as one that was never cut, also where files and memory name or hold weights otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Done, Trainer

PAIRS = [{"instruction": row["instruction"], "chosen": row["output"], "rejected": f"No idea, {row['instruction']}"} for row in SUMS]
PAIR_SET = {"ranking": True, "columns": {"prompt": "instruction", "query": None, "response": None, "chosen": "chosen",
                                         "rejected": "rejected"}}  # fmt: skip
EXPERTS = {"name": "builtin/tiny-qwen3-moe", "path": "builtin/tiny-qwen3-moe"}
"""Experts are one tensor in memory, and lie in files one by one."""


@pytest.fixture
def run(trainer: Trainer, config: Callable[..., Path]) -> Callable[..., Done]:
    def start(folder: str, stage: str = "sft", **parts: Any) -> Done:
        pairs = {"rows": PAIRS, "dataset": PAIR_SET} if stage in ("rm", "dpo") else {}
        arguments = {"max_steps": 5, "learning_rate": 0.005, "save_strategy": "steps", "save_steps": 3, **parts.pop("arguments", {})}
        method = {"stage": stage, **parts.pop("method", {})}
        done = trainer.train(config(folder, **pairs, method=method, arguments=arguments, **parts))
        assert done.code == 0, done.output
        return done

    return start


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("sft", {"model": EXPERTS, "method": {"finetuning_type": "full"}}),
        ("dpo", {"model": EXPERTS, "method": {"finetuning_type": "freeze", "freeze": {"trainable_layers": 1}}}),
        ("rm", {"model": EXPERTS, "method": {"finetuning_type": "full"}}),
        ("sft", {"method": {"pure_bf16": True}}),
        ("dpo", {"method": {"finetuning_type": "full", "preference": {"bco_weight": 1.0}}}),
    ],
    ids=["experts", "experts-freeze", "experts-rm", "pure-bf16-adapter", "rewards classified"],
)
def test_the_rest_is_as_if_nothing_had_been(run: Callable[..., Done], stage: str, parts: dict[str, Any]) -> None:
    whole = run("whole", stage, **parts)
    again = run("again", stage, **parts, training={"resume_from_checkpoint": str(whole.folder / "out" / "checkpoint-3")})
    assert len(again.losses) == 2
    assert again.losses == pytest.approx(whole.losses[3:], abs=1e-6)


def test_an_adapter_in_bf16_stays_in_it(run: Callable[..., Done], trainer: Trainer) -> None:
    whole = run("whole", method={"pure_bf16": True})
    again = run("again", method={"pure_bf16": True}, training={"resume_from_checkpoint": str(whole.folder / "out" / "checkpoint-3")})
    for done in (whole, again):
        assert trainer.check("method_checks.dtypes_of", str(done.folder / "out" / "adapter_model.safetensors")) == ["torch.bfloat16"]


def test_the_best_weights_of_experts_are_those_that_are_kept(run: Callable[..., Done]) -> None:
    """The recipe calls the largest loss the best, which is that of the first step; the evaluation at the end is of what is kept."""
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "greater_is_better": True}
    done = run("best", model=EXPERTS, method={"finetuning_type": "full"}, data={"val_size": 6}, arguments=best)
    held = [event["eval_loss"] for event in done.of("eval")]
    assert len(held) == 6 and held[4] < held[0] - 0.5
    assert held[5] == pytest.approx(held[0], abs=1e-5)


def test_what_a_continued_adapter_is_compared_with(run: Callable[..., Done]) -> None:
    """Without it the model is its base, unless it is a PiSSA adapter, which holds components of the weights: then with what it was."""
    pissa = {"method": {"lora": {"pissa_init": True}}}
    one = {"arguments": {"max_steps": 1, "save_strategy": "no"}}
    plain, taken = (str(run(name, "dpo", **more).folder / "out") for name, more in (("plain", {}), ("taken", pissa)))
    went_on = run("went-on", "dpo", model={"adapters": [plain]}, **one).losses
    assert went_on[0] < 0.68
    assert run("named", "dpo", model={"adapters": [plain]}, **one, **pissa).losses == went_on  # pissa_init is of an adapter that is made
    assert run("pissa", "dpo", model={"adapters": [taken]}, **one).losses[0] == pytest.approx(0.6931, abs=1e-3)


def test_grpo_goes_on_beside_its_reference(run: Callable[..., Done]) -> None:
    """The reference is made again of what the run starts from, and not read from the checkpoint."""
    grpo = {"reward_funcs": ["brief"], "num_generations": 4, "max_completion_length": 4, "beta": 0.2}
    parts = {"method": {"grpo": grpo, "lora": {"additional_target": ["lm_head"]}}}
    whole = run("whole", "grpo", **parts)
    again = run("again", "grpo", **parts, training={"resume_from_checkpoint": str(whole.folder / "out" / "checkpoint-3")})
    assert [event["kl"] for event in again.of("step") if "kl" in event] == pytest.approx(
        [event["kl"] for event in whole.of("step") if "kl" in event][3:], abs=1e-6
    )
    assert again.losses == pytest.approx(whole.losses[3:], abs=1e-6)
