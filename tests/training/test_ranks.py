"""Several processes on the CPU, which meet over gloo: they train what one process trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Done, Trainer

Config = Callable[..., Path]
UNEVEN = [{"instruction": f"Count to {n}.", "input": "", "output": " ".join(str(k) for k in range(1, n + 1))} for n in range(1, 33)]
"""Answers of 1 to 32 words, so that processes never count the same number of labels."""


def passed(done: Done, *, padding_free: bool) -> list[float]:
    assert done.code == 0, done.output
    assert {said["padding_free"] for said in done.of("speed")} == {padding_free}, done.of("speed")
    return done.losses


@pytest.mark.parametrize(
    "parts",
    [
        {"arguments": {"gradient_accumulation_steps": 3, "num_train_epochs": 2, "max_steps": -1}},
        {"method": {"finetuning_type": "full"}, "arguments": {"learning_rate": 0.002}, "model": {"gradient_checkpointing": True}},
        {"arguments": {"average_tokens_across_devices": False}},
        {
            "model": {"path": "builtin/tiny-qwen3-moe", "name": "experts", "moe_aux_loss_coef": 0.5},
            "arguments": {"average_tokens_across_devices": False},
        },
    ],
    ids=["lora, accumulation that does not divide the epoch", "full, recomputed", "each process counts its own labels", "uneven experts"],
)
def test_two_processes_have_the_losses_of_padded_batches_without_padding(trainer: Trainer, config: Config, parts: dict[str, Any]) -> None:
    def losses(folder: str, ranks: int, speed: str) -> list[float]:
        given: dict[str, Any] = json.loads(json.dumps(parts))
        arguments = {"per_device_train_batch_size": 4 // ranks, "max_steps": 6, **given.pop("arguments")}
        made = config(folder, UNEVEN, arguments=arguments, training={"speed": speed}, **given)
        return passed(trainer.train(made, ranks), padding_free=speed == "memory")

    padded, flat = losses("padded", 2, "off"), losses("flat", 2, "memory")
    assert len(flat) == len(padded) > 4
    assert flat == pytest.approx(padded, abs=2e-3)
    assert flat[:2] == pytest.approx(padded[:2], abs=2e-5)
    if "average_tokens_across_devices" not in parts["arguments"]:
        assert flat == pytest.approx(losses("alone", 1, "memory"), abs=2e-3)


def test_gradients_of_two_processes_are_those_of_one_and_nobody_waits_for_a_batch_without_labels(trainer: Trainer, tmp_path: Path) -> None:
    for found in trainer.check("step_of_two", str(tmp_path)):
        assert max(found.values()) < 1e-6, found


def zero(stage: int) -> dict[str, Any]:
    """As LLaMA-Factory's files say it."""
    return {
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto", "zero_allow_untested_optimizer": True, "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
    }  # fmt: skip


def test_deepspeed_without_padding(trainer_of_shards: Trainer, config: Config) -> None:
    def losses(folder: str, speed: str, **arguments: Any) -> list[float]:
        given = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4, **arguments}
        done = trainer_of_shards.train(config(folder, UNEVEN, arguments=given, training={"speed": speed}), 2)
        return passed(done, padding_free=speed == "memory")

    alike = losses("ddp", "off")
    assert losses("padded", "off", deepspeed=zero(2)) == pytest.approx(alike, abs=2e-3)
    for stage in (1, 2):
        assert losses(f"flat{stage}", "memory", deepspeed=zero(stage)) == pytest.approx(alike, abs=2e-3)


FSDP = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}
WAYS = {"ZeRO-2": {"deepspeed": zero(2)}, "ZeRO-3": {"deepspeed": zero(3)}, "FSDP2": FSDP}
PAIRS = [
    {"instruction": row["instruction"], "chosen": f"{row['output']} honey", "rejected": f"{row['output']} {word}"}
    for row, word in zip(SUMS, ("rust", "sand", "tin", "urn") * 9, strict=True)
]
PAIR_SET = {"ranking": True, "columns": {"prompt": "instruction", "query": None, "response": None, "chosen": "chosen",
                                         "rejected": "rejected"}}  # fmt: skip


MARK_SET = {"columns": {"prompt": "instruction", "query": None, "response": "chosen", "kto_tag": "liked"}}


