"""Recipe keys of methods, losses and optimizers: what becomes of them, and what they come to in the config."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from fl import extras, matrix, resolve
from fl.errors import RecipeError
from fl.hardware import Cpu
from fl.matrix import Base, Hosts, Stack
from fl.portability import Precision, adapt, precision
from fl.recipe import Recipe, parse
from fl.recipe_methods import METHODS
from fl_trainers.config import Config

BASE = "model_name_or_path: builtin/tiny-llama\ndo_train: true\noutput_dir: o\ndataset: a\n"
STACK = Stack(
    id="row", lane="cpu", status="edge", runtime={}, hosts=Hosts(platforms=("linux/amd64",)), python="3.11", base=Base(image="x"),
    layer="current", features={}, confidence="unknown",
)  # fmt: skip


def read(lines: str) -> Recipe:
    return parse((BASE + lines).encode(), file="r.yaml")


def config(lines: str) -> Config:
    recipe = read(lines)
    assert not recipe.refused, recipe.refused
    return resolve.draft(recipe, lane="cpu", stack="row")


def refusals(lines: str) -> dict[str, str]:
    return {note.key: note.note for note in read(lines).refused}


def test_every_method_key_reaches_the_config() -> None:
    made = config("pissa_init: true\npissa_iter: 4\npissa_convert: true\nupcast_lmhead_output: true\nignore_pad_token_for_loss: false")
    assert made.method.lora.pissa_convert and made.method.lora.pissa_iter == 4
    assert made.model.upcast_lmhead_output and not made.data.ignore_pad_token_for_loss
    assert not config("").method.lora.pissa_convert and config("").data.ignore_pad_token_for_loss
    assert config("use_eaft_loss: true\neaft_alpha: 0.5").method.eaft_alpha == 0.5
    assert config("use_asft_loss: true\nasft_alpha: 0.2").method.asft_alpha == 0.2
    assert config("use_dft_loss: true").method.use_dft_loss
    assert config("finetuning_type: oft\nadditional_target: embed_tokens").method.lora.additional_target == ("embed_tokens",)
    pro = config("use_llama_pro: true\nfreeze_trainable_layers: 8").method
    assert pro.use_llama_pro and pro.freeze.trainable_layers == 8
    assert config("freeze_trainable_layers: 8").method.freeze.trainable_layers == 2  # an adapter has no such layers


def test_workers_become_threads_of_the_tokenizer() -> None:
    from fl_trainers.__main__ import limit_threads

    environ: dict[str, str] = {}
    limit_threads(config("preprocessing_num_workers: 1"), environ)
    assert environ == {"RAYON_NUM_THREADS": "1"}
    limit_threads(config("preprocessing_num_workers: 100000"), environ)
    assert environ == {"RAYON_NUM_THREADS": "1"}  # what the caller set stays
    environ.clear()
    limit_threads(config("preprocessing_num_workers: 100000"), environ)
    assert 1 <= int(environ["RAYON_NUM_THREADS"]) < 100000
    environ.clear()
    limit_threads(config(""), environ)
    assert environ == {}
    (found,) = [note for note in read("preprocessing_num_workers: 16").keys if note.key == "preprocessing_num_workers"]
    assert found.verdict == "translated" and "threads" in found.note


def test_optimizers_reach_the_config() -> None:
    full = "finetuning_type: full\n"
    galore = config(
        full + "use_galore: true\ngalore_layerwise: true\ngalore_target: mlp,self_attn\ngalore_rank: 128\ngalore_scale: 2.0"
    ).method
    assert galore.low_rank is not None and galore.low_rank.kind == "galore"
    assert (galore.low_rank.target, galore.low_rank.rank, galore.low_rank.layerwise) == (("mlp", "self_attn"), 128, True)
    apollo = config(full + "use_apollo: true\napollo_scale_type: tensor").method.low_rank
    assert apollo is not None and (apollo.kind, apollo.scale, apollo.scale_type, apollo.update_interval) == ("apollo", 32.0, "tensor", 200)
    badam = config(full + "use_badam: true\nbadam_switch_mode: descending\nbadam_start_block: 3").method.badam
    assert badam is not None and (badam.switch_mode, badam.start_block, badam.switch_interval) == ("descending", 3, 50)
    assert config(full + "use_muon: true").method.use_muon
    assert config(full + "use_adam_mini: true").method.use_adam_mini
    plain = config(full).method
    assert plain.low_rank is None and plain.badam is None and not plain.use_muon


@pytest.mark.parametrize(
    ("lines", "key", "words"),
    [
        ("use_muon: true\nfinetuning_type: full\nuse_badam: true", "use_muon", "not together with use_badam"),
        ("use_muon: true\nloraplus_lr_ratio: 16", "loraplus_lr_ratio", "not together with use_muon"),
        ("use_galore: true", "use_galore", "finetuning_type: full"),
        ("use_badam: true\nfinetuning_type: oft", "use_badam", "not oft"),
        ("use_muon: true\nfinetuning_type: full\nfsdp: full_shard", "use_muon", "fsdp"),
        ("use_apollo: true\nfinetuning_type: full\napollo_layerwise: true\ngradient_accumulation_steps: 2", "apollo_layerwise", "steps: 1"),
        ("use_dft_loss: true\nuse_eaft_loss: true", "use_eaft_loss", "not together with use_dft_loss"),
        ("use_dft_loss: true\nenable_liger_kernel: true", "enable_liger_kernel", "keeps no logits"),
        ("use_dft_loss: true\nlabel_smoothing_factor: 0.1", "label_smoothing_factor", "loss of its own"),
        ("lr_scheduler_type: cosine_with_min_lr", "lr_scheduler_type", "min_lr_rate: 0.1"),
        ("pure_bf16: true\nupcast_layernorm: true", "upcast_layernorm", "pure_bf16"),
        ("use_llama_pro: true\nfreeze_trainable_layers: -2", "freeze_trainable_layers", "added"),
        ("adapter_name_or_path: a\nfinetuning_type: freeze", "adapter_name_or_path", "not freeze"),
        ("mixture_of_depths: convert", "mixture_of_depths", "mixture-of-depth"),
        ("shift_attn: true", "shift_attn", "4.48"),
        ("galore_proj_type: up\nuse_galore: true\nfinetuning_type: full", "galore_proj_type", "one of std"),
        ("badam_update_ratio: 0\nuse_badam: true\nfinetuning_type: full", "badam_update_ratio", "above 0"),
    ],
)
def test_what_does_not_go_together_is_refused(lines: str, key: str, words: str) -> None:
    found = refusals(lines)
    assert words in found[key]
    assert len(found) == 1


def test_keys_of_what_is_off_are_ignored_with_the_switch_named() -> None:
    notes = {note.key: note for note in read("apollo_rank: 4\npissa_convert: true\nasft_alpha: 0.3\nuse_galore: false").keys}
    assert [notes[key].verdict for key in ("apollo_rank", "pissa_convert", "asft_alpha", "use_galore")] == ["ignored"] * 3 + ["handled"]
    assert "use_apollo: true" in notes["apollo_rank"].note and "pissa_init: true" in notes["pissa_convert"].note


@pytest.mark.parametrize(
    ("lines", "package"),
    [
        ("use_galore: true", "galore-torch"),
        ("use_apollo: true", "apollo-torch"),
        ("use_badam: true", "badam"),
        ("use_adam_mini: true", "adam-mini"),
    ],
)
def test_a_missing_package_is_named_before_anything_starts(lines: str, package: str) -> None:
    made, rows = config("finetuning_type: full\n" + lines), matrix.load()
    row = rows.stack("xpu-torch212")  # its own lock is partial
    with pytest.raises(RecipeError, match=f"{lines} needs the package {package}, which is not locked for xpu-torch212") as caught:
        extras.choose(rows, row, "linux/amd64", made)
    assert package in caught.value.remedy
    assert len(extras.choose(rows, rows.stack("cuda130-torch214"), "linux/arm64", made)) == 1


def test_muon_needs_a_torch_that_has_it() -> None:
    made = config("finetuning_type: full\nuse_muon: true")
    with pytest.raises(RecipeError, match=r"use_muon needs torch 2\.9; row has torch 2\.6\.0"):
        adapt(made, STACK.model_copy(update={"train": {"torch": "2.6.0"}}), Precision(), packages={"torch"})
    for torch in ("2.9.0", "2.13.0+cpu"):
        assert adapt(made, STACK.model_copy(update={"train": {"torch": torch}}), Precision(), packages={"torch"})[1] == ()


@pytest.mark.parametrize(("lines", "field"), [("fp16: true", "fp16"), ("bf16: true", "bf16"), ("pure_bf16: true", "pure_bf16")])
def test_a_precision_the_device_lacks_is_adapted_before_the_model_is_loaded(lines: str, field: str) -> None:
    made, notes = adapt(config(lines), STACK, precision((), Cpu(model="x", cores=1, memory_mib=1, features=())))
    assert [(note.key, note.before, note.after, note.effect) for note in notes] == [(field, True, False, "numerics")]
    assert not made.training.arguments.get(field) and not made.method.pure_bf16


EXAMPLES = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs" / "methods.md").read_text("utf-8"), re.DOTALL)


def test_the_examples_of_the_page_are_recipes() -> None:
    assert len(EXAMPLES) > 20
    for text in EXAMPLES:
        recipe = read(text)
        assert not recipe.refused, text
        assert {note.verdict for note in recipe.keys} == {"handled"}, text
    written = {line.split(":")[0] for text in EXAMPLES for line in text.splitlines()}
    assert {key.name for key in METHODS if key.name.startswith("use_")} <= written


SPREAD: dict[str, dict[str, Any]] = {
    "pissa_init": {"method": {"lora": {"pissa_init": True}}},
    "pure_bf16": {"method": {"pure_bf16": True}},
    "use_asft_loss": {"method": {"use_asft_loss": True, "finetuning_type": "full"}},
    "several adapters": {"model": {"adapters": ["a", "b"]}},
}


@pytest.mark.parametrize("words", SPREAD)
def test_what_needs_whole_weights_is_refused_with_zero_3(words: str) -> None:
    from fl_trainers import adapters
    from fl_trainers.errors import InputError

    document = config("").dump()
    for part, fields in SPREAD[words].items():
        document[part].update(fields)
    for stage in (2, 3):
        document["training"]["arguments"]["deepspeed"] = {"zero_optimization": {"stage": stage}}
        made = Config.model_validate(document)
        if stage == 2:
            adapters.check(made)
            continue
        with pytest.raises(InputError, match=f"{words} needs whole weights"):
            adapters.check(made)


@pytest.mark.parametrize(
    ("method", "words"),
    [({"badam": {}}, "use_badam steps on"), ({"low_rank": {"kind": "apollo", "layerwise": True}}, "apollo_layerwise steps on")],
)
def test_optimizers_of_one_process_are_refused_in_several(method: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fl_trainers import optimizers
    from fl_trainers.errors import InputError

    document = config("").dump()
    document["method"].update(method)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: True)
    made = Config.model_validate(document)
    optimizers.check(made)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=words):
        optimizers.check(made)


CHECKED: dict[str, dict[str, Any]] = {
    "use_galore needs the package galore-torch": {"low_rank": {"kind": "galore"}, "finetuning_type": "full"},
    "use_badam needs the package badam": {"badam": {}, "finetuning_type": "full"},
    "optim: galore_adamw needs the package galore_torch": {"optim": "galore_adamw"},
    "optim: lomo needs the package lomo_optim": {"optim": "lomo"},
    "optim: paged_adamw_8bit needs the package bitsandbytes": {"optim": "paged_adamw_8bit"},
}


@pytest.mark.parametrize("words", CHECKED)
def test_the_trainer_looks_for_packages_too(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fl_trainers import optimizers
    from fl_trainers.errors import InputError

    method = dict(CHECKED[words])
    arguments = {"optim": method.pop("optim")} if "optim" in method else {}
    document = config("").dump()
    document["method"].update(method)
    document["training"]["arguments"].update(arguments)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match=words):
        optimizers.check(Config.model_validate(document))
