"""Stage ppo: answers that a reward model or a function likes better become likelier."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from trainer_harness import SUMS, Done, Trainer, environment

VOWELS = """
def vowels(completions, **_):
    return [20 * sum(c[0]["content"].count(v) for v in "aeiou") / max(len(c[0]["content"]), 1) for c in completions]

def some(completions, **_):
    return [None if number % 2 else 1.0 for number, _ in enumerate(completions)]
"""
PAIR_SET = {"ranking": True, "columns": {"prompt": "instruction", "query": None, "response": None, "chosen": "chosen",
                                         "rejected": "rejected"}}  # fmt: skip


@pytest.fixture
def ppo_config(config: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    file = tmp_path / "rewards.py"
    file.write_text(VOWELS)

    def make(kind: str = "lora", folder: str = "run", *, functions: tuple[str, ...] = (), ppo: Any = None, **more: Any) -> Path:
        arguments = {"max_steps": 20, "learning_rate": 0.01 if kind == "lora" else 0.003, "per_device_train_batch_size": 32,
                     "lr_scheduler_type": "constant", **more.pop("arguments", {})}  # fmt: skip
        method = {
            "stage": "ppo", "finetuning_type": kind, "ppo": ppo or {}, "lora": {"additional_target": ("lm_head",)},
            "freeze": {"extra_modules": ["lm_head"]},
            "grpo": {"reward_funcs": [f"{file}:{name}" for name in functions]}, **more.pop("method", {}),
        }  # fmt: skip
        generation = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        path = config(folder, method=method, arguments=arguments, **more)
        made = json.loads(path.read_text())
        path.write_text(json.dumps({**made, "generation": generation}))
        return path

    return make


@pytest.fixture
def ppo(trainer: Trainer, ppo_config: Callable[..., Path]) -> Callable[..., Done]:
    return lambda *arguments, **parts: trainer.train(ppo_config(*arguments, **parts))


def rewards_of(done: Done) -> list[float]:
    assert done.code == 0, done.output
    return [event["reward"] for event in done.of("step") if "reward" in event]


@pytest.mark.parametrize("kind", ["lora", "full", "freeze"])
def test_the_reward_of_a_function_rises(ppo: Callable[..., Done], kind: str) -> None:
    done = ppo(kind, functions=("vowels",))
    found = rewards_of(done)
    assert len(found) == 20
    assert mean(found[-4:]) > mean(found[:4]) + 3, found
    steps = done.of("step")
    assert abs(steps[0]["kl"]) < 1e-3 < 1 < steps[-1]["kl"]
    out = done.folder / "out"
    assert (out / ("adapter_config.json" if kind == "lora" else "model.safetensors")).is_file()
    assert (out / "value_head.safetensors").is_file()
    assert "value_head.safetensors" in (out / "README.md").read_text()


@pytest.fixture
def base(trainer: Trainer, config: Callable[..., Path]) -> dict[str, str]:
    """A model with a tokenizer of its own, as users have them."""
    texts = [{"instruction": f"{row['instruction']} {row['output']}", "output": "aeiou nothing"} for row in SUMS]
    made = trainer.train(config("base", rows=texts, method={"finetuning_type": "full"}, arguments={"max_steps": 1}))
    assert made.code == 0, made.output
    return {"name": "base", "path": str(made.folder / "out"), "kind": "folder"}


def reward_model(trainer: Trainer, config: Callable[..., Path], base: dict[str, str], kind: str, folder: str = "rm") -> str:
    pairs = [{"instruction": row["instruction"], "chosen": row["output"], "rejected": "aeiou nothing"} for row in SUMS]
    rows = {"rows": pairs, "file": "pairs.json", "dataset": PAIR_SET}
    arguments = {"learning_rate": 0.01, "max_steps": 10}
    made = trainer.train(config(folder, **rows, model=base, method={"stage": "rm", "finetuning_type": kind}, arguments=arguments))
    assert made.code == 0, made.output
    return str(made.folder / "out")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_reward_of_a_reward_model_rises(
    ppo: Callable[..., Done], trainer: Trainer, config: Callable[..., Path], base: dict[str, str], kind: str
) -> None:
    """lora: the reward adapter on the base of the policy's own; full: a whole model, and the base as the reference by name."""
    judge = reward_model(trainer, config, base, kind)
    other = {"name": "rm", "path": judge, "kind": "folder"}
    settings = {"reward_adapter": judge} if kind == "lora" else {"reward_model": other}
    more = {"reference": base} if kind == "full" else {}
    done = ppo(kind, model=base, ppo={**settings, "score_norm": True, "whiten_rewards": True, "epochs": 2}, method=more)
    found = rewards_of(done)
    assert mean(found[-4:]) > mean(found[:4]) + 0.5, found
    assert not (done.folder / "out" / "reward").exists()


