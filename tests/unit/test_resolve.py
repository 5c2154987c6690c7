"""A recipe and its files become the config."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from fl import paths, resolve
from fl.errors import RecipeError
from fl.resolve_model import model_facts
from fl_trainers.config import Config, Training

RECIPES = Path(__file__).parents[1] / "data" / "recipes"
BASE = "model_name_or_path: builtin/tiny-qwen3\ndo_train: true\noutput_dir: out\ndataset: greetings\n"


def config_of(source: str | Path, *overrides: str, cwd: Path = RECIPES, **more: Any) -> Config:
    recipe = resolve.read(str(source), overrides, cwd=cwd)
    return resolve.resolve(
        recipe, run_name="run-1", lane="cpu", stack="cpu-torch213", events="/run/events", cache="/cache", cwd=cwd, **more
    )


def written(folder: Path, text: str = BASE) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def with_data(folder: Path, info: object) -> Path:
    (folder / "data").mkdir()
    text = info if isinstance(info, str) else json.dumps(info)
    (folder / "data" / "dataset_info.json").write_text(text)
    return written(folder, BASE.replace("greetings", "mine"))


def test_a_whole_config() -> None:
    config = config_of("lora_sft.yaml", "model_name_or_path=builtin/tiny-qwen3")
    assert (config.run.name, config.run.lane, config.run.stack, config.run.events, config.run.cache) == (
        "run-1",
        "cpu",
        "cpu-torch213",
        "/run/events",
        "/cache",
    )
    assert (config.model.name, config.model.path, config.model.kind, config.model.trust_remote_code) == (
        "builtin/tiny-qwen3",
        "builtin/tiny-qwen3",
        "tiny",
        True,
    )
    assert [d.name for d in config.data.train] == ["greetings", "sums"]
    assert config.data.train[0].path == str(RECIPES / "data" / "greetings.json")
    assert (config.data.template, config.data.cutoff_len, config.data.max_samples, config.data.packing) == (
        "qwen3_nothink",
        2048,
        1000,
        False,
    )
    assert (config.method.stage, config.method.finetuning_type, config.method.lora.rank, config.method.lora.alpha) == (
        "sft",
        "lora",
        8,
        None,
    )
    assert config.training.output_dir == str(RECIPES / "saves/qwen3-4b/lora/sft")
    assert (config.training.overwrite_output_dir, config.training.plot_loss, config.training.resume_from_checkpoint) == (True, True, None)
    assert config.training.arguments == {
        "dataloader_num_workers": 4,
        "logging_steps": 10.0,
        "save_steps": 500.0,
        "save_only_model": False,
        "report_to": ["none"],
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "learning_rate": 1e-4,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "cosine",
        "bf16": True,
        "ddp_timeout": 180000000,
        "warmup_steps": 0.1,
    }
    assert Config.model_validate_json(json.dumps(config.dump())) == config


@pytest.mark.parametrize("name", sorted(p.name for p in RECIPES.glob("*.*") if p.name != "zero3.json"))
def test_every_recipe_resolves_and_is_json(name: str) -> None:
    config = config_of(name)
    assert Config.model_validate(json.loads(json.dumps(config.dump(), allow_nan=False))) == config


def test_pre_training_packs_unless_told_otherwise() -> None:
    assert config_of("pretrain.yaml").data.packing is True
    assert config_of("pretrain.yaml", "packing=false").data.packing is False
    assert config_of("pretrain.yaml", "stage=sft").data.packing is False
    assert config_of("lora_sft.yaml", "neat_packing=true").data.packing is True


def test_other_methods() -> None:
    freeze = config_of("freeze.yaml")
    assert freeze.method.freeze.model_dump() == {
        "trainable_layers": 2,
        "trainable_modules": ("all",),
        "extra_modules": ("embed_tokens", "norm"),
    }
    assert (freeze.model.gradient_checkpointing, freeze.method.pure_bf16) == (False, True)
    assert config_of("oft.yaml").method.oft.block_size == 32
    qlora = config_of("qlora.yaml").model
    assert qlora.quantization is not None
    assert qlora.quantization.model_dump() == {"method": "bnb", "bits": 4, "type": "nf4", "double": False}
    assert qlora.attention == "fa2"
    assert config_of("qlora.yaml").training.do_eval is True
    older = config_of("older.yaml")
    assert (older.training.arguments["save_strategy"], older.training.arguments["eval_strategy"]) == ("no", "epoch")
    assert older.model.use_reentrant_gc is False


def test_values_of_files_are_in_the_config() -> None:
    assert config_of("full_deepspeed.yaml").training.arguments["deepspeed"]["zero_optimization"] == {"stage": 3}
    with pytest.raises(RecipeError, match=r"deepspeed: the file .*/nothing\.json is not there"):
        config_of("full_deepspeed.yaml", "deepspeed=nothing.json")
    with pytest.raises(RecipeError, match="must hold a JSON object"):
        config_of("full_deepspeed.yaml", "deepspeed=data/folder/../greetings.json")


def test_prompts_threads_and_output() -> None:
    config = config_of("oft.yaml", "fl.prompts=[Who?]", threads=2, output_dir="elsewhere")
    assert (config.run.prompts, config.run.threads, config.training.output_dir) == (("Who?",), 2, str(RECIPES / "elsewhere"))


def test_paths_start_from_the_callers_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = config_of(RECIPES / "oft.yaml", f"dataset_dir={os.path.relpath(RECIPES / 'data', elsewhere)}", cwd=elsewhere)
    assert config.training.output_dir == str(elsewhere / "saves/oft")
    assert config.data.train[0].path == str(RECIPES / "data/greetings.json")
    with pytest.raises(RecipeError, match=f"The folder of data sets {elsewhere}/data is not there"):
        config_of(RECIPES / "oft.yaml", cwd=elsewhere)


def test_a_shipped_recipe_brings_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "recipes", lambda: RECIPES)
    config = config_of("oft", cwd=tmp_path)
    assert config.data.train[0].path == str(RECIPES / "data/greetings.json")
    assert config.training.output_dir == str(tmp_path / "saves/oft")
    shutil.copytree(RECIPES / "data", tmp_path / "mine")
    typed = config_of("oft", "dataset_dir=mine", cwd=tmp_path)  # who types a path means the folder that they are in
    assert typed.data.train[0].path == str(tmp_path / "mine/greetings.json")
    direct = config_of("oft", "dataset=mine/greetings.json", cwd=tmp_path)
    assert direct.data.train[0].path == str(tmp_path / "mine/greetings.json")
    with pytest.raises(RecipeError, match=f"{tmp_path}/data/other is not there"):
        config_of("oft", "dataset_dir=data/other", cwd=tmp_path)
    assert resolve.read("oft", cwd=tmp_path).shipped
    assert resolve.read(str(RECIPES / "oft.yaml"), cwd=tmp_path).shipped
    with pytest.raises(RecipeError, match="Did you mean 'oft'"):
        resolve.read("off", cwd=tmp_path)


def test_environment_of_the_training(tmp_path: Path) -> None:
    path = written(tmp_path, BASE + "logging_dir: logs\ncache_dir: /models\nfl: {env: {A: 1}}\n")
    assert resolve.environment(resolve.read(str(path)), tmp_path) == {
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "logs"),
        "HF_HUB_CACHE": "/models",
        "A": "1",
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.yaml", "There is no recipe file"),
        ("lora_stf.yaml", "Did you mean 'lora_sft.yaml'"),
        ("data", "is a folder; a recipe is a file"),
    ],
)
def test_recipes_that_are_not_there(source: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve.read(source, cwd=RECIPES)


def test_a_recipe_that_may_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(RecipeError, match="cannot be read: Permission denied"):
        resolve.read(str(path))


def test_a_large_file_is_not_read_to_its_end() -> None:
    with pytest.raises(RecipeError, match="a recipe may have 256 KiB"):
        resolve.read("/dev/zero")


def test_sources_of_data() -> None:
    def first(name: str) -> Any:
        return config_of("oft.yaml", f"dataset={name}").data.train[0]

    assert first("prose").path == str(RECIPES / "data/folder")
    assert (first("elsewhere").source, first("elsewhere").path) == ("hub", "someone/something")
    assert (first("elsewhere").subset, first("elsewhere").split, first("elsewhere").folder) == ("en", "validation", "v2")
    assert (first("both").source, first("both").path) == ("hub", "someone/hub")
    online = config_of("oft.yaml", "dataset=tatsu-lab/alpaca", "dataset_dir=ONLINE").data
    assert (online.train[0].source, online.train[0].path, online.media_dir) == ("hub", "tatsu-lab/alpaca", None)


def test_columns_and_tags() -> None:
    sums, chat, prose = config_of("oft.yaml", "dataset=sums,chat,prose").data.train
    assert (sums.formatting, sums.num_samples) == ("sharegpt", 5)
    assert {k: v for k, v in sums.columns.model_dump().items() if v} == {"messages": "turns", "system": "system"}
    assert (sums.tags.role_tag, sums.tags.user_tag, sums.tags.observation_tag) == ("role", "user", "observation")
    assert (chat.columns.messages, chat.tags.role_tag, chat.tags.observation_tag) == ("messages", "role", "tool")
    assert (prose.columns.prompt, prose.columns.response) == ("text", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("greeting", "The data set 'greeting' is not in .*Did you mean 'greetings'"),
        ("xyz", "is not in .*It names both, bucket"),
        ("bucket", "cloud storage .*s3://bucket"),
        ("pairs", "pairs of answers"),
        ("lost", r"the file .*greeting\.json is not there\. Beside it: greetings\.json"),
        ("typo", "unknown field 'formating'. Did you mean 'formatting'"),
        ("column", "columns: unknown field 'promt'. Did you mean 'prompt'"),
        ("nowhere", "says nowhere where the data are"),
    ],
)
def test_broken_data_sets(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        config_of("oft.yaml", f"dataset={name}")
    assert error.value.exit_code == 5


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("{", r"dataset_info\.json:1:2"),
        ("[]", "wanted an object of data sets by name, found a list"),
        ({"mine": 3}, "wanted an object, found a int"),
        ({"mine": {"file_name": 3}}, "file_name: wanted text, found 3"),
        ({"mine": {"file_name": "a.json", "formatting": "sharegtp"}}, "Did you mean sharegpt"),
        ({"mine": {"file_name": "a.json", "num_samples": 0}}, "num_samples: wanted a whole number above 0"),
        ({"mine": {"file_name": "a.json", "columns": ["a"]}}, "columns: wanted an object of names"),
        ({"mine": {"file_name": "a.json", "tags": {"roletag": "a"}}}, "Did you mean 'role_tag'"),
        ({"mine": {"file_name": "a.json"}}, r"the file .*a\.json is not there"),
    ],
)
def test_broken_dataset_info(tmp_path: Path, info: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        config_of(with_data(tmp_path, info), cwd=tmp_path)


def test_data_files_are_looked_at(tmp_path: Path) -> None:
    path = with_data(tmp_path, {"mine": {"file_name": "a.json"}, "folder": {"file_name": "f"}, "odd": {"file_name": "a.xlsx"}})
    data = tmp_path / "data"
    (data / "f").mkdir()
    (data / "a.json").touch()
    (data / "a.xlsx").write_text("x")
    with pytest.raises(RecipeError, match="is empty"):
        config_of(path, cwd=tmp_path)
    with pytest.raises(RecipeError, match="holds no files"):
        config_of(path, "dataset=folder", cwd=tmp_path)
    with pytest.raises(RecipeError, match="of no known type"):
        config_of(path, "dataset=odd", cwd=tmp_path)
    (data / "f" / "a.json").write_text("[]")
    (data / "f" / "b.csv").write_text("x")
    with pytest.raises(RecipeError, match=r"files of several types \(csv, json\)"):
        config_of(path, "dataset=folder", cwd=tmp_path)
    (data / "a.json").write_text("[1]")
    assert config_of(path, cwd=tmp_path).data.train[0].path == str(data / "a.json")
    for name in ("a.tsv", "a.ndjson"):
        (data / name).write_text("x")
        assert config_of(path, f"dataset={data / name}", cwd=tmp_path).data.train[0].path == str(data / name)
    (data / "dataset_info.json").unlink()
    with pytest.raises(RecipeError, match=r"dataset_info\.json is not there"):
        config_of(path, cwd=tmp_path)


def test_models_by_name(tmp_path: Path) -> None:
    def model(name: str, **more: Any) -> Any:
        return config_of("oft.yaml", f"model_name_or_path={name}", **more).model

    assert (model("Qwen/Qwen3-0.6B").kind, model("Qwen/Qwen3-0.6B").path) == ("hub", "Qwen/Qwen3-0.6B")
    built = model("builtin/smollm2-135m", builtin_gguf="/cache/model.gguf", converted="/cache/converted")
    assert (built.kind, built.path, built.converted, built.name) == (
        "gguf",
        "/cache/model.gguf",
        "/cache/converted",
        "builtin/smollm2-135m",
    )
    assert model("builtin/tiny-llama").kind == "tiny"
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF....")
    assert (model(str(gguf)).kind, model(str(gguf)).path) == ("gguf", str(gguf))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("builtin/smollm", "There is no built-in model 'builtin/smollm'"),
        ("{tmp}/nothing", "The model folder .*nothing is not there"),
        ("{tmp}/file", "is a file; a model is a folder"),
        ("{tmp}/empty", r"The model folder .*empty has no config\.json"),
        ("{tmp}/adapter", "holds an adapter, not a model"),
        ("{tmp}/weightless", "but no weights"),
        ("{tmp}/nothing.gguf", "The model file .* is not there"),
        ("{tmp}/wrong.gguf", "is not a GGUF file"),
        ("saves/old/run", "The model folder .*saves/old/run is not there"),
    ],
)
def test_models_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    for folder in ("empty", "adapter", "weightless"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "wrong.gguf").write_bytes(b"PK..")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "weightless" / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match=message) as error:
        config_of("oft.yaml", f"model_name_or_path={name.format(tmp=tmp_path)}")
    assert error.value.remedy or "GGUF" in error.value.message


def test_adapters(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    (good / "adapter_config.json").write_text("{}")
    assert config_of("lora_sft.yaml", f"adapter_name_or_path={good},someone/adapter").model.adapters == (str(good), "someone/adapter")
    assert config_of("lora_sft.yaml", "adapter_name_or_path=good", f"adapter_folder={tmp_path}").model.adapters == (str(good),)
    with pytest.raises(RecipeError, match=r"The adapter folder .* is not there"):
        config_of("lora_sft.yaml", f"adapter_name_or_path={tmp_path}/bad")


def safetensors(path: Path, **shapes: list[int]) -> None:
    header = json.dumps(
        {"__metadata__": {}, **{k: {"dtype": "F32", "shape": v, "data_offsets": [0, 0]} for k, v in shapes.items()}}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 5632,
    "vocab_size": 32000,
}


def test_facts_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    computed = model_facts(str(tmp_path), "folder")
    assert (computed.model_type, computed.architecture, computed.hidden_size, computed.layers, computed.vocab_size) == (
        "llama",
        "LlamaForCausalLM",
        2048,
        22,
        32000,
    )
    # TinyLlama-1.1B has this shape and 1,100,048,384 parameters
    assert computed.parameters is not None
    assert abs(computed.parameters - 1_100_048_384) < 10_000
    assert computed.parameters_from == "config"
    safetensors(tmp_path / "model-1.safetensors", a=[2, 3], b=[4])
    safetensors(tmp_path / "model-2.safetensors", c=[5, 5])
    safetensors(tmp_path / "adapter_model.safetensors", d=[100])
    counted = model_facts(str(tmp_path), "folder")
    assert (counted.parameters, counted.parameters_from) == (35, "weights")


def test_facts_of_a_quantized_and_a_multimodal_folder(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3_vl",
        "text_config": LLAMA,
        "quantization_config": {"quant_method": "gptq"},
        "auto_map": {"AutoModel": "x.Y"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors(tmp_path / "model.safetensors", a=[2, 3])
    facts = model_facts(str(tmp_path), "folder")
    assert (facts.model_type, facts.quantized, facts.remote_code, facts.hidden_size) == ("qwen3_vl", "gptq", True, 2048)
    assert facts.parameters_from == "config"


def test_broken_files_are_no_facts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert model_facts(str(tmp_path), "folder", "Foo-7B").parameters == 7_000_000_000
    (tmp_path / "config.json").write_text('{"hidden_size": "a", "architectures": []}')
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 30)
    assert model_facts(str(tmp_path), "folder").parameters is None


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen3-4B-Instruct-2507", 4_000_000_000),
        ("Qwen/Qwen3-0.6B", 600_000_000),
        ("mistralai/Mixtral-8x7B-v0.1", 56_000_000_000),
        ("HuggingFaceTB/SmolLM2-135M", 135_000_000),
        ("someone/model", None),
        ("Qwen/Qwen3-30B-A3B", 30_000_000_000),
        ("x/v4Beta", None),
    ],
)
def test_sizes_in_names(name: str, size: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    facts = model_facts(name, "hub")
    assert (facts.parameters, facts.parameters_from) == (size, "name" if size else None)


def test_facts_of_a_cached_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert model_facts("a/b", "hub").model_type == "llama"


def test_facts_of_built_in_models() -> None:
    assert model_facts("/cache/x.gguf", "gguf", "builtin/smollm2-135m").parameters == 134_515_008
    assert model_facts("builtin/tiny-qwen3", "tiny").model_type == "qwen3"
    assert model_facts("/x.gguf", "gguf").model_type is None


def test_output_folder(tmp_path: Path) -> None:
    resolve.check_output(str(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="is a file"):
        resolve.check_output(str(tmp_path / "file"))
    with pytest.raises(RecipeError, match="not writable"):
        resolve.check_output(str(tmp_path / "file" / "b"))


def test_a_trained_model_in_the_output_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "adapter_model.safetensors").touch()
    training = Training(output_dir=str(out))
    with pytest.raises(RecipeError, match=r"holds a trained model already \(adapter_model.safetensors\)"):
        resolve.check_output(str(out), training)
    for allowed in ({"overwrite_output_dir": True}, {"do_train": False}, {"resume_from_checkpoint": "/x/checkpoint-1"}):
        resolve.check_output(str(out), training.model_copy(update=allowed))
    (out / "checkpoint-5").mkdir()
    resolve.check_output(str(out), training)


def test_output_folder_of_someone_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(RecipeError, match="cannot be written"):
        resolve.check_output(str(tmp_path / "out"))


def test_what_the_system_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(RecipeError, match=r"oft\.yaml cannot be read: Permission denied"):
        resolve.read("oft.yaml", cwd=RECIPES)