@pytest.mark.parametrize(
    ("stage", "kind", "more"),
    [
        ("dpo", "lora", {"gradient_accumulation_steps": 2}),
        ("dpo", "full", {"deepspeed": zero(2)}),
        ("orpo", "full", {}),
        ("kto", "lora", {}),
        ("rm", "full", {"gradient_accumulation_steps": 2}),
    ],
)
def test_two_processes_compare_answers_without_padding(
    trainer: Trainer, trainer_of_shards: Trainer, config: Config, stage: str, kind: str, more: dict[str, Any]
) -> None:
    rows = [{**row, "chosen": f"{row['chosen']}{' yes' * (number % 7)}", "liked": number % 3 > 0} for number, row in enumerate(PAIRS)]

    def run(speed: str) -> tuple[list[float], list[float]]:
        given = {"per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 0.005, **more}
        path = config(speed, rows, dataset=MARK_SET if stage == "kto" else PAIR_SET, method={"stage": stage, "finetuning_type": kind},
                      arguments=given, training={"speed": speed}, model={"gradient_checkpointing": kind == "full"})  # fmt: skip
        done = (trainer_of_shards if "deepspeed" in more else trainer).train(path, 2)
        losses = passed(done, padding_free=speed == "auto")
        return losses, [event["grad_norm"] for event in done.of("step")]

    (padded, slopes), (flat, flat_slopes) = run("off"), run("auto")
    assert flat == pytest.approx(padded, abs=1e-3)
    assert flat_slopes[0] == pytest.approx(slopes[0], rel=1e-4)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_reward_models_under_sharding(trainer_of_shards: Trainer, config: Config, kind: str) -> None:
    """Losses and scores are those of DDP, the head is in its file whole, and a run goes on from its checkpoint."""

    def run(folder: str, resume: Path | None = None, **arguments: Any) -> Done:
        given = {"per_device_train_batch_size": 2, "max_steps": 6, "learning_rate": 0.02 if kind == "lora" else 0.005, **arguments}
        method = {"stage": "rm", "finetuning_type": kind}
        training = {"resume_from_checkpoint": str(resume)} if resume else {}
        path = config(folder, PAIRS, dataset=PAIR_SET, method=method, data={"val_size": 4}, arguments=given, training=training)
        done = trainer_of_shards.train(path, 2)
        assert done.code == 0, done.output
        return done

    def scores(done: Done) -> list[float]:
        found = trainer_of_shards.check("scores", str(done.folder / "out"), "What is 1 plus 2?", ["It is 3. honey", "It is 3. urn"])
        assert found["names"] == {"v_head.summary.weight": [1, 64], "v_head.summary.bias": [1]}
        assert not [name for name in found["others"] if "v_head" in name or "pretrained_model" in name]
        return list(found["scores"])

    plain = run("ddp")
    for name, again in (("ZeRO-3", True), ("FSDP2", False)) if kind == "full" else (("FSDP2", True),):
        saving = {"save_strategy": "steps", "save_steps": 4} if again else {}
        done = run(name, **WAYS[name], **saving)
        assert done.losses == pytest.approx(plain.losses, abs=2e-3), name
        assert done.of("eval")[-1]["eval_loss"] == pytest.approx(plain.of("eval")[-1]["eval_loss"], abs=2e-3), name
        assert scores(done) == pytest.approx(scores(plain), abs=2e-2), name
        if again:
            assert run("again", done.folder / "out" / "checkpoint-4", **WAYS[name]).losses == pytest.approx(done.losses[4:], abs=1e-4)


VOWELS = """
def vowels(completions, **_):
    return [20 * sum(c[0]["content"].count(v) for v in "aeiou") / max(len(c[0]["content"]), 1) for c in completions]
"""


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_ppo_under_sharding(trainer_of_shards: Trainer, config: Config, tmp_path: Path, kind: str) -> None:
    """Answers, scores and losses are those of DDP. lora: judged by a function; full: by a whole reward model, which is spread as well,
    and so is the reference, a copy or one by name.
    """
    (tmp_path / "rewards.py").write_text(VOWELS)
    texts = [{"instruction": f"{row['instruction']} {row['output']}", "output": "aeiou nothing"} for row in SUMS]
    made = trainer_of_shards.train(config("base", texts, method={"finetuning_type": "full"}, arguments={"max_steps": 1}))
    base = {"name": "base", "path": str(made.folder / "out"), "kind": "folder"}
    method: dict[str, Any] = {"grpo": {"reward_funcs": [f"{tmp_path}/rewards.py:vowels"]}, "ppo": {"epochs": 2, "score_norm": True}}
    if kind == "full":
        given = {"max_steps": 10, "learning_rate": 0.01}
        judge = trainer_of_shards.train(
            config("rm", PAIRS, dataset=PAIR_SET, model=base, method={"stage": "rm", "finetuning_type": "full"}, arguments=given)
        )
        assert judge.code == 0, judge.output
        method = {"ppo": {"epochs": 2, "reward_model": {"name": "rm", "path": str(judge.folder / "out"), "kind": "folder"}}}

    def run(folder: str, reference: Any = None, **more: Any) -> list[tuple[float, ...]]:
        arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 3, "lr_scheduler_type": "constant",
                     "learning_rate": 0.01 if kind == "lora" else 0.002, **more}  # fmt: skip
        chosen = {"stage": "ppo", "finetuning_type": kind, **method, **({"reference": reference} if reference else {})}
        path = config(folder, model=base, method=chosen, arguments=arguments, data={"val_size": 4})
        written = json.loads(path.read_text())
        written["generation"] = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        path.write_text(json.dumps(written))
        done = trainer_of_shards.train(path, 2)
        assert done.code == 0, done.output
        assert (done.folder / "out" / "value_head.safetensors").is_file()
        found = [(step["reward"], step["kl"], step["loss"]) for step in done.of("step") if "reward" in step]
        return [*found, (done.of("eval")[-1]["eval_reward"],)]

    plain = run("ddp")
    assert abs(plain[0][1]) < 1e-3 < abs(plain[2][1])
    for name in ("ZeRO-2", "ZeRO-3") if kind == "lora" else ("ZeRO-3", "FSDP2"):
        found = run(name, base if name == "FSDP2" else None, **WAYS[name])
        assert found[0] == pytest.approx(plain[0], abs=2e-3), name
        for before, after in zip(plain[1:], found[1:], strict=True):
            assert after == pytest.approx(before, abs=2e-2), name


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_zero_3_in_half_precision(trainer_of_shards: Trainer, config: Config, stage: str) -> None:
    """An adapter is float32 beside spread weights in 16 bits; of a whole model the head is as the weights. A finished run is known."""
    rows, dataset, kind = (SUMS, {}, "lora") if stage == "sft" else (PAIRS, PAIR_SET, "full")
    made = trainer_of_shards.train(config("base", PAIRS, dataset=PAIR_SET, method={"stage": "rm", "finetuning_type": "full"},
                                          arguments={"max_steps": 1}))  # fmt: skip
    base = {"name": "base", "path": str(made.folder / "out"), "kind": "folder"}

    def run(folder: str, resume: Path | None = None, **arguments: Any) -> Done:
        given = {"per_device_train_batch_size": 2, "max_steps": 3, "bf16": True, "learning_rate": 0.005, **arguments}
        method = {"stage": stage, "finetuning_type": kind}
        training = {"speed": "off", **({"resume_from_checkpoint": str(resume)} if resume else {})}
        done = trainer_of_shards.train(
            config(folder, rows, dataset=dataset, model=base, method=method, arguments=given, training=training), 2
        )
        assert done.code == 0, done.output
        return done

    plain, spread = run("ddp"), run("zero", **WAYS["ZeRO-3"], save_strategy="steps", save_steps=3)
    assert spread.losses == pytest.approx(plain.losses, abs=2e-2)
    assert spread.of("model")[0]["parameters"] == plain.of("model")[0]["parameters"] > 100_000
    again = run("again", spread.folder / "out" / "checkpoint-3", **WAYS["ZeRO-3"])
    assert [warning["code"] for warning in again.of("warning")] == ["complete"]
    name = "adapter_model.safetensors" if kind == "lora" else "value_head.safetensors"
    assert (again.folder / "out" / name).read_bytes() == (spread.folder / "out" / name).read_bytes()
