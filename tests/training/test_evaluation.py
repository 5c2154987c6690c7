"""Evaluation during training: what stops a run, what names the best checkpoint, with rewards as with losses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Done, Trainer

LENGTH = """
def vowels(completions, **_):
    return [sum(c[0]["content"].count(v) for v in "aeiou") / max(len(c[0]["content"]), 1) for c in completions]

def falling(completions, rewarded=[1.0], **_):
    rewarded[0] -= 0.01
    return [rewarded[0]] * len(completions)
"""
PAIRS = [{"instruction": row["instruction"], "chosen": row["output"], "rejected": "No idea."} for row in SUMS]
PAIR_SET = {"ranking": True, "columns": {"prompt": "instruction", "query": None, "response": None, "chosen": "chosen",
                                         "rejected": "rejected"}}  # fmt: skip


@pytest.fixture
def grpo(trainer: Trainer, config: Callable[..., Path], tmp_path: Path) -> Callable[..., Done]:
    file = tmp_path / "rewards.py"
    file.write_text(LENGTH)

    def run(reward: str, *, method: dict[str, Any] | None = None, arguments: dict[str, Any] | None = None, **parts: Any) -> Done:
        grpo = {"reward_funcs": [f"{file}:{reward}"], "num_generations": 4, "max_completion_length": 4}
        every = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, **(arguments or {})}
        return trainer.train(config(method={"stage": "grpo", "grpo": grpo, **(method or {})}, arguments=every, **parts))

    return run


def test_grpo_stops_when_the_reward_no_longer_rises(grpo: Callable[..., Done]) -> None:
    done = grpo("falling", method={"early_stopping_steps": 2}, data={"val_size": 4})
    assert done.code == 0, done.output
    assert max(event["step"] for event in done.of("step")) == 3  # the first is the best, two more are waited for


def test_the_best_checkpoint_of_grpo_has_the_highest_reward(grpo: Callable[..., Done]) -> None:
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    done = grpo("falling", arguments=best, data={"val_size": 4})
    assert done.code == 0, done.output
    state = json.loads((done.folder / "out" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 1
    assert state["best_metric"] == pytest.approx(done.of("eval")[0]["eval_reward"])


def test_grpo_evaluates_without_training(grpo: Callable[..., Done], tmp_path: Path) -> None:
    data = {"train": [], "eval": sets_of(tmp_path)[:1]}
    done = grpo("vowels", data=data, training={"do_train": False, "do_eval": True}, arguments={"eval_strategy": "no"})
    assert done.code == 0, done.output
    assert "eval_reward" in json.loads((done.folder / "out" / "eval_results.json").read_text())
    assert not (done.folder / "out" / "adapter_model.safetensors").exists()


def sets_of(tmp_path: Path) -> list[dict[str, Any]]:
    made = []
    for name, rows in (("small", SUMS[:4]), ("large", SUMS[-4:])):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(rows))
        made.append({"name": name, "source": "file", "path": str(path)})
    return made


def test_grpo_evaluates_on_each_data_set(grpo: Callable[..., Done], tmp_path: Path) -> None:
    named = {"metric_for_best_model": "large_reward", "load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1}
    data = {"eval": sets_of(tmp_path), "eval_on_each_dataset": True}
    done = grpo("vowels", arguments={**named, "max_steps": 1}, data=data)
    assert done.code == 0, done.output
    rewarded = [key for event in done.of("eval") for key in event if key.endswith("_reward")]
    assert rewarded == ["eval_small_reward", "eval_large_reward"] * 2
    unnamed = grpo("vowels", method={"early_stopping_steps": 1}, data=data, folder="unnamed")
    assert unnamed.code == 5 and "`metric_for_best_model: eval_small_reward`" in unnamed.output, unnamed.output


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_questions_of_an_evaluation_that_are_all_too_long_are_told(
    grpo: Callable[..., Done], tmp_path: Path, stage: str
) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"instruction": "word " * 200, "output": "x"}]))
    done = grpo("vowels", method={"stage": stage}, data={"eval": [{"name": "long", "source": "file", "path": str(path)}]})
    assert done.code == 5 and "no row of the evaluation can be evaluated on" in done.output, done.output


@pytest.mark.parametrize(("figure", "near"), [("eval_rewards/marginz", "rewards/margins"), ("acc", "rewards/accuracies")])
def test_a_figure_that_no_evaluation_gives_is_named(trainer: Trainer, config: Callable[..., Path], figure: str, near: str) -> None:
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    made = config(rows=PAIRS, dataset=PAIR_SET, method={"stage": "dpo"}, data={"val_size": 4},
                  arguments={**best, "metric_for_best_model": figure})  # fmt: skip
    done = trainer.train(made)
    assert done.code == 5, done.output
    assert f"an evaluation gives no {figure}; it gives" in done.output and f"metric_for_best_model: {near}" in done.output, done.output
