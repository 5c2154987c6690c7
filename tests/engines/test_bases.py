"""`fl images lock --digests` against a real registry, which stands in for Docker Hub."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from image_tools import docker, fl, need_docker, registry, tiny

pytestmark = pytest.mark.engine


def test_the_digest_of_a_base_is_the_one_that_docker_got_when_it_pushed(tmp_path: Path) -> None:
    need_docker()
    (tmp_path / "storage").mkdir()
    folder = Path(os.environ["XDG_CONFIG_HOME"]) / "fl"
    folder.mkdir(parents=True)
    with registry(tmp_path / "storage") as address:
        name = f"{address}/hub/library/debian:bookworm-slim"
        (folder / "config.yaml").write_text(f"mirrors: {{registry: {address}/hub}}\n")
        absent = fl("images", "lock", "--digests", "--check", "cpu-torch213")
        assert (absent.returncode, f"{address} has no {name}" in absent.stderr) == (7, True), absent.stderr
        tiny(name)
        try:
            assert docker("push", name).returncode == 0
            pushed = docker("image", "inspect", "--format", "{{index .RepoDigests 0}}", name).stdout.strip().partition("@")[2]
        finally:
            docker("image", "rm", name)
        done = fl("images", "lock", "--digests", "--check", "cpu-torch213")
        assert done.returncode == 8, done.stderr
        assert f"debian:bookworm-slim is {pushed}, the row says None" in done.stderr
