"""Known error texts: which cause each one has, what is not to be advised, and where the launcher names them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl import launch
from fl.causes import _KNOWN, explain
from fl.engines import Ended
from fl.engines.docker_errors import explain_pull, explain_start
from fl.errors import EngineError, HardwareError, ImageError, TrainingError
from fl.lanes import LANES

Fl = Callable[..., "subprocess.CompletedProcess[str]"]
CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
TORCH = "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices()? "

TEXTS = [
    ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.126", "driver-library-mismatch"),
    ("nvidia-container-cli: initialization error: nvml error: driver/library version mismatch: unknown", "driver-library-mismatch"),
    ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "no-driver"),
    ("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.", "no-nvml"),
    ("Failed to initialize NVML: Unknown Error", "nvml-unknown"),
    ("nvidia-container-cli: detection error: nvml error: unknown error: unknown", "nvml-unknown-gpu"),
    ("nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please update your driver", "cuda-requirement"),
    ('docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].', "no-toolkit"),
    ("docker: Error response from daemon: unknown or invalid runtime name: nvidia.", "no-toolkit"),
    ("nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open", "toolkit-no-driver"),
    ("nvidia-container-cli: device error: 7: unknown device", "unknown-gpu"),
    ("Error: crun: error stat'ing file `/usr/lib64/libEGL_nvidia.so.565.77`: No such file or directory", "stale-cdi"),
    ("failed to stat CDI host device: stat /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15: no such file or directory", "stale-cdi"),
    ("Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=0", "cdi-unknown-device"),
    ("CDI device injection failed: failed to inject devices", "cdi-unknown-device"),
    (TORCH + "Error 802: system not yet initialized", "system-not-ready"),
    (TORCH + "Error 803: system has unsupported display driver / cuda driver combination", "system-driver-mismatch"),
    (TORCH + "Error 804: forward compatibility was attempted on non supported HW", "forward-compat"),
    ("CUDA driver error: the provided PTX was compiled with an unsupported toolchain.", "ptx-too-new"),
    ("Triton Error [CUDA]: error 222", "ptx-too-new"),
    ("The NVIDIA driver on your system is too old (found version 11040).", "driver-too-old"),
    ("CUDA error: all CUDA-capable devices are busy or unavailable", "exclusive-mode"),
    ("CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env", "no-uvm"),
    ("RuntimeError: No CUDA GPUs are available", "no-device"),
    ("CUDA initialization: CUDA error: 999", "no-uvm"),
    ("cudaGetDeviceCount failed with error 35", "driver-too-old"),
    ("failed to discover GPU vendor from CDI: no known GPU vendor found", "no-toolkit"),
    ("NVRM: Xid (PCI:0000:1a:00): 79, pid='<unknown>', GPU has fallen off the bus.", "gpu-lost"),
    ("Unable to determine the device handle for GPU 0000:1A:00.0: Unknown Error", "gpu-lost"),
    ("CUDA error: uncorrectable ECC error encountered", "ecc"),
    ("CUDA error: no kernel image is available for execution on the device", "no-code"),
    ("Unable to open /dev/kfd read-write: Permission denied", "kfd-permission"),
    ("Unable to open /dev/kfd read-write: Invalid argument", "kfd-refused"),
    ("ROCk module is NOT loaded, possibly no GPU devices", "kfd-missing"),
    ("Memory access fault by GPU node-1 (Agent handle: 0x5f) on address 0x7f. Reason: Unknown.", "wrong-gfx-override"),
    ("HIP error: invalid device function", "no-code-amd"),
    ("RuntimeError: No HIP GPUs are available", "no-device-amd"),
    ("docker: Error response from daemon: Unable to find group render: no matching entries in group file.", "group-by-name"),
    ("dcmi model initialized failed, because the device is used. ret is -8020", "card-in-use"),
    ("dcmi module initialize failed. ret is -8005", "dcmi-init"),
    ("get board type failed. ret is -9005", "board-type"),
    ("npu-smi: error while loading shared libraries: libc_sec.so: cannot open shared object file: No such file", "driver-files"),
    ("libdrvdsmi_host.so: cannot open shared object file: No such file or directory", "driver-files"),
    ("missing libc_sec.so and libdrvdsmi", "driver-files"),
    ("ImportError: libascendcl.so: cannot open shared object file: No such file or directory", "cann-environment"),
    ("No device of requested type available. -1 (PI_ERROR_DEVICE_NOT_FOUND)", "level-zero"),
    ("DataLoader worker (pid 31) is killed by signal: Bus error.", "shared-memory"),
    ("NCCL WARN Error while creating shared memory segment /dev/shm/nccl-a (size 9637888)", "shared-memory"),
    ("NCCL WARN Call to ibv_reg_mr failed with error Cannot allocate memory", "memlock"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "device-memory"),
    ("permission denied while trying to connect to the Docker daemon socket", "socket-permission"),
    ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?", "no-daemon"),
    ("potentially insufficient UIDs or GIDs available in user namespace", "subordinate-ids"),
    ("exec /opt/venv/bin/python: exec format error", "platform"),
    ("x509: certificate has expired or is not yet valid: current time 2019-01-01", "certificate-time"),
    ("x509: certificate signed by unknown authority", "certificate"),
    ("toomanyrequests: You have reached your pull rate limit.", "rate-limit"),
    ("write /var/lib/docker/tmp/x: no space left on device", "disk-full"),
]


@pytest.mark.parametrize(("text", "code"), TEXTS)
def test_a_text_has_its_cause(text: str, code: str) -> None:
    cause = explain(f"earlier lines\n{text}\nlater lines")
    assert cause is not None
    assert cause.code == code
    assert cause.cause and cause.cure
    assert "{" not in cause.cause + cause.cure.replace("{{", "")


def explained(fl: Fl, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    done = fl("doctor", "--explain", "-", *options, input=text)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("text", "code", "word", "cure"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch", 3, "different versions", "sudo reboot"),
        ("dcmi model initialized failed, because the device is used. ret is -8020", 3, "another container", "--devices free"),
        ("dcmi module initialize failed. ret is -8005", 3, "-8005", "/dev/davinci_manager"),
        ("npu-smi: error while loading shared libraries: libc_sec.so: cannot open shared object file", 6, "lib64", "driver/lib64"),
        ("Failed to initialize NVML: Unknown Error", 3, "daemon-reload", "nvidia-ctk cdi generate"),
        ("nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8", 3, "cuda>=12.8", "fl matrix explain"),
        ("Error: crun: error stat'ing file `/usr/lib64/libEGL_nvidia.so.565.77`: No such file or directory", 6, "565.77", "cdi generate"),
        ("x509: certificate signed by unknown authority", 7, "not trusted", "update-ca-certificates"),
        ("torch.OutOfMemoryError: CUDA out of memory.", 10, "memory is full", "per_device_train_batch_size"),
    ],
)
def test_a_text_can_be_asked_about(fl: Fl, text: str, code: int, word: str, cure: str) -> None:
    done = explained(fl, f"step 1\n\x1b[31m{text}\nlater\n")
    assert done.returncode == code and word in done.stdout and cure in done.stdout and "\x1b" not in done.stdout
    (found, *_) = json.loads(explained(fl, text, "--json").stdout)["causes"]
    assert set(found) == {"code", "lane", "cause", "cure", "exit"} and word in found["cause"] and found["exit"] == code


def test_every_cause_in_a_log_is_told_and_the_worst_gives_the_exit_code(fl: Fl, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"\xff" * 3_000_000 + b"\nno space left on device\nNVRM: Xid (PCI:0000:1a:00): 79, GPU has fallen off the bus.\n")
    done = fl("doctor", "--explain", str(log), "--json")
    assert done.returncode == 3 and [c["code"] for c in json.loads(done.stdout)["causes"]] == ["gpu-lost", "disk-full"]


def test_a_text_without_a_known_error(fl: Fl) -> None:
    done = explained(fl, "all is well\n")
    assert done.returncode == 0 and "no known error text" in done.stdout
    assert json.loads(explained(fl, "", "--json").stdout) == {"schema": 1, "causes": []}


def test_a_text_is_no_machine(fl: Fl, tmp_path: Path) -> None:
    assert fl("doctor", "--explain", str(tmp_path / "nowhere")).returncode == 2
    assert explained(fl, "x", "--fix").returncode == 2 and explained(fl, "x", "--replay", str(tmp_path)).returncode == 2


def test_every_entry_is_reached_by_a_text() -> None:
    assert {entry.meaning.code for entry in _KNOWN} == {code for _, code in TEXTS}


@pytest.mark.parametrize(
    "text",
    ["", "step 222 of 803, loss 0.804", "error: 222 rows were dropped", "loss -8020.1", "ret is 8020", "{'loss': 1.2}", "the GPU is fine"],
)
def test_ordinary_lines_have_none(text: str) -> None:
    assert explain(text) is None


def test_names_in_the_text_are_told() -> None:
    stale = explain("stat /usr/lib64/libcuda.so.550.54.15: no such file or directory")
    wanted = explain("unsatisfied condition: cuda>=12.8")
    assert stale is not None and "libcuda.so.550.54.15" in stale.cause
    assert wanted is not None and "cuda>=12.8" in wanted.cause


@pytest.mark.parametrize(
    ("text", "never"),
    [
        ("dcmi model initialized failed, because the device is used. ret is -8020", "install"),
        ("Failed to initialize NVML: Driver/library version mismatch", "install"),
        ("Unable to open /dev/kfd read-write: Permission denied", "modprobe"),
    ],
)
def test_what_would_be_wrong_is_not_advised(text: str, never: str) -> None:
    cause = explain(text)
    assert cause is not None
    assert never not in cause.cure.lower() and "not loaded" not in cause.cause


def test_lanes_of_causes_exist() -> None:
    assert {entry.meaning.lane for entry in _KNOWN} <= {None, *LANES}


def test_a_huge_text_takes_no_time() -> None:
    begin = time.process_time()
    assert explain("error stat cuda lib " * 200_000) is None
    assert explain("/" * 1_000_000 + " libEGL_nvidia.so.1" * 10_000) is None
    assert time.process_time() - begin < 2


@pytest.mark.skipif(not CORPUS.is_dir(), reason="no recorded hosts beside this repository")
def test_every_failed_command_of_the_corpus_is_explained() -> None:
    silent = []
    for file in sorted(CORPUS.glob("*/commands.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            entry = json.loads(line) if line.strip() else {}
            if entry.get("returncode"):
                said = f"{entry.get('stdout') or ''}\n{entry.get('stderr') or ''}"
                silent += [f"{file.parent.name}: {said[:80]}"] if explain(said) is None else []
    assert silent == []


def judged(folder: Path, log: str, code: int = 10) -> Any:
    (folder / "log.txt").write_text(log)
    decision: Any = SimpleNamespace(
        folder=folder,
        plan=SimpleNamespace(run="r-1"),
        config=SimpleNamespace(training=SimpleNamespace(output_dir="/saves/x", overwrite_output_dir=False)),
    )
    return launch.judge(decision, Ended(code), launch.Signals())


def test_a_failed_run_names_the_cause_in_its_log(tmp_path: Path) -> None:
    error = judged(tmp_path, "start\n" + TORCH + "Error 802: system not yet initialized\n" + "more\n" * 40)
    assert isinstance(error, TrainingError)
    assert "fabric manager" in error.message
    assert error.remedy.splitlines()[0].startswith("sudo systemctl")
    assert "fl logs r-1" in error.remedy


def test_a_failed_run_without_a_known_text_is_told_as_before(tmp_path: Path) -> None:
    error = judged(tmp_path, "ValueError: no such column\n")
    assert "cause:" not in error.message
    assert error.remedy == "fl logs r-1"


@pytest.mark.parametrize(
    ("said", "kind", "word"),
    [
        (
            "docker: Error response from daemon: nvidia-container-cli: detection error: nvml error: unknown error.",
            HardwareError,
            "error state",
        ),
        ("Error: crun: error stat'ing file `/usr/lib64/libEGL_nvidia.so.565.77`: No such file or directory", EngineError, "libEGL_nvidia"),
        ("exec format error", ImageError, "processor"),
    ],
)
def test_a_start_that_fails_names_the_cause(said: str, kind: type[Exception], word: str) -> None:
    plan: Any = SimpleNamespace(engine="docker", image=SimpleNamespace(reference="fl-train:x"))
    error = explain_start(said, plan)
    assert isinstance(error, kind)
    assert word in error.message


def test_a_pull_that_fails_names_the_cause() -> None:
    error = explain_pull("Error response from daemon: Get https://r/v2/: x509: certificate signed by unknown authority", "r/fl:x", "docker")
    assert isinstance(error, ImageError)
    assert "authority" in error.message and "update-ca-certificates" in error.remedy
