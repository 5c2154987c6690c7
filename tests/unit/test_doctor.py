"""`fl doctor`: recorded machines as a user sees them, and every check on facts made by hand."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hosts import RECORDS, make, pci, recorded

from fl import doctor, doctor_cache, doctor_engine, doctor_fix, doctor_hardware, doctor_site
from fl.doctor_facts import Engines, Facts, Stacks, System, gather
from fl.doctor_site import Answer, Disk, Site
from fl.engines import ImageFacts, cdi
from fl.engines.environment import MARKER
from fl.errors import EngineError
from fl.findings import CheckName, Finding
from fl.grants import EngineFacts
from fl.hardware import Hardware, Node
from fl.lanes import cuda_checks, rocm_checks
from fl.lanes.cuda_checks import GpuState, State

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
GIB = 1 << 30
Fl = Callable[..., "subprocess.CompletedProcess[str]"]


def told(findings: Sequence[Finding] | Any) -> list[tuple[str, str]]:
    return [(f.check, f.status) for f in findings]


def one(findings: Any) -> Finding:
    (finding,) = list(findings)
    assert isinstance(finding, Finding)
    return finding


def corpus(name: str) -> Path:
    if not CORPUS.is_dir():
        pytest.skip("no recorded hosts beside this repository")
    return CORPUS / name


# ---- the command


def test_json_is_one_document_in_the_order_of_the_checks(fl: Fl) -> None:
    done = fl("doctor", "--json", "--replay", str(RECORDS / "h100x8-driver580"))
    value = json.loads(done.stdout)
    assert done.returncode == 0 and value["schema"] == 1
    names = [check["check"] for check in value["checks"]]
    order = [name for name, _ in doctor.CHECKS]
    assert sorted(names, key=order.index) == names and set(names) == set(order) == set(get_args(CheckName))
    assert all(set(check) == {"check", "status", "finding", "evidence", "remedy"} for check in value["checks"])
    assert all(set(entry) == {"source", "value"} for check in value["checks"] for entry in check["evidence"])


def test_a_replay_asks_neither_engine_nor_registry_nor_disk(fl: Fl) -> None:
    done = fl("doctor", "--json", env={"FL_REPLAY": str(RECORDS / "cpu-only"), "DOCKER_HOST": "unix:///nowhere/docker.sock"})
    skipped = {check["check"] for check in json.loads(done.stdout)["checks"] if check["status"] == "skipped"}
    assert done.returncode == 0
    assert {"engine", "runtime", "image", "registry", "disk", "cache", "clock"} <= skipped


def test_errors_come_with_evidence_and_a_command(fl: Fl) -> None:
    done = fl("doctor", "--replay", str(RECORDS / "mi210x2-no-permission"))
    assert done.returncode == 3
    assert "✗ access" in done.stdout and "usermod -aG render" in done.stdout and "EACCES" in done.stdout
    assert "1 error" in done.stdout


def test_a_daemon_that_is_asked_for_and_does_not_answer_is_exit_6(fl: Fl, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    done = fl("doctor", "--json", env={"PATH": path, "DOCKER_HOST": "unix:///nowhere/docker.sock"})
    wrong = [check for check in json.loads(done.stdout)["checks"] if check["status"] == "error" and check["check"] == "engine"]
    assert done.returncode == 6 and len(wrong) == 1
    assert "/nowhere/docker.sock" in wrong[0]["finding"] and wrong[0]["remedy"]


def test_a_broken_record_is_a_usage_error(fl: Fl, tmp_path: Path) -> None:
    done = fl("doctor", "--json", "--replay", str(tmp_path))
    assert done.returncode == 2 and json.loads(done.stdout)["error"]["exit"] == 2


def test_names_cannot_drive_the_terminal(fl: Fl) -> None:
    for record in ("hostile-names", "hostile-xml-entity"):
        done = fl("doctor", "--replay", str(corpus(record)))
        assert "\x1b" not in done.stdout and "Traceback" not in done.stderr


RECORDED = [
    ("nv-driver-library-mismatch", "driver", "570.195.03", "sudo reboot"),
    ("nv-no-driver-exit9", "driver", "not loaded", "modprobe nvidia"),
    ("ascend-8020-device-used", "access", "-8020", "--devices free"),
    ("ascend-firmware-mismatch", "driver", "firmware", "Ascend HDK"),
    ("amd-kfd-no-permission", "access", "cannot be opened", "usermod -aG render"),
    ("container-gpu-not-mapped", "access", "/dev/nvidia0", "--gpus"),
    ("mixed-t4-and-910b3", "driver", "no stack fits", "upgrade the NVIDIA driver"),
]


@pytest.mark.parametrize(("record", "check", "word", "cure"), RECORDED, ids=[r[0] for r in RECORDED])
def test_what_is_wrong_with_recorded_machines(record: str, check: str, word: str, cure: str) -> None:
    findings = doctor.examine(gather(corpus(record)))
    wrong = [f for f in findings if f.status == "error"]
    assert doctor.exit_code(findings) == 3
    assert any(f.check == check and word in f.finding and cure in f.remedy and f.evidence for f in wrong), wrong


def test_a_card_in_use_is_no_missing_driver() -> None:
    findings = doctor.examine(gather(corpus("ascend-8020-device-used")))
    assert not any("install" in f.remedy.lower() for f in findings)


def test_every_recorded_machine_gets_an_answer_of_every_check() -> None:
    order = [name for name, _ in doctor.CHECKS]
    for folder in [*RECORDS.iterdir(), *(CORPUS.iterdir() if CORPUS.is_dir() else ())]:
        if (folder / "record.yaml").is_file():
            findings = doctor.examine(gather(folder))
            assert {f.check for f in findings} == set(order), folder.name
            assert all(f.remedy for f in findings if f.status in ("warning", "error")), folder.name


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ((), 0),
        (("image",), 7),
        (("registry", "disk"), 6),
        (("runtime",), 6),
        (("image", "access"), 3),
        (("clock",), 6),
        (("ecc", "engine"), 3),
    ],
)
def test_the_worst_error_gives_the_exit_code(errors: tuple[CheckName, ...], code: int) -> None:
    findings = [Finding(check="host", status="ok", finding=""), Finding(check="numa", status="warning", finding="")]
    assert doctor.exit_code([*findings, *(Finding(check=name, status="error", finding="") for name in errors)]) == code


# ---- NVIDIA


XML = """<nvidia_smi_log><gpu id="0"><persistence_mode>Disabled</persistence_mode><gpu_recovery_action>None</gpu_recovery_action>
<fabric><state>Completed</state></fabric><ecc_errors><volatile><sram_correctable>9</sram_correctable><sram_uncorrectable_parity>0
</sram_uncorrectable_parity><dram_uncorrectable>2</dram_uncorrectable></volatile></ecc_errors><remapped_rows>
<remapped_row_pending>Yes</remapped_row_pending><remapped_row_failure>No</remapped_row_failure></remapped_rows></gpu>
<gpu id="1"><persistence_mode>N/A</persistence_mode><ecc_errors><volatile><double_bit><total>0</total></double_bit></volatile></ecc_errors>
<retired_pages><pending_retirement>No</pending_retirement></retired_pages></gpu></nvidia_smi_log>"""


def h100(folder: Path, switches: int = 0, commands: Sequence[tuple[list[str], int, str]] = ()) -> Path:
    files = {"/sys/module/nvidia/version": "580.95.05\n", **pci("0000:1a:00.0", 0x10DE, 0x2330, 0x030200, "nvidia")}
    for n in range(switches):
        files |= pci(f"0000:{32 + n:02x}:00.0", 0x10DE, 0x22A3, 0x068000, "nvidia")
    nodes = {path: {} for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm")}
    return make(folder, files, nodes, commands)


def test_nvidia_smi_is_read() -> None:
    from fl.host import Ran

    class Smi:
        def run(self, argv: Sequence[str]) -> Ran:
            return Ran("done", 0, XML)

    gpus, _ = cuda_checks._gpus(Smi())  # type: ignore[arg-type]
    assert gpus == (
        GpuState(index=0, persistence=False, uncorrected=2, pending=True, fabric="Completed"),
        GpuState(index=1, persistence=None, uncorrected=0),
    )


GPU = GpuState(index=0, persistence=True, uncorrected=0)
NVIDIA = [
    ("all is well", State(gpus=(GPU,), xids=()), [("fabric", "skipped"), ("ecc", "ok"), ("persistence", "ok")]),
    ("uncorrected errors", State(gpus=(replace(GPU, uncorrected=2),)), [("fabric", "skipped"), ("ecc", "warning"), ("persistence", "ok")]),
    ("rows to be remapped", State(gpus=(replace(GPU, pending=True),)), [("fabric", "skipped"), ("ecc", "warning"), ("persistence", "ok")]),
    ("a row that is lost", State(gpus=(replace(GPU, failed=True),)), [("fabric", "skipped"), ("ecc", "error"), ("persistence", "ok")]),
    (
        "the driver wants a reset",
        State(gpus=(replace(GPU, action="Reset"),)),
        [("fabric", "skipped"), ("ecc", "error"), ("persistence", "ok")],
    ),
    ("no counters", State(gpus=(replace(GPU, uncorrected=None),)), [("fabric", "skipped"), ("ecc", "ok"), ("persistence", "ok")]),
    ("persistence off", State(gpus=(replace(GPU, persistence=False),)), [("fabric", "skipped"), ("ecc", "ok"), ("persistence", "warning")]),
    ("the tool is missing", State(missing="x"), [("fabric", "skipped"), ("ecc", "skipped"), ("persistence", "skipped")]),
    ("the service tells", State(missing="x", persistenced=True), [("fabric", "skipped"), ("ecc", "skipped"), ("persistence", "ok")]),
    (
        "the log is closed",
        State(gpus=(GPU,), log_refused=True),
        [("fabric", "skipped"), ("ecc", "ok"), ("ecc", "skipped"), ("persistence", "ok")],
    ),
    (
        "Xid 79, twice, and a program's own 13",
        State(gpus=(GPU,), xids=(("0000:1a:00", 79), ("0000:1a:00", 13), ("0000:1a:00", 79))),
        [("fabric", "skipped"), ("ecc", "ok"), ("ecc", "error"), ("persistence", "ok")],
    ),
    ("Xid 94", State(gpus=(GPU,), xids=(("a", 94),)), [("fabric", "skipped"), ("ecc", "ok"), ("ecc", "warning"), ("persistence", "ok")]),
    ("Windows", State(gpus=(GPU,), wsl=True), [("fabric", "skipped"), ("ecc", "ok"), ("persistence", "skipped")]),
]


@pytest.mark.parametrize(("state", "expected"), [case[1:] for case in NVIDIA], ids=[case[0] for case in NVIDIA])
def test_nvidia(state: State, expected: list[tuple[str, str]]) -> None:
    assert told(cuda_checks.judge(state)) == expected


FABRIC = [
    (State(switches=4, manager="active", driver="580.95.05", manager_version="580.95.05"), "ok", "ready"),
    (State(switches=4, manager="inactive"), "error", "802"),
    (State(switches=4, manager="failed"), "error", "systemctl enable --now"),
    (State(switches=4, manager="inactive", inside="docker"), "skipped", "cannot be asked"),
    (State(switches=4), "skipped", "cannot be asked"),
    (State(switches=4, manager="active", driver="580.95.05", manager_version="570.1.2"), "error", "570.1.2"),
    (State(gpus=(replace(GPU, fabric="Completed"),)), "ok", "ready"),
]


@pytest.mark.parametrize(("state", "status", "word"), FABRIC)
def test_the_fabric_manager(state: State, status: str, word: str) -> None:
    finding = next(iter(cuda_checks.judge(state)))
    assert (finding.check, finding.status) == ("fabric", status)
    assert word in finding.finding + finding.remedy


def test_a_machine_with_switches_is_asked_about_its_fabric(tmp_path: Path) -> None:
    commands = [
        (["systemctl", "is-active", "nvidia-fabricmanager"], 3, "inactive\n"),
        (["dmesg"], 0, "[    9.1] NVRM: Xid (PCI:0000:1a:00): 48, pid=1, name=python, DBE\n"),
        (["nvidia-smi", "-q", "-x"], 0, XML),
    ]
    findings = doctor.examine(gather(h100(tmp_path / "r", 4, commands)))
    assert ("ecc", "warning") in told(findings)
    assert any("Xid 48" in f.finding for f in findings)
    inactive = [(["systemctl", "is-active", "nvidia-fabricmanager"], 3, "inactive\n")]
    findings = doctor.examine(gather(h100(tmp_path / "s", 4, inactive)))
    assert ("fabric", "error") in told(findings) and doctor.exit_code(findings) == 3


def machine(**nodes: Node) -> Hardware:
    return Hardware(os="linux", arch="x86_64", nodes={f"/dev/{n.path}": replace(n, path=f"/dev/{n.path}") for n in nodes.values()})


@pytest.mark.parametrize(
    ("hardware", "inside", "expected"),
    [
        (machine(), None, []),
        (machine(a=Node(path="nvidiactl")), None, ["warning"]),
        (machine(a=Node(path="nvidiactl")), "docker", ["error"]),
        (machine(a=Node(path="nvidiactl"), b=Node(path="nvidia-uvm", openable=True)), "docker", ["ok"]),
        (machine(a=Node(path="nvidiactl"), b=Node(path="nvidia-uvm", openable=False, error="EACCES")), None, ["error"]),
    ],
)
def test_unified_memory(hardware: Hardware, inside: str | None, expected: list[str]) -> None:
    assert [f.status for f in cuda_checks.uvm(hardware, inside)] == expected


# ---- AMD


def test_amd_counts_errors_and_numa_balancing() -> None:
    assert [f.status for f in rocm_checks.ecc({})] == ["skipped"]
    assert [f.status for f in rocm_checks.ecc({"a": 0, "b": 0})] == ["ok"]
    assert [f.status for f in rocm_checks.ecc({"a": 0, "b": 3})] == ["warning"]
    assert [f.status for f in rocm_checks.numa("1", 2)] == ["warning"]
    assert [*rocm_checks.numa("1", 1), *rocm_checks.numa("0", 2)] == []


# ---- engines, runtime, images


def engines(*names: Any, **more: Any) -> Engines:
    return Engines(answers={name: EngineFacts(name=name, version="1") for name in names}, **more)


CPU = Hardware(os="linux", arch="x86_64")
ROW = Stacks(lane="cpu", stack="cpu-x", host_stack="cpu-x", python="3.11", locked=True)
BARE = Stacks(lane="cpu", stack="cpu-x")
DEAD = EngineError("No Docker daemon: there is no socket.", "sudo systemctl start docker")


@pytest.mark.parametrize(
    ("found", "row", "statuses", "code"),
    [
        (engines("docker", "host"), ROW, ["ok", "ok"], 0),
        (engines("host"), ROW, ["skipped", "ok"], 0),
        (engines("host", errors={"docker": DEAD}), ROW, ["warning", "ok"], 0),
        (engines("host", errors={"docker": DEAD}, asked_for=frozenset({"docker"})), ROW, ["error", "ok"], 6),
        (engines("host", errors={"docker": DEAD}), BARE, ["error", "error"], 6),
        (engines("podman", "host", errors={"docker": DEAD}), BARE, ["warning", "ok", "warning"], 0),
        (engines("host"), BARE, ["skipped", "error"], 6),
        (engines("host"), replace(ROW, locked=False), ["skipped", "error"], 6),
        (Engines(answers={"docker": EngineFacts(name="docker", userns_remap=True)}), ROW, ["error", "ok"], 6),
        (Engines(answers={"docker": EngineFacts(name="docker", same_files=False)}), ROW, ["error", "ok"], 6),
    ],
)
def test_engines(found: Engines, row: Stacks, statuses: list[str], code: int) -> None:
    findings = list(doctor_engine.engine(Facts(hardware=CPU, engines=found, stacks=(row,))))
    assert sorted(f.status for f in findings) == sorted(statuses)
    assert doctor.exit_code(findings) == code
    assert all(f.remedy for f in findings if f.status in ("warning", "error"))


def test_docker_inside_a_slurm_job_is_told() -> None:
    facts = Facts(hardware=CPU, engines=engines("docker", "host"), stacks=(ROW,), system=System(slurm="42"))
    assert any(f.status == "warning" and "Slurm" in f.finding for f in doctor_engine.engine(facts))


STALE = {"/etc/cdi/nvidia.yaml": "/usr/lib64/libEGL_nvidia.so.550.54"}


@pytest.mark.parametrize(
    ("answer", "stale", "statuses"),
    [
        (EngineFacts(name="docker"), {}, ["ok"]),
        (EngineFacts(name="docker", nvidia_gpus=False), {}, ["error"]),
        (EngineFacts(name="docker", nvidia_gpus=False), STALE, ["error", "error"]),
        (EngineFacts(name="docker"), STALE, ["ok", "warning"]),
        (EngineFacts(name="podman", nvidia_gpus=False, cdi_assumed=True), {}, ["ok"]),
    ],
)
def test_how_devices_are_passed(answer: EngineFacts, stale: dict[str, str], statuses: list[str]) -> None:
    found = Engines(answers={answer.name: answer}, stale=stale)
    findings = list(doctor_engine.runtime(Facts(hardware=recorded("h100x8-driver580"), engines=found)))
    assert [f.status for f in findings] == statuses
    assert all("nvidia-ctk" in f.remedy for f in findings if f.status in ("error", "warning"))


@pytest.mark.parametrize(("platform", "status", "code"), [("linux/amd64", "ok", 0), ("linux/arm64", "error", 7), (None, "skipped", 0)])
def test_images(platform: str | None, status: str, code: int) -> None:
    images = {} if platform is None else {("docker", "cpu-x"): ImageFacts(reference="r", id="i", digest=None, platform=platform)}
    found = engines("docker", images=images)
    finding = one(doctor_engine.image(Facts(hardware=CPU, engines=found, stacks=(ROW,))))
    assert finding.status == status and doctor.exit_code([finding]) == code
    assert "fl images build cpu-x" in finding.remedy or status == "ok"


def test_stale_specs_are_found_by_what_they_name(tmp_path: Path) -> None:
    there = tmp_path / "libcuda.so.1"
    there.write_text("")
    spec = {"kind": "nvidia.com/gpu", "containerEdits": {"mounts": [{"hostPath": str(there)}]}, "devices": [{"name": "0"}]}
    (tmp_path / "fresh.json").write_text(json.dumps(spec))
    gone = str(tmp_path / "libcuda.so.550")
    (tmp_path / "old.json").write_text(json.dumps({**spec, "devices": [{"containerEdits": {"mounts": [{"hostPath": gone}]}}]}))
    (tmp_path / "odd.yaml").write_text("- [")
    assert cdi.stale([str(tmp_path), "/nowhere"]) == {str(tmp_path / "old.json"): gone}


# ---- this machine's own resources


def site(**changes: Any) -> Facts:
    given: dict[str, Any] = {"disks": (), "available": 9 * GIB, "shm": 9 * GIB, **changes}
    return Facts(hardware=replace(CPU, cpu=replace(CPU.cpu, memory_mib=16384)), site=Site(**given), engines=Engines())


DISK = Disk(what="runs", path="/x", free=50 * GIB, total=99 * GIB, files=10**7)


@pytest.mark.parametrize(
    ("disk", "status"),
    [
        (DISK, "ok"),
        (replace(DISK, free=3 * GIB), "warning"),
        (replace(DISK, free=GIB // 4), "error"),
        (replace(DISK, files=50), "error"),
        (replace(DISK, files=50_000), "warning"),
        (replace(DISK, files=None), "ok"),
        (replace(DISK, writable=False), "error"),
    ],
)
def test_disks(disk: Disk, status: str) -> None:
    finding = one(doctor_site.disks(site(disks=(disk,))))
    assert finding.status == status and bool(finding.remedy) == (status != "ok")


def test_a_folder_that_is_not_made_yet_has_the_disk_of_its_parent(tmp_path: Path) -> None:
    found = doctor_site.disk("x", tmp_path / "a" / "b")
    assert found.free > 0 and found.writable and found.path.endswith("a/b")


@pytest.mark.parametrize(
    ("answer", "status", "word"),
    [
        (None, "skipped", "no registry"),
        (Answer(url="https://r/v2/", status=200), "ok", "answers"),
        (Answer(url="https://r/v2/", status=401, login=True), "ok", "answers"),
        (Answer(url="https://r/v2/", status=401), "warning", "docker login r"),
        (Answer(url="https://r/v2/", status=503), "error", "not well"),
        (Answer(url="https://r/v2/", error="[Errno -2] Name or service not known"), "error", "curl"),
        (Answer(url="https://r/v2/", error="CERTIFICATE_VERIFY_FAILED"), "error", "update-ca-certificates"),
    ],
)
def test_registries(answer: Answer | None, status: str, word: str) -> None:
    finding = one(doctor_site.registry(site(registry=answer)))
    assert finding.status == status and word in finding.finding + finding.remedy
    assert doctor.exit_code([finding]) == (7 if status == "error" else 0)


def test_a_registry_that_nobody_listens_for_is_exit_7(fl: Fl, tmp_path: Path) -> None:
    (tmp_path / "fl").mkdir()
    (tmp_path / "fl" / "config.yaml").write_text("registry: 127.0.0.1:1/team\n")
    done = fl("doctor", "--json", env={"XDG_CONFIG_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    (finding,) = [check for check in json.loads(done.stdout)["checks"] if check["check"] == "registry"]
    assert finding["status"] == "error" and "127.0.0.1:1" in finding["finding"]
    assert done.returncode in (6, 7)


def test_memory_shared_memory_and_locked_memory() -> None:
    assert [f.status for f in doctor_site.memory(site())] == ["ok"]
    assert [f.status for f in doctor_site.memory(site(available=GIB // 2))] == ["warning"]
    assert [f.status for f in doctor_site.memory(site(shm=64 << 20))] == ["ok", "warning"]
    locked = replace(site(locked=65536), hardware=recorded("h100x8-driver580"))
    assert [f.status for f in doctor_site.memory(locked)][-1] == "warning"
    assert [f.status for f in doctor_site.memory(site(locked=65536))] == ["ok"]  # no device, nothing to lock for


def test_a_cache_below_a_closed_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the HOME of another user: what cannot be looked at is no crash."""
    real, closed = os.stat, str(tmp_path / "closed")

    def refusing(path: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(f"{closed}/"):
            raise PermissionError(13, "Permission denied")
        return real(path, **more)

    (tmp_path / "closed").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", f"{closed}/cache")
    monkeypatch.setattr(os, "stat", refusing)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(closed))
    found = doctor_site.look(None)
    finding = next(f for f in doctor_site.disks(Facts(hardware=CPU, site=found)) if closed in f.finding)
    assert finding.status == "error" and "cannot be written" in finding.finding and found.environments == 0


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"synchronised": True}, "ok"),
        ({"synchronised": False}, "warning"),
        ({}, "skipped"),
        ({"synchronised": True, "registry": Answer(url="u", status=200, skew=-3600.0)}, "warning"),
        ({"synchronised": True, "registry": Answer(url="u", status=200, skew=2.0)}, "ok"),
    ],
)
def test_clocks(changes: dict[str, Any], status: str) -> None:
    assert one(doctor_site.clock(site(**changes))).status == status


