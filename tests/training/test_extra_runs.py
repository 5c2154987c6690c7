"""Optional packages, fetched and then used without a package index: every tracker writes down what the run logged."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.training
TRACKERS = ("tensorboard", "wandb", "mlflow", "swanlab", "trackio")
RECIPE = """
model_name_or_path: builtin/tiny-llama
stage: sft
do_train: true
finetuning_type: full
use_badam: true
dataset: sums.json
output_dir: out
logging_steps: 1
max_steps: 2
save_strategy: "no"
plot_loss: false
report_to: [tensorboard, wandb, mlflow, swanlab, trackio]
fl: {env: {WANDB_MODE: offline, SWANLAB_MODE: offline}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("extras")
    (place / "sums.json").write_text(json.dumps([{"instruction": f"{n} + {n}", "output": str(2 * n)} for n in range(8)]))
    (place / "recipe.yaml").write_text(RECIPE)
    return place


Fl = Callable[..., "subprocess.CompletedProcess[str]"]


def test_fetched_once_they_are_used_without_an_index(fl: Fl, folder: Path, train_python: Path) -> None:
    where = ("--hw", "cpu", "--engine", "host", "--json", "recipe.yaml")
    fetched = fl("fetch", *where, cwd=folder, timeout=600)
    assert fetched.returncode == 0, fetched.stderr
    told = json.loads(fetched.stdout)
    assert (told["extras"], told["offline"]) == (["badam", *TRACKERS], True)
    nothing = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "UV_OFFLINE": "1", "UV_CACHE_DIR": str(folder / "uv")}
    done = fl("run", *where, cwd=folder, timeout=600, env=nothing)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["outcome"] == "passed" and len(record["metrics"]["loss"]) == 2
    assert [one["name"] for one in record["environment"]["extras"]] == ["badam", *TRACKERS]
    assert record["environment"]["matches_lock"] is True


@pytest.mark.parametrize("name", TRACKERS)
def test_what_was_logged_is_beside_the_model(name: str, folder: Path) -> None:
    """Written by the run of the test above."""
    out = folder / "out"
    losses = [json.loads(line)["loss"] for line in (out / "trainer_log.jsonl").read_text().splitlines() if '"loss"' in line]
    assert len(losses) == 2
    if name == "mlflow":
        (metric,) = out.glob("mlruns/*/*/metrics/loss")
        assert [float(line.split()[1]) for line in metric.read_text().splitlines()] == pytest.approx(losses, abs=1e-3)
    elif name == "trackio":
        with sqlite3.connect(out / "trackio" / "huggingface.db") as database:
            rows = [json.loads(row[0]) for row in database.execute("select metrics from metrics order by step")]
        assert [row["train/loss"] for row in rows if "train/loss" in row] == pytest.approx(losses, abs=1e-3)
    else:
        pattern = {"tensorboard": "runs/*/events*", "wandb": "wandb/offline-run-*/*.wandb", "swanlab": "swanlog/run-*/*.swanlab"}
        (file,) = out.glob(pattern[name])
        assert file.read_bytes().count(b"train/loss") >= 2
    assert not (folder / name).exists(), "nothing in the folder that the run was started from"
