"""Held rows and several processes: each is asked once, in its order, and evaluation without training works however weights are spread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_ranks import UNEVEN, WAYS, zero
from trainer_harness import Done, Trainer

pytestmark = pytest.mark.training
Config = Callable[..., Path]
HELD = [{"instruction": f"Count up to {n}.", "output": " ".join(str(k) for k in range(1, n + 1))} for n in range(1, 8)]


@pytest.fixture
def asked(trainer: Trainer, trainer_of_shards: Trainer, config: Config, tmp_path: Path) -> Callable[..., Done]:
    """Runs a trained model over seven rows and one row, which neither processes nor batches divide."""
    base = trainer.train(config("base", method={"finetuning_type": "full"}, arguments={"max_steps": 20}))
    assert base.code == 0, base.output
    for name, rows in (("seven", HELD), ("one", [{"instruction": "Say it.", "output": "it"}])):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    sets = [{"name": name, "source": "file", "path": str(tmp_path / f"{name}.json")} for name in ("seven", "one")]

    def run(folder: str, ranks: int, arguments: dict[str, Any] | None = None, **training: Any) -> Done:
        given = {"per_device_eval_batch_size": 2 if ranks > 1 else 4, **(arguments or {})}
        path = config(
            folder, rows=None, model={"name": "base", "path": str(base.folder / "out"), "kind": "folder"},
            method={"finetuning_type": "full"}, data={"train": [], "eval": sets, "eval_on_each_dataset": True},
            training={"do_train": False, **training}, generation={"do_sample": False, "max_new_tokens": 12}, arguments=given,
        )  # fmt: skip
        return (trainer_of_shards if "deepspeed" in given else trainer).train(path, ranks)

    return run


def test_predictions_of_two_processes_are_those_of_one_in_the_order_of_the_rows(asked: Callable[..., Done]) -> None:
    written = {}
    for name, ranks, more in (("alone", 1, {}), ("two", 2, {}), ("ZeRO-2", 2, {"deepspeed": zero(2)})):
        done = asked(name, ranks, more, do_predict=True, predict_with_generate=True)
        assert done.code == 0, done.output
        written[name] = (done.folder / "out" / "generated_predictions.jsonl").read_text()
        assert [event["code"] for event in done.of("warning")] == (["deepspeed"] if more else [])
    lines = [json.loads(line) for line in written["alone"].splitlines()]
    assert [line["label"] for line in lines] == [*(row["output"] for row in HELD), "it"]
    assert all(row["instruction"] in line["prompt"] for row, line in zip(HELD, lines, strict=False))
    assert written["two"] == written["ZeRO-2"] == written["alone"]


def test_evaluation_without_training_is_the_same_with_spread_weights(asked: Callable[..., Done]) -> None:
    def losses(done: Done) -> list[float]:
        assert done.code == 0, done.output
        found = json.loads((done.folder / "out" / "eval_results.json").read_text())
        return [found["eval_seven_loss"], found["eval_one_loss"]]

    plain = losses(asked("ddp", 2, do_eval=True))
    assert losses(asked("ZeRO-3", 2, WAYS["ZeRO-3"], do_eval=True)) == pytest.approx(plain, abs=1e-4)
    refused = asked("FSDP2", 2, WAYS["FSDP2"], do_eval=True)
    assert refused.code == 5, refused.output
    assert "fsdp spreads weights only while it trains" in refused.of("error")[0]["message"]


def test_the_work_of_a_step_is_counted_over_whole_weights(trainer_of_shards: Trainer, config: Config) -> None:
    """ZeRO-3 leaves nothing of a weight where it stood, so that operations, and the share of the peak, came out as almost none."""
    work = {}
    for name, more in (("ddp", {}), ("ZeRO-3", WAYS["ZeRO-3"])):
        given = {"max_steps": 2, "per_device_train_batch_size": 2, **more}
        done = trainer_of_shards.train(config(name, method={"finetuning_type": "full"}, arguments=given, training={"speed": "off"}), 2)
        assert done.code == 0, done.output
        work[name] = json.loads((done.folder / "out" / "train_results.json").read_text())["total_flos"]
    assert work["ZeRO-3"] == work["ddp"] > 0


def test_tokens_a_second_are_those_of_all_processes(trainer: Trainer, config: Config) -> None:
    """Rows of 1 to 32 words: no process has as many tokens as another."""
    tokens = {}
    for ranks in (1, 2):
        given = {"per_device_train_batch_size": 4 // ranks, "max_steps": 5}
        done = trainer.train(config(f"{ranks}", UNEVEN, arguments=given), ranks)
        assert done.code == 0, done.output
        found = json.loads((done.folder / "out" / "train_results.json").read_text())
        assert found["effective_tokens_per_sec"] == pytest.approx(found["tokens_per_second"] / ranks, abs=0.1)
        tokens[ranks] = found["tokens_per_second"] * found["train_runtime"]
    assert tokens[2] == pytest.approx(tokens[1], rel=0.005) and tokens[1] > 400
