"""Whole runs of the trainer: what it learns from, what it leaves behind, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Trainer, environment

pytestmark = pytest.mark.training
Config = Callable[..., Path]


def as_csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


TALKS = [[("human", row["instruction"]), ("gpt", row["output"]), ("human", "Sure?"), ("gpt", "Yes.")] for row in SUMS]
SHAREGPT = [{"conversations": [{"from": who, "value": said} for who, said in talk]} for talk in TALKS]
OPENAI = [{"messages": [{"role": {"human": "user", "gpt": "assistant"}[who], "content": said} for who, said in talk]} for talk in TALKS]
OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
FORMATS: dict[str, dict[str, Any]] = {
    "alpaca json": {},
    "alpaca jsonl": {"file": "a.jsonl", "rows": "\n".join(json.dumps(row) for row in SUMS)},
    "alpaca csv": {"file": "a.csv", "rows": as_csv(SUMS)},
    "sharegpt": {"rows": SHAREGPT, "dataset": {"formatting": "sharegpt", "columns": {"messages": "conversations"}}},
    "openai": {"rows": OPENAI, "dataset": {"formatting": "openai", "columns": {"messages": "messages"}, "tags": OPENAI_TAGS}},
    "text": {"rows": "\n".join(row["instruction"] + " " + row["output"] for row in SUMS), "file": "a.txt",
             "dataset": {"columns": {"prompt": "text"}}, "method": {"stage": "pt"}, "data_packing": True},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_the_loss_falls_for_every_format(trainer: Trainer, config: Config, name: str) -> None:
    parts = dict(FORMATS[name])
    data = {"packing": True, "cutoff_len": 48} if parts.pop("data_packing", False) else None
    path = config(**parts, **({} if data is None else {"arguments": {"per_device_train_batch_size": 2}}))
    if data is not None:
        made = json.loads(path.read_text())
        made["data"].update(data)
        path.write_text(json.dumps(made))
    done = trainer.train(path)
    assert done.code == 0, done.output
    assert len(done.losses) == 8
    assert done.losses[-1] < 0.9 * done.losses[0]
    warned = [event["reason"] for event in done.of("warning")]
    assert warned == (["cut to the last whole block"] if data is not None else [])


def test_parquet_and_a_folder_of_files(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    trainer.check("write_parquet", str(folder / "1.parquet"), SUMS[:10])
    trainer.check("write_parquet", str(folder / "2.parquet"), SUMS[10:])
    done = trainer.train(config(rows=None, dataset={"path": str(folder)}, run={"cache": str(tmp_path / "cache")}))
    assert done.code == 0, done.output
    assert done.of("data")[0]["rows"] == len(SUMS)


@pytest.mark.parametrize("kind", ["full", "freeze", "oft"])
def test_other_ways_to_train(trainer: Trainer, config: Config, kind: str) -> None:
    method = {"finetuning_type": kind, "freeze": {"trainable_layers": 1}, "oft": {"block_size": 16}}
    done = trainer.train(config(method=method, arguments={"learning_rate": 0.005}))
    assert done.code == 0, done.output
    assert done.losses[-1] < done.losses[0]
    model = done.of("model")[0]
    assert (model["trainable_parameters"] == model["parameters"]) == (kind == "full")


@pytest.mark.parametrize(
    "more", [{"arguments": {"bf16": True}}, {"method": {"pure_bf16": True, "finetuning_type": "full"}}], ids=["bf16", "pure"]
)
def test_half_precision(trainer: Trainer, config: Config, more: dict[str, Any]) -> None:
    done = trainer.train(config(**more, model={"gradient_checkpointing": True}))
    assert done.code == 0, done.output
    assert done.of("model")[0]["dtype"] == "bfloat16"
    assert done.losses[-1] < 0.97 * done.losses[0]


@pytest.mark.parametrize(
    "lora",
    [{"dora": True}, {"rslora": True}, {"pissa_init": True}, {"loraplus_lr_ratio": 16.0}, {"target": ["q_proj", "v_proj"], "dropout": 0.1}],
)
def test_kinds_of_lora(trainer: Trainer, config: Config, lora: dict[str, Any]) -> None:
    done = trainer.train(config(method={"lora": lora}))
    assert done.code == 0, done.output
    assert done.losses[-1] < done.losses[0]


def test_an_adapter_is_continued_or_merged_first(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    base = tmp_path / "base"
    trainer.check("bare_model_folder", str(base), [row["instruction"] + row["output"] for row in SUMS])
    model = {"kind": "folder", "path": str(base), "name": str(base)}
    data = {"template": "chatml"}
    first = trainer.train(config("first", model=model, data=data))
    adapter = {**model, "adapters": [str(tmp_path / "first" / "out")]}
    second = trainer.train(config("second", model=adapter, data=data))
    third = trainer.train(config("third", model=adapter, data=data, method={"lora": {"create_new_adapter": True}}))
    for again in (second, third):
        assert again.code == 0, again.output
        assert again.losses[0] < 0.9 * first.losses[0]


def test_gradient_checkpointing_changes_no_loss(trainer: Trainer, config: Config) -> None:
    plain = trainer.train(config("plain"))
    for reentrant in (True, False):
        model = {"gradient_checkpointing": True, "use_reentrant_gc": reentrant}
        again = trainer.train(config(f"again-{reentrant}", model=model))
        assert again.losses == pytest.approx(plain.losses, abs=1e-5)


def test_same_seed_same_losses_to_the_last_digit(trainer: Trainer, config: Config) -> None:
    first, second = trainer.train(config("first")), trainer.train(config("second"))
    assert first.losses == second.losses
    other = trainer.train(config("other", arguments={"seed": 43}))
    assert other.losses != first.losses


def test_what_a_run_leaves_behind(trainer: Trainer, config: Config) -> None:
    path = config(
        training={"plot_loss": True}, data={"val_size": 0.2}, run={"prompts": ["What is 2 plus 2?", "Who are you?"]},
        arguments={"max_steps": 30, "eval_strategy": "steps", "eval_steps": 10, "save_strategy": "steps", "save_steps": 15},
    )  # fmt: skip
    done = trainer.train(path)
    assert done.code == 0, done.output
    out = path.parent / "out"
    names = {entry.name for entry in out.iterdir()}
    assert names >= {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "trainer_state.json",
        "trainer_log.jsonl", "train_results.json", "eval_results.json", "all_results.json", "training_loss.png", "README.md",
        "comparison.json", "checkpoint-15", "checkpoint-30",
    }  # fmt: skip
    assert (out / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    everything = json.loads((out / "all_results.json").read_text())
    assert {"train_loss", "train_runtime", "total_flos", "eval_loss", "epoch"} <= set(everything)
    tokens = done.of("step")[-1]["tokens"]
    assert everything["effective_tokens_per_sec"] * everything["train_runtime"] == pytest.approx(tokens, rel=0.01)
    answers = json.loads((out / "comparison.json").read_text())
    assert [answer["prompt"] for answer in answers] == ["What is 2 plus 2?", "Who are you?"]
    assert answers[0]["before"] != answers[0]["after"]
    log = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in log if "loss" in line] == done.losses
    assert {"current_steps", "total_steps", "lr", "epoch", "percentage", "elapsed_time", "remaining_time"} <= set(log[0])
    card = (out / "README.md").read_text()
    assert "builtin/tiny-llama" in card and "sums: 28 rows" in card and "learning_rate" in card
    kinds = [event["event"] for event in done.events]
    assert kinds[0] == "start" and kinds[-1] == "end" and {"model", "data", "step", "eval", "save", "saving", "comparison"} <= set(kinds)
    step = done.of("step")[-1]
    assert {"step", "max_steps", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "memory_mib"} <= set(step)
    record = json.loads((path.parent / "record.json").read_text())
    assert record["outcome"] == "passed" and record["metrics"]["loss"] == done.losses
    assert record["model"]["model_type"] == "llama" and len(record["model"]["config_sha256"]) == 64
    assert record["versions"]["torch"] and record["metrics"]["peak_memory_mib"] > 50
    written = [path for path in out.rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in written} == {(out / "README.md").stat().st_mode}, "others may read what they may"


def test_an_adapter_loads_and_merges_without_us(trainer: Trainer, config: Config) -> None:
    path = config(arguments={"max_steps": 60}, rows=[{"instruction": "Who are you?", "output": "I am fl."}] * 8)
    assert trainer.train(path).code == 0
    made = trainer.check("merged", str(path.parent / "out"), "Who are you?")
    assert made["difference"] < 1e-3
    assert made["answer"] == "I am fl."


def test_a_resumed_run_has_the_losses_of_one_that_was_never_stopped(trainer: Trainer, config: Config) -> None:
    steps = {"max_steps": 12, "save_strategy": "steps", "save_steps": 4}
    whole = trainer.train(config("whole", arguments=steps))
    path = config("parts", arguments=steps)
    assert trainer.train(path).losses == whole.losses
    out = path.parent / "out"
    for name in ("checkpoint-8", "checkpoint-12"):
        for entry in (out / name).iterdir():
            entry.unlink()
        (out / name).rmdir()
    (path.parent / "events.jsonl").unlink()
    again = trainer.train(path)
    assert again.of("resume")[0]["path"].endswith("checkpoint-4")
    assert again.losses == whole.losses[4:]


def test_a_checkpoint_cut_off_while_saving_is_passed_over(trainer: Trainer, config: Config) -> None:
    path = config(arguments={"save_strategy": "steps", "save_steps": 4})
    whole = trainer.train(path).losses
    broken = path.parent / "out" / "checkpoint-8" / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    (path.parent / "events.jsonl").unlink()
    again = trainer.train(path)
    assert again.code == 0, again.output
    assert "checkpoint-8 is incomplete (adapter_model.safetensors is cut off)" in again.of("warning")[0]["message"]
    assert again.losses == whole[4:]
    (path.parent / "events.jsonl").unlink()
    complete = trainer.train(path)
    assert complete.losses == [] and "nothing is left to train" in complete.of("warning")[0]["message"]


def test_overwrite_starts_anew(trainer: Trainer, config: Config) -> None:
    first = trainer.train(config(arguments={"save_strategy": "steps", "save_steps": 4}))
    (first.folder / "events.jsonl").unlink()
    second = trainer.train(config(arguments={"max_steps": 5}, training={"overwrite_output_dir": True}))
    assert second.of("step")[0]["step"] == 1
    assert not list((second.folder / "out").glob("checkpoint-*"))


def test_a_loss_that_is_no_number_ends_the_run(trainer: Trainer, config: Config) -> None:
    done = trainer.train(config(arguments={"learning_rate": 1e30, "max_grad_norm": 0.0}, method={"finetuning_type": "full"}))
    assert done.code == 10
    error = done.of("error")[0]
    assert error["exit"] == 10 and error["type"] == "TrainingError"
    assert error["message"].startswith("the loss is ") and "at step 2" in error["message"]
    assert not (done.folder / "out" / "adapter_model.safetensors").exists()
    assert json.loads((done.folder / "record.json").read_text())["outcome"] == "failed"


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing file": ({"dataset": {"path": "/nowhere/sum.json"}}, "/nowhere/sum.json does not exist"),
    "empty file": ({"rows": []}, "is empty"),
    "wrong column": (
        {"rows": [{"instruction": "a", "outptu": "b"}]},
        "no column output (for response); it has: instruction, outptu",
    ),
    "not a text": ({"rows": [*SUMS, {"instruction": "What?", "output": 42}]}, "sums row 37: column output is a number (42)"),
    "broken JSON": ({"rows": '[{"instruction": "a",\n "output": }]'}, "line 2, column 12"),
    "nothing usable": ({"rows": [{"instruction": "a", "output": ""}]}, "none of its 1 rows can be trained on: 1 empty answer"),
    "unknown template": ({"data": {"template": "lama3"}}, "template lama3 is unknown"),
    "no such model": ({"model": {"kind": "folder", "path": "/nowhere", "name": "/nowhere"}}, "/nowhere is no folder"),
    "no such module": ({"method": {"lora": {"target": ["q_porj"]}}}, "the model has no module q_porj"),
    "output not writable": ({"training": {"output_dir": "/proc/fl-out"}}, "output_dir /proc/fl-out cannot be written"),
    "nothing to evaluate": ({"arguments": {"eval_strategy": "steps", "eval_steps": 2}}, "no rows to evaluate on"),
    "arguments that do not fit": (
        {"arguments": {"load_best_model_at_end": True, "save_strategy": "steps"}},
        "the training arguments do not fit together",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_input_have_names(trainer: Trainer, config: Config, name: str) -> None:
    parts, message = FAULTS[name]
    done = trainer.train(config(**parts))
    assert done.code == 5, done.output
    error = done.of("error")[0]
    assert message in error["message"] and error["exit"] == 5
    assert "Traceback" not in done.output
    assert not (done.folder / "out").exists() or not any((done.folder / "out").iterdir())


def test_what_is_dropped_or_cut_is_told(trainer: Trainer, config: Config) -> None:
    long = {"instruction": "Count.", "output": " ".join(str(number) for number in range(200))}
    done = trainer.train(config(rows=[*SUMS, {"instruction": "Empty?", "output": ""}, long]))
    assert done.code == 0, done.output
    told = {event["reason"]: event["count"] for event in done.of("warning")}
    assert told == {"empty answer": 1, "cut to 128 tokens": 1}


def started(python: Path, path: Path, *before: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [python, *before, "-m", "fl_trainers", path], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    events = path.parent / "events.jsonl"
    end = time.monotonic() + 400
    while time.monotonic() < end:
        if process.poll() is not None or (events.exists() and '"step": 3' in events.read_text()):
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError("it never came to step 3")


def test_sigterm_saves_a_checkpoint_that_goes_on(train_python: Path, trainer: Trainer, config: Config) -> None:
    arguments = {"max_steps": 100000, "save_only_model": True, "save_strategy": "steps", "save_steps": 50000}
    path = config(arguments=arguments)
    process = started(train_python, path)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 143, output
    checkpoint = next((path.parent / "out").glob("checkpoint-*"))
    assert (checkpoint / "optimizer.pt").is_file()
    events = [json.loads(line) for line in (path.parent / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "end" and events[-1]["outcome"] == "stopped"
    step = int(checkpoint.name.split("-")[1])
    made = json.loads(path.read_text())
    made["training"]["arguments"]["max_steps"] = step + 2
    path.write_text(json.dumps(made))
    again = trainer.train(path)
    assert again.code == 0, again.output
    assert again.of("resume")[0]["path"] == str(checkpoint)


def test_quantized_weights_with_an_adapter(train_python: Path, trainer: Trainer, config: Config, tmp_path: Path) -> None:
    base = tmp_path / "base"
    trainer.check("bare_model_folder", str(base), [row["instruction"] + row["output"] for row in SUMS])
    model = {"kind": "folder", "path": str(base), "name": str(base), "quantization": {"bits": 4}}
    path = config(model=model, data={"template": "chatml"}, arguments={"max_steps": 4})
    done = subprocess.run(
        [train_python, "-m", "fl_trainers", path], env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in (path.parent / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert losses[-1] < losses[0]


def test_two_processes_learn_together(train_python: Path, config: Config) -> None:
    path = config(arguments={"per_device_train_batch_size": 2}, data={"val_size": 4}, run={"prompts": ["What is 1 plus 1?"]})
    done = subprocess.run(
        [train_python, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1", "--master_port=29731",
         "-m", "fl_trainers", path],
        env=environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in (path.parent / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert [event["processes"] for event in events if event["event"] == "start"] == [2]
    assert (path.parent / "out" / "adapter_model.safetensors").is_file()
    assert (path.parent / "out" / "comparison.json").is_file()
