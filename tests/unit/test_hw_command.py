"""`fl hw` as a user runs it, and detection against the corpus of recorded hosts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hosts import RECORDS, kfd_partitions, make, pci, recorded, seen

from fl.commands.hw import hw
from fl.detect import detect, open_host

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    result = CliRunner().invoke(hw, arguments, env=environment, catch_exceptions=False)
    return result.exit_code, result.stdout


def test_json_is_one_document_of_schema_1() -> None:
    code, out = run("--json", "--replay", str(RECORDS / "h100x8-driver580"))
    value = json.loads(out)
    assert code == 0 and value["schema"] == 1
    assert [(a["index"], a["arch"], a["usable"], a["busy"]) for a in value["accelerators"]] == [
        (n, "sm_90", True, n == 1) for n in range(8)
    ]
    assert value["drivers"] == {"nvidia": {"version": "580.95.05", "max_cuda": "13.0"}}
    assert value["problems"] == []
    assert all(a["evidence"] for a in value["accelerators"])


def test_fl_replay_is_honoured_and_no_accelerator_is_no_error() -> None:
    code, out = run(FL_REPLAY=str(RECORDS / "cpu-only"))
    assert code == 0 and "no accelerator" in out and "Xeon" in out


def test_problems_come_with_their_remedy() -> None:
    _, out = run("--replay", str(RECORDS / "mi210x2-no-permission"))
    assert "no-permission" in out and "usermod -aG render" in out and "gfx90a" in out


def test_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    listed = "GPU 0: NVIDIA \x1b]0;owned\x07\x1b[2JH100 (UUID: GPU-11111111-2222-3333-4444-555555555555)\n"
    folder = make(tmp_path / "r", nodes={"/dev/nvidia0": {}, "/dev/nvidiactl": {}}, commands=[(["nvidia-smi", "-L"], 0, listed)])
    _, out = run("--replay", str(folder))
    assert "\x1b" not in out and "\x07" not in out and "H100" in out


def test_recording_a_replay_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fl", "hw", "--json", "--replay", str(RECORDS / "cpu-only"), "--record", str(tmp_path / "r")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and json.loads(done.stdout)["error"]["exit"] == 2
    assert not (tmp_path / "r").exists()


def test_record_then_replay_gives_the_same_answer(tmp_path: Path) -> None:
    code, live = run("--json", "--record", str(tmp_path / "r"), "--keep-ids")
    assert code == 0
    _, again = run("--json", "--replay", str(tmp_path / "r"))
    one, two = json.loads(live), json.loads(again)
    assert {**one, "elapsed_ms": 0} == {**two, "elapsed_ms": 0}


def test_sixty_four_partitions_in_fifty_milliseconds(tmp_path: Path) -> None:
    files, nodes = kfd_partitions(8, 8)
    folder = make(tmp_path / "r", files, nodes)
    costs = []
    for _ in range(5):
        host = open_host(folder)
        begin = time.process_time()
        hardware = detect(host)
        costs.append(time.process_time() - begin)
    assert len(hardware.accelerators) == 64 and all(a.usable and a.partition for a in hardware.accelerators)
    assert len({a.nodes for a in hardware.accelerators}) == 64
    assert min(costs) <= 0.050


def test_two_lanes_are_both_listed() -> None:
    assert [(a.lane, a.usable) for a in recorded("two-lanes").accelerators] == [("cuda", True), ("ascend", True)]


def test_one_broken_source_hides_no_device(tmp_path: Path) -> None:
    files = {**pci("0000:01:00.0", 0x10DE, 0x2684, 0x030000, "nvidia"), "/sys/module/nvidia/version": b"\xff\xfe\x00" * 1000}
    hardware = seen(
        make(tmp_path / "r", files, {"/dev/nvidia0": {}, "/dev/nvidiactl": {}}, [(["nvidia-smi", "-q", "-x"], 0, "<nvidia_smi_log><gpu")])
    )
    assert [a.arch for a in hardware.accelerators] == ["sm_89"]
    assert "redacted-or-malformed" in {p.code for p in hardware.problems}


@pytest.mark.skipif(not (CORPUS / "score.py").is_file(), reason="the corpus of recorded hosts is not beside the checkout")
def test_the_corpus_passes() -> None:
    done = subprocess.run(
        [sys.executable, str(CORPUS / "score.py"), "--command", f"{sys.executable} -m fl hw --json --replay {{dir}}", str(CORPUS)],
        capture_output=True,
        text=True,
    )
    failed = [line for line in done.stdout.splitlines() if not line.startswith("pass")]
    last = failed[-1].split()
    assert last[0] == last[2] and int(last[0]) >= 36, "\n".join(failed)


def test_what_the_environment_withholds_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr("fl.detect.detect", lambda host: replace(recorded("h100x8-driver580"), replayed=False))
    _, out = run(CUDA_VISIBLE_DEVICES="2,5")
    assert out.splitlines()[-1] == "CUDA_VISIBLE_DEVICES=2,5 leaves devices 2, 5 of the lane cuda" and len(out.splitlines()) > 9


def test_the_record_of_a_real_h100_says_what_nvidia_smi_said() -> None:
    """Beside it: `nvidia-smi --query-gpu=index,name,memory.total,pci.bus_id,driver_version,compute_cap,mig.mode.current,numa`."""
    found = recorded("h100-live")
    (gpu,) = found.accelerators
    index, name, memory, address, driver, capability, mig = [
        "0",
        "NVIDIA H100 80GB HBM3",
        "81559 MiB",
        "00000000:00:06.0",
        "580.159.04",
        "9.0",
        "Disabled",
    ]
    assert gpu.index == int(index)
    assert gpu.name == name
    assert f"{gpu.memory_mib} MiB" == memory
    assert gpu.pci == address.removeprefix("0000")
    assert found.drivers["nvidia"] == {"version": driver, "max_cuda": "13.0"}
    assert gpu.arch == "sm_" + capability.replace(".", "")
    assert gpu.partition is None and mig == "Disabled"
    assert (gpu.usable, gpu.busy) == (True, False)
    assert found.problems == ()
