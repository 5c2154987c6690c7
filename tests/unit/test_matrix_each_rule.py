"""Every recorded incompatibility by itself: versions that it is there to refuse. A rule that goes, or no longer bites, fails here."""

from __future__ import annotations

from typing import Any

import pytest

from fl.matrix import Stack, load
from fl.matrix_check import check
from fl.matrix_rules import findings

MATRIX = load()
CPU, NEW, OLD = "cpu-torch210", "cuda130-torch214", "cuda128-torch210"
ROCM, CANN, XPU = "rocm72-torch210", "cann91-torch210", "xpu-torch212"
CUDA_OF = [
    ("cu124", "2.6.0", "12.6"), ("cu126", "2.7.1", "12.8"), ("cu128", "2.8.0", "12.6"), ("cu130", "2.11.0", "12.8"),
    ("cu132", "2.15.0", "13.0"),
]  # fmt: skip
VISION_OF = [
    ("26", "2.6.0", "0.22.0"), ("27", "2.7.1", "0.21.0"), ("28", "2.8.0", "0.22.1"), ("29", "2.9.1", "0.25.0"), ("210", "2.10.0", "0.24.0"),
    ("211", "2.11.0", "0.25.0"), ("212", "2.12.0", "0.26.0"), ("213", "2.13.0", "0.29.0"), ("214", "2.14.0", "0.28.0"),
]  # fmt: skip
VLLM_OF = [
    ("26", "0.8.5", "2.7.0"), ("270", "0.9.2", "2.6.0"), ("271", "0.10.0", "2.7.0"), ("28", "0.11.0", "2.9.0"), ("290", "0.12.0", "2.8.0"),
    ("291", "0.15.0", "2.9.0"), ("210", "0.19.1", "2.11.0"), ("211", "0.26.0", "2.10.0"), ("213", "0.30.0", "2.11.0"),
    ("214", "0.33.0", "2.13.0"),
]  # fmt: skip
SGLANG_OF = [
    ("28", "0.5.5.post3", "2.9.1"), ("29", "0.5.10.post1", "2.8.0"), ("211", "0.5.17", "2.13.0"), ("213", "0.5.20", "2.11.0"),
    ("214", "0.5.23", "2.14.0"),
]  # fmt: skip
ASCEND_OF = [("27", "0.11.0", "2.8.0"), ("28", "0.13.0", "2.9.0"), ("29", "0.18.0", "2.10.0"), ("210", "0.23.0", "2.11.0")]
TRL_OF = [
    ("024", "0.24.0", "0.11.0"), ("026", "0.26.2", "0.12.0"), ("029", "0.29.1", "0.13.0"), ("10", "1.0.0", "0.18.0"),
    ("14", "1.4.0", "0.19.0"), ("16", "1.6.0", "0.19.1"), ("17", "1.7.1", "0.13.0"), ("18", "1.8.0", "0.15.0"),
    ("19", "1.9.2", "0.26.0"), ("110", "1.10.0", "0.27.1"), ("112", "1.12.0", "0.18.0"), ("113", "1.13.0", "0.30.0"),
    ("114", "1.14.2", "0.19.1"), ("115", "1.15.0", "0.32.0"), ("116", "1.16.0", "0.33.0"),
]  # fmt: skip
CANN_OF = [
    ("81", "2.5.1", "8.2.RC1"), ("82", "2.5.1.post1", "8.1.RC1"), ("83", "2.7.1", "8.2.RC1"), ("85", "2.8.0.post2", "8.3.RC1"),
    ("90", "2.10.0", "9.1.0"), ("91", "2.10.0.post4", "9.0.0"), ("911", "2.10.0.post6", "9.1.0"), ("92", "2.14.0", "9.1.0"),
]  # fmt: skip