def test_the_kernel_is_asked_for_its_clock() -> None:
    assert doctor_site.synchronised() in (True, False, None)


# ---- access and login


def test_a_group_that_comes_with_the_next_login_is_told() -> None:
    hardware = recorded("mi210x2-no-permission")
    gid = next(node.gid for node in hardware.nodes.values() if node.openable is False)
    coming = Facts(hardware=hardware, system=System(groups=frozenset({1}), member_of=frozenset({1, gid})))
    error = next(f for f in doctor_hardware.access(coming) if f.status == "error")
    assert "log out and in" in error.remedy and str(gid) in error.finding
    now = Facts(hardware=hardware, system=System(groups=frozenset({gid}), member_of=frozenset({gid})))
    assert "usermod" in next(f for f in doctor_hardware.access(now) if f.status == "error").remedy


@pytest.mark.parametrize(("given", "status", "code"), [(1, "warning", 0), (0, "error", 3)])
def test_a_container_with_some_of_the_hosts_devices_is_well(tmp_path: Path, given: int, status: str, code: int) -> None:
    files = {"/sys/module/nvidia/version": "580.95.05\n"}
    for n in range(8):
        files |= pci(f"0000:{0x10 + n:02x}:00.0", 0x10DE, 0x2330, 0x030200, "nvidia")
        files[f"/proc/driver/nvidia/gpus/0000:{0x10 + n:02x}:00.0/information"] = f"Model: NVIDIA H100\nDevice Minor: {n}\n"
    nodes: dict[str, Any] = {path: {} for path in ("/dev/nvidiactl", "/dev/nvidia-uvm")}
    nodes |= {f"/dev/nvidia{n}": {} for n in range(given)}
    findings = doctor.examine(gather(make(tmp_path / "r", files, nodes)))
    assert doctor.exit_code(findings) == code
    assert [f.status for f in findings if "cannot be used" in f.finding] == ["skipped"]
    assert [f.status for f in findings if f.check == "access" and "is not here" in f.finding] == [status]


