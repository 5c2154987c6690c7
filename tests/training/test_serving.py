"""What was trained is read by what a row serves with. vLLM's kernels need a GPU; the code that reads adapters does not, and runs here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.training.trainer_harness import Trainer

from fl import matrix
from fl.engines import installer
from fl.images import lock

pytestmark = pytest.mark.training
Config = Callable[..., Path]
HERE = Path(__file__).resolve().parent
ROW = "cuda130-torch213-rollout"
READS = (
    "vllm", "aiohappyeyeballs", "aiohttp", "aiosignal", "astor", "attrs", "blake3", "cachetools", "cbor2", "cloudpickle",
    "compressed-tensors", "depyf", "dill", "fastapi", "frozenlist", "jiter", "msgspec", "multidict", "openai", "openai-harmony",
    "partial-json-parser", "prometheus-client", "propcache", "py-cpuinfo", "pybase64", "pyzmq", "sentencepiece",
    "setproctitle", "sniffio", "starlette",
    "tiktoken", "yarl",
)  # fmt: skip
"""Distributions of the row's lock without which vLLM's reader of adapters does not import. torch and transformers are the trainer's."""


@pytest.fixture(scope="module")
def vllm(train_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the row's vLLM, every hash checked, beside the trainer's environment: the row has the same torch and layer."""
    rows = matrix.load()
    row = rows.stack(ROW)
    assert rows.packages(row)["transformers"] == rows.packages(rows.stack("cpu-torch213"))["transformers"]
    assert rows.packages(row)["torch"] == rows.packages(rows.stack("cpu-torch213"))["torch"].partition("+")[0]
    file = lock.path(ROW, "train", "linux/amd64")
    assert file is not None
    entries = lock.entries(file.read_text(encoding="utf-8"))
    folder = tmp_path_factory.mktemp("vllm")
    wanted = folder / "wanted.txt"
    wanted.write_text("".join(entries[name] for name in READS if name in entries), encoding="utf-8")
    command = [installer.uv_binary(), "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--python", str(train_python), "--target", str(folder / "site"), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=installer.uv_settings())
    if done.returncode and ("error sending request" in done.stderr or "dns error" in done.stderr):
        pytest.skip("vLLM cannot be fetched here")
    assert done.returncode == 0, done.stderr
    return folder / "site"


def read(python: Path, vllm: Path, adapter: Path, rank: int) -> subprocess.CompletedProcess[str]:
    """The adapter as vLLM reads it."""
    paths = os.pathsep.join(str(one) for one in (vllm, HERE))
    environment = {**os.environ, "PYTHONPATH": paths, "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "CRITICAL"}
    command = [str(python), str(HERE / "vllm_reads.py"), str(adapter), json.dumps(list(range(5, 25))), str(rank)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


KINDS: list[dict[str, Any]] = [{"target": ["all"]}, {"rslora": True, "rank": 4, "target": ["q_proj", "v_proj", "down_proj"]}]


@pytest.mark.parametrize("lora", KINDS, ids=["all", "rslora"])
def test_an_adapter_is_read_by_the_row_s_vllm(
    trainer: Trainer, config: Config, train_python: Path, vllm: Path, lora: dict[str, Any]
) -> None:
    path = config(method={"lora": lora})
    done = trainer.train(path)
    assert done.code == 0, done.output
    answer = read(train_python, vllm, path.parent / "out", 8)
    assert answer.returncode == 0, answer.stderr[-2000:]
    told = json.loads(answer.stdout.splitlines()[-1])
    assert told["vllm"] == matrix.load().stack(ROW).train["vllm"]
    assert told["trained"] > 0.01, "the adapter changes the answers"
    assert told["difference"] < 1e-4 * max(1.0, told["trained"])
    assert told["ranks"] == [lora.get("rank", 8)]


def test_what_vllm_cannot_serve_it_says(trainer: Trainer, config: Config, train_python: Path, vllm: Path) -> None:
    path = config(method={"lora": {"rank": 16}})
    assert trainer.train(path).code == 0
    answer = read(train_python, vllm, path.parent / "out", 8)
    assert answer.returncode != 0 and "LoRA rank 16 is greater than max_lora_rank 8" in answer.stderr
