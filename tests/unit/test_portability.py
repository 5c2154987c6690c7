"""What a stack cannot do as written is changed and named, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from fl.errors import RecipeError
from fl.hardware import Accelerator, Cpu
from fl.matrix import Base, Family, Hosts, Matrix, ModelType, Stack
from fl.plan import Adaptation
from fl.portability import Precision, adapt, model_known, precision, strict_check
from fl_trainers.config import Config, Data, Method, Model, Quantization, Run, Training

FULL: dict[str, Any] = {
    "bf16": True,
    "fp16": True,
    "flash_attention": "wheel",
    "bnb_4bit": True,
    "bnb_8bit": True,
    "deepspeed": True,
    "fsdp2": True,
    "liger": True,
}
ABLE = Precision(bf16=True, fp16=True)
PACKAGES = {"torch", "transformers", "deepspeed", "bitsandbytes", "liger-kernel", "tensorboard"}


def stack(id: str = "row", lane: Any = "cuda", runtime: dict[str, str] | None = None, **features: Any) -> Stack:  # noqa: A002
    return Stack(
        id=id,
        lane=lane,
        status="edge",
        runtime=runtime or {},
        hosts=Hosts(platforms=("linux/amd64",)),
        python="3.11",
        base=Base(image="x"),
        layer="current",
        features={**FULL, **features},
        confidence="unknown",
    )


def config(model: dict[str, Any] | None = None, method: dict[str, Any] | None = None, **arguments: Any) -> Config:
    return Config(
        run=Run(name="r", lane="cuda", stack="row", events="/e"),
        model=Model(name="m", path="m", kind="hub", **(model or {})),
        data=Data(),
        method=Method(**(method or {})),
        training=Training(output_dir="/o", arguments=arguments),
    )


def test_nothing_is_changed_where_everything_is_there() -> None:
    before = config(
        {"attention": "fa2", "liger": True},
        {"pure_bf16": True},
        bf16=True,
        deepspeed={"a": 1},
        optim="paged_adamw_8bit",
        report_to=["tensorboard"],
    )
    assert adapt(before, stack(), ABLE, packages=PACKAGES) == (before, ())


def test_what_is_not_known_changes_nothing() -> None:
    before = config(
        {"attention": "fa2", "liger": True, "quantization": Quantization()},
        None,
        bf16=True,
        fp16=False,
        deepspeed={"a": 1},
        fsdp="full_shard",
    )
    assert adapt(before, stack(**dict.fromkeys(FULL)), Precision())[1] == ()


@pytest.mark.parametrize(
    ("before", "row", "numbers", "expected"),
    [
        (config({"attention": "fa2"}), stack(flash_attention="none"), ABLE, ("flash_attn", "fa2", "sdpa", "speed")),
        (config({"attention": "fa3"}), stack(flash_attention="wheel"), ABLE, ("flash_attn", "fa3", "sdpa", "speed")),
        (config({"liger": True}), stack(liger=False), ABLE, ("enable_liger_kernel", True, False, "speed")),
        (config(bf16=True), stack(bf16=False), ABLE, ("bf16", True, False, "numerics")),
        (config(bf16=True), stack(), Precision(bf16=False, fp16=True), ("bf16", True, False, "numerics")),
        (config(fp16=True), stack(), Precision(bf16=True, fp16=False), ("fp16", True, False, "numerics")),
        (config(fp16=True), stack(fp16=False), Precision(), ("fp16", True, False, "numerics")),
        (config(bf16_full_eval=True), stack(bf16=False), ABLE, ("bf16_full_eval", True, False, "numerics")),
        (config(method={"pure_bf16": True}), stack(), Precision(bf16=False), ("pure_bf16", True, False, "numerics")),
        (config(tf32=True), stack(), ABLE, ("tf32", True, None, "numerics")),
        (config(report_to=["clearml", "wandb"]), stack(), ABLE, ("report_to", ["clearml", "wandb"], ["wandb"], "none")),
        (config(report_to=["comet_ml"]), stack(), ABLE, ("report_to", ["comet_ml"], ["none"], "none")),
        (config(optim="adamw_torch_npu_fused"), stack(), ABLE, ("optim", "adamw_torch_npu_fused", "adamw_torch", "speed")),
    ],
)
def test_adaptations(before: Config, row: Stack, numbers: Precision, expected: tuple[object, ...]) -> None:
    after, (found,) = adapt(before, row, numbers, packages=PACKAGES)
    assert (found.key, found.before, found.after, found.effect) == expected
    assert found.reason
    assert after != before
    assert adapt(after, row, numbers, packages=PACKAGES) == (after, ())


def test_the_config_says_what_the_adaptation_says() -> None:
    before = config({"attention": "fa2", "liger": True}, {"pure_bf16": True}, bf16=True, tf32=True, learning_rate=1e-4)
    after, found = adapt(before, stack(flash_attention="none", liger=False, bf16=False), ABLE)
    assert (after.model.attention, after.model.liger, after.method.pure_bf16) == ("sdpa", False, False)
    assert after.training.arguments == {"bf16": False, "learning_rate": 1e-4}
    assert [a.key for a in found] == ["flash_attn", "bf16", "pure_bf16", "tf32", "enable_liger_kernel"]
    assert before.training.arguments["bf16"] is True


def test_tf32_stays_where_cuda_has_it() -> None:
    assert adapt(config(tf32=True), stack(runtime={"cuda": "13.0"}), ABLE)[1] == ()


def test_bitsandbytes_optimizers() -> None:
    for name in ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "rmsprop_bnb"):
        after, (found,) = adapt(config(optim=name), stack(), ABLE, packages={"torch"})
        assert (after.training.arguments["optim"], found.effect) == ("adamw_torch", "numerics")
    assert adapt(config(optim="adamw_torch"), stack(), ABLE, packages={"torch"})[1] == ()
    assert adapt(config(optim="lomo"), stack(), ABLE, packages=None)[1] == ()
    assert adapt(config(optim="galore_adamw_8bit"), stack(), ABLE, packages={"torch"})[1] == (), "an extra: extras.py refuses or brings it"


@pytest.mark.parametrize(
    ("before", "row", "message"),
    [
        (config({"quantization": Quantization(bits=4)}), stack(bnb_4bit=False), "quantization_bit: 4: the stack row has no bitsandbytes"),
        (config({"quantization": Quantization(bits=8)}), stack(bnb_8bit=False), "quantization_bit: 8: the stack row has no bitsandbytes"),
        (config(deepspeed={"a": 1}), stack(deepspeed=False), "deepspeed: the stack row has no DeepSpeed"),
        (config(fsdp="full_shard"), stack(fsdp2=False), "fsdp: the stack row has no FSDP"),
        (config(optim="lomo"), stack(), "lomo needs the package lomo-optim"),
    ],
)
def test_refusals(before: Config, row: Stack, message: str) -> None:
    others = (row, stack("a", "rocm"), stack("b", "xpu", bnb_4bit=None, bnb_8bit=None, deepspeed=False, fsdp2=None))
    with pytest.raises(RecipeError, match=message) as error:
        adapt(before, row, ABLE, packages=PACKAGES, stacks=others)
    if "stack row" in message:
        assert "Lanes that have it: rocm." in error.value.message
        assert error.value.remedy.startswith("fl run --hw rocm")
    assert error.value.exit_code == 5


def test_remote_code() -> None:
    before = config({"trust_remote_code": True})
    after, (found,) = adapt(before, stack(), ABLE, model_known=True)
    assert (after.model.trust_remote_code, found.key, found.effect) == (False, "trust_remote_code", "none")
    for unknown in (False, None):
        assert adapt(before, stack(), ABLE, model_known=unknown) == (before, ())


def test_models_that_transformers_knows() -> None:
    row = stack()
    families = {
        "A": Family(
            sizes="1B",
            types={"old": ModelType(transformers="4.28.0"), "new": ModelType(transformers="5.30.0"), "own": ModelType(transformers=None)},
        )
    }
    matrix = Matrix(schema=1, layers={"current": {"transformers": "5.24.0"}}, stacks=(row,), models=families)
    found = [model_known(matrix, row, name) for name in ("old", "new", "own", "other", None)]
    assert found == [True, False, False, False, None]


@pytest.mark.parametrize(
    ("arches", "features", "bf16", "fp16"),
    [
        ((), (), False, False),
        ((), ("avx2", "avx512_bf16"), True, False),
        ((), ("amx_bf16",), True, False),
        (("sm_90",), (), True, True),
        (("sm_75",), ("amx_bf16",), False, True),
        (("sm_90", "sm_70"), (), False, True),
        (("ascend910b",), (), True, True),
        (("ascend910",), (), False, True),
        (("gfx942",), (), True, True),
        ((None,), (), None, True),
        ((None, "sm_70"), (), False, True),
    ],
)
def test_precision(arches: tuple[str | None, ...], features: tuple[str, ...], bf16: bool | None, fp16: bool) -> None:
    chosen = [Accelerator(lane="cuda", index=n, arch=arch) for n, arch in enumerate(arches)]
    assert precision(chosen, Cpu(features=features)) == Precision(bf16=bf16, fp16=fp16)


def test_strict_refuses_what_touches_numerics() -> None:
    speed = Adaptation(key="flash_attn", before="fa2", after="sdpa", reason="none there", effect="speed")
    numerics = Adaptation(key="bf16", before=True, after=False, reason="no bf16", effect="numerics")
    strict_check([speed])
    with pytest.raises(RecipeError, match=r"bf16: True → False: no bf16") as error:
        strict_check([speed, numerics])
    assert error.value.exit_code == 5
    assert "flash_attn" not in error.value.message
    assert error.value.remedy.endswith("bf16=false")


def test_vllm_makes_completions_only_where_the_row_has_it() -> None:
    asks = config(method={"stage": "grpo", "grpo": {"reward_funcs": ("exact",), "backend": "vllm"}})
    rollout = stack("rollout").model_copy(update={"train": {"vllm": "0.27.1"}})
    rows = (stack(), rollout, stack("other", "rocm").model_copy(update={"train": {"vllm": "0.27.1"}}))
    with pytest.raises(RecipeError, match="needs the package vllm, which row does not have") as raised:
        adapt(asks, stack(), ABLE, packages=PACKAGES, stacks=rows)
    assert raised.value.remedy.splitlines()[0] == "--stack rollout" and "other" not in raised.value.remedy
    assert adapt(asks, rollout, ABLE, packages={*PACKAGES, "vllm"}, stacks=rows)[1] == ()