CASES: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    **{f"torch-{name}": (NEW, {"torch": torch}, {"runtime": {"cuda": cuda}}) for name, torch, cuda in CUDA_OF},
    "torch-arm64-cuda": (NEW, {"torch": "2.10.0"}, {}),
    "torch-arm64-cpu": (CPU, {"torch": "2.11.0"}, {}),
    "torch-npu-amd64": (CANN, {"torch-npu": "2.10.0.post4", "torch": "2.10.0"}, {"index": None}),
    "torch-amd64-cpu": (XPU, {"torch": "2.12.1"}, {"index": None}),
    "layer-torch": (NEW, {"transformers": "5.24.0", "torch": "2.5.1"}, {}),
    "trl-ppo": (NEW, {"trl": "1.13.0"}, {}),
    "torch-python": (NEW, {"torch": "2.15.0"}, {"python": "3.10"}),
    "torch-python-26": (OLD, {"torch": "2.8.0"}, {"python": "3.14"}),
    "torch-python-25": (OLD, {"torch": "2.4.1"}, {"python": "3.13"}),
    **{f"torchvision-{name}": (NEW, {"torch": torch, "torchvision": vision}, {}) for name, torch, vision in VISION_OF},
    "torchaudio-last": (NEW, {"torchaudio": "2.12.0"}, {}),
    "torchaudio": (OLD, {"torch": "2.10.0", "torchaudio": "2.9.1"}, {}),
    "setuptools": (NEW, {"torch": "2.12.0", "setuptools": "82.0.0"}, {}),
    "setuptools-vllm": (NEW, {"vllm": "0.10.0", "setuptools": "80.0.0"}, {}),
    "setuptools-vllm-011": (NEW, {"vllm": "0.33.0", "setuptools": "81.0.0"}, {}),
    "flash-attn": (OLD, {"torch": "2.9.0", "flash-attn": "2.8.3"}, {}),
    "flash-attn-cuda": (NEW, {"torch": "2.8.0", "flash-attn": "2.8.3"}, {}),
    "flash-attn-arm64": (NEW, {"flash-attn": "2.8.3"}, {"runtime": {"cuda": "12.8"}}),
    "flash-attn-3": (NEW, {"flash-attn-3": "0.0.0"}, {}),
    "flash-attn-vendors": (XPU, {"flash-attn": "2.8.3"}, {}),
    "transformers-yanked": (NEW, {"transformers": "4.57.0"}, {}),
    "transformers5-frameworks": (NEW, {"transformers": "5.24.0", "jax": "0.4.0"}, {}),
    "transformers5-trainer": (NEW, {"transformers": "4.57.6"}, {}),
    "transformers5-peft": (NEW, {"transformers": "5.24.0", "peft": "0.17.1"}, {}),
    "transformers5-trl": (NEW, {"transformers": "5.24.0", "trl": "0.26.2"}, {}),
    "hub-4": (NEW, {"transformers": "4.57.6", "huggingface-hub": "1.0.0"}, {}),
    "hub-5": (NEW, {"transformers": "5.17.0", "huggingface-hub": "2.0.0"}, {}),
    "hub-518": (NEW, {"transformers": "5.18.0", "huggingface-hub": "3.0.0"}, {}),
    "trl115-python": (NEW, {"trl": "1.15.0"}, {"python": "3.10"}),
    "numpy1-pyarrow": (NEW, {"numpy": "1.26.4", "pyarrow": "26.0.0"}, {}),
    "llamafactory-095": (NEW, {"llamafactory": "0.9.5", "trl": "0.29.1"}, {}),
    "unsloth": (NEW, {"unsloth": "2026.10.9", "trl": "1.16.0"}, {}),
    **{f"vllm-torch-{name}": (NEW, {"vllm": vllm, "torch": torch}, {}) for name, vllm, torch in VLLM_OF},
    **{f"sglang-torch-{name}": (NEW, {"sglang": sglang, "torch": torch}, {}) for name, sglang, torch in SGLANG_OF},
    **{f"vllm-ascend-torch-{name}": (CANN, {"vllm-ascend": engine, "torch": torch}, {}) for name, engine, torch in ASCEND_OF},
    "vllm-ascend-opencv": (CANN, {"vllm-ascend": "0.18.0", "opencv-python-headless": "4.13.0.90"}, {}),
    "vllm-cuda13": (NEW, {"vllm": "0.20.2"}, {"runtime": {"cuda": "12.9"}}),
    "vllm-sglang": (NEW, {"vllm": "0.33.0", "sglang": "0.5.23"}, {}),
    "vllm-ascend": (CANN, {"vllm-ascend": "0.23.0", "vllm": "0.23.0"}, {}),
    "vllm-ascend-triton": (CANN, {"vllm-ascend": "0.23.0", "triton-ascend": "3.2.2"}, {"index": None}),
    **{f"trl-vllm-{name}": (NEW, {"trl": trl, "vllm": vllm}, {}) for name, trl, vllm in TRL_OF},
    "glibc-vllm-012": (OLD, {"vllm": "0.19.1"}, {"glibc": "2.28"}),
    "glibc-vllm-020": (NEW, {"vllm": "0.20.2"}, {"glibc": "2.34"}),
    "glibc-sglang": (NEW, {"sglang": "0.5.11"}, {"glibc": "2.31"}),
    "glibc-vllm-ascend": (CANN, {"vllm-ascend": "0.23.0"}, {"glibc": "2.31"}),
    "glibc-bnb-xpu": (XPU, {"bitsandbytes": "0.50.2"}, {"glibc": "2.31"}),
    "python-vllm-08": (OLD, {"vllm": "0.8.5"}, {"python": "3.13"}),
    "python-vllm-010": (OLD, {"vllm": "0.19.1"}, {"python": "3.14"}),
    "python-vllm-020": (NEW, {"vllm": "0.33.0"}, {"python": "3.15"}),
    "python-vllm-032": (NEW, {"vllm": "0.33.0"}, {"python": "3.10"}),
    "python-unsloth": (NEW, {"unsloth": "2026.10.9"}, {"python": "3.15"}),
    "python-vllm-ascend": (CANN, {"vllm-ascend": "0.18.0"}, {"python": "3.12"}),
    "python-vllm-ascend-023": (CANN, {"vllm-ascend": "0.23.0"}, {"python": "3.13"}),
    "deepspeed-nvcc": (NEW, {"deepspeed": "0.19.8", "nvidia-cuda-nvcc": "13.2.86"}, {}),
    "deepspeed-nvcc-12": (OLD, {"deepspeed": "0.19.8", "nvidia-cuda-nvcc": "13.0.88"}, {}),
    "cuda13-chips": (NEW, {}, {"arches": ("sm_70",)}),
    "volta-27": (OLD, {"torch": "2.7.1"}, {"arches": ("sm_70",)}),
    "pascal-cu128": (OLD, {"torch": "2.10.0"}, {"arches": ("sm_61",)}),
    "bnb-cuda": (OLD, {"bitsandbytes": "0.50.2"}, {"runtime": {"cuda": "12.9"}}),
    "bnb-rocm": (ROCM, {"bitsandbytes": "0.50.2"}, {"runtime": {"rocm": "6.3"}}),
    "bnb-rocm-049": (ROCM, {"bitsandbytes": "0.48.2"}, {}),
    "bnb-arm64": (NEW, {"bitsandbytes": "0.45.5"}, {}),
    "bnb-ascend": (CANN, {"bitsandbytes": "0.50.2"}, {}),
    "liger-vendors": (ROCM, {"liger-kernel": "0.8.5"}, {}),
    "rocm714": (ROCM, {"torch": "2.12.0"}, {"runtime": {"rocm": "7.14"}, "index": "amd-rocm", "torch_from": "index"}),
    "torch-npu-torch": (CANN, {"torch": "2.10.0", "torch-npu": "2.9.0"}, {}),
    "cann-compiler": (CANN, {"protobuf": "4.25.0"}, {}),
    **{f"cann-{name}": (CANN, {"torch-npu": npu}, {"runtime": {"cann": cann}}) for name, npu, cann in CANN_OF},
}
"""Rule → a row to start from, the pins that matter, and what else is changed of the row."""