def test_adapters_on_a_full_reward_model(
    ppo: Callable[..., Done], trainer: Trainer, config: Callable[..., Path], base: dict[str, str]
) -> None:
    """The same judge, as an adapter beside the policy and merged into a model of its own, gives the same scores."""
    judge = reward_model(trainer, config, base, "lora")
    whole = {"reward_model": {**base, "adapters": [judge]}}
    found = [
        rewards_of(ppo(folder=str(number), model=base, ppo=settings, arguments={"max_steps": 1}))
        for number, settings in enumerate([{"reward_adapter": judge}, whole])
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_a_sequence_classifier_is_a_reward_model(ppo: Callable[..., Done], trainer: Trainer, base: dict[str, str], tmp_path: Path) -> None:
    """As other projects publish them: its scores are those that transformers' own class gives."""
    folder = str(tmp_path / "classifier")
    assert trainer.check("classifier", base["path"], folder) < 1e-5
    judge = {"name": "classifier", "path": folder, "kind": "folder"}
    assert len(rewards_of(ppo(model=base, ppo={"reward_model": judge}, arguments={"max_steps": 2}))) == 2


def test_a_run_goes_on_from_its_checkpoint(ppo: Callable[..., Done]) -> None:
    """The weight of the distance and the scores' running mean too: with them all later steps are the same."""
    common: dict[str, Any] = {"functions": ("vowels",), "ppo": {"score_norm": True, "target": 0.5}}
    whole = ppo(folder="whole", arguments={"max_steps": 6}, **common)
    first = ppo(folder="half", arguments={"max_steps": 6, "save_strategy": "steps", "save_steps": 3}, **common)
    checkpoint = first.folder / "out" / "checkpoint-3"
    assert json.loads((checkpoint / "ppo_state.json").read_text())["moments"]["count"] == 68  # 32, 4 and 32 of 36 questions
    again = ppo(folder="again", training={"resume_from_checkpoint": str(checkpoint)}, arguments={"max_steps": 6}, **common)
    assert again.code == 0, again.output
    assert again.losses == pytest.approx(whole.losses[3:], abs=1e-5)


def test_held_out_questions_are_answered_and_judged(ppo: Callable[..., Done]) -> None:
    """Every evaluation with the same random numbers; training goes on as if there had been none; the best policy is kept."""
    common: dict[str, Any] = {"functions": ("vowels",), "data": {"val_size": 8}}
    arguments = {"max_steps": 12, "per_device_train_batch_size": 28}
    without = ppo(folder="without", arguments=arguments, **common)
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 3, "save_only_model": True}
    done = ppo(folder="with", arguments={**arguments, "eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True, **best}, **common)
    assert rewards_of(done) == pytest.approx(rewards_of(without), abs=1e-6)
    found = [event["eval_reward"] for event in done.of("eval")]
    assert len(found) == 6 and found[4] > found[0] + 3, found
    assert found[5] == pytest.approx(max(found[1:5]), abs=1e-5)  # of the policy that is kept
    assert [event["eval_reward"] for event in without.of("eval")] == pytest.approx([found[4]], abs=1e-5)
    assert json.loads((done.folder / "out" / "eval_results.json").read_text())["eval_reward"] == found[5]


def test_half_precision(ppo: Callable[..., Done]) -> None:
    """Policy, generation and reference compute in bf16 beside an adapter in float32."""
    done = ppo(functions=("vowels",), arguments={"bf16": True, "max_steps": 2})
    assert len(rewards_of(done)) == 2
    assert abs(done.of("step")[0]["kl"]) < 1e-3


def test_rounds_hold_batches_and_buffers(ppo: Callable[..., Done]) -> None:
    """36 questions: rounds of 4 x 2 x 2, so three in an epoch. Answers without a score are left out."""
    arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": -1, "num_train_epochs": 1}
    done = ppo(functions=("some",), ppo={"buffer_size": 2}, arguments=arguments)
    assert rewards_of(done) == [1.0, 1.0, 1.0]


def test_the_arithmetic_is_its_formulas(trainer: Trainer) -> None:
    assert trainer.check("ppo_arithmetic") == []


def test_padding_and_neighbours_change_nothing(trainer: Trainer) -> None:
    found = trainer.check("ppo_places")
    assert found["logps"] < 1e-5 and found["values"] < 1e-5 and found["width"] > 0


def test_what_cannot_judge_is_named(
    ppo: Callable[..., Done], trainer: Trainer, config: Callable[..., Path], base: dict[str, str]
) -> None:
    judge = reward_model(trainer, config, base, "full")
    stranger = {"name": "rm", "path": judge, "kind": "folder"}
    for settings, words in (
        ({}, ("reward_model", "needs something that judges")),
        ({"reward_model": stranger}, ("reward_model: rm has another vocabulary",)),  # the policy's tokenizer is made of other texts
        ({"reward_adapter": str(Path(judge) / "nowhere")}, ("reward_model: adapter",)),
    ):
        done = ppo(ppo=settings)
        assert done.code == 5, done.output
        assert all(word in done.output for word in words), done.output
    done = ppo(model=base, ppo={"reward_model": {"name": "base", "path": base["path"], "kind": "folder"}})
    assert done.code == 5 and "has no value_head.safetensors" in done.output, done.output


def test_a_pissa_adapter_does_not_judge_beside_the_policy(
    ppo: Callable[..., Done], trainer: Trainer, config: Callable[..., Path], base: dict[str, str]
) -> None:
    """peft would take its components out of the weights on which the policy stands."""
    judge = Path(reward_model(trainer, config, base, "lora"))
    settings = json.loads((judge / "adapter_config.json").read_text())
    (judge / "adapter_config.json").write_text(json.dumps({**settings, "init_lora_weights": "pissa_niter_16"}))
    done = ppo(model=base, ppo={"reward_adapter": str(judge)})
    assert done.code == 5 and "is a PiSSA adapter" in done.output and "pissa_converted" in done.output, done.output


def test_quantized_policy_reference_and_reward_model(
    train_python: Path, ppo_config: Callable[..., Path], trainer: Trainer, config: Callable[..., Path], base: dict[str, str]
) -> None:
    """In a process of its own: bitsandbytes is looked for when transformers is imported."""
    judge = reward_model(trainer, config, base, "lora")
    bits = {"quantization": {"bits": 4}}
    settings = {"reward_model": {**base, **bits, "adapters": [judge]}}
    more = {"reference": {**base, **bits}, "lora": {"additional_target": []}}
    path = ppo_config(model={**base, **bits}, ppo=settings, method=more, arguments={"max_steps": 2, "learning_rate": 1e-4})
    ended = subprocess.run([train_python, "-m", "fl_trainers", str(path)], env=environment(), capture_output=True, text=True, check=False)
    done = Done(ended.returncode, ended.stderr, path.parent)
    assert len(rewards_of(done)) == 2
    assert abs(done.of("step")[0]["kl"]) < 1e-3  # policy and reference are quantized alike