def test_two_lanes_are_told() -> None:
    facts = gather(RECORDS / "two-lanes")
    assert any(f.check == "access" and "several lanes" in f.finding for f in doctor.examine(facts))


# ---- the cache, and --fix


def environment(home: Path, name: str, packages: int = 1, marker: Any = None) -> Path:
    folder = home / name
    site_packages = folder / "lib/python3.11/site-packages"
    site_packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(sys.executable)
    for n in range(packages):
        (site_packages / f"p{n}-1.dist-info").mkdir()
    given = {"python": str(Path(sys.executable).resolve()), "packages": packages} if marker is None else marker
    (folder / MARKER).write_text(json.dumps(given))
    return folder


def test_a_text_that_was_read_in_part_is_said_to_be(fl: Fl, tmp_path: Path) -> None:
    text = tmp_path / "log.txt"
    text.write_text("Failed to initialize NVML: Driver/library version mismatch\n" + "x" * 2**20)
    done = fl("doctor", "--explain", str(text))
    assert (done.returncode, "in its last MiB" in done.stdout) == (0, True)
    text.write_text("x" * 2**20 + "\nFailed to initialize NVML: Driver/library version mismatch\n")
    assert fl("doctor", "--explain", str(text)).returncode == 3


def test_broken_environments_are_found(tmp_path: Path) -> None:
    environment(tmp_path, "good")
    (tmp_path / "good.lock").touch()
    (environment(tmp_path, "half") / MARKER).unlink()
    environment(tmp_path, "odd", marker=[1])
    (environment(tmp_path, "nopython") / "bin/python").unlink()
    environment(tmp_path, "changed", 2, {"python": str(Path(sys.executable).resolve()), "packages": 9})
    (tmp_path / "gone.lock").touch()
    (tmp_path / "half2.old-999999999").mkdir()
    found = {leftover.path.name: leftover.why for leftover in doctor_cache.find(tmp_path)}
    assert set(found) == {"half", "odd", "nopython", "changed", "gone.lock", "half2.old-999999999"}
    assert "2 packages, 9" in found["changed"]
    assert doctor_cache.find(tmp_path / "nowhere") == ()


