"""Stage rm: a reward model tells better answers from worse ones, its files are LLaMA-Factory's, and it goes on from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Done, Trainer

GOOD = ("apple", "bread", "cherry", "dates", "eggs", "figs", "grapes", "honey", "icing")
BAD = ("rust", "sand", "tin", "urn", "vinyl", "wire", "yarn", "zinc", "quartz")
PAIRS = [
    {"instruction": row["instruction"], "chosen": f"{row['output']} {GOOD[number % 9]}", "rejected": f"{row['output']} {BAD[number // 4]}"}
    for number, row in enumerate(SUMS)
]
PAIR_SET = {"ranking": True, "columns": {"prompt": "instruction", "query": None, "response": None, "chosen": "chosen",
                                         "rejected": "rejected"}}  # fmt: skip


@pytest.fixture
def reward(trainer: Trainer, config: Callable[..., Path]) -> Callable[..., Done]:
    runs = iter(range(99))

    def run(kind: str = "lora", rows: Any = PAIRS, dataset: Any = PAIR_SET, **more: Any) -> Done:
        arguments = {"max_steps": 12, "learning_rate": 0.02 if kind == "lora" else 0.005, **more.pop("arguments", {})}
        folder = more.pop("folder", None) or f"run{next(runs)}"
        method = {"stage": "rm", "finetuning_type": kind}
        return trainer.train(config(folder, rows=rows, dataset=dataset, method=method, arguments=arguments, **more))

    return run


@pytest.mark.parametrize("kind", ["lora", "full", "freeze"])
def test_accuracy_on_held_out_pairs_rises(reward: Callable[..., Done], trainer: Trainer, kind: str) -> None:
    often = {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True, "max_steps": 24}
    done = reward(kind, data={"val_size": 12}, arguments=often)
    assert done.code == 0, done.output
    accuracies = [event["eval_accuracy"] for event in done.of("eval")]
    assert accuracies[0] < 0.7 and accuracies[-1] > 0.8, accuracies
    assert done.losses[-1] < done.losses[0]
    out = done.folder / "out"
    assert json.loads((out / "eval_results.json").read_text())["eval_accuracy"] == accuracies[-1]
    assert (out / ("adapter_config.json" if kind == "lora" else "model.safetensors")).is_file()
    assert "value_head.safetensors" in (out / "README.md").read_text()
    scores = trainer.check("scores", str(out), "What is 1 plus 2?", ["It is 3. honey", "It is 3. yarn"])
    assert scores["names"] == {"v_head.summary.weight": [1, 64], "v_head.summary.bias": [1]}
    assert not [name for name in scores["others"] if "v_head" in name or "pretrained_model" in name]
    assert scores["scores"][0] > scores["scores"][1]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_goes_on_from_its_checkpoint(reward: Callable[..., Done], kind: str) -> None:
    whole = reward(kind, arguments={"max_steps": 8})
    first = reward(kind, folder="half", arguments={"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 5})
    checkpoint = first.folder / "out" / "checkpoint-4"
    assert (checkpoint / "value_head.safetensors").is_file()
    again = reward(kind, folder="again", training={"resume_from_checkpoint": str(checkpoint)}, arguments={"max_steps": 8})
    assert again.code == 0, again.output
    assert len(again.losses) == 4
    assert again.losses == pytest.approx(whole.losses[4:], abs=1e-5)


def test_a_reward_model_starts_from_another(reward: Callable[..., Done]) -> None:
    """Value head and adapter of the run before are taken: little is left to learn."""
    first = reward(arguments={"max_steps": 30})
    second = reward(model={"adapters": [str(first.folder / "out")]}, arguments={"max_steps": 1})
    assert second.code == 0, second.output
    assert second.losses[0] < first.losses[0] / 2, (second.losses, first.losses)


def test_nothing_older_is_left_beside_a_newer_model(reward: Callable[..., Done], trainer: Trainer, config: Callable[..., Path]) -> None:
    """An older head would make a reward model of it; an older adapter would be loaded on top of it."""
    old = {"value_head.safetensors", "adapter_config.json", "adapter_model.safetensors"}
    first = reward(folder="same", arguments={"max_steps": 1})
    assert old <= {path.name for path in (first.folder / "out").iterdir()}
    method = {"finetuning_type": "full"}
    again = trainer.train(config("same", training={"overwrite_output_dir": True}, method=method, arguments={"max_steps": 1}))
    assert again.code == 0, again.output
    assert not old & {path.name for path in (first.folder / "out").iterdir()}


@pytest.mark.parametrize(
    ("rows", "dataset", "words"),
    [
        (SUMS, {}, ("no pairs of answers", "stage rm", "ranking: true")),
        ([{"instruction": "a", "chosen": "b"}], PAIR_SET, ("no column rejected",)),
    ],
)
def test_data_without_pairs_is_refused(reward: Callable[..., Done], rows: Any, dataset: Any, words: tuple[str, ...]) -> None:
    done = reward(rows=rows, dataset=dataset)
    assert done.code == 5, done.output
    assert all(word in done.output for word in words), done.output


@pytest.mark.training
@pytest.mark.parametrize("name", ["tiny-dpo", "tiny-kto", "tiny-rm", "tiny-ppo"])
def test_shipped_recipes_of_these_stages_learn(fl: Callable[..., Any], tmp_path: Path, train_python: Path, name: str) -> None:
    done = fl("run", "--engine", "host", "--python", str(train_python), "--json", name, f"output_dir={tmp_path}/out", timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "passed"
    logged = [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text().splitlines()]
    key = "reward" if name == "tiny-ppo" else "loss"
    found = [line[key] for line in logged if key in line]
    assert len(found) == 20
    first, last = sum(found[:4]), sum(found[-4:])
    assert last > first if key == "reward" else last < first
    assert (tmp_path / "out" / "training_loss.png").is_file()
