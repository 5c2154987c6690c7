"""images/bases.py: digests of base images, asked of a registry and written into a matrix. The registry's lies: test_images_registry.py."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree

import pytest
from tests.conftest import ROOT

MANIFEST = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
DIGEST = "sha256:" + hashlib.sha256(MANIFEST).hexdigest()


class Answers(BaseHTTPRequestHandler):
    """A registry that has one image."""

    told: str = DIGEST

    def do_GET(self) -> None:
        body = MANIFEST if self.path == "/v2/hub/library/debian/manifests/bookworm-slim" else b"{}"
        self.send_response(200 if body == MANIFEST else 404)
        self.send_header("Content-Type", "application/vnd.oci.image.index.v1+json")
        self.send_header("Docker-Content-Digest", self.told)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def host() -> Iterator[str]:
    """A registry that stands in for Docker Hub."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        folder = Path(os.environ["XDG_CONFIG_HOME"]) / "fl"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"mirrors: {{registry: 127.0.0.1:{http.server_address[1]}/hub}}\n")
        yield f"127.0.0.1:{http.server_address[1]}"
        http.shutdown()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the command reads and writes."""
    for name in ("launcher", "trainers/fl_trainers", "images"):
        copytree(ROOT / name, tmp_path / name)
    (tmp_path / "matrix.yaml").write_bytes((ROOT / "matrix.yaml").read_bytes())
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def lock(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "UV_HTTP_RETRIES": "0"}
    own = {"PYTHONPATH": f"{checkout / 'launcher'}:{checkout / 'trainers'}", "DOCKER_CONFIG": str(checkout)}
    environment = {**os.environ, **nowhere, **own}
    command = [sys.executable, "-m", "fl", "images", "lock", "--digests", *words]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_base_s_digest_is_compared_and_written_with_comments_kept(host: str, checkout: Path) -> None:
    before = (checkout / "matrix.yaml").read_text()
    done = lock(checkout, "--check", "cpu-torch213")
    assert done.returncode == 8, done.stderr
    assert f"cpu-torch213: debian:bookworm-slim is {DIGEST}, the row says None" in done.stderr
    assert (checkout / "matrix.yaml").read_text() == before
    done = lock(checkout, "cpu-torch213", "--platform", "linux/s390x")
    assert (done.returncode, "no image for linux/s390x" in done.stderr) == (8, True)
    assert (checkout / "matrix.yaml").read_text() == before, "nothing is written before the command is known to be possible"
    done = lock(checkout, "cpu-torch213")  # no index is here: the digest is written, and the lock could not be made
    assert (done.returncode, "written: " in done.stderr, "could not be locked" in done.stderr) == (8, True, True), done.stderr
    assert "try: fl matrix show STACK" in done.stderr and "try: mirrors: {index: " in done.stderr
    after = (checkout / "matrix.yaml").read_text()
    line = '  base: {image: "debian:bookworm-slim", digest: '
    assert after == before.replace(f"{line}null}}", f"{line}{DIGEST}}}", 1)
    done = lock(checkout, "--check", "cpu-torch213")
    assert done.returncode == 8
    assert "cpu-torch213.train.linux-amd64.txt: " in done.stderr, "the digest is the registry's now; the lock is to be made again"
    assert "row" in done.stderr


def test_a_registry_that_lies_and_one_that_has_it_not(host: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (checkout / "matrix.yaml").read_text()
    monkeypatch.setattr(Answers, "told", "sha256:" + "0" * 64)
    done = lock(checkout, "cpu-torch213")
    assert done.returncode == 7
    assert f"{host} lies about {host}/hub/library/debian:bookworm-slim" in done.stderr
    done = lock(checkout, "cuda130-torch214")
    assert done.returncode == 7
    assert f"{host} has no {host}/hub/library/debian:trixie-slim" in done.stderr
    assert (checkout / "matrix.yaml").read_text() == before
