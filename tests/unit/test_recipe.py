"""Keys, types, ranges, translations and rules of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fl import paths
from fl.errors import RecipeError, UsageError
from fl.recipe import KeyNote, Recipe, parse
from fl.recipe_arguments import arguments, gradient_checkpointing, reentrant
from fl.recipe_keys import all_keys
from fl.recipe_table import TEMPLATES
from fl.recipe_values import coerce

BASE = """\
model_name_or_path: builtin/tiny-qwen3
do_train: true
dataset: one
output_dir: out
"""
RECIPES = Path(__file__).parents[1] / "data" / "recipes"
FACTS = Path(__file__).parents[3] / "shared" / "facts" / "recipe-keys.yaml"


def read(text: str = "", *overrides: str, base: str = BASE) -> Recipe:
    return parse((base + text).encode(), file="r.yaml", overrides=overrides)


def note(recipe: Recipe, key: str) -> KeyNote:
    (found,) = [n for n in recipe.keys if n.key == key]
    return found


def refused(recipe: Recipe) -> dict[str, str]:
    return {n.key: n.note for n in recipe.refused}


def test_the_base_is_accepted() -> None:
    recipe = read()
    assert not recipe.refused
    assert recipe.require() is recipe
    assert [n.verdict for n in recipe.keys] == ["handled"] * 4
    assert recipe.get("dataset") == ("one",)
    assert recipe.get("lora_rank") == 8


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("lora_rnak: 8", "lora_rank"),
        ("learning-rate: 1", "learning_rate"),
        ("Stage: sft", "stage"),
        ("per_device_train_batchsize: 1", "per_device_train_batch_size"),
        ("epochs: 3", "num_train_epochs"),
        ("ppo_epoch: 3", "ppo_epochs"),
        ("xyzzy: 3", None),
        ("FL: {}", "fl"),
        ("eval_stategy: steps", "eval_strategy"),
    ],
)
def test_unknown_keys_name_the_nearest(line: str, near: str | None) -> None:
    recipe = read(line)
    with pytest.raises(RecipeError) as error:
        recipe.require()
    key = line.split(":")[0]
    assert error.value.exit_code == 5
    assert error.value.message == f"r.yaml:5:1: {key}: unknown key" + (f"; did you mean `{near}`?" if near else ".")


def test_all_refused_keys_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as error:
        read("lora_rnak: 8\nlora_rank: 0\nfl: {devcies: 1}\n").require()
    assert error.value.message.splitlines() == [
        "3 keys of this recipe cannot be used:",
        "r.yaml:5:1: lora_rnak: unknown key; did you mean `lora_rank`?",
        "r.yaml:6:1: lora_rank: found 0, wanted a whole number at least 1.",
        "r.yaml:7:6: fl.devcies: unknown key; did you mean `devices`?",
    ]


@pytest.mark.parametrize(
    ("key", "written", "value", "said"),
    [
        ("learning_rate", "1e-4", 1e-4, ""),
        ("learning_rate", "'1e-4'", 1e-4, "read as 0.0001"),
        ("learning_rate", "1", 1.0, ""),
        ("num_train_epochs", "3", 3.0, ""),
        ("lora_rank", "8.0", 8, "read as 8"),
        ("lora_rank", "'16'", 16, "read as 16"),
        ("seed", "042", 42, "read as 42"),
        ("bf16", "'true'", True, "read as True"),
        ("bf16", "1", True, "read as True"),
        ("bf16", "yes", True, ""),
        ("packing", "null", None, ""),
        ("run_name", "123", "123", "read as '123'"),
        ("dataset", "a, b,c", ("a", "b", "c"), ""),
        ("dataset", "[a, b]", ("a", "b"), ""),
        ("lora_target", "q_proj,v_proj", ("q_proj", "v_proj"), ""),
        ("report_to", "none", ("none",), ""),
        ("report_to", "[wandb]", ("wandb",), ""),
        ("eval_strategy", "no", "no", "read as 'no'"),
        ("save_strategy", "'no'", "no", ""),
        ("include_num_input_tokens_seen", "true", "all", "read as 'all'"),
        ("lr_scheduler_kwargs", "{num_cycles: 2}", {"num_cycles": 2}, ""),
        ("lr_scheduler_kwargs", "'{\"num_cycles\": 2}'", {"num_cycles": 2}, "read as JSON"),
        ("deepspeed", "ds.json", "ds.json", ""),
        ("logging_steps", "0.1", 0.1, ""),
        ("quantization_bit", "'4'", 4, "read as 4"),
        ("resume_from_checkpoint", "'true'", True, ""),
        ("enable_thinking", "null", None, ""),
        ("warmup_steps", "20", 20.0, ""),
    ],
)
def test_values_are_typed(key: str, written: str, value: object, said: str) -> None:
    base = "".join(line + "\n" for line in BASE.splitlines() if not line.startswith(f"{key}:"))
    recipe = read(f"{key}: {written}\n", base=base)
    assert recipe.get(key) == value
    assert type(recipe.get(key)) is type(value)
    assert note(recipe, key).note == said
    assert note(recipe, key).verdict == ("translated" if said else "handled")
    assert not recipe.refused


@pytest.mark.parametrize(
    ("line", "found", "wanted"),
    [
        ("lora_rank: 0", "0", "a whole number at least 1"),
        ("lora_rank: 1.5", "1.5", "a whole number at least 1"),
        ("lora_rank: true", "true", "a whole number"),
        ("lora_rank: [8]", "[8]", "a whole number"),
        ("learning_rate: fast", '"fast"', "a number at least 0"),
        ("learning_rate: .nan", "NaN", "a number"),
        ("learning_rate: -1", "-1", "a number at least 0"),
        ("learning_rate: 1e999", "Infinity", "a number"),
        ("lora_dropout: 1", "1", "a number at least 0 below 1"),
        ("num_train_epochs: 0", "0", "a number above 0"),
        ("bf16: maybe", '"maybe"', "true or false"),
        ("bf16: 2", "2", "true or false"),
        ("stage: stf", '"stf"', "one of pt, sft"),
        ("flash_attn: fa4", '"fa4"', "one of auto, disabled, sdpa, fa2, fa3"),
        ("quantization_bit: 3", "3", "one of 4, 8"),
        ("optim: adamw_hf", '"adamw_hf"', "did you mean `adamw_"),
        ("lr_scheduler_type: cosin", '"cosin"', "one of linear"),
        ("report_to: tensorbord", '"tensorbord"', "one of none, all, tensorboard"),
        ("report_to: [wandb, wnadb]", '"wnadb"', "one of none"),
        ("template: qwen99", '"qwen99"', "did you mean `qwen"),
        ("template: nonesuch", '"nonesuch"', "one of alpaca"),
        ("warmup_ratio: 1.0", "1.0", "a number at least 0 below 1"),
        ("run_name: [a]", '["a"]', "text"),
        ("lora_target: {a: 1}", '{"a": 1}', "names"),
        ("fsdp_config: 3", "3", "a mapping"),
        ("seed: 99999999999999999999", "99999999999999999999", "a whole number"),
        ("adam_beta1: 2", "2", "at most 1"),
        ("lr_scheduler_kwargs: {a: .inf}", '{"a": Infinity}', "a mapping"),
        ("save_strategy: true", "true", "one of no"),
        ("max_samples: 0", "0", "at least 1"),
        ("interleave_probs: a,b", '"a,b"', "numbers"),
        ("use_galore: perhaps", '"perhaps"', "true or false"),
    ],
)
def test_wrong_values_say_what_was_found_and_wanted(line: str, found: str, wanted: str) -> None:
    recipe = read(line + "\n")
    key = line.split(":")[0]
    assert refused(recipe)[key].startswith(f"found {found}, wanted {wanted}") or wanted in refused(recipe)[key]
    assert note(recipe, key).place == "r.yaml:5:1"
    with pytest.raises(RecipeError, match=f"r.yaml:5:1: {key}: found"):
        recipe.require()


def test_a_word_of_older_versions_is_read() -> None:
    recipe = read("quantization_bit: 4\nquantization_method: bitsandbytes\n")
    assert recipe.get("quantization_method") == "bnb" and note(recipe, "quantization_method").note == "read as 'bnb'"


@pytest.mark.parametrize(
    ("line", "verdict", "words"),
    [
        ("image_max_pixels: 262144", "ignored", "pictures"),
        ("use_fast_tokenizer: true", "ignored", "one kind of tokenizer"),
        ("pref_beta: 0.1", "ignored", "stage: dpo, orpo"),
        ("moe_aux_loss_coef: 0.001", "handled", ""),
        ("use_mca: false", "ignored", "as always"),
        ("use_mca: true", "refused", "Megatron"),
        ("galore_rank: 4", "ignored", "use_galore: true"),
        ("fp8: true", "refused", "FP8"),
        ("use_unsloth: true", "refused", "Unsloth"),
        ("shift_attn: true", "refused", "4.48"),
        ("use_kt: true", "refused", "KTransformers"),
        ("tensor_model_parallel_size: 1", "ignored", "as always"),
        ("tensor_model_parallel_size: 2", "refused", "Megatron"),
        ("mixture_of_depths: convert", "refused", "depths"),
        ("batch_size: 4", "refused", "per_device_train_batch_size"),
        ("infer_backend: vllm", "ignored", "inference"),
        ("export_dir: x", "ignored", "export"),
        ("local_rank: 3", "ignored", "fl starts"),
        ("save_safetensors: true", "ignored", "always"),
        ("fp16_backend: auto", "ignored", "transformers 5"),
        ("warmup_ratio: 0.1", "translated", "warmup_steps"),
        ("group_by_length: true", "translated", "train_sampling_strategy"),
        ("logging_dir: x", "translated", "TENSORBOARD"),
        ("cache_dir: x", "translated", "HF_HUB_CACHE"),
        ("use_unsloth_gc: true", "translated", "ordinary"),
        ("oft_rank: 4", "ignored", "finetuning_type: oft"),
        ("freeze_trainable_layers: 4", "ignored", "freeze"),
        ("temperature: 0.5", "ignored", "predict_with_generate"),
        ("quantization_type: fp4", "ignored", "quantization_bit"),
        ("quantization_method: gptq", "ignored", "quantization_bit"),
        ("lora_rank: null", "handled", "default"),
        ("use_mca: null", "ignored", "default"),
        ("parallelism_config: {a: 1}", "refused", "accelerate"),
        ("stage: ppo", "handled", ""),
        ("stage: rm", "handled", ""),
        ("kt_config: {a: 1}", "refused", "KTransformers"),
        ("tool_format: qwen", "refused", "a bundled template"),
        ("tool_format: qwen\ntemplate: vicuna", "handled", ""),
        ("fsdp: [full_shard, auto_wrap]", "translated", "one text"),
        ("overwrite_cache: true", "ignored", "anew"),
        ("streaming: true", "refused", "max_steps"),
        ("streaming: true\nmax_steps: 5", "handled", ""),
        ("buffer_size: 100", "ignored", "streaming"),
        ("tokenized_path: x", "handled", ""),
        ("tokenized_path: x\nstreaming: true\nmax_steps: 5", "refused", "one of the two"),
        ("predict_with_generate: true", "refused", "set eval_dataset or val_size"),
        ("do_predict: true", "refused", "predict_with_generate: true"),
        ("media_dir: x", "ignored", "pictures"),
        ("evaluation_strategy: no", "translated", "eval_strategy"),
    ],
)
def test_verdicts(line: str, verdict: str, words: str) -> None:
    found = note(read(line + "\n"), line.split(":")[0])
    assert found.verdict == verdict
    assert words in found.note


def test_ignored_values_do_not_count() -> None:
    recipe = read("finetuning_type: full\nlora_rank: 64\nlora_dropout: 0.5\n")
    assert recipe.get("lora_rank") == 8
    assert recipe.get("lora_dropout") == 0.0


RULES = [
    ("do_train", "nothing to do", "model_name_or_path: m\noutput_dir: o\n", ""),
    ("model_name_or_path", "missing", "do_train: true\ndataset: d\noutput_dir: o\n", ""),
    ("output_dir", "missing", "do_train: true\ndataset: d\nmodel_name_or_path: m\n", ""),
    ("dataset", "missing", "do_train: true\noutput_dir: d\nmodel_name_or_path: m\n", ""),
    ("dataset_dir", "remote", BASE, "dataset_dir: REMOTE:a/b"),
    ("neat_packing", "stage: sft", BASE, "stage: pt\nneat_packing: true"),
    ("packing", "neat_packing packs", BASE, "packing: false\nneat_packing: true"),
    ("cutoff_len", "at least 2", BASE, "packing: true\ncutoff_len: 1"),
    ("mask_history", "train_on_prompt", BASE, "mask_history: true\ntrain_on_prompt: true"),
    ("val_size", "eval_dataset", BASE, "val_size: 0.1\neval_dataset: b"),
    ("val_size", "whole number", BASE, "val_size: 10.5"),
    ("interleave_probs", "mix_strategy", BASE, "interleave_probs: 1.0"),
    ("interleave_probs", "2 shares for 1 data sets", BASE, "interleave_probs: 0.5,0.5\nmix_strategy: interleave_under"),
    (
        "interleave_probs",
        "add up to 1",
        "model_name_or_path: m\ndo_train: true\noutput_dir: o\n",
        "dataset: a,b\ninterleave_probs: 0.9,0.9\nmix_strategy: interleave_over",
    ),
    (  # with a share of 0 the set would never be read to its end
        "interleave_probs",
        "must be positive",
        "model_name_or_path: m\ndo_train: true\noutput_dir: o\n",
        "dataset: a,b\ninterleave_probs: 1,0\nmix_strategy: interleave_over",
    ),
    ("quantization_bit", "lora", BASE, "quantization_bit: 4\nfinetuning_type: full"),
    ("quantization_method", "bnb only, not gptq", BASE, "quantization_bit: 4\nquantization_method: gptq"),
    ("resize_vocab", "cannot grow", BASE, "quantization_bit: 8\nresize_vocab: true"),
    ("train_from_scratch", "not quantized", BASE, "quantization_bit: 8\ntrain_from_scratch: true"),
    ("adapter_name_or_path", "merged", BASE, "quantization_bit: 8\nadapter_name_or_path: a,b"),
    ("adapter_name_or_path", "lora", BASE, "finetuning_type: full\nadapter_name_or_path: a"),
    ("pissa_init", "quantization_bit", BASE, "quantization_bit: 4\npissa_init: true"),
    ("loraplus_lr_ratio", "lora", BASE, "finetuning_type: full\nloraplus_lr_ratio: 16"),
    ("use_dora", "lora", BASE, "finetuning_type: freeze\nuse_dora: true"),
    ("oft_block_size", "exactly one", BASE, "finetuning_type: oft\noft_rank: 4"),
    ("freeze_trainable_layers", "0 trains no layer", BASE, "finetuning_type: freeze\nfreeze_trainable_layers: 0"),
    ("fp16", "not both", BASE, "bf16: true\nfp16: true"),
    ("fp16", "pure_bf16", BASE, "pure_bf16: true\nfp16: true"),
    ("fl.speed_without", "wanted some of graphs", BASE, "fl: {speed_without: [lora, nonsense]}"),
    ("fsdp", "not both", BASE, "deepspeed: a.json\nfsdp: full_shard"),
    ("eval_strategy", "val_size or eval_dataset", BASE, "eval_strategy: steps"),
    ("eval_strategy", "val_size or eval_dataset", BASE, "evaluation_strategy: steps"),
    ("do_eval", "val_size or eval_dataset", BASE, "do_eval: true"),
    ("load_best_model_at_end", "set eval_strategy", BASE, "load_best_model_at_end: true"),
    ("load_best_model_at_end", "save_strategy (steps)", BASE, "load_best_model_at_end: true\neval_strategy: epoch\nval_size: 0.1"),
    ("early_stopping_steps", "set eval_strategy", BASE, "early_stopping_steps: 3"),
    ("gradient_checkpointing_kwargs", "use_reentrant", BASE, "gradient_checkpointing_kwargs: {a: 1}"),
    ("resume_from_checkpoint", "checkpoint folder", BASE, "resume_from_checkpoint: [a]"),
    ("fsdp", "full_shard", BASE, "fsdp: {a: 1}"),
]


@pytest.mark.parametrize(("key", "words", "base", "lines"), RULES, ids=[f"{n}-{rule[0]}" for n, rule in enumerate(RULES)])
def test_keys_that_depend_on_each_other(key: str, words: str, base: str, lines: str) -> None:
    recipe = read(lines, base=base)
    assert words in refused(recipe)[key]
    assert set(refused(recipe)) <= {key}
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        recipe.require()


def given(text: str, **files: dict[str, Any]) -> dict[str, Any]:
    recipe = read(text)
    assert not recipe.refused
    return arguments(recipe, files)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate: 2e-5\nbf16: true", {"learning_rate": 2e-5, "bf16": True}),
        ("warmup_ratio: 0.1", {"warmup_steps": 0.1}),
        ("warmup_ratio: 0.1\nwarmup_steps: 5", {"warmup_steps": 5.0}),
        ("warmup_ratio: 0.1\nwarmup_steps: 0", {"warmup_steps": 0.1}),
        ("group_by_length: true", {"train_sampling_strategy": "group_by_length"}),
        ("group_by_length: false", {}),
        ("evaluation_strategy: epoch\nval_size: 0.1", {"eval_strategy": "epoch"}),
        ("evaluation_strategy: epoch\neval_strategy: steps\nval_size: 0.1", {"eval_strategy": "steps"}),
        ("no_cuda: true\nlogging_nan_inf_filter: false", {}),
        ("adafactor: true", {"optim": "adafactor"}),
        ("fsdp: [full_shard, auto_wrap]", {"fsdp": "full_shard auto_wrap"}),
        ("fsdp: full_shard,auto_wrap", {"fsdp": "full_shard auto_wrap"}),
        ("fsdp: true", {"fsdp": True}),
        ("fsdp: []", {}),
        ("fsdp: false", {}),
        (
            "fsdp: full_shard\nfsdp_transformer_layer_cls_to_wrap: L",
            {"fsdp": "full_shard", "fsdp_config": {"transformer_layer_cls_to_wrap": ["L"]}},
        ),
        ("fsdp_min_num_params: 5\nfsdp_config: {version: 2}", {"fsdp_config": {"min_num_params": 5, "version": 2}}),
        ("eval_num_beams: 4", {"generation_num_beams": 4}),
        ("report_to: none", {"report_to": ["none"]}),
        (
            "gradient_checkpointing: true\nuse_liger_kernel: true\nremove_unused_columns: true\nhub_token: x\ndo_eval: false",
            {},
        ),
    ],
)
def test_training_arguments(text: str, expected: dict[str, Any]) -> None:
    assert given(text) == expected


def test_files_replace_their_names() -> None:
    assert given("deepspeed: z.json", deepspeed={"zero": 3}) == {"deepspeed": {"zero": 3}}


@pytest.mark.parametrize(
    ("text", "on", "reentrant_on"),
    [
        ("", True, True),
        ("disable_gradient_checkpointing: true", False, True),
        ("gradient_checkpointing: false", False, True),
        ("activation_checkpointing: false", False, True),
        ("gradient_checkpointing: true\ndisable_gradient_checkpointing: true", False, True),
        ("gradient_checkpointing: true\ngradient_checkpointing_kwargs: {use_reentrant: false}", True, False),
        ("use_reentrant_gc: false", True, False),
    ],
)
def test_gradient_checkpointing(text: str, on: bool, reentrant_on: bool) -> None:
    recipe = read(text)
    assert (gradient_checkpointing(recipe), reentrant(recipe)) == (on, reentrant_on)


def test_overrides() -> None:
    recipe = read(
        "learning_rate: 1\nfl: {hw: cpu, engine: docker}\n",
        "learning_rate=2e-5",
        "fl.hw=cuda",
        "fl.devices=[0, 2]",
        "learning_rate=3e-5",
        "lora_target=q,v",
    )
    assert recipe.get("learning_rate") == 3e-5
    assert (recipe.launcher.hw, recipe.launcher.engine, recipe.launcher.devices) == ("cuda", "docker", "0,2")
    assert recipe.get("lora_target") == ("q", "v")
    assert note(recipe, "learning_rate").place == "command line"
    assert recipe.sha256 != read("learning_rate: 1\nfl: {hw: cpu, engine: docker}\n").sha256


def test_override_of_nested_values() -> None:
    recipe = read("fsdp_config: {a: 1, b: 2}\n", "fsdp_config.b=3")
    assert recipe.get("fsdp_config") == {"a": 1, "b": 3}


def test_override_can_unset() -> None:
    assert "val_size" not in read("val_size: 0.1\n", "val_size=").values


@pytest.mark.parametrize("text", ["lora_rank", "--lora_rank", "=3", "lora_rank=\x1b[0m", "lora_rank=\udcff"])
def test_overrides_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="KEY=VALUE"):
        read("", text)


def test_unknown_keys_in_overrides() -> None:
    assert read("", "lora_rnak=3").refused[0].problem == "command line: lora_rnak: unknown key; did you mean `lora_rank`?"
    assert refused(read("", "fl.enigne=docker")) == {"fl.enigne": "unknown key; did you mean `engine`?"}
    assert refused(read("", "lora.rank=3"))["lora"].startswith("unknown key")


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("hw: cuda", "hw", "cuda"),
        ("engine: host", "engine", "host"),
        ("devices: 0", "devices", "0"),
        ("devices: [0, 2]", "devices", "0,2"),
        ("devices: 'free'", "devices", "free"),
        ("devices: count:2", "devices", "count:2"),
        ("devices: 0000:1a:00.0", "devices", "0000:1a:00.0"),
        ("nodes: 1", "nodes", 1),
        ("stack: cpu-torch213", "stack", "cpu-torch213"),
        ("mounts: [/a, '/b:rw']", "mounts", (("/a", False), ("/b", True))),
        ("env: {A: 1, B: x, C: true}", "env", {"A": "1", "B": "x", "C": "true"}),
        ("network: none", "network", "none"),
        ("network: off", "network", "none"),
        ("prompts: [Who are you?]", "prompts", ("Who are you?",)),
        ("prompts: Who?", "prompts", ("Who?",)),
        ("image: a/b:c", "image", "a/b:c"),
        ("dialect: llamafactory-0.9", "dialect", "llamafactory-0.9"),
        ("hw: null", "hw", None),
    ],
)
def test_launcher_mapping(text: str, field: str, value: object) -> None:
    recipe = read(f"fl:\n  {text}\n")
    assert not recipe.refused
    assert getattr(recipe.launcher, field) == value


@pytest.mark.parametrize(
    ("text", "hw"),
    [("use_cpu: true", "cpu"), ("no_cuda: true", "cpu"), ("use_cpu: false", None), ("use_cpu: true\nfl: {hw: cuda}", "cuda")],
)
def test_use_cpu_names_the_lane(text: str, hw: str | None) -> None:
    assert read(text).launcher.hw == hw


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("fl: {hw: gpu}", "fl.hw", 'found "gpu", wanted one of auto, cuda'),
        ("fl: {hardware: cpu}", "fl.hardware", "unknown key"),
        ("fl: cpu", "fl", "wanted a mapping"),
        ("fl: {nodes: 0}", "fl.nodes", "one machine"),
        ("fl: {nodes: 2}", "fl.nodes", "one machine"),
        ("fl: {mounts: ['/a:xx']}", "fl.mounts", "a list of paths"),
        ("fl: {mounts: [3]}", "fl.mounts", "a list of paths"),
        ("fl: {env: [a]}", "fl.env", "a mapping of names"),
        ("fl: {env: {1a: x}}", "fl.env", "a mapping of names"),
        ("fl: {env: {A: [1]}}", "fl.env", "a mapping"),
        ("fl: {prompts: [1]}", "fl.prompts", "a list of texts"),
        ("fl: {dialect: axolotl}", "fl.dialect", "llamafactory-0.9"),
    ],
)
def test_wrong_launcher_values(text: str, key: str, words: str) -> None:
    assert words in refused(read(text))[key]


@pytest.mark.parametrize("key", ["hf_hub_token", "hub_token", "ms_hub_token", "push_to_hub_token", "swanlab_api_key"])
def test_secrets_are_not_shown(key: str) -> None:
    recipe = read(f"{key}: hf_abcdef\n")
    assert note(recipe, key).verdict == "ignored"
    assert "abcdef" not in repr(recipe.keys)
    assert "abcdef" not in repr(recipe.values)
    assert "abcdef" not in repr(read(f"{key}: [hf_abcdef]\n").keys)


def test_environment_values_are_not_shown() -> None:
    assert "geheim" not in repr(read("fl: {env: {WANDB_API_KEY: geheim}}\n").keys)


@pytest.mark.parametrize("path", sorted(p for p in RECIPES.glob("*.*") if p.name != "zero3.json"), ids=lambda path: path.name)
def test_recipes_in_the_style_of_llama_factory(path: Path) -> None:
    recipe = parse(path.read_bytes(), file=path.name)
    assert not recipe.refused
    assert recipe.name == path.stem


def test_defaults_satisfy_their_own_keys() -> None:
    for key in all_keys().values():
        if key.default not in (None, ()):
            value = coerce(key, list(key.default) if isinstance(key.default, tuple) else key.default)[0]
            assert value == key.default, key.name


def test_every_key_of_the_facts_is_known() -> None:
    if not FACTS.is_file():
        pytest.skip("no facts beside this checkout")
    import yaml

    facts = yaml.load(FACTS.read_text(), Loader=yaml.CSafeLoader)
    names = {entry["key"] for part in ("llamafactory", "training_arguments", "translated") for entry in facts[part]}
    assert names <= set(all_keys())
    known = all_keys()
    ours = {"bool": "bool", "int": "int", "float": "float"}
    for entry in facts["training_arguments"]:
        if entry["type"] in ours and known[entry["key"]].verdict == "handled":
            assert known[entry["key"]].kind == ours[entry["type"]], entry["key"]
            assert known[entry["key"]].default == (float(entry["default"]) if entry["type"] == "float" else entry["default"]), entry["key"]


def test_the_templates_are_those_of_the_trainer() -> None:
    import yaml

    formats = yaml.load((paths.trainer_code() / "data" / "chat_formats.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    assert set(TEMPLATES) == set(formats)
