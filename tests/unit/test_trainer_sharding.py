"""Builds of extensions that a killed run left in the middle."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fl_trainers import sharding


def test_a_lock_that_nobody_holds_any_more_is_taken_away(tmp_path: Path) -> None:
    old = time.time() - sharding.DEAD_AFTER - 60
    for name in ("dead", "slow", "done"):
        (tmp_path / name).mkdir()
        for file in ("lock", "shm.o")[name == "done" :]:
            (tmp_path / name / file).touch()
            os.utime(tmp_path / name / file, (old, old))
        os.utime(tmp_path / name, (old, old))
    os.utime(tmp_path / "slow" / "shm.o")  # written just now: somebody builds
    assert sharding.forget_dead_builds({"TORCH_EXTENSIONS_DIR": str(tmp_path)}) == [tmp_path / "dead" / "lock"]
    assert not (tmp_path / "dead" / "lock").exists() and (tmp_path / "slow" / "lock").exists()
    assert sharding.forget_dead_builds({}) == []
