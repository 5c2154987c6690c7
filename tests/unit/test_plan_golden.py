"""Golden plans: a recorded machine and an engine → the whole plan, byte for byte.

Refresh after a wanted change: FL_GOLDEN=write python -m pytest tests/unit/test_plan_golden.py, then read the diff.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import HOSTS, ROOT

GOLDEN = ROOT / "tests" / "golden" / "plans"
Fl = Callable[..., "subprocess.CompletedProcess[str]"]

CASES = {
    "h100x8.docker": ("h100x8-driver580", "docker", ()),
    "h100x8.docker.devices-2-5": ("h100x8-driver580", "docker", ("--devices", "2,5")),
    "h100x8.podman": ("h100x8-driver580", "podman", ("--devices", "count:4")),
    "h100x8.host.devices-2-5": ("h100x8-driver580", "host", ("--devices", "2,5", "--python", "/usr/bin/python3")),
    "h100-driver535.docker": ("h100x1-driver535", "docker", ()),
    "mi300x8.docker": ("mi300x8-spx", "docker", ()),
    "mi300x8.podman.devices-2-5": ("mi300x8-spx", "podman", ("--devices", "2,5")),
    "mi300x8.host": ("mi300x8-spx", "host", ("--devices", "0", "--python", "/usr/bin/python3")),
    "ascend-a2x8.docker": ("ascend-a2x8-one-busy", "docker", ()),
    "ascend-a2x8.podman.free-two": ("ascend-a2x8-one-busy", "podman", ("--devices", "count:2")),
    "intel-max1100x2.docker": ("intel-max1100x2", "docker", ()),
    "intel-max1100x2.podman": ("intel-max1100x2", "podman", ("--devices", "1")),
    "cpu-only.docker": ("cpu-only", "docker", ()),
    "cpu-only.podman": ("cpu-only", "podman", ()),
    "cpu-only.host": ("cpu-only", "host", ()),
    "two-lanes.docker.cuda": ("two-lanes", "docker", ("--hw", "cuda")),
    "h100x8.apptainer.devices-2-5": ("h100x8-driver580", "apptainer", ("--devices", "2,5")),
    "mi300x8.apptainer.devices-2-5": ("mi300x8-spx", "apptainer", ("--devices", "2,5")),
    "ascend-a2x8.apptainer.free-two": ("ascend-a2x8-one-busy", "apptainer", ("--devices", "count:2")),
    "intel-max1100x2.apptainer": ("intel-max1100x2", "apptainer", ()),
    "cpu-only.apptainer": ("cpu-only", "apptainer", ()),
    "wsl2.docker": ("wsl2-4090", "docker", ()),
    "laptop.docker": ("laptop-4060-igpu", "docker", ()),
}


def normal(text: str, plan: dict[str, Any], replacements: dict[str, str]) -> str:
    """The plan without what belongs to this machine and moment."""
    for found, name in replacements.items():
        text = text.replace(found, name)
    text = text.replace(plan["run"], "RUN")
    text = re.sub(r"/code/[0-9a-f]{16}", "/code/TRAINER_SHA256-16", text)
    for key in ("matrix_sha256", "recipe_sha256", "lock_sha256", "trainer_sha256"):
        if plan[key]:
            text = text.replace(plan[key], key.upper()).replace(plan[key][:12], f"{key.upper()}-12")
    return re.sub(r"/environments/[0-9a-f]{16}", "/environments/LOCK-16", text)


def ordered(text: str) -> str:
    """Mounts stand in the order of their real paths, which differ from machine to machine: here in the order of their names."""
    plan = json.loads(text)
    plan["mounts"].sort(key=lambda mount: mount["target"])
    for flag in ("--mount", "--bind"):
        places = [i + 1 for i, word in enumerate(plan["argv"]) if word == flag]
        for place, value in zip(places, sorted(plan["argv"][i] for i in places), strict=True):
            plan["argv"][place] = value
    return json.dumps(plan, indent=1) + "\n"


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_plan_is_as_it_was(fl: Fl, tmp_path: Path, name: str) -> None:
    host, engine, more = CASES[name]
    home = tmp_path / "home"
    home.mkdir()
    environment = {f"XDG_{kind}_HOME": f"{home}/{kind.lower()}" for kind in ("CACHE", "STATE", "CONFIG")}
    environment |= {"FL_REPLAY": str(HOSTS / host), "HOME": str(home), "OMP_NUM_THREADS": "2"}
    done = fl("run", "--dry-run", "--json", "--engine", engine, *more, "quickstart", cwd=home, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    plan = json.loads(done.stdout)
    user = f"{os.getuid()}:{os.getgid()}"
    plan["argv"] = [
        "UID:GID" if word == user and plan["argv"][i - 1] == "--user" and engine == "docker" else word
        for i, word in enumerate(plan["argv"])
    ]
    me = plan["environment"].get("USER", "nobody-at-all")
    for key in ("USER", "LOGNAME"):
        if key in plan["environment"]:
            plan["environment"][key] = "ME"
    plan["argv"] = [f"{word.split('=')[0]}=ME" if word in (f"USER={me}", f"LOGNAME={me}") else word for word in plan["argv"]]
    text = normal(json.dumps(plan, indent=1) + "\n", plan, {str(home): "/HOME", str(ROOT): "/CHECKOUT"})
    text = ordered(text)
    file = GOLDEN / f"{name}.json"
    if os.environ.get("FL_GOLDEN") == "write":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), f"the plan changed; if that is wanted: FL_GOLDEN=write python -m pytest {Path(__file__).name}"


@pytest.mark.parametrize("engine", ["host", "apptainer"])
def test_a_run_with_deepspeed_is_bound_by_index(fl: Fl, tmp_path: Path, engine: str) -> None:
    """DeepSpeed makes a number of each part of CUDA_VISIBLE_DEVICES."""
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    environment = {f"XDG_{kind}_HOME": f"{tmp_path}/{kind.lower()}" for kind in ("CACHE", "STATE", "CONFIG")}
    environment |= {"FL_REPLAY": str(HOSTS / "h100x8-driver580"), "HOME": str(tmp_path)}
    python = ("--python", "/usr/bin/python3") if engine == "host" else ()
    done = fl("run", "--dry-run", "--json", "--engine", engine, "--devices", "2,5", *python, "quickstart",
              f"deepspeed={tmp_path}/zero.json", cwd=tmp_path, env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    given = json.loads(done.stdout)["environment"]
    assert (given["CUDA_DEVICE_ORDER"], given["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "2,5")
