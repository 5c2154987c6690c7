"""Padding-free steps train what padded ones train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from trainer_harness import SUMS, Trainer

from fl_trainers.fast.choice import TYPES


def test_a_batch_without_padding_has_the_same_loss_and_gradients_and_documents_see_nothing_of_each_other(trainer: Trainer) -> None:
    kinds = trainer.check("flat_kinds")
    assert set(kinds) == set(TYPES)
    for kind, found in kinds.items():
        assert found["loss"] < 1e-5, kind
        assert found["gradient"] < 5e-6, kind
        assert found["strangers"] == 0.0 < 1e-4 < found["own"], kind


def test_the_loss_of_uneven_experts_is_added_without_padding_too(trainer: Trainer) -> None:
    for kind, found in trainer.check("flat_experts").items():
        assert found["added"] > 0.5, kind
        assert found["loss"] < 1e-5, kind
        assert found["gradient"] < 5e-6, kind


def test_the_chunked_head_is_torchs_cross_entropy(trainer: Trainer) -> None:
    for found in trainer.check("head_losses"):
        assert max(found.values()) < 2e-5


@pytest.mark.parametrize("tied", [False, True])
def test_16_bit_copies_of_trained_weights_give_autocasts_gradients(trainer: Trainer, tied: bool) -> None:
    found = trainer.check("speed_checks.kept_copies", tied)
    assert found["layers"] == 14  # of two layers; the head is a function of its own
    assert found["loss"] < 1e-6
    assert max(found["once"], found["twice"], found["over"]) < 0.01  # the head's gradient is added up in float32 here
    assert found["step"] < 1e-6
    assert found["moved"] > 0.01


def test_layers_with_the_same_input_share_the_products_of_their_adapters(trainer: Trainer) -> None:
    found = trainer.check("speed_checks.lora_together", False)
    assert (found["layers"], found["groups"]) == (14, [1, 1, 1, 1, 2, 2, 3, 3])
    assert max(found["alone"], found["loss"], found["once"], found["twice"]) < 1e-6


def test_copies_of_such_adapters_lie_in_one_matrix_as_their_gradients_do(trainer: Trainer) -> None:
    found = trainer.check("speed_checks.lora_together", True)
    assert found["joint"] == 1
    assert max(found["loss"], found["refreshed"]) < 1e-6
    assert max(found[name] for name in ("once", "twice", "over", "parted")) < 0.005  # without copies a gradient is rounded to 16 bits
    assert found["moved"] > 0.001


def test_documents_are_given_to_canns_kernel_as_it_wants_them(trainer: Trainer) -> None:
    found = trainer.check("speed_checks.ascend")
    assert found["apart"] < 1e-6
    assert (found["shape"], found["layout"], found["heads"]) == ([1, 12, 4, 8], "TND", 4)
    assert found["ends"] == [[5, 12], [5, 12]]
    assert found["sparse"] == 3, "each token sees those before it in its document"


def test_a_batch_takes_a_longer_graph_until_that_has_cost_as_much_as_one_of_its_own(trainer: Trainer) -> None:
    assert trainer.check("speed_checks.lengths", [50, 600, 700, 590, 1100, 900]) == [128, 640, 768, 640, 1280, 1280]
    assert trainer.check("speed_checks.lengths", [1100, 700]) == [1280, 768], "one more than half as long again is too long"
    found = trainer.check("speed_checks.lengths", [760] + [600] * 26)
    assert found == [768] * 25 + [640] * 2, "24 batches have been filled up by 128 tokens more than they need"


def test_a_branch_of_a_graph_is_waited_for_before_what_it_reads_is_given_back(trainer: Trainer) -> None:
    found = trainer.check("speed_checks.branched", True)
    told = found["told"]
    assert told[:5] == ["side waits for main", "side computes 0", "side marks 0", "side marks 1", "main waits for mark 0"]
    assert (found["kept"], found["left"]) == ([[1], [2]], 0), "what two launches read, and nothing after the last wait"
    assert told.index("main waits for mark 1") < told.index("side computes 2"), "what the launch before last read may be given back then"
    assert told[-2:] == ["main waits for mark 5", "main computes at once"]
    alone = trainer.check("speed_checks.branched", False)
    assert alone["told"] == ["main computes 0", "main computes 1", "main computes 2", "main computes at once"]


@pytest.mark.parametrize("fresh", [False, True])
def test_what_a_graph_holds_is_the_step_itself(trainer: Trainer, fresh: bool) -> None:
    found = trainer.check("speed_checks.captured", fresh)
    assert found["loss"] < 1e-6
    assert found["gradient"] < 1e-6
    assert found["attention"] == ["fl_documents", True]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(
    "parts",
    [
        {"arguments": {"bf16": True}},
        {"arguments": {"bf16": True, "learning_rate": 0.002}, "method": {"finetuning_type": "full"}},
        {"arguments": {"bf16": True, "gradient_accumulation_steps": 3, "learning_rate": 0.002}, "method": {"finetuning_type": "full"}},
    ],
    ids=["lora", "full", "accumulation"],
)
def test_runs_whose_16_bit_copies_are_kept_have_the_same_losses(
    trainer: Trainer, config: Callable[..., Path], parts: dict[str, dict[str, object]], graphs: bool
) -> None:
    usual = trainer.train(config("usual", **{key: dict(value) for key, value in parts.items()}, training={"speed": "memory"}))
    found = trainer.check("speed_checks.train", str(config("kept", **parts, training={"speed": "memory"})), graphs)
    assert len(found) > 3
    assert found == pytest.approx(usual.losses, rel=5e-3)


@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs an NVIDIA card")
def test_a_compiled_norm_is_torchs(trainer: Trainer) -> None:
    assert max(trainer.check("speed_checks.compiled_norm").values()) < 1e-2


@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs an NVIDIA card")
def test_adamw_in_one_pass_is_torchs(trainer: Trainer) -> None:
    found = trainer.check("speed_checks.one_pass_adamw")
    assert max(found["weight"], found["moments"]) < 1e-5
    assert found["copy"] == 0.0


def test_parts_of_the_fast_steps_can_be_left_out(trainer: Trainer, config: Callable[..., Path]) -> None:
    recomputed = {"gradient_checkpointing": True}
    runs = [
        trainer.train(config(f"without{len(left)}", model=recomputed, training={"speed": "memory", "speed_without": left}))
        for left in ([], ["lora", "loss", "kept", "norms"])
    ]
    assert [run.code for run in runs] == [0, 0], runs
    (less,) = runs[1].of("speed")
    assert "without lora, loss, kept, norms" in less["why"]
    assert runs[1].losses == pytest.approx(runs[0].losses, abs=2e-3)


def test_a_fused_lora_layer_is_pefts(trainer: Trainer) -> None:
    found = trainer.check("lora_layers")
    assert (found["plain"], found["dora"], found["dropout"]) == (6, 0, 0)
    assert found["loss"] < 1e-6
    assert found["gradient"] < 1e-6
    assert found["off"] == 0.0


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"method": {"finetuning_type": "full"}, "arguments": {"learning_rate": 0.002}},
        {"arguments": {"gradient_accumulation_steps": 3}},
        {"data": {"packing": True, "neat_packing": True}},
        {"data": {"packing": True}},
        {"model": {"gradient_checkpointing": True}},
        {"method": {"stage": "pt"}},
        {"model": {"path": "builtin/tiny-gemma3", "name": "windows"}, "data": {"packing": True}},
        {
            "model": {"path": "builtin/tiny-qwen3-moe", "name": "experts", "moe_aux_loss_coef": 0.5},
            "arguments": {"gradient_accumulation_steps": 3},
        },
    ],
    ids=["lora", "full", "accumulation", "neat packing", "packing", "recomputed", "pre-training", "windows in packs", "uneven experts"],
)
def test_the_same_losses_without_padding(trainer: Trainer, config: Callable[..., Path], parts: dict[str, dict[str, object]]) -> None:
    def losses(speed: str) -> tuple[list[float], bool]:
        done = trainer.train(config(speed, **{key: dict(value) for key, value in parts.items()}, training={"speed": speed}))
        assert done.code == 0, done.output
        (said,) = done.of("speed")
        return done.losses, said["padding_free"]

    (padded, off), (flat, on) = losses("off"), losses("memory")
    assert (off, on) == (False, True)
    assert len(flat) == len(padded) > 1
    assert flat == pytest.approx(padded, abs=2e-3)
    assert flat[:2] == pytest.approx(padded[:2], abs=2e-5)


PAIRS = [{**row, "worse": f"It is {number}.", "liked": number % 3 > 0} for number, row in enumerate(SUMS)]
MARKS = {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "liked"}}
ANSWERS = {"ranking": True, "columns": {"prompt": "instruction", "chosen": "output", "rejected": "worse"}}


@pytest.mark.parametrize(
    "parts",
    [
        {"method": {"stage": "dpo"}},
        {"method": {"stage": "dpo", "finetuning_type": "full"}, "model": {"gradient_checkpointing": True}},
        {"method": {"stage": "dpo", "preference": {"loss": "ipo", "ftx": 0.5}}, "arguments": {"gradient_accumulation_steps": 3}},
        {"method": {"stage": "dpo", "preference": {"ld_alpha": 0.3}}},
        {"method": {"stage": "orpo", "finetuning_type": "full"}},
        {"method": {"stage": "simpo"}, "model": {"gradient_checkpointing": True}},
        {"method": {"stage": "kto", "preference": {"ftx": 0.3}}, "arguments": {"gradient_accumulation_steps": 3}},
        {"method": {"stage": "kto", "finetuning_type": "full"}, "model": {"gradient_checkpointing": True}},
        {"method": {"stage": "rm"}, "model": {"gradient_checkpointing": True}},
        {"method": {"stage": "rm", "finetuning_type": "full"}},
    ],
    ids=["lora", "full, recomputed", "ipo, accumulation", "ld_alpha", "orpo", "simpo, recomputed", "kto, accumulation",
         "kto, full, recomputed", "rm, recomputed", "rm, full"],
)
def test_pairs_have_the_same_losses_without_padding(
    trainer: Trainer, config: Callable[..., Path], parts: dict[str, dict[str, object]]
) -> None:
    def losses(speed: str) -> tuple[list[float], list[float], bool]:
        more = {key: dict(value) for key, value in parts.items()}
        more["arguments"] = {"learning_rate": 0.002, **more.get("arguments", {})}
        dataset = MARKS if more["method"]["stage"] == "kto" else ANSWERS
        done = trainer.train(config(speed, PAIRS, dataset=dataset, training={"speed": speed}, **more))
        assert done.code == 0, done.output
        (said,) = done.of("speed")
        return done.losses, [event["grad_norm"] for event in done.of("step")], said["padding_free"]

    (padded, slopes, off), (flat, flat_slopes, on) = losses("off"), losses("auto")
    assert (off, on) == (False, True)
    assert len(flat) == len(padded) > 1
    assert flat == pytest.approx(padded, abs=1e-3)
    assert flat_slopes[0] == pytest.approx(slopes[0], rel=1e-4)


def test_pairs_of_models_that_scale_their_logits_have_the_same_probabilities(trainer: Trainer) -> None:
    assert max(trainer.check("flat_pairs").values()) < 1e-5


@pytest.mark.parametrize("stage", ["sft", "pt"])
@pytest.mark.parametrize("speed", ["off", "memory"])
def test_the_loss_is_a_mean_over_labels_that_are_foretold(trainer: Trainer, config: Callable[..., Path], speed: str, stage: str) -> None:
    """The first token of a row is foretold by nothing: where it has a label too, it must not be in the number that is divided by."""
    rows = [{"instruction": "Say it.", "output": " ".join(["so"] * length)} for length in (1, 2, 30, 3)]
    path = config(f"{stage}-{speed}", rows, method={"stage": stage, "finetuning_type": "full"}, data={"train_on_prompt": True},
                  dataset={"columns": {"prompt": "output"}} if stage == "pt" else {}, training={"speed": speed},
                  arguments={"max_steps": 1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2})  # fmt: skip
    done = trainer.train(path)
    assert done.code == 0, done.output
    assert done.losses == pytest.approx([trainer.check("mean_over_foretold", str(path))], abs=2e-5)
