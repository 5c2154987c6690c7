"""The 26 treacherous incompatibilities, each as a rule: a copy of the matrix that breaks it is refused with the rule's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl import paths
from fl.cli import main

TEXT = paths.MATRIX.read_text(encoding="utf-8")
PINS_130 = 'train: {torch: "2.14.0", '
PINS_128 = 'train: {torch: "2.10.0", deepspeed: "0.19.8", bitsandbytes: "0.50.2", liger-kernel: "0.8.5", flash-attn: null,'
PINS_ROCM = 'train: {torch: "2.10.0", deepspeed: "0.19.8", bitsandbytes: "0.50.2", liger-kernel: '
PINS_XPU = 'train: {torch: "2.12.1", '
SERVE_130 = 'serve: {vllm: "0.33.0", torch: "2.14.0", transformers: "5.20.2"}'
SERVE_128 = 'serve: {vllm: "0.19.1", torch: "2.10.0", transformers: "5.5.4"}'
BASE_130 = 'base: {image: "debian:trixie-slim"'

POINTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "1 the index's default CUDA": (
        'runtime: {cuda: "12.8"}', 'runtime: {cuda: "12.9"}',
        ("cuda must be ==12.8, found 12.9", "holds CUDA 12.8 builds of torch 2.8 to 2.10"),
    ),
    "1 again: 2.15": (
        PINS_130, 'train: {torch: "2.15.0", ', ("with torch 2.15.0, cuda must be ==13.2, found 13.0", "CUDA 13.2 builds of torch 2.15"),
    ),
    "2 arm64 torch becomes a CUDA build": (
        '  index: pytorch-cpu\n  train: {torch: "2.10.0", torch-npu: "2.10.0.post4"', '  train: {torch: "2.11.0", torch-npu: "2.11.0"',
        ("torch must be <2.11, found 2.11.0", "aarch64 wheels of the ordinary index are CUDA builds from 2.11 on"),
    ),
    "3 the variant: another index": (
        'torch: "2.13.0+cpu"', 'torch: "2.13.0+cu126"', ("the builds of pytorch-cpu are +cpu, not +cu126", "its METADATA does not tell"),
    ),
    "3 the variant: no index": ("  index: pytorch-cpu\n", "", ("the ordinary index has no +cpu", "its METADATA does not tell")),
    "3 the variant: another runtime": (
        "  index: pytorch-rocm72\n", "  index: pytorch-cu126\n",
        ("pytorch-cu126 has torch for cuda 12.6, the row says none", "METADATA does not tell"),
    ),
    "3 the variant: the index's runtime": (
        'runtime: {rocm: "7.2"}', 'runtime: {rocm: "7.0"}', ("pytorch-rocm72 has torch for rocm 7.2, the row says 7.0",),
    ),
    "4 serving pins torch": (
        SERVE_128, 'serve: {vllm: "0.19.1", torch: "2.11.0"}',
        ("with vllm 0.19.1, torch must be ==2.10.0, found 2.11.0", "vLLM pins torch"),
    ),
    "4 and CUDA 13": (
        SERVE_128, 'serve: {vllm: "0.20.2", torch: "2.11.0"}',
        ("cuda must be >=13, found 12.8", "from 0.20 the ordinary index's vLLM is linked to CUDA 13"),
    ),
    "5 vLLM beside SGLang": (
        SERVE_130, 'serve: {vllm: "0.33.0", sglang: "0.5.23", torch: "2.14.0"}',
        ("sglang must not be pinned, found 0.5.23", "vLLM and SGLang pin different xgrammar, tilelang and torch"),
    ),
    "5 SGLang's torch": (
        SERVE_130, 'serve: {sglang: "0.5.23", torch: "2.14.0"}',
        ("with sglang 0.5.23, torch must be ==2.14.1, found 2.14.0", "SGLang pins torch"),
    ),
    "6 vllm-ascend beside vllm": (
        SERVE_130, 'serve: {vllm: "0.23.0", vllm-ascend: "0.23.0", torch: "2.11.0"}',
        ("vllm must not be pinned, found 0.23.0", "vllm-ascend and vllm of one version ask for different torch"),
    ),
    "6 vllm-ascend's torch": (
        SERVE_130, 'serve: {vllm-ascend: "0.23.0", torch: "2.11.0"}',
        ("with vllm-ascend 0.23.0, torch must be ==2.10.0, found 2.11.0", "not the one that vLLM of the same number pins"),
    ),
    "7 torch-npu on x86_64": (
        '  index: pytorch-cpu\n  train: {torch: "2.10.0", torch-npu', '  train: {torch: "2.10.0", torch-npu',
        ("torch-npu before 2.12 asks for torch X+cpu on x86_64",),
    ),
    "8 post numbers are CANN releases": (
        'torch-npu: "2.10.0.post4"', 'torch-npu: "2.10.0.post2"',
        ("cann must be ==9.0.*, found 9.1.0", "these torch-npu belong to CANN 9.0"),
    ),
    "9 flash-attn and new torch": (
        PINS_128, PINS_128.replace("flash-attn: null", 'flash-attn: "2.8.3"'),
        ("flash-attn must not be pinned, found 2.8.3", "wheels for torch 2.4 to 2.8 only"),
    ),
    "9 the empty flash-attn-3": (PINS_130, PINS_130 + 'flash-attn-3: "0.0.0", ', ("flash-attn-3 must be !=0.0.0", "an empty placeholder")),
    "10 transformers 5 and peft": (
        'peft: "0.21.2"', 'peft: "0.16.0"',
        ("peft must be ==0.15.2 || >=0.18.0, found 0.16.0", "dies on import with transformers 5 (HybridCache)"),
    ),
    "10 transformers 5 and trl": (
        'trl: "1.12.0"', 'trl: "0.28.0"',
        ("trl must be >=0.29.1, found 0.28.0", "DPO of older trl fails with transformers 5 although SFT works"),
    ),
    "11 the trainer's transformers": (
        'transformers: "5.24.0"', 'transformers: "4.57.6"',
        ("transformers must be >=5, found 4.57.6", "written for transformers 5: BatchEncoding from chat templates"),
    ),
    "11 no TensorFlow": (
        PINS_130, PINS_130 + 'tensorflow: "2.20.0", ',
        ("tensorflow must not be pinned", "no TensorFlow and no JAX any more"),
    ),
    "12 huggingface_hub": (
        PINS_130, PINS_130 + 'huggingface-hub: "0.36.2", ',
        ("huggingface-hub must be >=1.31,<3.0, found 0.36.2", "transformers 5.18 and later needs huggingface-hub below 3"),
    ),
    "13 LLaMA-Factory": (
        PINS_130, PINS_130 + 'llamafactory: "0.9.5", ',
        ("transformers must be >=4.55.0,!=4.57.0,<=5.6.0, found 5.24.0", "llamafactory 0.9.5 caps the whole layer"),
    ),
    "14 numpy 1 and pyarrow 26": (
        'pyarrow: "25.0.1"', 'pyarrow: "26.0.1"', ("pyarrow must be <26, found 26.0.1", "pyarrow 26 needs numpy 2 without saying so"),
    ),
    "15 torchvision": (
        PINS_130, PINS_130 + 'torchvision: "0.28.0", ', ("torchvision must be >=0.29, found 0.28.0", "torchvision is bound to one torch"),
    ),
    "15 torchaudio": (PINS_130, PINS_130 + 'torchaudio: "2.14.0", ', ("torchaudio must be <=2.11.0", "torchaudio ended with 2.11.0")),
    "16 DeepSpeed's nvcc": (
        PINS_130, PINS_130 + 'nvidia-cuda-nvcc: "13.2.86", ',
        ("cuda 13.0 and nvidia-cuda-nvcc 13.2.86 must be of one minor release",
         "DeepSpeed compiles its ops at run time and takes no other nvcc"),
    ),
    "16 the base's nvcc": (
        BASE_130, 'base: {image: "nvidia/cuda:13.2.0-devel-ubuntu24.04"',
        ("cuda 13.0 and toolkit 13.2 must be of one minor release", "its list of exceptions ends with CUDA 12"),
    ),
    "17 bitsandbytes and the toolkit": (
        'runtime: {rocm: "7.2"}', 'runtime: {rocm: "10.0"}', ("rocm must be >=6.4,<8, found 10.0", "does not cross a major"),
    ),
    "17 bitsandbytes on Ascend": (
        'torch-npu: "2.10.0.post4", deepspeed: "0.19.8", bitsandbytes: null',
        'torch-npu: "2.10.0.post4", deepspeed: "0.19.8", bitsandbytes: "0.50.2"',
        ("bitsandbytes must not be pinned", "bitsandbytes has no Ascend library"),
    ),
    "18 CUDA 13's driver": (
        '{nvidia: ">=580.65.06"}', '{nvidia: ">=570"}',
        ("cuda 13.0 needs NVIDIA driver >= 580.65.06, this row allows >=570", "CUDA Toolkit release notes"),
    ),
    "18 CUDA 13's chips": (
        "arches: [sm_75, sm_80", "arches: [sm_70, sm_75, sm_80", ("sm_70 must not be listed", "CUDA 13 dropped Maxwell, Pascal and Volta"),
    ),
    "19 ROCm 7.14's packages": (
        'runtime: {rocm: "7.2"}', 'runtime: {rocm: "7.14"}', ("rocm must be pinned", "from 7.14 on torch's wheel no longer brings ROCm"),
    ),
    "19 the CUDA triton": (
        PINS_ROCM + "null", PINS_ROCM + '"0.8.5"',
        ("liger-kernel must not be pinned", "liger-kernel pulls the CUDA build of triton in"),
    ),
    "19 an old image's Python": (
        "rocm/pytorch:rocm7.2.4_ubuntu24.04_py3.12_", "rocm/pytorch:rocm7.2.4_ubuntu22.04_py3.10_", ("has Python 3.10, the row says 3.12",),
    ),
    "20 trl's window of vLLM": (
        PINS_130, PINS_130 + 'vllm: "0.33.0", ',
        ("with trl 1.12.0, vllm must be >=0.19.0,<=0.27.1, found 0.33.0", "a window of vLLM releases"),
    ),
    "20 unsloth": (
        PINS_130, PINS_130 + 'unsloth: "2026.10.9", ',
        ("transformers must be <=5.17.0", "unsloth 2026.10.9 caps trl and transformers"),
    ),
    "21 a base nobody looked at": (BASE_130, 'base: {image: "ubuntu:20.04"', ("the system of ubuntu:20.04 is not recorded",)),
    "21 glibc of the base": (
        '  ubuntu:24.04: {glibc: "2.39"', '  ubuntu:24.04: {glibc: "2.31"',
        ("with bitsandbytes 0.50.2, glibc must be >=2.34, found 2.31", "the XPU libraries in the wheel need glibc 2.34"),
    ),
    "22 withdrawn releases": ('transformers: "5.24.0"', 'transformers: "5.10.0"', ("!=5.10.0, found 5.10.0", "withdrawn releases")),
    "23 models that vLLM dropped": (
        "mllama: {transformers: 4.45.0, vllm: 0.6.2, vllm_last: 0.10.2}", "mllama: {transformers: 4.45.0, vllm: 0.6.2}",
        ("the last vLLM that has mllama is 0.10.2, this says None", "vLLM removed these architectures"),
    ),
    "24 setuptools and torch": (
        PINS_XPU, PINS_XPU + 'setuptools: "84.2.1", ', ("setuptools must be <82, found 84.2.1", "torch 2.11 and 2.12 cap setuptools"),
    ),
    "24 setuptools and vLLM": (
        SERVE_130, 'serve: {vllm: "0.33.0", torch: "2.14.0", setuptools: "82.0"}',
        ("setuptools must be >=77.0.3,<81, found 82.0", "vLLM from 0.11.2 on caps setuptools"),
    ),
    "25 Requires-Python's upper bound": (
        '  python: "3.13"\n', '  python: "3.15"\n',
        ("with vllm 0.33.0, python must be <3.15, found 3.15", "whose upper bound resolvers ignore"),
    ),
    "26 CANN's operator compiler": (
        'decorator: "5.3.1", ', "",
        ("decorator must be pinned", "CANN's operator compiler imports them, and its base images do not bring them"),
    ),
    "26 its protobuf": (
        'protobuf: "3.20.3"', 'protobuf: "6.33.5"',
        ("protobuf must be <3.21, found 6.33.5", "CANN's operator compiler imports them"),
    ),
}  # fmt: skip
"""Point → what is replaced (the first time it occurs), by what, and what must be said in one finding."""


def refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The findings of `fl matrix check`, which ended with 8."""
    file = tmp_path / "matrix.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as raised:
        main(["matrix", "check", str(file)])
    assert raised.value.code == 8
    return capsys.readouterr().err.splitlines()


def test_every_point_has_its_rule() -> None:
    assert {int(name.split()[0]) for name in POINTS} == set(range(1, 27))


@pytest.mark.parametrize("point", POINTS)
def test_a_matrix_that_breaks_a_point_is_refused(point: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after, expected = POINTS[point]
    assert before in TEXT
    assert before != after
    findings = refused(TEXT.replace(before, after, 1), tmp_path, capsys)
    assert any(all(part in line for part in expected) for line in findings), findings
