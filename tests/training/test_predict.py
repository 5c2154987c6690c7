"""Generated answers and their scores: do_predict, predict_with_generate, compute_accuracy, early stopping."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Trainer

from fl_trainers import metrics

pytestmark = pytest.mark.training
Fl = Callable[..., "subprocess.CompletedProcess[str]"]
WORDS = [{"instruction": f"Say {one}.", "output": f"{one} and {other}"} for one, other in (
    ("salt", "pepper"), ("day", "night"), ("cup", "saucer"), ("bow", "arrow"), ("rock", "roll"), ("pen", "paper"))]  # fmt: skip
SCORES = [f"predict_{name}" for name in metrics.NAMES]


def recipe(folder: Path, name: str, **keys: Any) -> str:
    """A recipe over six rows that predicts four of them, greedily."""
    (folder / "words.json").write_text(json.dumps(WORDS))
    (folder / "some.json").write_text(json.dumps(WORDS[:4]))
    (folder / "dataset_info.json").write_text('{"words": {"file_name": "words.json"}, "some": {"file_name": "some.json"}}')
    made = {"stage": "sft", "finetuning_type": "full", "template": "chatml", "dataset_dir": str(folder), "eval_dataset": "some",
            "output_dir": str(folder / name), "do_predict": True, "predict_with_generate": True, "do_sample": False, "max_new_tokens": 16,
            "per_device_eval_batch_size": 4, **keys}  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(made))
    return str(folder / f"{name}.json")


def predictions(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "generated_predictions.jsonl").read_text().splitlines()]


def test_a_trained_model_predicts_and_so_does_a_run_without_training(fl: Fl, tmp_path: Path, train_python: Path) -> None:
    trained = recipe(tmp_path, "trained", model_name_or_path="builtin/tiny-llama", do_train=True, dataset="words", max_steps=200,
                     learning_rate=0.005, per_device_train_batch_size=6, save_strategy="no", lr_scheduler_type="constant")  # fmt: skip
    done = fl("run", "--engine", "host", "--hw", "cpu", trained, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = predictions(tmp_path / "trained")
    assert [line["label"] for line in lines] == [row["output"] for row in WORDS[:4]]
    assert lines[0]["prompt"] == "<|im_start|>user\nSay salt.<|im_end|>\n<|im_start|>assistant\n"
    results = json.loads((tmp_path / "trained" / "predict_results.json").read_text())
    assert set(SCORES) < set(results) and results["predict_samples_per_second"] > 0
    again = metrics.similarity((line["predict"], line["label"]) for line in lines)
    assert [results[name] for name in SCORES] == pytest.approx([again[name] for name in metrics.NAMES])
    assert results["predict_bleu-4"] > 90 and [line["predict"] for line in lines] == [line["label"] for line in lines]
    everything = json.loads((tmp_path / "trained" / "all_results.json").read_text())
    assert everything["predict_rouge-l"] == results["predict_rouge-l"] and "train_loss" in everything
    alone = recipe(tmp_path, "alone", model_name_or_path=str(tmp_path / "trained"))
    done = fl("run", "--engine", "host", "--hw", "cpu", alone, timeout=600)
    assert done.returncode == 0, done.stderr
    assert predictions(tmp_path / "alone") == lines
    assert not list((tmp_path / "alone").glob("*.safetensors")) and not (tmp_path / "alone" / "train_results.json").exists()


Config = Callable[..., Path]


def held(path: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    (path / "held.json").write_text(json.dumps(rows))
    return {"eval": [{"name": "held", "source": "file", "path": str(path / "held.json")}]}


def test_evaluation_on_the_way_has_scores_and_token_accuracy_and_changes_no_loss(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    data = held(tmp_path, SUMS[:3])
    common = {"method": {"compute_accuracy": True}, "data": data}
    often = {"eval_strategy": "steps", "eval_steps": 4}
    plain = trainer.train(config("plain", **common, arguments=dict(often)))
    made = trainer.train(config("judged", **common, arguments=dict(often), training={"predict_with_generate": True, "do_eval": True},
                                generation={"max_new_tokens": 8}))  # fmt: skip
    assert made.code == 0, made.output
    assert made.losses == plain.losses  # sampled answers leave the dice of training alone
    for event in made.of("eval"):
        assert 0 <= event["eval_accuracy"] <= 1 and event["loss"] is not None
        assert all(0 <= event[f"eval_{name}"] <= 100 for name in metrics.NAMES)
    assert "eval_bleu-4" in json.loads((made.folder / "out" / "eval_results.json").read_text())
    assert "eval_bleu-4" not in plain.of("eval")[0]


@pytest.mark.parametrize("ranks", [1, 2])
def test_token_accuracy_is_a_mean_of_rows_in_any_number_of_processes(
    trainer: Trainer, config: Config, tmp_path: Path, ranks: int
) -> None:
    """As LLaMA-Factory has it: a long answer counts no more than a short one. Seven rows, which no batch divides."""
    rows = [{"instruction": f"Count to {n}.", "output": " ".join(str(k) for k in range(1, n + 1))} for n in range(1, 15)]
    path = config(rows=rows[::2], data=held(tmp_path, rows[1::2]), method={"compute_accuracy": True, "finetuning_type": "full"},
                  arguments={"max_steps": 12, "per_device_eval_batch_size": 2})  # fmt: skip
    done = trainer.train(path, ranks)
    assert done.code == 0, done.output
    found = json.loads((done.folder / "out" / "eval_results.json").read_text())["eval_accuracy"]
    assert 0 < found < 1 and found == pytest.approx(trainer.check("rank_checks.token_accuracy", str(path)), abs=1e-6)


def test_an_adapter_predicts_without_training_as_it_did_when_it_was_trained(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    base = tmp_path / "base"
    trainer.check("bare_model_folder", str(base), [row["instruction"] + row["output"] for row in SUMS])
    model = {"kind": "folder", "path": str(base), "name": str(base)}
    common = {"generation": {"do_sample": False, "max_new_tokens": 8}, "data": {**held(tmp_path, SUMS[:5]), "template": "chatml"}}
    asked = {"do_predict": True, "predict_with_generate": True}
    first = trainer.train(config("first", model=model, training=asked, **common))
    assert first.code == 0, first.output
    adapter = str(first.folder / "out")
    alone = trainer.train(config("alone", rows=None, model={**model, "adapters": [adapter]}, training={**asked, "do_train": False},
                                 generation=common["generation"], dataset={}, data={**common["data"], "train": []}))  # fmt: skip
    assert alone.code == 0, alone.output
    assert predictions(alone.folder / "out") == predictions(first.folder / "out")
    assert not (alone.folder / "out" / "adapter_model.safetensors").exists()


def test_training_stops_early_when_evaluation_gets_no_better(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    wrong = [{"instruction": row["instruction"], "output": "No. I do not know."} for row in SUMS[:6]]
    often = {"max_steps": 200, "eval_strategy": "steps", "eval_steps": 4, "learning_rate": 0.05}
    done = trainer.train(config(method={"early_stopping_steps": 2}, data=held(tmp_path, wrong), arguments=often))
    assert done.code == 0, done.output
    found = [event["loss"] for event in done.of("eval")]
    best = found.index(min(found[:-1]))
    assert done.of("step")[-1]["step"] < 200 and best + 3 <= len(found) <= best + 4  # two without progress, and one at the end


def test_a_set_of_which_no_row_can_be_predicted_is_told(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    done = trainer.train(config(data=held(tmp_path, [{"instruction": "a", "output": ""}]),
                                training={"do_predict": True, "predict_with_generate": True}))  # fmt: skip
    assert done.code == 5 and "none of its 1 rows can be trained on: 1 empty answer" in done.of("error")[0]["message"]
