"""`fl matrix list | show | check | explain`, through the program's entry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fl import paths
from fl.cli import main
from fl.hardware import Accelerator, Hardware
from fl.matrix import load

TEXT = paths.MATRIX.read_text(encoding="utf-8")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as raised:
        main(["matrix", *arguments])
    captured = capsys.readouterr()
    code = raised.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["stack", "lane", "status", "runtime", "torch", "python", "driver", "confidence"]
    assert [line.split()[0] for line in lines[1:]] == [s.id for s in load().stacks]
    assert "nvidia >=580.65.06" in next(line for line in lines if line.startswith("cuda130-torch214"))


def test_list_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "--json")
    document = json.loads(out)
    assert (code, document["schema"], document["matrix_sha256"]) == (0, 1, load().sha256)
    row = next(s for s in document["stacks"] if s["id"] == "cuda130-torch214")
    assert row["hosts"]["driver"] == {"nvidia": ">=580.65.06"}
    assert row["packages"]["transformers"] == "5.24.0"


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "rocm72-torch210")
    assert code == 0
    parts = ("rocm72-torch210", "gfx942", "rocm/pytorch:rocm7.2.4", "the base image", "transformers 5.24.0", "not checked", "hipcc")
    assert [part for part in parts if part not in out] == []
    code, out, _ = run(capsys, "show", "cpu-torch213", "--json")
    document = json.loads(out)
    assert (document["id"], document["confidence"], document["packages"]["torch"]) == ("cpu-torch213", "verified", "2.13.0+cpu")


def test_show_of_an_unknown_id(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "show", "cuda13-torch214")
    assert (code, out) == (4, "")
    assert "no stack is called 'cuda13-torch214'. Did you mean cuda130-torch214?" in err
    code, out, _ = run(capsys, "show", "cuda13-torch214", "--json")
    assert code == 4
    assert json.loads(out)["error"]["exit"] == 4


def test_check_of_the_shipped_matrix_in_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "fl", "matrix", "check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing is wrong" in done.stdout


def test_check_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", "--json")
    assert code == 0
    assert json.loads(out)["findings"] == []


PINS_130 = 'train: {torch: "2.14.0", deepspeed: "0.19.8", bitsandbytes: "0.50.2", liger-kernel: "0.8.5", flash-attn: null,'
PINS_91 = 'train: {torch: "2.10.0", torch-npu: "2.10.0.post4", deepspeed: "0.19.8", bitsandbytes: null,'
CPU_SOURCES = TEXT[TEXT.index("    pins: "):TEXT.index("  confidence: verified\n")]

MANY = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
"""A text of nine lines that would be a thousand million values."""
BROKEN: dict[str, tuple[str, str, str]] = {
    "chip of a driver": ("sm_103: {runtime", "H100: {runtime", "'H100' is not a chip's name"),
    "driver of a chip": ('runtime: "13.0", driver: "570"', 'runtime: "13.0", driver: "R570"', "'R570' is not a driver version"),
    "newest driver": ('"8.5.0": "25.5"', '"8.5.0": "latest"', "'latest' is not a driver version"),
    "forward field": ('package: "cuda-compat', 'packages: "cuda-compat', "unknown field 'packages'. Did you mean package?"),
    "unknown field of a row": ("  lane: cuda\n", "  lane: cuda\n  pythons: 3\n", "unknown field 'pythons'. Did you mean python?"),
    "unknown field of hosts": ("    arches: [sm_75,", "    archs: [sm_75,", "unknown field 'archs'. Did you mean arches?"),
    "unknown field of the file": ("schema: 1\n", "schema: 1\nstack: []\n", "unknown field 'stack'. Did you mean stacks?"),
    "missing field": ("  confidence: verified\n", "", "the field 'confidence' is missing"),
    "another schema": ("schema: 1\n", "schema: 2\n", "line 14, schema: '2' is not one of 1"),
    "duplicate id": ("- id: cuda128-torch210", "- id: cuda130-torch214", "the id cuda130-torch214 is given twice"),
    "duplicate key": ('  python: "3.13"\n', '  python: "3.13"\n  python: "3.12"\n', "'python' is given twice, first on line "),
    "not YAML": ('  python: "3.13"\n', '  python: "3.13\n', "not YAML: "),
    "an alias inside its anchor": ("schema: 1\n", "schema: 1\nloop: &a [*a]\n", "line 15: an anchor holds an alias of itself"),
    "aliases of aliases": ("schema: 1\n", f"schema: 1\n{MANY}", "line 20: aliases make more than 1000000 values of it"),
    "a tab": ('  python: "3.13"\n', '\tpython: "3.13"\n', "not YAML: "),
    "a number": ('  python: "3.13"\n', "  python: 3.10\n", "3.1 is a number here, and YAML drops its last zeros"),
    "unknown lane": ("  lane: rocm\n", "  lane: rcom\n", "'rcom' is not one of cuda, rocm, ascend, xpu, cpu. Did you mean rocm?"),
    "unknown status": ("  status: lts\n", "  status: proven\n", "'proven' is not one of stable, lts, edge, retired"),
    "unknown confidence": ("  confidence: verified\n", "  confidence: verifed\n", "Did you mean verified?"),
    "malformed version": ('torch: "2.14.0", deepspeed', 'torch: "2.14.x", deepspeed', "'2.14.x' is not a version"),
    "a range as pin": ('torch: "2.14.0", deepspeed', 'torch: ">=2.14", deepspeed', "'>=2.14' is not a version"),
    "malformed version of the layer": ('trl: "1.12.0"', 'trl: "1.12.0.."', "layers.current.trl: '1.12.0..' is not a version"),
    "malformed version of a model": ("qwen3: {transformers: 4.51.0,", "qwen3: {transformers: 4.51.O,", "'4.51.O' is not a version"),
    "malformed specifier of a rule": ('{torch: ">=2.5,<2.7"}', '{torch: ">=2.5,2.7<"}', "'>=2.5,2.7<' is not a version specifier"),
    "a rule that forbids nothing": (" same: [torch, torch-npu],", "", "the rule torch-npu-torch forbids nothing"),
    "malformed driver range": ('{nvidia: ">=580.65.06"}', '{nvidia: "580.65.06+"}', "'580.65.06+' is not a driver specifier"),
    "malformed floor": ('"13": "580.65.06"}', '"13": "580.x"}', "'580.x' is not a driver version"),
    "driver below the floor": (
        '{nvidia: ">=580.65.06"}', '{nvidia: ">=570.26"}', "cuda 13.0 needs NVIDIA driver >= 580.65.06, this row allows >=570.26",
    ),
    "no driver range": (
        '    driver: {nvidia: ">=525.60.13"}\n', "", "cuda 12.8 needs NVIDIA driver >= 525.60.13, this row allows any",
    ),
    "only an upper bound": (
        '{nvidia: ">=525.60.13"}', '{nvidia: "<600"}', "cuda 12.8 needs NVIDIA driver >= 525.60.13, this row allows <600",
    ),
    "HDK below the floor": ('{ascend: ">=25.2"}', '{ascend: ">=25.0"}', "cann 9.1.0 needs Ascend driver (HDK) >= 25.2"),
    "runtime without a floor": ('runtime: {cann: "9.1.0"}', 'runtime: {cann: "9.3.0"}', "no driver floor is recorded for cann 9.3.0"),
    "unknown driver": ('{ascend: ">=25.2"}', '{asend: ">=25.2"}', "unknown driver 'asend'. Did you mean ascend?"),
    "unknown runtime": ('runtime: {cuda: "13.0"}', 'runtime: {cdua: "13.0"}', "unknown runtime 'cdua'. Did you mean cuda?"),
    "unknown layer": ("  layer: current\n", "  layer: curent\n", "unknown layer 'curent'. Did you mean current?"),
    "unknown index": ("  index: pytorch-xpu\n", "  index: pytorch-xpus\n", "unknown index 'pytorch-xpus'. Did you mean pytorch-xpu?"),
    "index and base": (
        "  torch_from: base\n",
        "  torch_from: base\n  index: pytorch-rocm72\n",
        "torch comes from the base image, and an index is named too",
    ),
    "id of another runtime": (
        "- id: cuda128-torch210", "- id: cuda126-torch210", "the id 'cuda126-torch210' does not name runtime and torch",
    ),
    "id of another torch": ("- id: cuda128-torch210", "- id: cuda128-torch211", "call it cuda128-torch210, with one word more"),
    "id of another form": ("- id: cpu-torch213", "- id: CPU torch 2.13", "the id 'CPU torch 2.13' does not name runtime and torch"),
    "unknown platform": (
        "platforms: [linux/amd64, linux/arm64]",
        "platforms: [linux/amd64, linux/arm]",
        "unknown platform 'linux/arm'. Did you mean linux/arm64?",
    ),
    "platform without a row": ("arches_on: {linux/arm64:", "arches_on: {linux/riscv64:", "unknown platform 'linux/riscv64'"),
    "chip's name": ("arches: [gfx90a, gfx942,", "arches: [gfx90a, MI300X,", "'MI300X' is not a chip's name"),
    "no chips": ("    arches: [gfx90a, gfx942, gfx950, gfx1100, gfx1200, gfx1201]\n", "", "must say which chips it has code for"),
    "python's form": ('  python: "3.13"\n', '  python: "3.13.1"\n', "'3.13.1' is not a Python release"),
    "digest's form": (
        'image: "debian:trixie-slim", digest: null', 'image: "debian:trixie-slim", digest: "sha256:12"', "'sha256:12' is not a digest",
    ),
    "serving image's digest": (
        'vllm-openai-rocm:v0.31.0", digest: null', 'vllm-openai-rocm:v0.31.0", digest: "sha256:12"', "'sha256:12' is not a digest",
    ),
    "serving image of no known system": (
        'serve_base: {image: "vllm/vllm-openai-rocm:v0.31.0"', 'serve_base: {image: "acme/serve:1"',
        "the system of acme/serve:1 is not recorded",
    ),
    "serving image of another Python": (
        'serve_base: {image: "vllm/vllm-openai-rocm:v0.31.0"', 'serve_base: {image: "rocm/vllm:ubuntu24.04_py3.14"',
        "has Python 3.14, the row says 3.12",
    ),
    "serving image without an engine": (
        '  serve: {vllm: "0.31.0", torch: "2.13.0", transformers: "5.14.1"}\n', "", "a serving image is named, but not what it serves with",
    ),
    "serving image's field": ('serve_base: {image: "vllm', 'serve_base: {imag: "vllm', "unknown field 'imag'. Did you mean image?"),
    "trainer's package": ('gguf: "0.19.0", matplotlib: "3.11.2", pydantic', 'matplotlib: "3.11.2", pydantic', "gguf is not pinned"),
    "unknown feature": ("triton: false}", "tritn: false}", "unknown feature 'tritn'. Did you mean triton?"),
    "missing feature": (", triton: false}", "}", "the feature 'triton' is missing"),
    "feature's value": ("features: {bf16: true", "features: {bf16: maybe", "'maybe' is not a value of bf16"),
    "attention's value": ("flash_attention: none", "flash_attention: kernel", "unknown kind of attention 'kernel'. Did you mean kernels?"),
    "attention without its wheel": (
        "flash_attention: none", "flash_attention: wheel", "flash_attention needs flash-attn, which this row does not pin",
    ),
    "feature without its package": (
        "liger: false, triton: false}", "liger: true, triton: false}", "liger needs liger-kernel, which this row does not pin",
    ),
    "verified without sources": (CPU_SOURCES, "    torch: somewhere\n", "verified, but sources has no pins"),
    "empty source": (
        '    driver: "NVIDIA CUDA Toolkit release notes 13.2 U2, minor version compatibility"', '    driver: ""', "the source is empty",
    ),
    "a layer without a source": ("  layers.current: {source", "  layers.curent: {source", "nothing says where layers.current comes from"),
    "a source of no table": (
        "  layers.current: {source", "  layers.curent: {source", "unknown table 'layers.curent'. Did you mean layers.current?",
    ),
    "models without a source": ("  models: {source", "  layers.other: {source", "nothing says where models comes from"),
    "a table's source is empty": (
        '  models: {source: "first', '  models: {source: "", confidence: documented} #', "claims.models.source: the source is empty",
    ),
    "feature of the table": ("  fsdp2:\n", "  fdsp2:\n", "unknown feature 'fdsp2'. Did you mean fsdp2?"),
    "feature missing in the table": ("  fsdp2:\n", "  fdsp2:\n", "the feature 'fsdp2' is missing"),
    "a lane's claims without a source": (
        "fully_shard of torch\"\n    sources: {cpu:", "fully_shard of torch\"\n    sources: {xpu:",
        "stacks.cpu-torch213.features.fsdp2: nothing says where 'fsdp2' comes from",
    ),
    "stable without proof": ("  status: edge\n", "  status: stable\n", "stable needs proof, and the confidence is inferred"),
    # Pins that break a recorded incompatibility
    "peft and transformers 5": (
        'peft: "0.21.2"', 'peft: "0.17.1"', "with transformers 5.24.0, peft must be ==0.15.2 || >=0.18.0, found 0.17.1",
    ),
    "trl and transformers 5": ('trl: "1.12.0"', 'trl: "0.24.0"', "trl must be >=0.29.1, found 0.24.0"),
    "withdrawn transformers": ('transformers: "5.24.0"', 'transformers: "5.10.0"', "withdrawn releases"),
    "torch and the index's CUDA": (
        'runtime: {cuda: "13.0"}', 'runtime: {cuda: "13.2"}', "with torch 2.14.0, cuda must be ==13.0, found 13.2",
    ),
    "torch too old for the layer": (
        'torch: "2.6.0", torch-npu: "2.6.0"', 'torch: "2.5.1", torch-npu: "2.5.1.post1"', "torch must be >=2.6, found 2.5.1",
    ),
    "python too old for the layer": ('  python: "3.13"\n', '  python: "3.10"\n', "python must be >=3.11, found 3.10"),
    "flash-attn and torch 2.14": (
        PINS_130, PINS_130.replace("flash-attn: null", 'flash-attn: "2.8.3"'), "flash-attn must not be pinned, found 2.8.3",
    ),
    "torchvision": (PINS_130, PINS_130 + ' torchvision: "0.27.0",', "torchvision must be >=0.29, found 0.27.0"),
    "cpu torch of the ordinary index": ("  index: pytorch-cpu\n", "", "x86_64 wheels of the ordinary index are CUDA builds"),
    "arm64 torch of the ordinary index": (
        "    platforms: [linux/amd64]\n    arches: [sm_70,",
        "    platforms: [linux/amd64, linux/arm64]\n    arches: [sm_70,",
        "torch must be >=2.11, found 2.10.0",
    ),
    "torch-npu of another torch": (
        'torch-npu: "2.10.0.post4"', 'torch-npu: "2.11.0"', "torch 2.10.0 and torch-npu 2.11.0 must be of one release",
    ),
    "torch-npu of another CANN": (
        'torch-npu: "2.10.0.post4"', 'torch-npu: "2.10.0.post2"', "with torch-npu 2.10.0.post2, cann must be ==9.0.*, found 9.1.0",
    ),
    "bitsandbytes on Ascend": (
        PINS_91, PINS_91.replace("bitsandbytes: null", 'bitsandbytes: "0.50.2"'), "bitsandbytes has no Ascend library",
    ),
    "bitsandbytes and old ROCm": ('runtime: {rocm: "7.2"}', 'runtime: {rocm: "6.3"}', "rocm must be >=6.4,<8, found 6.3"),
    "liger on ROCm": (
        'train: {torch: "2.10.0", deepspeed: "0.19.8", bitsandbytes: "0.50.2", liger-kernel: null',
        'train: {torch: "2.10.0", deepspeed: "0.19.8", bitsandbytes: "0.50.2", liger-kernel: "0.8.5"', "liger-kernel must not be pinned",
    ),
    "ROCm 7.14 without its distribution": ('runtime: {rocm: "7.2"}', 'runtime: {rocm: "7.14"}', "with rocm 7.14, rocm must be pinned"),
    "numpy 1 and pyarrow 26": ('pyarrow: "25.0.1"', 'pyarrow: "26.0.1"', "with numpy 1.26.4, pyarrow must be <26, found 26.0.1"),
    "Volta on CUDA 13": ("arches: [sm_75,", "arches: [sm_70, sm_75,", "with cuda 13.0, sm_70 must not be listed"),
    "vLLM of another torch": (
        'vllm: "0.33.0", torch: "2.14.0"', 'vllm: "0.33.0", torch: "2.13.0"', "with vllm 0.33.0, torch must be ==2.14.0, found 2.13.0",
    ),
    "vLLM beside SGLang": (
        'serve: {vllm: "0.33.0",', 'serve: {sglang: "0.5.23", vllm: "0.33.0",', "sglang must not be pinned, found 0.5.23",
    ),
    "vLLM of CUDA 13 on CUDA 12": ('vllm: "0.19.1", torch: "2.10.0"', 'vllm: "0.20.0", torch: "2.10.0"', "cuda must be >=13, found 12.8"),
}
"""What is replaced (the first time it occurs), by what, and what must be said."""


@pytest.mark.parametrize("kind", BROKEN)
def test_check_refuses(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after, expected = BROKEN[kind]
    assert before in TEXT
    file = tmp_path / "matrix.yaml"
    file.write_text(TEXT.replace(before, after, 1), encoding="utf-8")
    code, out, err = run(capsys, "check", str(file))
    assert (code, out) == (8, "")
    finding = next((line for line in err.splitlines() if expected in line), None)
    assert finding, err
    assert finding.strip().startswith("line ")


def test_check_tells_every_finding_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "matrix.yaml"
    text = TEXT.replace('peft: "0.21.2"', 'peft: "0.16.0"').replace('{nvidia: ">=525.60.13"}', '{nvidia: ">=470"}')
    file.write_text(text, encoding="utf-8")
    code, _, err = run(capsys, "check", str(file))
    line = TEXT[: TEXT.index('{nvidia: ">=525.60.13"}')].count("\n") + 1
    assert code == 8
    assert f"line {line}, stacks.cuda128-torch210.hosts.driver.nvidia: cuda 12.8 needs NVIDIA driver >= 525.60.13" in err
    assert err.count("peft must be") == len(load().stacks)


def test_check_of_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "check", str(tmp_path / "nowhere.yaml"))
    assert code == 8
    assert "cannot be read" in err
    (tmp_path / "latin.yaml").write_bytes(b"schema: 1 # \xe9\n")
    code, _, err = run(capsys, "check", str(tmp_path / "latin.yaml"))
    assert code == 8
    assert "not UTF-8" in err
    (tmp_path / "empty.yaml").write_bytes(b"")
    assert run(capsys, "check", str(tmp_path / "empty.yaml"))[0] == 8
    (tmp_path / "list.yaml").write_bytes(b"- 1\n")
    assert run(capsys, "check", str(tmp_path / "list.yaml"))[0] == 8


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an H100 and an old driver."""
    card = Accelerator(lane="cuda", index=0, name="NVIDIA H100", arch="sm_90")
    hardware = Hardware(os="linux", arch="x86_64", accelerators=(card,), drivers={"nvidia": {"version": "535.54.03"}})
    monkeypatch.setattr("fl.detect.open_host", lambda replay: None)
    monkeypatch.setattr("fl.detect.detect", lambda host: hardware)


