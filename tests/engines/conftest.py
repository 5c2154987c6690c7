"""What the engines' tests leave behind: nothing that a later `--engine auto` would take."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from fl.engines.podman import environment
from fl.images import tags


@pytest.fixture(scope="session", autouse=True)
def podman_has_no_image_more() -> Iterator[None]:
    """The CPU row's image goes from podman's store where it was not there before: on a machine where podman starts containers only with
    settings of these tests, `fl run` would choose podman for it and fail."""
    reference = tags.reference("cpu-torch213")
    before = shutil.which("podman") is None or _podman("exists", reference) == 0
    yield
    if not before:
        _podman("rm", "--force", reference)


def _podman(*words: str) -> int:
    return subprocess.run(["podman", "image", *words], env=environment(), capture_output=True, timeout=600, check=False).returncode
