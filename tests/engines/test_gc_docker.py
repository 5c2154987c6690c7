"""`fl gc` and docker's store: which images it finds, and that it takes no other. Only what this file built is removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from image_tools import docker, fl, need_docker, tiny

from fl import gc

pytestmark = pytest.mark.engine
NAME = "fl-test/gc:1"


@pytest.fixture
def builds() -> Iterator[list[str]]:
    """Ids of two builds of one name, the older first."""
    need_docker()
    ids = []
    for number in (1, 2):
        tiny(NAME, lines=f"ENV BUILD={number}")
        ids.append(docker("image", "inspect", "--format", "{{.Id}}", NAME).stdout.strip())
    yield ids
    docker("image", "rm", "-f", *ids)


def found(*words: str) -> dict[str, dict[str, Any]]:
    done = fl("gc", "--dry-run", "--json", *words)
    assert done.returncode == 0, done.stderr
    return {one["path"]: one for one in json.loads(done.stdout)["removed"] if one["kind"] == "image"}


def test_a_build_that_lost_its_name_goes(builds: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    older, newer = builds
    images = found("--days", "0")
    assert images[older[7:19]]["why"] == "cpu-torch213: a newer build has its name"
    assert newer[7:19] not in images
    assert NAME not in images
    assert older[7:19] not in found("--days", "1"), "it was built a moment ago"
    waste = gc.Waste(kind="image", path=tmp_path / "x", size=1, why="", image=older)
    container = docker("create", older, "true").stdout.strip()
    assert gc.remove([waste]) == [], "a container has it"
    docker("rm", container)
    assert gc.remove([waste]) == [waste]
    assert docker("image", "inspect", older).returncode == 1
    assert docker("image", "inspect", newer).returncode == 0


def test_without_docker_the_caches_are_looked_at_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    assert found("--days", "0") == {}
