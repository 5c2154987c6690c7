"""The seccomp profile that AMD devices get under docker: memory policy works, what an ordinary container may not do it still may not."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from fl.container import MEMORY_POLICY

pytestmark = pytest.mark.engine
BASE = "flpy:bookworm"
PROBE = """
import ctypes, os, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(*words):
    ctypes.set_errno(0)
    return 0 if libc.syscall(*words) >= 0 else ctypes.get_errno()
threading.Thread(target=print, args=("thread",)).start()
print("set_mempolicy", call(238, 0, None, 0))
print("unshare", call(272, 0x10000000))
print("keyctl", call(250, 0, -3, 0))
print("bpf", call(321, 0, None, 0))
print("mount", call(165, b"a", b"/tmp", b"tmpfs", 0, None))
"""


def probe(*options: str) -> dict[str, str]:
    words = ["docker", "run", "--rm", "--network", "none", "--user", "54321:54321", "--security-opt", "no-new-privileges", *options]
    done = subprocess.run([*words, BASE, "python3", "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines() if " " in line)


@pytest.fixture(autouse=True)
def engine() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "image", "inspect", BASE], capture_output=True, check=False).returncode:
        pytest.skip(f"no docker daemon with the image {BASE}")


def test_memory_policy_is_allowed_and_nothing_else_is_opened() -> None:
    refused = {"unshare": "1", "keyctl": "1", "bpf": "1", "mount": "1"}
    assert probe("--security-opt", f"seccomp={MEMORY_POLICY}") == {"set_mempolicy": "0", **refused}


def test_dockers_own_profile_refuses_it() -> None:
    """The reason for a profile at all; when this fails, it can go."""
    assert probe()["set_mempolicy"] == "1"
