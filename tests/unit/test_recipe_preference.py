"""Keys of preferences, reward models and ppo: what they come to in the config, and what is refused, with the key to change."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fl import inputs, resolve
from fl.errors import RecipeError
from fl.recipe import Recipe, parse
from fl_trainers.config import Config

BASE = "model_name_or_path: builtin/tiny-llama\ndo_train: true\noutput_dir: o\ndataset: a\n"
PPO = "stage: ppo\nreward_funcs: contains\n"
Fl = Callable[..., "subprocess.CompletedProcess[str]"]


def read(lines: str) -> Recipe:
    return parse((BASE + lines).encode(), file="r.yaml")


def config(lines: str) -> Config:
    recipe = read(lines)
    assert not recipe.refused, recipe.refused
    return resolve.draft(recipe, lane="cpu", stack="row")


def refusals(lines: str) -> dict[str, str]:
    return {note.key: note.note for note in read(lines).refused}


def test_every_preference_key_reaches_the_config() -> None:
    made = config(
        "stage: dpo\npref_loss: hinge\npref_beta: 0.2\npref_ftx: 0.5\npref_bco_weight: 0.3\nld_alpha: 0.4\nref_model: a/b\n"
        "ref_model_adapters: c/d,e/f\nref_model_quantization_bit: 4\nquantization_type: fp4"
    ).method
    settings = made.preference
    assert (settings.loss, settings.beta, settings.ftx, settings.bco_weight, settings.ld_alpha) == ("hinge", 0.2, 0.5, 0.3, 0.4)
    assert made.reference is not None and made.reference.quantization is not None
    assert (made.reference.path, made.reference.kind, made.reference.adapters) == ("a/b", "hub", ("c/d", "e/f"))
    assert config("stage: dpo\ndpo_label_smoothing: 0.1").method.preference.label_smoothing == 0.1
    kto = config("stage: kto\nkto_chosen_weight: 2.0\nkto_rejected_weight: 0.5").method
    assert (kto.preference.kto_chosen_weight, kto.preference.kto_rejected_weight, kto.reference) == (2.0, 0.5, None)
    assert config("stage: dpo\npref_loss: simpo\nsimpo_gamma: 0.7").method.preference.simpo_gamma == 0.7


def test_losses_of_dpo_that_are_stages_of_their_own() -> None:
    assert config("stage: dpo\npref_loss: orpo").method.stage == "orpo"
    assert config("stage: simpo").method.stage == "simpo"
    assert config("stage: rm").method.stage == "rm"


def test_every_key_of_ppo_reaches_the_config() -> None:
    made = config(
        "stage: ppo\nreward_model: a/b\nreward_model_type: full\nreward_model_adapters: c/d\nreward_model_quantization_bit: 8\n"
        "ppo_epochs: 2\nppo_buffer_size: 3\nppo_score_norm: true\nppo_target: 4.0\nppo_whiten_rewards: true\nref_model: e/f\n"
        "max_new_tokens: 64\ntemperature: 0.7\ntop_p: 0.9\ntop_k: 5"
    )
    ppo, judge = made.method.ppo, made.method.ppo.reward_model
    assert (ppo.epochs, ppo.buffer_size, ppo.score_norm, ppo.target, ppo.whiten_rewards) == (2, 3, True, 4.0, True)
    assert judge is not None and (judge.path, judge.adapters) == ("a/b", ("c/d",)) and ppo.reward_adapter is None
    assert judge.quantization is not None and judge.quantization.bits == 8
    assert made.method.reference is not None and made.method.reference.path == "e/f"
    sampling = made.generation
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (64, 0.7, 0.9, 5)
    beside = config("stage: ppo\nreward_model: a/b").method.ppo
    assert (beside.reward_model, beside.reward_adapter, beside.epochs) == (None, "a/b", 4)
    functions = config(PPO + "reward_weights: 0.5").method.grpo
    assert (functions.reward_funcs, functions.reward_weights) == (("contains",), (0.5,))


@pytest.mark.parametrize(
    ("lines", "key", "words"),
    [
        ("stage: ppo", "reward_model", "missing"),
        (PPO + "reward_model: a/b", "reward_funcs", "one judge"),
        ("stage: ppo\nreward_model: a/b\nreward_model_type: api", "reward_model_type", "no network"),
        ("stage: ppo\nreward_model: a/b\nfinetuning_type: full", "reward_model_type", "reward_model_type: full"),
        ("stage: ppo\nreward_model: a/b\nreward_model_adapters: c/d", "reward_model_adapters", "reward_model_type: full"),
        ("stage: ppo\nreward_model: a/b\npissa_init: true", "pissa_init", "reward_model_type: full"),
        (PPO + "reward_weights: [1.0, 2.0]", "reward_weights", "2 weights for 1"),
        (PPO + "do_sample: false", "do_sample", "samples"),
        (PPO + "temperature: 0", "temperature", "above 0"),
        (PPO + "packing: true", "packing", "questions"),
        (PPO + "ppo_epochs: 0", "ppo_epochs", "at least 1"),
        (PPO + "ppo_target: 0", "ppo_target", "above 0"),
        ("stage: rm\npacking: true", "packing", "one by one"),
        ("stage: rm\nlabel_smoothing_factor: 0.1", "label_smoothing_factor", "of stage sft"),
        ("stage: dpo\nref_model_adapters: c/d", "ref_model_adapters", "only with ref_model"),
        ("stage: kto\nref_model_quantization_bit: 4", "ref_model_quantization_bit", "only with ref_model"),
        ("stage: dpo\nref_model: a/b\nref_model_quantization_bit: 3", "ref_model_quantization_bit", "one of 4, 8"),
        ("stage: dpo\npref_loss: orpo\nref_model: a/b", "ref_model", "no reference"),
        ("stage: dpo\npref_loss: hinge\ndpo_label_smoothing: 0.1", "dpo_label_smoothing", "only with `pref_loss: sigmoid`"),
        ("stage: dpo\npref_loss: simpo\npref_bco_weight: 1.0", "pref_bco_weight", "needs a reference"),
        ("stage: kto\nneat_packing: true", "packing", ""),
    ],
)
def test_what_does_not_fit_together_is_blamed_on_its_key(lines: str, key: str, words: str) -> None:
    found = refusals(lines)
    assert words in found.get(key, found.get("neat_packing", "")), found


@pytest.mark.parametrize("line", ["ref_model: a/b", "reward_model: a/b", "ppo_epochs: 2", "reward_funcs: exact", "pref_beta: 0.3"])
def test_keys_of_other_stages_are_ignored_in_sft(line: str) -> None:
    (found,) = [note for note in read(line).keys if note.key == line.split(":")[0]]
    assert found.verdict == "ignored" and "only with stage" in found.note


@pytest.mark.parametrize("stage", ["pt", "dpo", "rm"])
def test_token_accuracy_is_for_sft(stage: str) -> None:
    (found,) = [note for note in read(f"stage: {stage}\ncompute_accuracy: true").keys if note.key == "compute_accuracy"]
    assert (found.verdict, found.note) == ("ignored", "only with stage: sft")


def folder(place: Path, *names: str) -> Path:
    place.mkdir()
    for name in names:
        (place / name).write_text("{}")
    return place


def data(place: Path, *, ranking: bool) -> str:
    rows = [{"instruction": "a", "chosen": "b", "rejected": "c"}] if ranking else [{"instruction": "a", "output": "b"}]
    (place / "rows.json").write_text(json.dumps(rows))
    pairs = {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}
    entry = {"file_name": "rows.json", **(pairs if ranking else {})}
    (place / "dataset_info.json").write_text(json.dumps({"a": entry}))
    return f"dataset_dir: {place}\n"


def resolved(place: Path, lines: str) -> Config:
    made = parse((BASE + lines).encode(), file="r.yaml").require()
    return resolve.resolve(made, run_name="r", lane="cpu", stack="s", events=str(place / "e"), cache=None, cwd=place)


def test_reward_models_are_looked_at_and_mounted(tmp_path: Path) -> None:
    head = "value_head.safetensors"
    adapter = folder(tmp_path / "adapter", "adapter_config.json", head)
    whole = folder(tmp_path / "whole", "config.json", "model.safetensors", "value_head.bin")
    bare = folder(tmp_path / "bare", "config.json", "model.safetensors")
    lines = data(tmp_path, ranking=False) + "stage: ppo\n"
    beside = resolved(tmp_path, lines + "reward_model: adapter")
    assert beside.method.ppo.reward_adapter == str(adapter)
    assert str(adapter) in {mount.source for mount in inputs.read(beside)}
    full = resolved(tmp_path, lines + "reward_model: ./whole\nreward_model_type: full\nref_model: ./bare\nreward_model_adapters: ./adapter")
    assert {str(whole), str(adapter), str(bare)} <= {mount.source for mount in inputs.read(full)}
    folder(tmp_path / "classifier", "model.safetensors")
    (tmp_path / "classifier" / "config.json").write_text('{"architectures": ["Qwen3ForSequenceClassification"]}')
    assert resolved(tmp_path, lines + "reward_model: ./classifier\nreward_model_type: full").method.ppo.reward_model is not None
    for more, words in {
        "reward_model: ./bare\nreward_model_type: full": ("reward_model: ", "has no value_head.safetensors"),
        "reward_model: ./whole": ("reward_model: ", "has no adapter_config.json"),
        "reward_model: ./nowhere\nreward_model_type: full": ("reward_model: ", "is not there"),
        "reward_model: ./m.gguf\nreward_model_type: full": ("reward_model: ", "GGUF"),
        "reward_model: adapter\nref_model: ./nowhere": ("ref_model: ", "is not there"),
        "reward_model: adapter\nref_model: ./bare\nref_model_adapters: ./whole": ("ref_model_adapters: ", "has no adapter_config.json"),
    }.items():
        with pytest.raises(RecipeError) as refused:
            resolved(tmp_path, lines + more)
        assert all(word in refused.value.message for word in words), refused.value.message


def test_names_on_the_hub_are_fetched(tmp_path: Path) -> None:
    made = resolved(tmp_path, data(tmp_path, ranking=False) + "stage: ppo\nreward_model: a/b\nreward_model_type: full\nref_model: c/d\n"
                                                              "ref_model_adapters: e/f")  # fmt: skip
    assert set(inputs.hub(made)) == {"a/b", "c/d", "e/f"}


@pytest.mark.parametrize(
    ("stage", "ranking", "words"),
    [("sft", True, "cannot use"), ("ppo\nreward_funcs: exact", True, "cannot use"), ("rm", False, "no pairs of answers"),
     ("dpo", False, "no pairs of answers"), ("kto", False, "whether its answer is liked")],
)  # fmt: skip
def test_data_of_another_kind_is_refused(tmp_path: Path, stage: str, ranking: bool, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        resolved(tmp_path, data(tmp_path, ranking=ranking) + f"stage: {stage}")


def test_the_command_names_the_key_and_ends_with_5(fl: Fl, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(BASE + data(tmp_path, ranking=False) + "stage: ppo\n")
    done = fl("run", "--dry-run", "--engine", "host", str(tmp_path / "r.yaml"))
    assert done.returncode == 5
    assert "reward_model: missing" in done.stderr
    shown = fl("recipe", "check", "--json", str(tmp_path / "r.yaml"), "reward_funcs=contains")
    assert shown.returncode == 0, shown.stderr
    verdicts = {key["key"]: key["verdict"] for key in json.loads(shown.stdout)["keys"]}
    assert verdicts["stage"] == verdicts["reward_funcs"] == "handled"


def test_the_page_of_stages_names_every_key_and_stage() -> None:
    from fl.recipe_preference import PREFERENCE
    from fl.recipe_reward import REWARD
    from fl.recipe_table import STAGES

    text = (Path(__file__).resolve().parents[2] / "docs" / "stages.md").read_text("utf-8")
    assert [name for name in (*(key.name for key in (*PREFERENCE, *REWARD)), *STAGES) if name not in text] == []


def test_spread_weights_are_refused_by_the_trainer() -> None:
    from fl_trainers import adapters
    from fl_trainers.errors import InputError

    made = config("stage: dpo\nref_model: a/b\nref_model_adapters: c/d\ndeepspeed: {zero_optimization: {stage: 3}}")
    with pytest.raises(InputError, match="ref_model_adapters needs whole weights"):
        adapters.check(made)


@pytest.mark.parametrize(
    ("lines", "refused"), [("finetuning_type: full", True), ("finetuning_type: lora", False), ("ref_model: a/b", True)]
)
def test_a_reference_has_weights_in_every_process(lines: str, refused: bool) -> None:
    from fl_trainers import adapters
    from fl_trainers.errors import InputError

    made = config(f"stage: dpo\nfsdp: full_shard\nfsdp_config: {{cpu_ram_efficient_loading: true}}\n{lines}")
    with pytest.raises(InputError, match="one process reads the weights") if refused else contextlib.nullcontext():
        adapters.check(made)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("deepspeed: {zero_optimization: {stage: 3}}", "stage rm with ZeRO-3: the value head"),
        ("deepspeed: {zero_optimization: {stage: 3, stage3_gather_16bit_weights_on_model_save: true}}", None),
        ("deepspeed: {zero_optimization: {stage: 2}}", None),
        ("fsdp: full_shard\nfsdp_config: {state_dict_type: SHARDED_STATE_DICT}", "SHARDED_STATE_DICT: the value head"),
        ("fsdp: full_shard", None),
    ],
)
def test_a_value_head_needs_whole_weights_when_it_is_saved(lines: str, words: str | None) -> None:
    from fl_trainers import sharding
    from fl_trainers.errors import InputError

    made = config("stage: rm\n" + lines)
    if words is None:
        sharding.check_saving(made)
    else:
        with pytest.raises(InputError, match=words):
            sharding.check_saving(made)


BOARD = """
preprocessing_num_workers: 16
finetuning_type: lora
template: qwen3
flash_attn: auto
cutoff_len: 2048
learning_rate: 5.0e-05
num_train_epochs: 3.0
max_samples: 100000
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
lr_scheduler_type: cosine
max_grad_norm: 1.0
logging_steps: 5
save_steps: 100
warmup_steps: 0
packing: false
enable_thinking: true
report_to: none
bf16: true
plot_loss: true
trust_remote_code: true
ddp_timeout: 180000000
include_num_input_tokens_seen: true
optim: adamw_torch
lora_rank: 8
lora_alpha: 16
lora_dropout: 0
lora_target: all
"""
"""What LlamaBoard writes into every recipe."""


@pytest.mark.parametrize(
    "lines",
    [
        "stage: rm",
        "stage: ppo\nreward_model: saves/m/lora/reward\nreward_model_type: lora\nppo_score_norm: false\nppo_whiten_rewards: false\n"
        "top_k: 0\ntop_p: 0.9",
        "stage: dpo\npref_beta: 0.1\npref_ftx: 0\npref_loss: sigmoid",
        "stage: kto\npref_beta: 0.1\npref_ftx: 0\npref_loss: sigmoid",
    ],
)
def test_recipes_of_llamaboard_resolve(lines: str) -> None:
    made = config(BOARD + lines)
    assert made.method.stage == lines.split()[1]
