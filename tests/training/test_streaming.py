"""Rows that come while training goes on, rows kept as token ids, and the share of rows that may be left out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Trainer

pytestmark = pytest.mark.training
Config = Callable[..., Path]
Fl = Callable[..., "subprocess.CompletedProcess[str]"]


def lines(rows: list[dict[str, str]]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def test_streaming_through_the_command_with_rows_held_for_evaluation(fl: Fl, tmp_path: Path, train_python: Path) -> None:
    (tmp_path / "sums.jsonl").write_text(lines([*SUMS, {"instruction": "x", "output": " "}]))
    (tmp_path / "more.csv").write_text("instruction,output\n" + "\n".join(f"Say {n}.,{n} it is" for n in range(20)))
    (tmp_path / "dataset_info.json").write_text('{"sums": {"file_name": "sums.jsonl"}, "more": {"file_name": "more.csv"}}')
    recipe = {"model_name_or_path": "builtin/tiny-llama", "stage": "sft", "do_train": True, "finetuning_type": "full", "cutoff_len": 64,
              "template": "chatml", "dataset": "sums,more", "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"),
              "streaming": True, "max_steps": 30, "buffer_size": 16, "val_size": 4, "mix_strategy": "interleave_over",
              "dataloader_num_workers": 0, "eval_strategy": "steps", "eval_steps": 30, "per_device_train_batch_size": 4,
              "learning_rate": 0.01, "save_strategy": "no", "logging_steps": 5}  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    done = fl("run", "--engine", "host", "--hw", "cpu", "--json", str(tmp_path / "recipe.json"), timeout=600)
    assert done.returncode == 0, done.stderr
    losses = json.loads(done.stdout)["metrics"]["loss"]
    assert losses[-1] < 0.6 * losses[0]
    assert "eval_loss" in json.loads((tmp_path / "out" / "eval_results.json").read_text())
    refused = fl("run", "--engine", "host", "--hw", "cpu", str(tmp_path / "recipe.json"), "max_steps=-1", timeout=300)
    assert refused.returncode == 5 and "set max_steps" in refused.stderr


STREAM = {"streaming": True, "shuffle": False}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_trains_on_the_same_rows_as_the_whole(trainer: Trainer, config: Config, workers: int) -> None:
    common: dict[str, Any] = {"rows": lines(SUMS), "file": "sums.jsonl", "arguments": {"max_steps": 9, "dataloader_num_workers": workers}}
    whole = trainer.train(config("whole", **json.loads(json.dumps(common)), data={"shuffle": False}))
    streamed = trainer.train(config("streamed", **common, data=STREAM))
    assert streamed.code == 0, streamed.output
    if workers == 0:
        assert streamed.losses == whole.losses
    else:  # two workers take turns with the rows: other batches, the same rows
        assert sum(streamed.losses) == pytest.approx(sum(whole.losses), rel=0.2)


def test_a_stream_is_begun_again_and_resumed(trainer: Trainer, config: Config) -> None:
    def made(steps: int) -> Path:
        often = {"max_steps": steps, "save_strategy": "steps", "save_steps": 6}
        return config(rows=lines(SUMS), file="sums.jsonl", arguments=often, data={"streaming": True, "buffer_size": 8})

    whole = trainer.train(made(12)).losses
    assert len(whole) == 12  # nine steps a pass
    (made(12).parent / "events.jsonl").unlink()
    import shutil

    shutil.rmtree(made(12).parent / "out" / "checkpoint-12")
    again = trainer.train(made(12))
    assert again.code == 0, again.output
    assert again.losses == whole[6:]


def test_arrow_and_parquet_whole_and_as_streams(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    trainer.check("write_arrow", str(tmp_path / "sums.arrow"), SUMS)
    trainer.check("write_parquet", str(tmp_path / "sums.parquet"), SUMS)
    plain = trainer.train(config("plain", data={"shuffle": False})).losses
    for file in ("sums.arrow", "sums.parquet"):
        for streaming in (False, True):
            done = trainer.train(config(f"{file}{streaming}", None, file=file, data={"shuffle": False, "streaming": streaming},
                                        run={"cache": str(tmp_path / "cache")}))  # fmt: skip
            assert done.code == 0, done.output
            assert done.losses == plain


def test_each_data_set_is_evaluated_by_itself_or_all_together(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    for name, rows in (("few", SUMS[:2]), ("more", SUMS[2:8])):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    sets = [{"name": name, "source": "file", "path": str(tmp_path / f"{name}.json")} for name in ("few", "more")]
    often = {"eval_strategy": "steps", "eval_steps": 8}
    each = trainer.train(config("each", data={"eval": sets, "eval_on_each_dataset": True}, arguments=dict(often)))
    assert each.code == 0, each.output
    found = json.loads((each.folder / "out" / "eval_results.json").read_text())
    logged = [json.loads(line) for line in (each.folder / "out" / "trainer_log.jsonl").read_text().splitlines()]
    held = [line for line in logged if "loss" not in line]
    assert [key for line in held for key in line if key.startswith("eval_")] == ["eval_few_loss", "eval_more_loss"] * 2
    assert held[-1]["eval_more_loss"] == found["eval_more_loss"]
    assert f"eval more loss {found['eval_more_loss']:.4g}"[:18] in each.output, each.output
    still = {**often, "eval_steps": 2, "max_steps": 30, "learning_rate": 0.0}
    early: dict[str, Any] = {"arguments": still, "method": {"early_stopping_steps": 2}}
    which = trainer.train(config("which", data={"eval": sets, "eval_on_each_dataset": True}, **early))
    assert which.code == 5 and which.of("error")[0]["message"] == "early_stopping_steps goes by one loss, and eval_on_each_dataset gives 2"
    assert which.of("error")[0]["remedy"] == "`metric_for_best_model: eval_few_loss`"
    early["arguments"] |= {"metric_for_best_model": "eval_more_loss"}
    named = trainer.train(config("named", data={"eval": sets, "eval_on_each_dataset": True}, **early))
    assert named.code == 0 and named.of("step")[-1]["step"] < 30, named.output
    together = trainer.train(config("together", data={"eval": sets}, arguments=dict(often)))
    assert together.code == 0, together.output
    whole = json.loads((together.folder / "out" / "eval_results.json").read_text())
    assert found["eval_few_loss"] != found["eval_more_loss"]
    assert min(found["eval_few_loss"], found["eval_more_loss"]) < whole["eval_loss"] < max(found["eval_few_loss"], found["eval_more_loss"])
    assert together.of("data")[0]["eval_rows"] == 8


def test_what_a_stream_loses_is_told_and_too_much_is_refused(trainer: Trainer, config: Config) -> None:
    rows = [*SUMS[:10], *({"instruction": f"Empty {number}?", "output": ""} for number in range(200))]
    few = trainer.train(config("few", lines(rows[:12]), file="few.jsonl", data=STREAM, arguments={"max_steps": 5}))
    assert few.code == 0, few.output
    assert "empty answer (sums row 11" in few.of("warning")[0]["message"]
    many = trainer.train(config("many", lines(rows), file="many.jsonl", data=STREAM, arguments={"max_steps": 30}))
    assert many.code == 5 and "more than the share of 0.5 that may be left out" in many.of("error")[0]["message"]
    workers = trainer.train(config("workers", lines(rows), file="many.jsonl", data=STREAM,
                                   arguments={"max_steps": 30, "dataloader_num_workers": 1}))  # fmt: skip
    assert workers.code == 5 and workers.of("error")[0]["message"] == many.of("error")[0]["message"]
    nothing = trainer.train(config("none", lines(rows[10:]), file="none.jsonl", data=STREAM))
    assert nothing.code == 5 and "none of its 200 rows can be trained on" in nothing.of("error")[0]["message"]


def test_more_dropped_rows_than_allowed_are_refused_with_the_first_three_named(trainer: Trainer, config: Config) -> None:
    rows = [*SUMS[:4], *({"instruction": "Empty?", "output": ""} for _ in range(5))]
    done = trainer.train(config(rows=rows))
    message = done.of("error")[0]["message"]
    assert done.code == 5 and "5 of 9 rows cannot be trained on" in message
    assert "empty answer (sums row 5, sums row 6, sums row 7, …)" in message
    assert not (done.folder / "out" / "adapter_model.safetensors").exists()
    assert trainer.train(config("allowed", rows=rows, data={"max_dropped": 0.6})).code == 0


def test_token_ids_are_kept_and_read_again_until_the_recipe_differs(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    kept = {"tokenized_path": str(tmp_path / "kept"), "template": "chatml", "val_size": 4}
    first = trainer.train(config("first", data=kept))
    assert first.code == 0, first.output
    assert {"fl_tokens.json", "train.input_ids.npy", "eval-0.labels.npy"} <= {entry.name for entry in (tmp_path / "kept").iterdir()}
    again = trainer.train(config("again", data=kept))
    assert again.losses == first.losses and f"rows of token ids from {tmp_path / 'kept'}" in again.output
    before = (tmp_path / "kept" / "fl_tokens.json").read_bytes()
    for other, told in (({"template": "alpaca"}, 'template was "chatml", now "alpaca"'), ({"cutoff_len": 20}, "cutoff_len was 128, now 20"),
                        ({"max_samples": 9}, "max_samples was null, now 9")):  # fmt: skip
        done = trainer.train(config("other", data={**kept, **other}))
        assert done.code == 5 and told in done.of("error")[0]["message"]
        (done.folder / "events.jsonl").unlink()
    assert (tmp_path / "kept" / "fl_tokens.json").read_bytes() == before
    (tmp_path / "kept" / "train.labels.npy").write_bytes(b"")
    done = trainer.train(config("broken", data=kept))
    assert done.code == 5 and "is broken" in done.of("error")[0]["message"]


def test_kept_rows_need_no_data_and_may_be_packs_or_pairs(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    trainer.check("bare_model_folder", str(folder), [row["instruction"] + row["output"] for row in SUMS])
    model = {"kind": "folder", "path": str(folder), "name": str(folder)}
    kept = {"tokenized_path": str(tmp_path / "packs"), "neat_packing": True, "packing": True}
    first = trainer.train(config("first", model=model, data=kept))
    again = trainer.train(config("again", model=model, data={**kept, "train": []}))
    assert again.code == 0 and again.losses == first.losses, again.output
    pairs = [{"instruction": row["instruction"], "chosen": row["output"], "rejected": "No."} for row in SUMS]
    columns = {"prompt": "instruction", "query": None, "response": None, "chosen": "chosen", "rejected": "rejected"}
    entry = {"ranking": True, "columns": columns}
    liked = [{**row, "label": number % 2 == 0} for number, row in enumerate(SUMS)]
    for stage, rows, about in (("dpo", pairs, entry), ("kto", liked, {"columns": {"kto_tag": "label"}})):
        kept = {"tokenized_path": str(tmp_path / stage)}
        runs = [trainer.train(config(f"{stage}{time}", rows, file=f"{stage}.json", dataset=about, method={"stage": stage}, data=kept))
                for time in range(2)]  # fmt: skip
        assert runs[0].code == 0, runs[0].output
        assert runs[0].losses == runs[1].losses and "rows of token ids from" in runs[1].output


def test_a_folder_with_something_else_is_left_alone(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "dataset_dict.json").write_text("{}")
    done = trainer.train(config(data={"tokenized_path": str(tmp_path / "theirs")}))
    assert done.code == 5 and "holds something else (dataset_dict.json)" in done.of("error")[0]["message"]
    assert [entry.name for entry in (tmp_path / "theirs").iterdir()] == ["dataset_dict.json"]


def test_two_processes_share_a_stream_and_the_questions(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    (tmp_path / "held.json").write_text(json.dumps(SUMS[:5]))
    held = [{"name": "held", "source": "file", "path": str(tmp_path / "held.json")}]
    parts: dict[str, Any] = {
        "rows": lines(SUMS), "file": "sums.jsonl", "data": {**STREAM, "eval": held},
        "training": {"do_predict": True, "predict_with_generate": True}, "generation": {"do_sample": False, "max_new_tokens": 6},
    }  # fmt: skip
    alone = trainer.train(config("alone", **json.loads(json.dumps(parts)), arguments={"per_device_train_batch_size": 4}))
    shared = trainer.train(config("shared", **parts, arguments={"per_device_train_batch_size": 2}), 2)
    assert shared.code == 0, shared.output
    assert shared.losses == pytest.approx(alone.losses, rel=1e-3)  # each takes its half of the same batches
    made = [(done.folder / "out" / "generated_predictions.jsonl").read_text() for done in (alone, shared)]
    assert [json.loads(line)["label"] for line in made[0].splitlines()] == [json.loads(line)["label"] for line in made[1].splitlines()]
    assert made[0] == made[1]
