"""Model folders that are not whole, and output folders that are another's: exit 5 with the file or weight named, nothing overwritten."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Trainer, environment

pytestmark = pytest.mark.training
Config = Callable[..., Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model is kept that the first test makes."""
    return tmp_path_factory.mktemp("whole") / "model"


@pytest.fixture
def model(trainer: Trainer, config: Config, whole: Path, tmp_path: Path) -> Path:
    """A whole model, as a run with finetuning_type full leaves it."""
    if not whole.is_dir():
        done = trainer.train(config("base", method={"finetuning_type": "full"}, arguments={"max_steps": 1}))
        assert done.code == 0, done.output
        shutil.copytree(done.folder / "out", whole)
    return Path(shutil.copytree(whole, tmp_path / "model"))


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def junk(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no weights")


def shard(folder: Path) -> None:
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / names["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


FAULTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a shard is missing": (shard, ("model-00002-of-00002.safetensors: it is missing",)),
    "cut off": (cut, ("model.safetensors: it is cut off or broken",)),
    "a pointer of Git LFS": (pointer, ("model.safetensors: it is a pointer of Git LFS", "git lfs pull")),
    "older weights that are none": (junk, ("mine cannot be loaded: ",)),
    "weights that the files lack": (
        lambda folder: settings(folder, num_hidden_layers=3, layer_types=None), ("its files lack model.layers.2.", "and 8 more"),
    ),
    "weights of another shape": (lambda folder: settings(folder, vocab_size=64), ("has the shape [", "64] by config.json")),
    "no tokenizer": (no_tokenizer, ("has no tokenizer (tokenizer.json",)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_model_folder_that_is_not_whole_is_refused(trainer: Trainer, config: Config, model: Path, name: str) -> None:
    spoil, words = FAULTS[name]
    spoil(model)
    done = trainer.train(config("run", model={"kind": "folder", "path": str(model), "name": "mine"}))
    assert done.code == 5, done.output
    error = done.of("error")[0]
    assert all(word in f"{error['message']} {error['remedy']}" for word in words), error
    assert "Traceback" not in done.output and not any((done.folder / "out").iterdir())


NO_SYSTEM = """{%- for message in messages -%}{%- if message.role not in ("user", "assistant") -%}
{{ raise_exception(message.role ~ " is not supported") }}{%- endif -%}
{{ "<|im_start|>" ~ message.role ~ "\n" ~ message.content ~ "<|im_end|>\n" }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\n" }}{%- endif -%}"""
PAIR = {"chosen": {"from": "gpt", "value": "It is 2."}, "rejected": {"from": "gpt", "value": "It is 3."}}
COLUMNS = {"messages": "conversations", "system": "system"}


@pytest.mark.parametrize("stage", ["sft", "dpo", "rm", "kto", "ppo", "grpo"])
def test_a_template_without_the_roles_of_a_row_is_told_with_the_row(trainer: Trainer, config: Config, model: Path, stage: str) -> None:
    (model / "chat_template.jinja").write_text(NO_SYSTEM)
    turns = [{"from": "human", "value": "What is 1 plus 1?"}, {"from": "gpt", "value": "It is 2."}]
    good = {"conversations": turns[: 1 if stage in ("dpo", "rm") else 2], "system": None, "liked": True, **PAIR}
    more = {"chosen": "chosen", "rejected": "rejected"} if stage in ("dpo", "rm") else {"kto_tag": "liked"} if stage == "kto" else {}
    dataset = {"formatting": "sharegpt", "ranking": stage in ("dpo", "rm"), "columns": {**COLUMNS, **more}}
    method: dict[str, Any] = {"stage": stage}
    method |= {"grpo": {"reward_funcs": ["format"]}} if stage in ("ppo", "grpo") else {}
    given = {"kind": "folder", "path": str(model), "name": "mine"}
    rows = [good, good, {**good, "system": "Be brief."}]
    many = {"per_device_train_batch_size": 8}
    done = trainer.train(config(rows=rows, dataset=dataset, method=method, model=given, arguments=many))
    assert done.code == 5, done.output
    error = done.of("error")[0]
    assert error["message"] == "sums row 3: the chat template refuses it: system is not supported" and "template" in error["remedy"]


def test_a_vocabulary_smaller_than_the_token_ids_is_refused_unless_it_may_grow(trainer: Trainer, config: Config, model: Path) -> None:
    """The tokenizer of another model, which knows more words."""
    words = [{"instruction": "Say it.", "output": " ".join(f"{a}{b}" for b in "abcdefghij")} for a in "klmnopqrstuvwxyz"] + SUMS
    wide = trainer.train(config("wide", rows=words * 3, method={"finetuning_type": "full"}, arguments={"max_steps": 1}, file="wide.json"))
    for path in (wide.folder / "out").glob("tokenizer*"):
        shutil.copy(path, model)
    given = {"kind": "folder", "path": str(model), "name": "mine"}
    done = trainer.train(config("run", model=given))
    assert done.code == 5, done.output
    error = done.of("error")[0]
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    assert f"its embedding has {rows} rows" in error["message"] and f"id {rows} (" in error["message"], error
    grown = trainer.train(config("grown", model={**given, "resize_vocab": True}))
    assert grown.code == 0 and grown.losses[-1] < grown.losses[0], grown.output


def test_an_adapter_that_is_broken_or_of_another_model_is_told(trainer: Trainer, config: Config, model: Path, tmp_path: Path) -> None:
    given = {"kind": "folder", "path": str(model), "name": str(model)}
    first = trainer.train(config("first", model=given))
    adapter = first.folder / "out"
    other = Path(shutil.copytree(model, tmp_path / "another"))
    onto = {"kind": "folder", "path": str(other), "name": str(other), "adapters": [str(adapter)]}
    told = trainer.train(config("onto", model=onto))
    assert told.code == 0, told.output
    assert [event["message"] for event in told.of("warning")] == [
        f"adapter {adapter} was trained on {model}, the recipe's model is {other}"
    ]
    assert not trainer.train(config("again", model={**given, "adapters": [str(adapter)]})).of("warning")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    cut = trainer.train(config("cut", model={**given, "adapters": [str(adapter)]}))
    assert cut.code == 5 and f"adapter {adapter}: adapter_model.safetensors: it is cut off" in cut.of("error")[0]["message"]
    weights.unlink()
    gone = trainer.train(config("gone", model={**given, "adapters": [str(adapter)]}))
    assert gone.code == 5 and "adapter_model.safetensors: it is missing" in gone.of("error")[0]["message"]


STRICT = {"parse_constant": pytest.fail}
"""For json.loads: NaN is no JSON."""


@pytest.mark.parametrize("asked", ["evaluate", "predict", "train"])
def test_a_model_that_holds_nan_is_told_whatever_is_asked_of_it(
    trainer: Trainer, config: Config, model: Path, tmp_path: Path, asked: str
) -> None:
    trainer.check("rank_checks.spoil", str(model))
    (tmp_path / "held.json").write_text(json.dumps(SUMS[:3]))
    given = {"kind": "folder", "path": str(model), "name": "mine"}
    held = {"eval": [{"name": "held", "source": "file", "path": str(tmp_path / "held.json")}]}
    part: dict[str, dict[str, Any]] = {
        "evaluate": {"training": {"do_train": False, "do_eval": True}},
        "predict": {"training": {"do_train": False, "do_predict": True, "predict_with_generate": True}, "generation": {"do_sample": False}},
        "train": {"arguments": {"eval_on_start": True, "eval_strategy": "steps"}},
    }
    done = trainer.train(config("run", model=given, data=held, **part[asked]))
    assert done.code == 10 and "Traceback" not in done.output, done.output
    assert "eval loss is no number at step 0" in done.of("warning")[0]["message"]
    error = done.of("error")[0]
    assert ("the loss is NaN at step 1" if asked == "train" else "the eval loss is no number") in error["message"]
    assert "weights" in error["remedy"]
    assert not (done.folder / "out" / "generated_predictions.jsonl").exists()
    for path in done.folder.rglob("*.json"):
        json.loads(path.read_text(), **STRICT)


def test_the_loss_of_uneven_experts_has_the_recipes_weight(trainer: Trainer, config: Config, model: Path, tmp_path: Path) -> None:
    trainer.check("expert_model_folder", str(tmp_path / "experts"), [f"{row['instruction']} {row['output']}" for row in SUMS])
    given = {"kind": "folder", "path": str(tmp_path / "experts"), "name": "experts"}
    first = {}
    for weight in (0.0, 1.0, 2.0):
        part = {"model": {**given, "moe_aux_loss_coef": weight}, "data": {"template": "chatml"}, "arguments": {"max_steps": 1}}
        done = trainer.train(config(f"run-{weight}", **part, method={"lora": {"target": ["q_proj"]}}))
        assert done.code == 0, done.output
        first[weight] = done.losses[0]
    assert first[1.0] - first[0.0] > 0.9  # as many as experts that every token takes, or more
    assert first[2.0] - first[0.0] == pytest.approx(2 * (first[1.0] - first[0.0]), rel=0.02)
    none = trainer.train(config("none", model={"kind": "folder", "path": str(model), "name": "mine", "moe_aux_loss_coef": 0.1}))
    assert none.code == 5 and "moe_aux_loss_coef: mine has no experts" in none.of("error")[0]["message"]


def test_a_trained_model_is_not_overwritten_unasked(trainer: Trainer, config: Config) -> None:
    first = trainer.train(config())
    kept = (first.folder / "out" / "adapter_model.safetensors").read_bytes()
    (first.folder / "events.jsonl").unlink()
    second = trainer.train(config(arguments={"max_steps": 2}))
    assert second.code == 5, second.output
    error = second.of("error")[0]
    assert "holds a trained model already (adapter_model.safetensors)" in error["message"] and "overwrite_output_dir" in error["remedy"]
    assert (first.folder / "out" / "adapter_model.safetensors").read_bytes() == kept
    (first.folder / "events.jsonl").unlink()
    whole = trainer.train(config(training={"overwrite_output_dir": True}, method={"finetuning_type": "full"}))
    assert whole.code == 0 and not (first.folder / "out" / "adapter_config.json").exists()
    (first.folder / "events.jsonl").unlink()
    again = trainer.train(config(training={"overwrite_output_dir": True}))
    assert again.code == 0 and not (first.folder / "out" / "model.safetensors").exists()


def test_two_runs_in_one_output_folder_are_refused(trainer: Trainer, config: Config, train_python: Path) -> None:
    path = config("first", arguments={"max_steps": 100_000, "save_strategy": "no"})
    log = path.parent / "log.txt"
    with log.open("w") as output:
        first = subprocess.Popen([train_python, "-m", "fl_trainers", path], stdout=output, stderr=output, env=environment())
    try:
        events = path.parent / "events.jsonl"
        deadline = time.monotonic() + 300
        while not (events.exists() and '"step"' in events.read_text()):
            assert time.monotonic() < deadline and first.poll() is None, log.read_text()
            time.sleep(0.1)
        second = trainer.train(config("second", training={"output_dir": str(path.parent / "out"), "overwrite_output_dir": True}))
        assert second.code == 5, log.read_text()
        assert "another run is writing to it" in second.of("error")[0]["message"]
        assert (path.parent / "out" / "trainer_log.jsonl").exists()
    finally:
        first.kill()
        first.wait()
    third = trainer.train(config("third", training={"output_dir": str(path.parent / "out"), "overwrite_output_dir": True}))
    assert third.code == 0, third.output


def test_a_checkpoint_of_another_recipe_is_named(trainer: Trainer, config: Config, model: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"kind": "folder", "path": str(model), "name": "mine"}
    saving = {"save_strategy": "steps", "save_steps": 4}
    first = trainer.train(config("first", model=given, arguments={**saving, "max_steps": 4}))
    out = {"output_dir": str(first.folder / "out")}
    kept = {path: path.read_bytes() for path in Path(out["output_dir"]).rglob("*") if path.is_file()}
    other = Path(shutil.copytree(model, tmp_path / "other")) / "model.safetensors"  # of equal shapes
    other.write_bytes(other.read_bytes()[:-40_000] + bytes(40_000))
    texts = {"columns": {"prompt": "output"}}
    changes: dict[str, tuple[dict[str, Any], str]] = {
        "type": ({"method": {"finetuning_type": "full"}}, "it holds an adapter of type lora, and finetuning_type is full"),
        "rank": ({"method": {"lora": {"rank": 4}}}, "has the shape [8, "),
        "target": ({"method": {"lora": {"target": ["q_proj"]}}}, "weights stand on one side only"),
        "alpha": ({"method": {"lora": {"alpha": 99}}}, "its adapter has lora_alpha 16, this one 99"),
        "stage": ({"method": {"stage": "pt"}, "dataset": texts}, "it was made by stage sft, and the recipe's is pt"),
        "base": ({"model": {**given, "path": str(other.parent), "name": "another"}}, "it was made of mine (weights "),
    }
    for name, (change, words) in changes.items():
        done = trainer.train(config(name, arguments={**saving, "max_steps": 8}, training=out, **{"model": given, **change}))
        assert done.code == 5, (name, done.output)
        error = done.of("error")[0]
        assert "checkpoint-4 does not go on with this recipe" in error["message"] and words in error["message"], error
        assert "overwrite_output_dir" in error["remedy"] or name == "stage"
    built_in = trainer.train(config("tiny", arguments={**saving, "max_steps": 4}))
    (built_in.folder / "events.jsonl").unlink()
    name = "builtin/tiny-qwen3"
    stranger = trainer.train(config("tiny", model={"path": name, "name": name}, arguments={**saving, "max_steps": 8}))
    assert stranger.code == 5, stranger.output
    assert "made of builtin/tiny-llama (built_in builtin/tiny-llama)" in stranger.of("error")[0]["message"]
    assert kept == {path: path.read_bytes() for path in Path(out["output_dir"]).rglob("*") if path.is_file()}
    (model.parent / "moved").mkdir()
    moved = {**given, "path": str(model.rename(model.parent / "moved" / "model")), "name": "moved"}
    (Path(out["output_dir"]) / "checkpoint-4" / "fl_origin.json").rename(tmp_path / "kept.json")
    old = trainer.train(config("old", model=moved, arguments={**saving, "max_steps": 5}, training=out))
    assert old.code == 0 and "does not say which model it was made of" in old.of("warning")[0]["message"], old.output
    shutil.rmtree(Path(out["output_dir"]) / "checkpoint-5")
    shutil.copy(tmp_path / "kept.json", Path(out["output_dir"]) / "checkpoint-4" / "fl_origin.json")
    same = trainer.train(config("same", model=moved, arguments={**saving, "max_steps": 5}, training=out))
    assert same.code == 0 and not same.of("warning") and same.of("resume"), same.output


def test_a_checkpoint_says_when_rows_or_bits_are_others(trainer: Trainer, config: Config, model: Path) -> None:
    given: dict[str, Any] = {"kind": "folder", "path": str(model), "name": "mine"}
    saving = {"save_strategy": "steps", "save_steps": 4}
    first = trainer.train(config("first", model=given, arguments={**saving, "max_steps": 4}))
    assert first.code == 0, first.output
    out = {"output_dir": str(first.folder / "out")}
    record = Path(out["output_dir"]) / "checkpoint-4" / "fl_origin.json"
    told = json.loads(record.read_text())
    assert told["data"]["sequences"] == len(SUMS) and told["quantization"] is None
    bits = {**told, "quantization": {"bits": 4, "type": "nf4"}}
    changes: dict[str, tuple[list[dict[str, Any]], dict[str, Any], list[str]]] = {
        "same": (SUMS, told, []),
        "fewer": (SUMS[:20], told, ["(36 sequences), and the recipe's are ", "(20 sequences)"]),
        "edited": ([{**row, "output": row["output"][::-1]} for row in SUMS], told, [" as well, with another content"]),
        "bits": (SUMS, bits, ["was trained with quantization_bit 4 (nf4), the recipe has none"]),
        "old": (SUMS[:20], {key: told[key] for key in told if key not in ("data", "quantization")}, []),
    }
    for name, (rows, origin, words) in changes.items():
        shutil.rmtree(Path(out["output_dir"]) / "checkpoint-5", ignore_errors=True)
        record.write_text(json.dumps(origin))
        done = trainer.train(config(name, rows, model=given, arguments={**saving, "max_steps": 5}, training=out))
        assert done.code == 0 and done.of("resume"), done.output
        said = [event["message"] for event in done.of("warning") if event["code"] == "checkpoint"]
        assert len(said) == bool(words), (name, said)
        assert all(word in said[0] for word in words), (name, said)
