"""Several processes of one run that end before their time: one alone is killed, or all are asked to stop. Real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import ROOT
from trainer_harness import Trainer, environment

pytestmark = pytest.mark.training
Config = Callable[..., Path]


def until_step(events: Callable[[], Path | None], step: int, process: subprocess.Popen[str], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        path = events()
        if path is not None and path.exists() and f'"step": {step}' in path.read_text():
            return
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no step {step}: {process.communicate()}")


def of_run(marked: str) -> dict[int, dict[str, str]]:
    """Living processes of the trainer with this text in their command: pid → environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marked in (entry / "cmdline").read_text():
                items = (entry / "environ").read_text().split("\0")
                found[int(entry.name)] = dict(item.partition("=")[::2] for item in items if item)
        except OSError:
            continue
    return found


def test_one_process_that_is_killed_ends_the_others_and_is_named(tmp_path: Path, train_python: Path) -> None:
    runs = Path(os.environ["XDG_STATE_HOME"]) / "fl" / "runs"
    values = {**os.environ, "PYTHONPATH": f"{ROOT / 'launcher'}:{ROOT / 'trainers'}", "COLUMNS": "200"}
    command = [sys.executable, "-m", "fl", "run", "--engine", "host", "--hw", "cpu", "--devices", "count:2", "tiny-sft",
               "max_steps=100000", f"output_dir={tmp_path}/out"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=values)
    until_step(lambda: next(runs.glob("*/events.jsonl"), None), 3, process)
    ranks = {of["RANK"]: pid for pid, of in of_run(str(runs)).items() if "RANK" in of}
    assert sorted(ranks) == ["0", "1"]
    os.kill(ranks["1"], signal.SIGKILL)
    out, said = process.communicate(timeout=300)
    assert process.returncode == 10, said
    assert "cpu, 2 processes" in out and "process 2 of the run was killed by SIGKILL" in said and "Traceback" not in said
    (folder,) = runs.iterdir()
    assert json.loads((folder / "state.json").read_text())["state"] == "failed"
    assert json.loads((folder / "evidence.json").read_text())["failure"]["message"].startswith("process 2 of the run was killed")
    assert of_run(str(runs)) == {}


def test_two_processes_that_were_stopped_go_on_as_two_or_as_one(trainer: Trainer, config: Config, train_python: Path) -> None:
    steady = {"lr_scheduler_type": "constant", "learning_rate": 0.002, "save_strategy": "steps", "save_steps": 50_000}
    path = config("first", arguments={**steady, "per_device_train_batch_size": 2, "max_steps": 100_000})
    torchrun = [train_python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint",
                "127.0.0.1:0", "--local-addr", "127.0.0.1", "-m", "fl_trainers", path]  # fmt: skip
    with (path.parent / "log.txt").open("w") as log:
        process = subprocess.Popen(torchrun, env=environment(), stdout=log, stderr=log, text=True)
    until_step(lambda: path.parent / "events.jsonl", 3, process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=300)
    said = [json.loads(line) for line in (path.parent / "events.jsonl").read_text().splitlines()]
    assert (said[-1]["event"], said[-1]["outcome"], said[-1]["exit"]) == ("end", "stopped", 143)
    (checkpoint,) = (path.parent / "out").glob("checkpoint-*")
    done = int(checkpoint.name[11:])
    assert len(list(checkpoint.glob("rng_state_*.pth"))) == 2
    losses = {}
    for name, ranks, batch in (("whole", 2, 2), ("two", 2, 2), ("one", 1, 4)):
        again = config(name, arguments={**steady, "per_device_train_batch_size": batch, "max_steps": done + 4})
        if name != "whole":
            shutil.copytree(checkpoint, again.parent / "out" / checkpoint.name)
        ended = trainer.train(again, ranks)
        assert ended.code == 0, ended.output
        losses[name] = ended.losses[-4:]
    assert losses["two"] == pytest.approx(losses["whole"], abs=1e-6)
    assert losses["one"] == pytest.approx(losses["whole"], abs=2e-4)
