"""`fl attach`, `fl stop`, `fl resume`, `fl rm`: a run that is watched, stopped, killed, and goes on where it was. Real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT

pytestmark = pytest.mark.training
Fl = Callable[..., "subprocess.CompletedProcess[str]"]
RECIPE = """\
model_name_or_path: builtin/tiny-qwen3
stage: sft
do_train: true
finetuning_type: full
dataset: mine
dataset_dir: .
cutoff_len: 64
output_dir: out
overwrite_output_dir: true
save_strategy: steps
save_steps: 20
save_total_limit: 2
logging_steps: 1
per_device_train_batch_size: 2
max_steps: 10000
"""


@pytest.fixture
def place(tmp_path: Path, train_python: Path, fl: Fl) -> Iterator[Path]:
    """A folder with a recipe of thousands of steps, whose paths are relative. Nothing goes on afterwards."""
    rows = [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in range(30)]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    (tmp_path / "long.yaml").write_text(RECIPE)
    yield tmp_path
    for run in json.loads(fl("ps", "--json").stdout)["runs"]:
        fl("stop", "--now", run["run"])


def folder(name: str) -> Path:
    return Path(os.environ["XDG_STATE_HOME"]) / "fl" / "runs" / name


def steps(name: str) -> list[int]:
    try:
        text = (folder(name) / "events.jsonl").read_text()
    except OSError:
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()  # a line that is being written does not count yet
    return [event["step"] for event in map(json.loads, lines) if event["event"] == "step"]


def checkpoints(place: Path) -> list[int]:
    return sorted(int(f.parent.name[11:]) for f in (place / "out").glob("checkpoint-*/trainer_state.json"))


def until(true: Callable[[], Any], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.1)


def started(fl: Fl, place: Path) -> str:
    done = fl("run", "--engine", "host", "--detach", "--json", "long.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["run"])


def state(name: str) -> dict[str, Any]:
    return dict(json.loads((folder(name) / "state.json").read_text()))


def test_a_run_is_watched_stopped_and_goes_on_from_another_folder(fl: Fl, place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    name = started(fl, place)
    until(lambda: checkpoints(place))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'launcher'}:{ROOT / 'trainers'}"}
    command = [sys.executable, "-m", "fl", "attach"]
    watch = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert watch.stderr is not None
    assert any("step" in watch.stderr.readline() for _ in range(20))
    watch.send_signal(signal.SIGINT)
    _, said = watch.communicate(timeout=300)
    assert (watch.returncode, f"{name} goes on" in said) == (0, True)
    assert state(name)["state"] == "running"
    refused = fl("resume", name)
    assert (refused.returncode, f"fl attach {name}" in refused.stderr) == (2, True)
    assert fl("rm", name).returncode == 2
    assert fl("stop", name, timeout=600).returncode == 0
    last = max(checkpoints(place))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shown = fl("resume", "--dry-run", "--json", name, cwd=elsewhere)
    assert (shown.returncode, json.loads(shown.stdout)["stack"]) == (0, "cpu-torch213")
    again = fl("resume", "--detach", "--json", name, cwd=elsewhere)
    assert again.returncode == 0, again.stderr
    assert f"from {place / 'out'}/checkpoint-{last}" in again.stderr
    second = str(json.loads(again.stdout)["run"])
    until(lambda: steps(second))
    assert steps(second)[0] == last + 1
    os.kill(int(state(second)["launcher"].split(":")[0]), signal.SIGKILL)
    until(lambda: state(second)["ident"])
    os.killpg(int(state(second)["ident"].split(":")[0]), signal.SIGKILL)
    until(lambda: "lost" in fl("ps", "-a").stdout)
    last = max(checkpoints(place))
    third = json.loads(fl("resume", "--detach", "--json", second, cwd=elsewhere).stdout)["run"]
    until(lambda: steps(third))
    assert steps(third)[0] == last + 1
    assert fl("stop", third, timeout=600).returncode == 0
    assert fl("rm", name, second, third).returncode == 0
    assert not folder(name).exists()
    assert checkpoints(place)


def test_attach_ends_with_the_run(fl: Fl, place: Path) -> None:
    done = fl("run", "--engine", "host", "--detach", "--json", "long.yaml", "max_steps=3", "save_strategy=no", cwd=place)
    name = json.loads(done.stdout)["run"]
    watched = fl("attach", name, timeout=600)
    assert watched.returncode == 0, watched.stderr
    assert f"{name}: finished" in watched.stdout
    assert "step 3/3" in watched.stderr
    over = fl("resume", name)
    assert (over.returncode, "has finished" in over.stderr) == (2, True)
