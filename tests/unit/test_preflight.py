"""preflight.py: what would fail after the start, as values, and the exit code that each has."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hosts import RECORDS, recorded

from fl import preflight
from fl.errors import EngineError, HardwareError, ImageError
from fl.grants import EngineFacts, Grants
from fl.hardware import Hardware, Node, Problem
from fl.lanes import cuda_requirement
from fl.plan import Image
from fl.preflight import Facts

GIB = 1 << 30
Fl = Callable[..., "subprocess.CompletedProcess[str]"]


def live(name: str) -> Hardware:
    """A recorded machine as if this were it."""
    return replace(recorded(name), replayed=False)


def facts(host: str = "cpu-only", engine: str = "docker", lane: Any = None, devices: int | None = None, **more: Any) -> Facts:
    hardware = more.pop("hardware", None) or live(host)
    lane = lane or (hardware.accelerators[0].lane if hardware.accelerators else "cpu")
    answer: Any = more.pop("answer", {})
    return Facts(
        engine=EngineFacts(name=engine, **answer),  # type: ignore[arg-type]
        lane=lane,
        hardware=hardware,
        chosen=hardware.of_lane(lane)[:devices],
        grants=more.pop("grants", Grants()),
        image=more.pop("image", Image(reference="fl-train:x", source="none" if engine == "host" else "local")),
        **more,
    )


def told(given: Facts) -> list[tuple[str, str]]:
    return [(p.code, p.severity) for p in preflight.findings(given)]


def closed(host: str, path: str, **changes: Any) -> Hardware:
    hardware = live(host)
    node = replace(hardware.nodes.get(path, Node(path=path)), openable=False, error="EACCES", **changes)
    return replace(hardware, nodes={**hardware.nodes, path: node})


def without(host: str, path: str) -> Hardware:
    hardware = live(host)
    return replace(hardware, nodes={name: node for name, node in hardware.nodes.items() if name != path})


NO_TOOLKIT = Problem(code="no-toolkit", severity="error", message="nothing passes GPUs", remedy="install it", lane="cuda")
PULL = Image(reference="r.example/fl-train:x", source="pull")
STALE = {"/etc/cdi/nvidia.yaml": "/usr/lib/libcuda.so.550.54.15"}
H100, MI300 = "h100x8-driver580", "mi300x8-spx"



def by_cdi(environment: dict[str, str]) -> Facts:
    return facts(H100, grants=Grants(cdi=("nvidia.com/gpu=0",)), named_image=True, image_environment=environment)


CASES: list[tuple[str, Facts, list[tuple[str, str]]]] = [
    ("a healthy container", facts(H100), []),
    ("a healthy host", facts(H100, "host", shm=64 * GIB), []),
    ("the processor", facts(engine="host", shm=GIB * 4), []),
    ("no toolkit", facts(H100, grants=Grants(problems=(NO_TOOLKIT,))), [("no-toolkit", "error")]),
    ("a stale spec is why", facts(H100, grants=Grants(problems=(NO_TOOLKIT,)), stale=STALE), [("cdi-stale", "error")]),
    ("a stale spec that is not needed", facts(H100, grants=Grants(gpus="all"), stale=STALE), []),
    (
        "another image by CDI",
        facts(H100, grants=Grants(cdi=("nvidia.com/gpu=0",)), named_image=True),
        [("requirement-unchecked", "warning")],
    ),
    ("another image by CDI that asks for nothing", by_cdi({"PATH": "/bin"}), []),
    ("another image by CDI that asks for what is there", by_cdi({"NVIDIA_REQUIRE_CUDA": "cuda>=12.8"}), []),
    ("another image by CDI for a newer driver", by_cdi({"NVIDIA_REQUIRE_CUDA": "cuda>=99.1"}), [("requirement-unmet", "error")]),
    ("another image by CDI that asks for a brand", by_cdi({"NVIDIA_REQUIRE_CUDA": "brand=tesla"}), [("requirement-unchecked", "warning")]),
    ("the row's image by CDI", facts(H100, grants=Grants(cdi=("nvidia.com/gpu=0",))), []),
    ("another image by the hook", facts(H100, grants=Grants(gpus="all"), named_image=True), []),
    (
        "uvm missing on a host",
        facts(engine="host", hardware=without(H100, "/dev/nvidia-uvm"), lane="cuda", shm=GIB * 9),
        [("uvm", "warning")],
    ),
    (
        "uvm missing in a container",
        facts(engine="host", hardware=without(H100, "/dev/nvidia-uvm"), lane="cuda", shm=GIB * 9, inside="docker"),
        [("uvm", "error")],
    ),
    ("uvm missing, an engine brings it", facts(hardware=without(H100, "/dev/nvidia-uvm"), lane="cuda"), []),
    ("uvm closed", facts(engine="host", hardware=closed(H100, "/dev/nvidia-uvm"), lane="cuda", shm=GIB * 9), [("no-permission", "error")]),
    (
        "kfd closed on the host",
        facts(engine="host", hardware=closed(MI300, "/dev/kfd"), lane="rocm", shm=GIB * 9),
        [("no-permission", "error")],
    ),
    (
        "kfd closed, docker gives the group",
        facts(hardware=closed(MI300, "/dev/kfd", mode=0o660, gid=109), lane="rocm", grants=Grants(devices=("/dev/kfd",), groups=(109,))),
        [],
    ),
    (
        "kfd of root alone, docker has no group to give",
        facts(hardware=closed(MI300, "/dev/kfd", mode=0o600, gid=0), lane="rocm", grants=Grants(devices=("/dev/kfd",))),
        [("no-permission", "error")],
    ),
    (
        "kfd closed, rootless podman",
        facts(engine="podman", hardware=closed(MI300, "/dev/kfd", mode=0o660, gid=109), lane="rocm", answer={"rootless": True}),
        [("no-permission", "error")],
    ),
    ("an image for this processor", facts(image_platform="linux/amd64"), []),
    ("an image for another one", facts(image_platform="linux/arm64"), [("image-platform", "error")]),
    ("room for a pull", facts(image=PULL, free=40 * GIB), []),
    ("no room for a pull", facts(image=PULL, free=GIB), [("disk-image", "error")]),
    ("little room for a GPU's image", facts(H100, image=PULL, free=10 * GIB), [("disk-image", "warning")]),
    ("little room is enough for the processor's", facts(image=PULL, free=10 * GIB), []),
    ("no room that matters", facts(free=GIB), []),
    ("no room for an environment", facts(engine="host", installs="/c/e", free=GIB, shm=GIB * 4), [("disk-environment", "error")]),
    ("an environment that is there", facts(engine="host", free=GIB, shm=GIB * 4), []),
    ("locked memory of the host", facts(H100, "host", locked=65536, shm=GIB * 9), [("memlock", "warning")]),
    ("one device locks little", facts(H100, "host", devices=1, locked=65536, shm=GIB * 9), []),
    ("locked memory of the daemon", facts(H100, answer={"hard_limits": {"memlock": 65536}}, locked=-1), [("memlock", "warning")]),
    ("docker's own small /dev/shm", facts(H100, "host", shm=64 << 20), [("shared-memory", "warning")]),
    ("small /dev/shm and workers", facts(engine="host", shm=64 << 20, workers=4), [("shared-memory", "warning")]),
    ("small /dev/shm without workers", facts(engine="host", shm=64 << 20), []),
    ("small /dev/shm outside the container", facts(H100, shm=64 << 20), []),
]


@pytest.mark.parametrize(("given", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_findings(given: Facts, expected: list[tuple[str, str]]) -> None:
    assert sorted(set(told(given))) == expected


def test_every_finding_says_what_to_do() -> None:
    problems = [p for _, given, _ in CASES for p in preflight.findings(given)]
    assert problems and all(p.message and p.remedy for p in problems)


def test_a_stale_spec_is_named_with_the_file_that_is_gone() -> None:
    (problem,) = preflight.findings(facts(H100, grants=Grants(problems=(NO_TOOLKIT,)), stale=STALE))
    assert "/etc/cdi/nvidia.yaml" in problem.message and "libcuda.so.550.54.15" in problem.message
    assert problem.remedy.startswith("sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, ()),
        ({"NVIDIA_REQUIRE_CUDA": "cuda>=13.0"}, ()),
        ({"NVIDIA_REQUIRE_CUDA": "cuda>=13.1"}, ("NVIDIA_REQUIRE_CUDA=cuda>=13.1",)),
        ({"NVIDIA_REQUIRE_CUDA": "cuda>=13.1 driver>=580,arch>=9.0"}, ()),
        ({"NVIDIA_REQUIRE_CUDA": "cuda>=13.1 driver>=535,driver<536"}, ("NVIDIA_REQUIRE_CUDA=cuda>=13.1 driver>=535,driver<536",)),
        ({"NVIDIA_REQUIRE_CUDA": "cuda>=13.1 brand=tesla,driver>=580"}, None),
        ({"NVIDIA_REQUIRE_CUDA": "cuda>=13.1 brand=tesla,driver<580"}, ("NVIDIA_REQUIRE_CUDA=cuda>=13.1 brand=tesla,driver<580",)),
        ({"NVIDIA_REQUIRE_DRIVER": "driver=580"}, ()),
        ({"NVIDIA_REQUIRE_DRIVER": "!driver=580"}, ("NVIDIA_REQUIRE_DRIVER=!driver=580",)),
        ({"NVIDIA_REQUIRE_X": "arch<9.0", "NVIDIA_REQUIRE_Y": "moon=full"}, ("NVIDIA_REQUIRE_X=arch<9.0",)),
        ({"NVIDIA_REQUIRE_CUDA": "cuda>=13.1", "NVIDIA_DISABLE_REQUIRE": "true"}, ()),
    ],
)
def test_an_images_own_demands_are_compared_as_the_hook_does(wanted: dict[str, str], expected: tuple[str, ...] | None) -> None:
    hardware = live(H100)
    assert hardware.drivers["nvidia"] == {"version": "580.95.05", "max_cuda": "13.0"}
    assert cuda_requirement.unmet(wanted, hardware, hardware.accelerators) == expected


def test_a_driver_that_is_not_known_is_not_too_old() -> None:
    hardware = replace(live(H100), drivers={"nvidia": {"version": None, "max_cuda": None}})
    assert cuda_requirement.unmet({"NVIDIA_REQUIRE_CUDA": "cuda>=99"}, hardware, hardware.accelerators) is None


def test_the_demands_are_those_of_the_image_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from fl.engines import daemon

    inspected = {"Id": "sha256:1", "Config": {"Env": ["PATH=/bin", "NVIDIA_REQUIRE_CUDA=cuda>=99 brand=x,driver<1"]}}
    monkeypatch.setattr(daemon, "image", lambda address, reference: inspected)
    seen = preflight.look(facts(H100, grants=Grants(cdi=("nvidia.com/gpu=0",)), named_image=True))
    (problem,) = [p for p in preflight.findings(seen) if p.code == "requirement-unmet"]
    assert "cuda>=99 brand=x,driver<1" in problem.message and "580.95.05" in problem.message and "matrix explain" in problem.remedy


def test_under_a_replay_all_are_warnings_and_this_machine_is_not_asked() -> None:
    given = facts(hardware=recorded(H100), lane="cuda", grants=Grants(problems=(NO_TOOLKIT,)), image_platform="linux/arm64")
    assert set(told(given)) == {("no-toolkit", "warning"), ("image-platform", "warning")}
    assert preflight.look(given) is given


def test_this_machine_is_asked_for_what_matters(tmp_path: Path) -> None:
    seen = preflight.look(facts(engine="host", installs=str(tmp_path / "a/b")))
    assert seen.free and seen.shm and seen.where == str(tmp_path)
    assert preflight.look(facts()).free is None


def problem(code: str, severity: Any = "error") -> Problem:
    return Problem(code=code, severity=severity, message=f"what {code}", remedy=f"do {code}")


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        (("no-permission",), HardwareError),
        (("nodes-missing", "disk-image"), HardwareError),
        (("uvm",), HardwareError),
        (("requirement-unmet",), HardwareError),
        (("no-toolkit",), EngineError),
        (("cdi-stale",), EngineError),
        (("disk-environment", "image-platform"), EngineError),
        (("image-platform",), ImageError),
        (("disk-image",), ImageError),
    ],
)
def test_the_worst_error_gives_the_exit_code(codes: tuple[str, ...], kind: type[Exception]) -> None:
    error = preflight.error([problem("memlock", "warning"), *map(problem, codes)])
    assert type(error) is kind
    assert all(f"what {code}" in error.message and f"do {code}" in error.remedy for code in codes)
    assert "memlock" not in error.message


def test_warnings_stop_nothing() -> None:
    assert preflight.error([problem("memlock", "warning")]) is None


def test_a_dry_run_on_a_replay_shows_warnings_and_ends_well(fl: Fl) -> None:
    done = fl("run", "quickstart", "--dry-run", "--json", "--engine", "docker", env={"FL_REPLAY": str(RECORDS / "ascend-a2x8-one-busy")})
    assert done.returncode == 0
    assert {p["severity"] for p in json.loads(done.stdout)["problems"]} <= {"warning"}
