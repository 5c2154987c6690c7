"""mounts.py: what a container sees."""

from __future__ import annotations

import pytest

from fl import mounts
from fl.errors import RecipeError
from fl.grants import Mount


def mount(path: str, read_only: bool = True, source: str | None = None) -> Mount:
    return Mount(source=source or path, target=path, read_only=read_only)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([mount("/data/a"), mount("/data/a")], [mount("/data/a")]),
        ([mount("/data/a"), mount("/data/a", False)], [mount("/data/a", False)]),
        ([mount("/data/a", False), mount("/data/a")], [mount("/data/a", False)]),
        ([mount("/data/a/b"), mount("/data/a")], [mount("/data/a")]),
        ([mount("/data/a/b"), mount("/data/a", False)], [mount("/data/a", False)]),
        ([mount("/data/a/b", False), mount("/data/a")], [mount("/data/a"), mount("/data/a/b", False)]),
        ([mount("/data/ab"), mount("/data/a")], [mount("/data/a"), mount("/data/ab")]),
        ([mount("/data/a/b", source="/elsewhere"), mount("/data/a")], [mount("/data/a"), mount("/data/a/b", source="/elsewhere")]),
        ([mount("/d/a/b/c"), mount("/d/a/b", False), mount("/d/a")], [mount("/d/a"), mount("/d/a/b", False)]),
    ],
)
def test_equal_and_nested_mounts_merge_and_a_writable_one_wins(given: list[Mount], kept: list[Mount]) -> None:
    assert mounts.merge(given) == tuple(kept)


def test_two_sources_for_one_place_are_refused() -> None:
    with pytest.raises(RecipeError, match="wanted twice"):
        mounts.merge([mount("/data", source="/x"), mount("/data", source="/y")])


@pytest.mark.parametrize(
    "path", ["/", "/root", "/opt", "/usr", "/usr/share/models", "/etc", "/opt/venv/lib", "/dev/shm", "/home", "/tmp", "/var"]
)
def test_places_of_the_image_itself_are_refused(path: str) -> None:
    with pytest.raises(RecipeError, match="cannot be mounted"):
        mounts.refuse(path)


@pytest.mark.parametrize("path", ["/data", "/home/u/models", "/root/data", "/opt/data", "/mnt/disk", "/tmp/x", "/usrdata", "/etcetera"])
def test_other_places_are_not(path: str) -> None:
    mounts.refuse(path)
    assert mounts.merge([mount(path)]) == (mount(path),)


@pytest.mark.parametrize(
    ("path", "repository"),
    [
        ("/c/hub/models--Qwen--Qwen3-0.6B/snapshots/abc", "/c/hub/models--Qwen--Qwen3-0.6B"),
        ("/c/hub/models--Qwen--Qwen3-0.6B/snapshots/abc/config.json", "/c/hub/models--Qwen--Qwen3-0.6B"),
        ("/c/hub/datasets--a--b/snapshots/abc", "/c/hub/datasets--a--b"),
        ("/data/snapshots/abc", "/data/snapshots/abc"),
        ("/data/models", "/data/models"),
    ],
)
def test_a_hub_snapshot_is_mounted_as_its_repository(path: str, repository: str) -> None:
    assert mounts.repository(path) == repository
