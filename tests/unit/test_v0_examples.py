"""LLaMA-Factory's 47 core v0 examples and what its web interface writes: a verdict on every lane, and no key that is not known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import HOSTS

from fl import cli, matrix, recipe, recipe_check
from fl.decide import Options, decide
from fl.errors import RecipeError
from fl.portability import Precision, adapt
from fl.recipe_media import MEDIA_TEMPLATES
from fl.recipe_table import TEMPLATES
from fl.resolve import draft
from fl.resolve_model import quantized_in
from v0_examples import BOARD, MEDIA, TEXT, recipe_of

REFUSED_KEYS = {
    "train_lora/qwen3_lora_sft_ray": {"dataset_dir"}, "extras/fp8/llama3_fp8_deepspeed_sft": {"fp8"},
    "extras/fp8/llama3_fp8_fsdp_sft": {"fp8"}, "extras/mod/llama3_full_sft": {"mixture_of_depths"},
    **{name: {"template"} for name in MEDIA},
}  # fmt: skip
"""Examples that no lane runs, with the key that stands in the way."""
PACKAGES = {
    "extras/adam_mini/qwen2_full_sft": "adam-mini", "extras/apollo/llama3_full_sft": "apollo-torch",
    "extras/badam/llama3_full_sft": "badam", "extras/galore/llama3_full_sft": "galore-torch",
    "train_qlora/llama3_lora_sft_aqlm": "aqlm", "train_qlora/llama3_lora_sft_awq": "gptqmodel",
    "train_qlora/llama3_lora_sft_gptq": "gptqmodel", "extras/qoft/llama3_oft_sft_awq": "gptqmodel",
    "extras/qoft/llama3_oft_sft_gptq": "gptqmodel",
}  # fmt: skip
"""Examples that need a package: refused where the stack's lock lacks it."""
ON_SOME = {
    "bitsandbytes": {"train_qlora/qwen3_lora_sft_bnb_npu", "train_qlora/qwen3_lora_sft_otfq", "extras/fsdp_qlora/llama3_lora_sft",
                     "extras/qoft/llama3_oft_sft_bnb_npu", "sft-qlora"},
    "DeepSpeed": {"train_full/qwen3_full_sft", "train_lora/qwen3_lora_sft_ds3", "extras/asft/llama2_full_asft",
                  "extras/asft/qwen2_full_asft"},
}  # fmt: skip
"""What some lanes lack, and the examples that need it."""


def read(name: str) -> recipe.Recipe:
    return recipe.parse(recipe_of(name), file=f"{name}.yaml")


def test_there_are_47() -> None:
    assert (len(TEXT), len(MEDIA)) == (39, 8)


@pytest.mark.parametrize("name", [*TEXT, *MEDIA, *BOARD])
def test_every_key_is_known_and_every_lane_has_a_verdict(name: str) -> None:
    found = read(name)
    assert [note.key for note in found.keys if "unknown key" in note.note] == []
    assert {note.key for note in found.refused} == REFUSED_KEYS.get(name, set())
    lanes = {lane.lane: lane for lane in recipe_check.on_lanes(found, matrix.load())}
    assert set(lanes) == set(recipe_check.LANE_NAMES)
    wanted = [PACKAGES[name]] if name in PACKAGES else [what for what, names in ON_SOME.items() if name in names]
    for lane in lanes.values():
        why = "\n".join(lane.notes)
        if name in REFUSED_KEYS:
            assert lane.verdict == "refused" and why.startswith(tuple(f"{key}: " for key in REFUSED_KEYS[name])), why
        elif lane.verdict == "refused":
            assert any(what in why for what in wanted), f"{lane.lane}: {why}"
            assert lane.lane != "cpu" or name in PACKAGES
        else:
            assert lane.stack is not None and (lane.verdict == "runs" or "→" in why)


def test_examples_with_pictures_say_so() -> None:
    assert set(TEMPLATES) >= MEDIA_TEMPLATES
    for name in MEDIA:
        assert "no pictures, videos or sounds" in read(name).refused[0].problem
    for template in ("gemma3", "llama4", "qwen3_5", "mistral_small"):  # these families have text models
        text = recipe.parse(recipe_of("train_lora/qwen3_lora_sft", template=template), file="x.yaml")
        assert not text.refused


def test_counts_of_the_docs() -> None:
    rows = matrix.load()
    lanes = {name: {lane.lane: lane.verdict for lane in recipe_check.on_lanes(read(name), rows)} for name in (*TEXT, *MEDIA)}
    assert {lane: sum(found[lane] != "refused" for found in lanes.values()) for lane in recipe_check.LANE_NAMES} == {
        "cuda": 30, "rocm": 30, "ascend": 26, "xpu": 22, "cpu": 30,
    }  # fmt: skip
    assert sum(found["cpu"] == "adapted" for found in lanes.values()) == 4


def test_what_becomes_of_the_keys_that_newer_libraries_lack() -> None:
    keys = {note.key: note for note in read("ascend/qwen3_full_sft_fsdp2").keys}
    assert "warmup_steps" in keys["warmup_ratio"].note
    assert keys["use_v1_kernels"].verdict == "ignored"
    lanes = {lane.lane: lane for lane in recipe_check.on_lanes(read("ascend/qwen3_full_sft_fsdp2"), matrix.load())}
    assert lanes["cpu"].verdict == "adapted" and any("fa2" in note for note in lanes["cpu"].notes)


