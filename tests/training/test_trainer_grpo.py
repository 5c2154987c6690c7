"""Stage grpo: answers that reward functions like better become likelier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from trainer_harness import Done, Trainer

VOWELS = """
def vowels(completions, **_):
    return [sum(c[0]["content"].count(v) for v in "aeiou") / max(len(c[0]["content"]), 1) for c in completions]

def as_array(completions, **_):
    import numpy
    return numpy.full(len(completions), 0.5, dtype=numpy.float32)

def as_tensors(completions, **_):
    import torch
    return [torch.tensor([0.25]) for _ in completions]

def two_each(completions, **_):
    import torch
    return torch.zeros(len(completions), 2)

def short(completions, **_):
    return [1.0]

def broken(completions, **_):
    raise KeyError("gold")

def nan(completions, **_):
    return [float("nan")] * len(completions)
"""


@pytest.fixture
def grpo(trainer: Trainer, config: Callable[..., Path], tmp_path: Path) -> Callable[..., Done]:
    file = tmp_path / "rewards.py"
    file.write_text(VOWELS)

    def run(rewards: tuple[str, ...], finetuning_type: str = "lora", folder: str = "run", **arguments: Any) -> Done:
        named = [f"{file}:{name[1:]}" if name.startswith(":") else name for name in rewards]
        grpo = {"reward_funcs": named, "num_generations": 8, "max_completion_length": 12}
        method = {"stage": "grpo", "finetuning_type": finetuning_type, "grpo": grpo, "lora": {"additional_target": ("lm_head",)},
                  "freeze": {"extra_modules": ["lm_head"]}}  # fmt: skip
        return trainer.train(config(folder, method=method, arguments={"per_device_train_batch_size": 8, **arguments}))

    return run


@pytest.mark.parametrize(("kind", "rate"), [("lora", 0.02), ("full", 0.01), ("freeze", 0.02)])
def test_the_reward_rises(grpo: Callable[..., Done], kind: str, rate: float) -> None:
    """The head of the tiny model is random: frozen, it would give every answer the same chance."""
    done = grpo((":vowels",), kind, max_steps=25, learning_rate=rate)
    assert done.code == 0, done.output
    found = [event["reward"] for event in done.of("step") if "reward" in event]
    assert len(found) == 25
    assert mean(found[-5:]) > mean(found[:5]) + 0.05
    out = done.folder / "out"
    assert (out / ("adapter_config.json" if kind == "lora" else "model.safetensors")).is_file()
    assert (out / "trainer_state.json").is_file()


def test_weights_that_are_no_numbers_any_more_end_the_run_with_the_step(grpo: Callable[..., Done]) -> None:
    done = grpo((":vowels",), "full", max_steps=6, learning_rate=1e30, max_grad_norm=0.0)
    assert done.code == 10, done.output
    error = done.of("error")[0]
    assert "NaN at step 2" in error["message"] and "learning_rate" in error["remedy"] and "Traceback" not in done.output


def test_built_in_rewards_find_nothing_in_noise(grpo: Callable[..., Done]) -> None:
    done = grpo(("exact", "think_format"), max_steps=2)
    assert done.code == 0, done.output
    assert all(event["reward"] == 0.0 for event in done.of("step") if "reward" in event)


def test_rewards_may_be_arrays_and_tensors(grpo: Callable[..., Done]) -> None:
    done = grpo((":as_array", ":as_tensors"), max_steps=1)
    assert done.code == 0, done.output
    assert done.of("step")[0]["reward"] == pytest.approx(0.75)


def test_float32_norms_beside_bf16_matrices_answer_too(trainer: Trainer, config: Callable[..., Path]) -> None:
    """Completions are made past what casts for the training steps."""
    grpo = {"reward_funcs": ["brief"], "num_generations": 4, "max_completion_length": 4}
    made = config(method={"stage": "grpo", "grpo": grpo}, model={"upcast_layernorm": True}, arguments={"bf16": True, "max_steps": 1})
    done = trainer.train(made)
    assert done.code == 0, done.output


@pytest.mark.parametrize(
    ("rewards", "code", "words"),
    [
        (("exakt",), 5, ("exakt", "did you mean exact?")),
        ((":vowel",), 5, ("no function vowel", "did you mean vowels?")),
        ((":short",), 10, ("short gave 1 values for 8 completions",)),
        ((":broken",), 10, ("broken failed: KeyError",)),
        ((":nan",), 10, ("nan gave nan",)),
        ((":two_each",), 10, ("two_each gave tensor([0., 0.])",)),
        (("/nowhere/r.py:f",), 5, ("/nowhere/r.py is not there",)),
    ],
)
def test_what_is_wrong_with_a_reward_is_named(
    grpo: Callable[..., Done], rewards: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    done = grpo(rewards, max_steps=2)
    assert done.code == code, done.output
    assert all(word in done.output for word in words), done.output


def test_vllm_is_asked_for_room_for_question_and_answer(trainer: Trainer) -> None:
    made = trainer.check("grpo_arguments", "vllm")
    assert (made["use_vllm"], made["vllm_mode"], made["vllm_gpu_memory_utilization"]) == (True, "colocate", 0.4)
    assert made["vllm_max_model_length"] == 64 + 16
    assert trainer.check("grpo_arguments", "transformers")["use_vllm"] is False