@pytest.mark.usefixtures("h100")
def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain")
    assert code == 0
    assert out.startswith("cuda: 1 x NVIDIA H100")
    assert "  cuda130-torch214: refused\n    needs NVIDIA driver >= 580.65.06, this machine has 535.54.03" in out
    assert "  cuda128-torch210: chosen" in out
    assert "note: cuda 12.8 runs on NVIDIA driver 535.54.03 by minor version compatibility" in out
    assert "  cpu-torch213: chosen" in out
    others = ", ".join(stack.id for stack in load().stacks if stack.lane == "rocm")
    assert f"rocm: this machine has no AMD device ({others})" in out


@pytest.mark.usefixtures("h100")
def test_explain_has_every_stack(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "explain", "--json")
    document: dict[str, Any] = json.loads(out)
    assert {v["stack"] for v in document["verdicts"]} == {stack.id for stack in load().stacks}
    assert all(v["why"] for v in document["verdicts"])


@pytest.mark.usefixtures("h100")
def test_explain_json_and_one_lane(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", "--hw", "cuda", "--json")
    document: dict[str, Any] = json.loads(out)
    assert code == 0
    assert [(v["stack"], v["chosen"]) for v in document["verdicts"]] == [
        (stack.id, stack.id == "cuda128-torch210") for stack in load().stacks if stack.lane == "cuda"
    ]
    code, _, err = run(capsys, "explain", "--hw", "cdua")
    assert code == 2
    assert "Did you mean cuda?" in err