def test_an_installation_at_work_is_left_alone(tmp_path: Path) -> None:
    (environment(tmp_path, "half") / MARKER).unlink()
    with (tmp_path / "half.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert doctor_cache.find(tmp_path) == ()
    assert [leftover.path.name for leftover in doctor_cache.find(tmp_path)] == ["half"]


def test_an_environment_that_a_process_runs_from_is_left_alone(tmp_path: Path) -> None:
    folder = environment(tmp_path, "changed", 1, {"python": "x", "packages": 9})
    script = "print(1, flush=True); input()"
    process = subprocess.Popen([str(folder / "bin/python"), "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()  # until then its command line may be empty
        assert doctor_cache.find(tmp_path) == ()
    finally:
        process.communicate(b"\n")
    assert len(doctor_cache.find(tmp_path)) == 1


def test_fix_removes_what_is_broken_and_nothing_else(fl: Fl, tmp_path: Path) -> None:
    home = tmp_path / "fl" / "environments"
    good, half = environment(home, "good"), environment(home, "half")
    (half / MARKER).unlink()
    (home / "gone.lock").touch()
    env = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    before = fl("doctor", "--json", env=env)
    assert [c["status"] for c in json.loads(before.stdout)["checks"] if c["check"] == "cache"] == ["warning", "warning"]
    done = fl("doctor", "--json", "--fix", env=env)
    assert f"rm -rf {half}" in done.stderr and not half.exists() and not (home / "gone.lock").exists() and good.exists()
    assert [c["status"] for c in json.loads(done.stdout)["checks"] if c["check"] == "cache"] == ["ok"]


def fixable(stale: dict[str, str]) -> Facts:
    return Facts(hardware=CPU, engines=Engines(stale=stale), site=Site())


@pytest.mark.parametrize(("terminal", "answer", "ran"), [(False, True, 0), (True, False, 0), (True, True, 1)])
def test_a_stale_spec_is_written_again_with_consent_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool, answer: bool, ran: int
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(doctor_fix, "which", lambda name: "/usr/bin/nvidia-ctk")
    monkeypatch.setattr(doctor_fix, "_consent", lambda command: answer)
    done = doctor_fix.mend(fixable(STALE), terminal, lambda command: commands.append(command) or 0)  # type: ignore[func-returns-value]
    assert len(commands) == ran and done is bool(ran)
    assert all(command[-4:] == ["nvidia-ctk", "cdi", "generate", "--output=/etc/cdi/nvidia.yaml"] for command in commands)
    assert "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml" in capsys.readouterr().err


def test_a_spec_of_another_vendor_is_not_touched() -> None:
    assert doctor_fix.regenerate("/etc/cdi/amd.json") is None
