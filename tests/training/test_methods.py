"""Every method takes steps, and shows in the model what it is for. One process trains them all: method_runs.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import HERE, environment

pytestmark = pytest.mark.training
Facts = dict[str, Any]
LAYER = ["input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm", "self_attn.k_proj",
         "self_attn.o_proj",
         "self_attn.q_proj", "self_attn.v_proj"]  # fmt: skip


EXTRAS = ("galore", "apollo", "badam", "adam-mini")
"""Small packages of one optimizer each, which no image has: fl puts them beside the stack's own."""


def optional(names: tuple[str, ...]) -> list[Path]:
    """The folders of extras, made as a run makes them."""
    from fl import extras, matrix
    from fl.engines import extras as folders

    rows = matrix.load()
    wanted = [one for one in extras.locked(rows, rows.stack("cpu-torch213"), "linux/amd64") if one.name in names]
    for one in wanted:
        folders.ensure(one, lambda text: None)
    return [one.folder for one in wanted]


@pytest.fixture(scope="module")
def runs(train_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    folder = tmp_path_factory.mktemp("methods")
    around = environment()
    around["PYTHONPATH"] += "".join(f":{folder}" for folder in optional(EXTRAS))
    done = subprocess.run(
        [train_python, HERE / "method_runs.py", folder], env=around, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


@pytest.fixture
def facts(request: pytest.FixtureRequest, runs: Facts) -> Facts:
    """What the run of this test's name left."""
    found: Facts = runs[request.node.name.removeprefix("test_").split("[")[0]]
    assert "error" not in found, found.get("trace")
    return found


def learns(facts: Facts) -> None:
    assert facts["last"] < facts["first"] - 0.1


def test_freeze_last(facts: Facts) -> None:
    learns(facts)
    assert facts["moved"] == [f"1.{name}.weight" for name in LAYER]


def test_freeze_first_modules_and_extra(facts: Facts) -> None:
    learns(facts)
    assert facts["moved"] == ["0.mlp.down_proj.weight", "0.mlp.gate_proj.weight", "0.mlp.up_proj.weight", "lm_head.weight"]


def test_unknown_modules(facts: Facts) -> None:
    near = {"freeze": "self_attn", "extra": "embed_tokens", "lora": "q_proj", "additional": "embed_tokens", "oft": "gate_proj"}
    for key, name in near.items():
        assert facts[key]["exit"] == 5
        assert facts[key]["remedy"].startswith(f"did you mean {name}?")


def test_llama_pro(facts: Facts) -> None:
    learns(facts)
    assert facts["moved"] == [f"1.{name}.weight" for name in LAYER]
    assert len(facts["adapter"]) == 14 and all(name.startswith("1.") and "lora_" in name for name in facts["adapter"])
    assert facts["odd"]["exit"] == 5 and facts["odd"]["remedy"] == "freeze_trainable_layers: one of 1, 2"


def test_expanded_model(facts: Facts) -> None:
    assert facts["layers"] == 4 and facts["apart"] == 0.0
    assert facts["fresh"] == [1, 3] and facts["after"] < facts["before"] - 0.1
    assert facts["odd"] == 5


def packed(facts: Facts, kind: str, stored: str) -> None:
    """All 14 linear layers are quantized still, none of them moved, and what is trained is float32."""
    learns(facts)
    assert kind in facts["kinds"] and facts["stored"] == [stored] and facts["packed"] == 14
    assert facts["moved_base"] == [] and facts["trained"] == ["torch.float32"]


def test_qlora_4(facts: Facts) -> None:
    packed(facts, "Linear4bit", "torch.uint8")
    assert (facts["type"], facts["nested"]) == ("nf4", True)


def test_qlora_without_padding(facts: Facts) -> None:
    assert facts["fused"] == facts["layers"] == 14
    assert len(facts["flat"]) > 1
    assert facts["flat"] == pytest.approx(facts["padded"], abs=2e-3)


def test_qlora_fp4_single(facts: Facts) -> None:
    packed(facts, "Linear4bit", "torch.uint8")
    assert (facts["type"], facts["nested"]) == ("fp4", False)


def test_qlora_8(facts: Facts) -> None:
    packed(facts, "Linear8bitLt", "torch.int8")


def test_qoft(facts: Facts) -> None:
    packed(facts, "Linear4bit", "torch.uint8")


def test_qdora_bf16(facts: Facts) -> None:
    packed(facts, "Linear4bit", "torch.uint8")


def test_quantized_refusals(facts: Facts) -> None:
    assert [facts[key]["exit"] for key in ("full", "pissa", "two")] == [5, 5, 5]


def test_saved_in_4_bits(facts: Facts) -> None:
    learns(facts)
    assert facts["packed"] == facts["again"] == 14  # quantization_bit: 8 has no effect there
    assert facts["full"]["exit"] == 5 and "quantized (bitsandbytes" in facts["full"]["message"]
    assert facts["merged"]["exit"] == 5 and "merged" in facts["merged"]["message"]


def test_saved_in_fp8(facts: Facts) -> None:
    learns(facts)
    assert 0 < facts["apart"] < 0.05  # three bits of mantissa
    assert facts["moved"] == 21 and not facts["still"]


def test_rslora(facts: Facts) -> None:
    learns(facts)
    assert facts["scaling"] == 8 / 4**0.5


def test_dora(facts: Facts) -> None:
    learns(facts)
    assert facts["magnitudes"] == facts["linear"] == 14


def test_loraplus(facts: Facts) -> None:
    learns(facts)
    assert facts["lora_A"] == [0.001] and facts["lora_B"] == [pytest.approx(0.016)]


def test_pissa(facts: Facts) -> None:
    learns(facts)
    assert facts["start"] == pytest.approx(facts["plain"], abs=1e-4)
    assert facts["large"] > 0.01  # B begins as components of the weights, not as zeros
    assert facts["apart"] < 1e-4 < 0.01 < facts["untrained"]  # the converted adapter, on the base as it was
    assert facts["rank"] == 16 and facts["start_of_converted"] is True
    assert facts["card"] == 1 and facts["warned"] == [1, 0]


def test_pissa_converted_with_all_that_was_trained(facts: Facts) -> None:
    assert facts["dora"] < 1e-4 and facts["whole"] < 1e-4 and facts["head"]


def test_target_all_and_additional(facts: Facts) -> None:
    learns(facts)
    assert facts["targets"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert facts["saved"] == ["base_model.model.model.embed_tokens.modules_to_save.default.weight"]


def test_heads_are_trained_too(facts: Facts) -> None:
    assert facts["adapter"] == ["base_model.model.lm_head.lora_A.default.weight", "base_model.model.lm_head.lora_B.default.weight"]
    assert facts["continued"] == ["base_model.model.lm_head.modules_to_save.default.weight"]
    assert facts["whole"] == [
        "base_model.model.lm_head.modules_to_save.default.weight",
        "base_model.model.model.embed_tokens.modules_to_save.default.weight",
    ]


def test_several_adapters(facts: Facts) -> None:
    learns(facts["one"])
    assert facts["two"] < facts["base"] - 0.1
    assert facts["went_on"] < 1e-4 and facts["fresh"] < 1e-4 < 0.01 < facts["bare"]
    assert facts["rank"] == 2 and facts["zero"]


def test_a_continued_adapter_on_quantized_weights(facts: Facts) -> None:
    learns(facts)
    assert facts["first"] < facts["new"] - 0.3


def test_a_continued_oft_adapter(facts: Facts) -> None:
    assert facts["continued"] < facts["first"] - 0.1


def test_adapters_that_do_not_fit(facts: Facts) -> None:
    words = {
        "wide": "size mismatch",
        "deep": "stand on one side only",
        "empty": "adapter_config.json",
        "kind": "is of type lora",
        "full": "finetuning_type: full",
    }
    for key, said in words.items():
        assert facts[key]["exit"] == 5 and said in facts[key]["message"]
    assert "it was trained on" in facts["wide"]["remedy"]


def test_oft(facts: Facts) -> None:
    learns(facts)
    assert facts["base"] == []


def test_neftune(facts: Facts) -> None:
    assert facts["apart"] > 1e-3 and facts["steps"] == 2
    assert facts["same_after"]


def test_hand_losses(facts: Facts) -> None:
    del facts["seconds"]
    assert len(facts) == 6
    for made, wanted in facts.values():
        assert made == pytest.approx(wanted, abs=1e-6)


def test_losses_in_training(facts: Facts) -> None:
    learns(facts["plain"])
    learns(facts["eaft"])
    assert facts["dft"]["first"] < 0.01 * facts["plain"]["first"]  # weighted by probabilities of about 1 in 300
    for name in ("asft", "asft_full", "asft_pissa"):
        assert facts[name]["first"] == pytest.approx(facts["dft"]["first"], abs=1e-5)  # nothing has moved away from the anchor yet
    assert facts["anchored"] < 0.8 * facts["free"]


def test_padding_counts(facts: Facts) -> None:
    assert facts["pads"][0] > 0 and facts["pads"][1] == 0
    assert abs(facts["counted"] - facts["ignored"]) > 1e-3


def test_schedules(facts: Facts) -> None:
    learns(facts)
    top = max(facts["rates"])
    assert top == pytest.approx(0.01)
    assert facts["rates"][0] < facts["rates"][1] <= top  # two steps up, two of the six that follow stay, four go down
    assert [rate for rate in facts["rates"] if rate == pytest.approx(top)] == pytest.approx([top] * 3)
    assert facts["rates"][-1] < 0.2 * top
    assert facts["wrong"]["exit"] == 5 and "powr" in facts["wrong"]["message"]


def test_muon(facts: Facts) -> None:
    learns(facts)
    assert facts["moved"] == facts["all"] == 21
    assert facts["matrices"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert facts["rest"] == ["embed_tokens", "input_layernorm", "lm_head", "norm", "post_attention_layernorm"]
    assert facts["kept_state"] == ["momentum_buffer"]
    assert facts["orthogonal"] < 0.6  # all directions of a step are about as long: AdamW's differ by more than ten


def test_ordinary_optimizers(facts: Facts) -> None:
    missing = facts.pop("stable_adamw")
    assert missing.get("exit", 0) in (0, 5)
    del facts["seconds"]
    for name, made in facts.items():
        assert made.get("moved") == 21 and made["last"] < made["first"], (name, made)


IMPOSSIBLE = {"accumulated": "galore_layerwise steps inside the backward pass", "eight": "GaLore's 8-bit AdamW calls torch.cuda"}
SPECIAL = ("galore", "galore_layerwise", "apollo", "apollo_layerwise", "badam", "badam_ratio", "adam_mini")


@pytest.mark.parametrize("name", SPECIAL)
def test_special_optimizers(facts: Facts, name: str) -> None:
    made = facts[name]
    assert "error" not in made, made
    assert "exit" not in made, made
    learns(made)
    assert len(made["moved"]) == made["all"] or name.startswith("badam")
    if "smallest" in made:
        assert made["smallest"] == 4  # moments of rank 4


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_special_optimizers_refused(name: str, runs: Facts) -> None:
    made = runs["special_optimizers"][name]
    assert made["exit"] == 5 and IMPOSSIBLE[name] in made["message"]


GOING_ON = (*SPECIAL, "badam_fixed", "muon", "optim")


@pytest.mark.parametrize("name", GOING_ON)
def test_special_optimizers_go_on(facts: Facts, name: str) -> None:
    """Moments, projections, the block that is trained and the learning rate are those at the checkpoint."""
    whole, again = facts[name]
    assert len(again) == 2 and again == pytest.approx(whole, abs=1e-6)


def test_an_optimizer_that_keeps_nothing_goes_on_from_nothing(runs: Facts) -> None:
    made = runs["special_optimizers_go_on"]["forgets"]
    assert made["exit"] == 5 and made["remedy"].startswith("use_galore: true and galore_layerwise: true")


def test_layerwise_steps_are_those_of_the_whole(facts: Facts) -> None:
    for name in ("galore", "apollo"):
        whole, each = facts[name]
        assert len(each) == 4 and each == pytest.approx(whole, abs=1e-5), name


def test_adam_mini_on_models_of_today(facts: Facts) -> None:
    for name in ("wide", "glm4", "qwen3-moe"):
        learns(facts[name])
        assert facts[name]["unmoved"] == []
    wide = {tuple(shape): count for shape, count in facts["wide"]["rates"]}
    assert wide[80, 48] == 4  # one rate a head
    experts = {tuple(shape): count for shape, count in facts["qwen3-moe"]["rates"]}
    assert experts[4 * 128, 64] == 4 * 128  # gate and up of 4 experts: one rate a row of each


def test_badam_and_what_is_frozen(facts: Facts) -> None:
    learns(facts)
    assert facts["layers"] == [1]
    assert facts["share"][-1] < facts["share"][0] and len(facts["random"]) == 4
    assert facts["fixed"]["exit"] == 5 and facts["fixed"]["remedy"].startswith("badam_start_block")
    assert facts["beyond"]["exit"] == 5 and "the model has 2 blocks" in facts["beyond"]["message"]


def test_oft_dropout(facts: Facts) -> None:
    assert min(facts["training"]) > 1e-3 and facts["asked"] == [0.0, 0.0]
    assert facts["with"][0] == pytest.approx(facts["without"][0], abs=1e-5)  # nothing is turned yet
    assert abs(facts["with"][2] - facts["without"][2]) > 1e-3


def test_adapters_on_experts(facts: Facts) -> None:
    learns(facts)
    assert len(facts["moved"]) == 4 and all("lora_" in name for name in facts["moved"])  # two tensors, A and B of each
    assert facts["dora"]["exit"] == 5 and "use_dora: not on the experts" in facts["dora"]["message"]
    assert facts["dora"]["remedy"] == "lora_target: k_proj,o_proj,q_proj,v_proj, which leaves the experts out"
    assert facts["pissa"]["exit"] == 5 and "pissa_init: not on the experts" in facts["pissa"]["message"]
    assert facts["half"]["exit"] == 5 and "without also targeting up_proj" in facts["half"]["message"]


def test_grpo_and_what_the_model_was(facts: Facts) -> None:
    for name in ("full", "freeze", "lora", "pissa"):
        first, *_, last = facts[name]
        assert abs(first) < 1e-5 < 1e-3 < last, (name, facts[name])
        assert not facts[f"{name}_saved"]
    assert facts["apart"] < 1e-4


def test_precisions(facts: Facts) -> None:
    full, half = ["torch.float32"], ["torch.bfloat16"]
    wanted = {
        "fp32": (full, full, full), "bf16": (half, full, half), "bf16_full": ([], full, full), "pure": (half, half, half),
        "pure_full": ([], half, half),
        "norms": (half, full, full), "head": (half, half, half),
    }  # fmt: skip
    for name, (frozen, trained, norm) in wanted.items():
        learns(facts[name])
        assert (facts[name]["frozen"], facts[name]["trained"], facts[name]["norm"]) == (frozen, trained, norm), name
    assert facts["pure"]["logits"] == "torch.bfloat16" and facts["head"]["logits"] == "torch.float32"
    assert facts["fp16"]["exit"] == 5 and "CPU" in facts["fp16"]["message"]
    assert facts["pure_norms"]["exit"] == 5