@pytest.mark.parametrize(("model", "fine"), [("builtin/tiny-llama", True), ("mine", False)])
def test_trust_is_asked_for_code_that_would_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, fine: bool) -> None:
    """All examples say `trust_remote_code: true`; nearly all of their models are transformers' own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps({"model_type": "unheard_of", "auto_map": {"AutoConfig": "mine.Config"}}))
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (tmp_path / "rows.json").write_text('[{"instruction": "a", "output": "b"}]')
    (tmp_path / "dataset_info.json").write_text('{"identity": {"file_name": "rows.json"}}')
    changed = {"model_name_or_path": model, "dataset": "identity", "dataset_dir": ".", "dataloader_num_workers": 0}
    (tmp_path / "r.yaml").write_bytes(recipe_of("train_lora/qwen3_lora_sft", **changed))
    options = Options(engine="host", hw="cpu", dry_run=True, replay=HOSTS / "cpu-only")
    if fine:
        decision = decide("r.yaml", (), options)
        assert decision.config.model.trust_remote_code is False
        assert any(one.key == "trust_remote_code" for one in decision.plan.adaptations)
    else:
        with pytest.raises(RecipeError, match="needs code of its own"):
            decide("r.yaml", (), options)


def test_a_checkpoint_that_was_quantized_needs_its_package() -> None:
    rows = matrix.load()
    row = rows.stack("cpu-torch213")
    config = draft(read("train_qlora/llama3_lora_sft_awq"), lane="cpu", stack=row.id)
    with pytest.raises(RecipeError, match="is an AWQ checkpoint, which needs the package gptqmodel, and cpu-torch213 does not have it"):
        adapt(config, row, Precision(), packages={"torch"}, quantized="awq")
    for packages, quantized in (({"gptqmodel"}, "awq"), ({"torch"}, "fp8"), (None, "awq")):  # None: an environment of the user's
        adapt(config, row, Precision(), packages=packages, quantized=quantized)
    assert [quantized_in(f"org/Llama-3-8B-Instruct{end}") for end in ("-AWQ", "-GPTQ-Int4", "-AQLM-2Bit-1x16", "", "-awqward")] == [
        "awq", "gptq", "aqlm", None, None,
    ]  # fmt: skip


def test_a_folder_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train_lora/qwen3_lora_sft", "train_lora/qwen3vl_lora_sft", "train_qlora/qwen3_lora_sft_otfq"):
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(recipe_of(name))
    (tmp_path / "broken.yml").write_text("a: 1\na: 2\n")
    (tmp_path / "ds_z3_config.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        cli.main(["recipe", "check", str(tmp_path)])
    assert ended.value.code == 5
    table, _, reasons = capsys.readouterr().out.partition("\n\n")
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    assert rows == {
        "RECIPE": ["CUDA", "ROCM", "ASCEND", "XPU", "CPU"], "broken.yml": ["unreadable"] * 5,
        "train_lora/qwen3_lora_sft.yaml": ["runs"] * 5, "train_lora/qwen3vl_lora_sft.yaml": ["refused"] * 5,
        "train_qlora/qwen3_lora_sft_otfq.yaml": ["runs", "runs", "refused", "runs", "runs"],
    }  # fmt: skip
    assert "2:1: `a` stands here for the second time" in reasons and "ascend: quantization_bit: 4" in reasons
    with pytest.raises(SystemExit):
        cli.main(["recipe", "check", str(tmp_path / "train_lora"), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert [one["recipe"] for one in document["recipes"]] == ["qwen3_lora_sft.yaml", "qwen3vl_lora_sft.yaml"]
    assert {lane["verdict"] for lane in document["recipes"][0]["lanes"].values()} == {"runs"}


def test_a_folder_that_all_runs_ends_well_and_one_without_recipes_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["recipe", "check", str(tmp_path)])
    assert ended.value.code == 5 and "no recipe" in capsys.readouterr().err
    (tmp_path / "one.yaml").write_bytes(recipe_of("train_lora/qwen3_lora_sft"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["recipe", "check", str(tmp_path), "lora_rank=4"])
    assert ended.value.code in (0, None)
    assert "one.yaml" in capsys.readouterr().out


def test_a_folder_says_each_reason_once_and_what_is_adapted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train_qlora/llama3_lora_sft_awq", "ascend/qwen3_full_sft_fsdp2"):
        (tmp_path / f"{name.replace('/', '-')}.yaml").write_bytes(recipe_of(name))
    with pytest.raises(SystemExit):
        cli.main(["recipe", "check", str(tmp_path)])
    _, refused, adapted = capsys.readouterr().out.split("\n\n")
    (reason,) = refused.splitlines()[1:]
    assert "AWQ checkpoint, which needs the package gptqmodel, and its stack does not have it" in reason
    assert all("flash_attn: fa2 → sdpa (speed)" in line for line in adapted.splitlines()[1:]) and adapted.startswith("ADAPTED")
