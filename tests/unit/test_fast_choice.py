"""Which fast parts a run takes, as a table."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl_trainers.config import Config
from fl_trainers.fast.choice import Fast, Load, Machine, activations, choose
from fl_trainers.fast.load import compiled_before, compiles

LLAMA = SimpleNamespace(model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, vocab_size=128256)
H100 = Machine("cuda", False, (9, 0), 60 << 30, 1, True)
SHORT, LONG = Load(1500, 100), Load(8192, 100)


def made(speed: str = "auto", **parts: Any) -> Config:
    arguments = {"bf16": True, **parts.pop("arguments", {})}
    return Config.model_validate({
        "schema": 1, "run": {"name": "r", "lane": "cuda", "stack": "s", "events": "e"},
        "model": {"name": "m", "path": "m", "kind": "folder", **parts.pop("model", {})}, "data": parts.pop("data", {}),
        "method": parts.pop("method", {}), "training": {"output_dir": "o", "speed": speed, "arguments": arguments},
    })  # fmt: skip


def test_short_batches_on_a_large_card_are_graphs_and_nothing_is_recomputed() -> None:
    found = choose(made(), LLAMA, H100, SHORT)
    assert (found.padding_free, found.graphs, found.recompute, found.liger) == (True, True, False, False)


def test_long_batches_are_no_graphs_and_take_ligers_kernels() -> None:
    found = choose(made(data={"packing": True}), LLAMA, H100, LONG)
    assert (found.padding_free, found.graphs, found.recompute, found.liger) == (True, False, False, True)


def test_layers_are_recomputed_where_memory_asks_for_it() -> None:
    small = Machine("cuda", False, (9, 0), 20 << 30)
    found = choose(made(), LLAMA, small, LONG)
    assert found.recompute
    assert not found.graphs
    some = choose(made(), LLAMA, dataclasses.replace(small, free_bytes=40 << 30), LONG)
    assert (some.recompute, some.keep, some.graphs) == (True, 24, False)
    assert "8 of 32 layers recomputed" in some.why


def test_mode_memory_spends_what_the_logits_would_have_taken_on_layers_that_are_kept() -> None:
    found = choose(made("memory", data={"packing": True}), LLAMA, H100, LONG)
    assert (found.recompute, found.keep) == (True, 7)
    width = SimpleNamespace(**{**vars(LLAMA), "vocab_size": 32000})
    assert choose(made("memory", data={"packing": True}), width, H100, LONG).keep == 1
    assert not choose(made("memory", model={"gradient_checkpointing": False}), LLAMA, H100, SHORT).recompute
    whole = SimpleNamespace(**{**vars(LLAMA), "num_hidden_layers": 2})
    assert not choose(made("memory", data={"packing": True}), whole, H100, LONG).recompute


def test_several_processes_take_the_same_steps() -> None:
    two = dataclasses.replace(H100, processes=2)
    packed = made(data={"packing": True})
    assert choose(packed, LLAMA, two, LONG) == choose(packed, LLAMA, H100, LONG)
    assert choose(made("speed"), LLAMA, two, SHORT) == choose(made("speed"), LLAMA, H100, SHORT)
    plain = choose(made(), LLAMA, two, SHORT)
    assert (plain.padding_free, plain.graphs) == (True, False)
    assert "several processes nobody has measured" in plain.why
    spread = choose(made(arguments={"deepspeed": {"zero_optimization": {"stage": 2}}}), LLAMA, two, SHORT)
    assert (spread.padding_free, spread.graphs) == (True, False)


def test_windows_are_no_obstacle_and_experts_are_no_graphs() -> None:
    windows = SimpleNamespace(**{**vars(LLAMA), "model_type": "mistral", "sliding_window": 4096})
    assert choose(made(), windows, H100, SHORT) == choose(made(), LLAMA, H100, SHORT)
    experts = SimpleNamespace(**{**vars(LLAMA), "model_type": "qwen3_moe", "num_experts": 128})
    for asked in (True, False):
        found = choose(made(model={"gradient_checkpointing": asked}), experts, H100, LONG)
        assert (found.padding_free, found.graphs, found.recompute, found.keep, found.liger) == (True, False, asked, 0, False)
    unmeasured = SimpleNamespace(**{**vars(LLAMA), "model_type": "glm4"})
    assert (choose(made(), unmeasured, H100, LONG).padding_free, choose(made(), unmeasured, H100, LONG).liger) == (True, False)
    assert not choose(made("speed"), unmeasured, H100, SHORT).graphs


def test_graphs_take_kernels_in_long_runs_and_where_an_earlier_run_compiled_them() -> None:
    assert not choose(made(), LLAMA, H100, Load(1500, 1000)).liger
    assert choose(made(), LLAMA, H100, Load(1500, 2000)).liger
    assert choose(made(), LLAMA, replace(H100, compiled=True), Load(1500, 200)).liger
    assert not choose(made(), LLAMA, replace(H100, compiled=True), Load(1500, 199)).liger, "loading them takes longer than they gain"


def test_what_an_earlier_run_compiled_is_seen(tmp_path: Path) -> None:
    names = ("_cross_entropy", "_adamw", "_triton_rope")
    for name in names:
        assert not compiled_before({"TRITON_CACHE_DIR": str(tmp_path)})
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.cubin").touch()
    assert compiled_before({"TRITON_CACHE_DIR": str(tmp_path)})
    assert not compiled_before({"TRITON_HOME": str(tmp_path)})


def test_few_steps_are_not_worth_a_graph_unless_asked_for() -> None:
    assert not choose(made(), LLAMA, H100, Load(1500, 10)).graphs
    assert choose(made("speed"), LLAMA, H100, Load(1500, 10)).graphs


@pytest.mark.parametrize("stage", ["dpo", "orpo", "simpo", "kto", "rm"])
@pytest.mark.parametrize("asked", [True, False])
def test_pairs_on_a_cpu_have_no_padding_and_their_layers_are_recomputed_as_the_recipe_says(stage: str, asked: bool) -> None:
    config = made(method={"stage": stage}, model={"gradient_checkpointing": asked})
    found = choose(config, LLAMA, Machine("cpu", processes=2), SHORT)
    assert choose(config, LLAMA, Machine("cpu"), SHORT) == found
    assert (found.padding_free, found.graphs, found.recompute, found.keep) == (True, False, asked, 0)


@pytest.mark.parametrize("stage", ["dpo", "orpo", "simpo", "kto", "rm"])
def test_pairs_on_a_card_recompute_only_what_memory_asks_for(stage: str) -> None:
    config = made(method={"stage": stage}, model={"gradient_checkpointing": True})
    roomy, narrow = choose(config, LLAMA, H100, SHORT), choose(config, LLAMA, replace(H100, free_bytes=10**10), SHORT)
    assert (roomy.padding_free, roomy.graphs, roomy.recompute, roomy.liger) == (True, False, False, False)
    assert (narrow.recompute, narrow.keep < LLAMA.num_hidden_layers) == (True, True)
    assert choose(made("memory", method={"stage": stage}, model={"gradient_checkpointing": True}), LLAMA, H100, SHORT).recompute
    full = made(method={"stage": stage, "finetuning_type": "full"}, model={"gradient_checkpointing": True})
    found = choose(full, LLAMA, H100, SHORT)
    assert (found.padding_free, found.recompute, found.keep) == (True, True, 0), "a copy of the model may stand beside it"


@pytest.mark.parametrize(
    ("config", "settings", "machine", "word"),
    [
        (made("off"), LLAMA, H100, "recipe says so"),
        (made(), SimpleNamespace(model_type="lfm2"), H100, "lfm2 is not among"),
        (made(), SimpleNamespace(model_type="gemma3_text", final_logit_softcapping=30.0), H100, "final_logit_softcapping 30"),
        (made(), SimpleNamespace(model_type="llama", attention_dropout=0.1), H100, "attention_dropout 0.1"),
        (
            made(method={"stage": "dpo"}), SimpleNamespace(model_type="qwen3_moe", output_router_logits=True), Machine("cpu"),
            "experts evenly used",
        ),
        (made(model={"attention": "fa2"}), LLAMA, H100, "fa2"),
        (made(model={"liger": True}), LLAMA, H100, "liger"),
        (made(arguments={"deepspeed": {"zero_optimization": {"stage": 3}}}), LLAMA, H100, "ZeRO-3 spreads"),
        (made(arguments={"fsdp": "full_shard"}), LLAMA, H100, "fsdp spreads"),
        (made(arguments={"neftune_noise_alpha": 5.0}), LLAMA, H100, "neftune"),
        (made(method={"use_dft_loss": True}), LLAMA, H100, "dft"),
        (made(), LLAMA, dataclasses.replace(H100, head=False), "the head is no plain matrix"),
        (made(data={"ignore_pad_token_for_loss": False}), LLAMA, H100, "padding counts"),
        (made(method={"badam": {}, "finetuning_type": "full"}), LLAMA, H100, "BAdam"),
        (made(arguments={"accelerator_config": {"dispatch_batches": True}}), LLAMA, dataclasses.replace(H100, processes=2), "sent around"),
        (made(), LLAMA, Machine("cuda", True, (9, 4), 1 << 36), "ROCm"),
        (made(), LLAMA, Machine("npu"), "npu"),
        (made(), LLAMA, Machine("cuda", False, (7, 5), 1 << 36), "sm_80"),
        (made(arguments={"bf16": False}), LLAMA, H100, "bf16"),
        (made(method={"stage": "dpo", "reference": {"name": "o", "path": "o", "kind": "folder"}}), LLAMA, Machine("cpu"), "own reference"),
        (made(method={"stage": "dpo"}, model={"quantization": {"bits": 4}}), LLAMA, Machine("cpu"), "must round alike"),
        (made(method={"stage": "ppo"}), LLAMA, Machine("cpu"), "a loop of its own"),
    ],
)
def test_what_keeps_a_run_on_padded_batches_is_said(config: Config, settings: Any, machine: Machine, word: str) -> None:
    found = choose(config, settings, machine, SHORT)
    assert found == Fast(why=found.why)
    assert word in found.why


@pytest.mark.parametrize(
    "parts",
    [
        {"method": {"lora": {"dora": True}}},
        {"method": {"finetuning_type": "oft"}},
        {"model": {"quantization": {"bits": 8}}},
        {"arguments": {"bf16": False, "fp16": True}},
    ],
)
def test_no_graph_over_what_a_graph_cannot_hold(parts: dict[str, Any]) -> None:
    found = choose(made(**parts), LLAMA, H100, SHORT)
    assert found.padding_free
    assert not found.graphs


def test_a_part_that_the_recipe_leaves_out_is_left_out() -> None:
    def without(*parts: str) -> Fast:
        config = made(data={"packing": True} if "kernels" in parts else {})
        training = config.training.model_copy(update={"speed_without": parts})
        return choose(config.model_copy(update={"training": training}), LLAMA, H100, LONG if "kernels" in parts else SHORT)

    assert (without("graphs").graphs, without("lora").graphs) == (False, True)
    assert not without("kernels").liger
    kept = without("kept")
    assert (kept.recompute, kept.keep, kept.graphs) == (True, 0, False)
    assert kept.why.endswith("without kept")


def test_kernels_are_compiled_only_where_there_is_a_compiler_and_pythons_headers(tmp_path: Path) -> None:
    def nothing(name: str) -> str | None:
        return None

    assert not compiles({"CC": "cc"}, nothing, tmp_path)
    (tmp_path / "Python.h").touch()
    assert not compiles({}, nothing, tmp_path)
    assert compiles({"CC": "cc"}, nothing, tmp_path)
    assert compiles({}, lambda name: "/usr/bin/gcc" if name == "gcc" else None, tmp_path)


def test_weights_of_4_bits_are_unpacked_inside_a_graph() -> None:
    assert choose(made(model={"quantization": {"bits": 4}}), LLAMA, H100, SHORT).graphs
    saved = SimpleNamespace(**vars(LLAMA), quantization_config={"quant_method": "gptq"})
    assert not choose(made(), saved, H100, SHORT).graphs
    ours = SimpleNamespace(**vars(LLAMA), quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert choose(made(), ours, H100, SHORT).graphs


def test_the_bound_of_activations_lies_above_what_was_measured() -> None:
    """8B LoRA, 8192 tokens: 51.4 GiB at its peak of which 16 are weights (reference: an H100)."""
    assert 35 < activations(LLAMA, 8192) / 2**30 < 45
