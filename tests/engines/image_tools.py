"""What the tests of images share: tiny images with our labels, registries of their own, and faults in the line between."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import SHARED

from fl import __version__

BOX = "flbox:1"
PROXY = SHARED / "engines" / "chaos_proxy.py"


def docker(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], input=stdin, capture_output=True, text=True, check=False)


def fl(*words: str, timeout: float = 600, **variables: str) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-m", "fl", *words], {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=timeout)


def need_docker(image: str = BOX) -> None:
    if shutil.which("docker") is None or docker("version").returncode != 0:
        pytest.skip("no docker daemon answers")
    if docker("image", "inspect", image).returncode != 0:
        pytest.skip(f"the image {image} is not on this machine")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def tiny(name: str, stack: str = "cpu-torch213", platform: str = "linux/amd64", lines: str = "", **labels: str) -> str:
    """An image of some megabytes that says it is a stack's. It trains nothing: it is for moving around."""
    told = {"fl.stack": stack, "fl.flavor": "train", "fl.version": __version__, **{k.replace("__", "."): v for k, v in labels.items()}}
    words = " ".join(f'{name}="{value}"' for name, value in told.items())
    text = f"FROM {BOX if platform == 'linux/amd64' else 'scratch'}\nLABEL {words}\n{lines}\n"
    done = docker("buildx", "build", "--quiet", "--provenance=false", "--platform", platform, "--load", "-t", name, "-", stdin=text)
    assert done.returncode == 0, done.stderr
    return name


def wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    pytest.fail(f"nothing listens on {port}")


@contextlib.contextmanager
def registry(folder: Path, users: Path | None = None) -> Iterator[str]:
    """A registry of this test's own, with its storage in a folder: its address."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    port = free_port()
    settings: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder)}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if users is not None:
        settings["auth"] = {"htpasswd": {"realm": "fl", "path": str(users)}}
    file = folder.parent / f"registry-{port}.yml"
    file.write_text(json.dumps(settings))
    process = subprocess.Popen(["docker-registry", "serve", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def faulty(upstream: str, mode: str, after: int, faults: int = 10**9) -> Iterator[str]:
    """A line to a registry that resets or stalls after so many bytes of its answers."""
    if not PROXY.is_file():
        pytest.skip("the faulty proxy is not here")
    port = free_port()
    words = [str(port), upstream.rsplit(":", 1)[1], mode, str(after), str(faults)]
    process = subprocess.Popen([sys.executable, str(PROXY), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def digest_of(name: str) -> str | None:
    """The digest that a registry states for HOST/REPOSITORY:TAG."""
    host, _, rest = name.partition("/")
    repository, _, tag = rest.rpartition(":")
    kinds = ("docker.distribution.manifest.v2", "docker.distribution.manifest.list.v2", "oci.image.index.v1", "oci.image.manifest.v1")
    accept = ", ".join(f"application/vnd.{kind}+json" for kind in kinds)
    request = urllib.request.Request(f"http://{host}/v2/{repository}/manifests/{tag}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.headers["Docker-Content-Digest"])
    except urllib.error.HTTPError:
        return None


def flip(storage: Path, digest: str) -> None:
    """Changes one byte of a blob in a registry's storage."""
    number = digest.removeprefix("sha256:")
    file = storage / "docker/registry/v2/blobs/sha256" / number[:2] / number / "data"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