def broken(stack: Stack, pins: dict[str, str], changes: dict[str, Any]) -> set[str]:
    """The rules that a changed row breaks."""
    glibc, arches = changes.get("glibc"), changes.get("arches")
    update = {key: value for key, value in changes.items() if key not in ("glibc", "arches")}
    if arches:
        update["hosts"] = stack.hosts.model_copy(update={"arches": arches})
    if glibc:
        update["base"] = stack.base.model_copy(update={"image": "acme/base:1"})
    system = next(iter(MATRIX.systems.values())).model_copy(update={"glibc": glibc or "2.41"})
    matrix = MATRIX.model_copy(update={"systems": {**MATRIX.systems, "acme/base": system}})
    return {rule for _, _, rule in findings(matrix, stack.model_copy(update=update), "train", pins)}


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_refuses_what_it_is_for(rule: str) -> None:
    row, pins, changes = CASES[rule]
    assert rule in broken(MATRIX.stack(row), pins, changes)


def test_every_rule_has_a_case() -> None:
    assert {one.id for one in MATRIX.incompatibilities} == {*CASES, "vllm-dropped"}


@pytest.mark.parametrize("name", ["mllama", "phi3small", "minimax"])
def test_models_that_vllm_dropped_must_say_so(name: str) -> None:
    known = MATRIX.model_type(name)
    assert known is not None and known.vllm_last is not None
    entry = next(line for line in MATRIX.text.splitlines() if f"{name}: {{" in line and "vllm_last" in line)
    text = MATRIX.text.replace(entry, entry.replace(f", vllm_last: {known.vllm_last}", ""))
    assert any(f"the last vLLM that has {name} is {known.vllm_last}, this says None" in one.message for one in check(text))


def test_the_matrix_as_it_is_breaks_none() -> None:
    for stack in MATRIX.stacks:
        assert broken(stack, MATRIX.packages(stack), {}) == set(), stack.id
