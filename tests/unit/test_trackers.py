"""Trackers: what they need of a network and of the caller, and where the trainer lets them write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl import trackers
from fl_trainers import trackers as training
from fl_trainers.config import Config
from fl_trainers.errors import InputError


def config(*names: str, **arguments: Any) -> Config:
    made: dict[str, Any] = {
        "schema": 1, "run": {"name": "x", "lane": "cpu", "stack": "x", "events": "/x"},
        "model": {"name": "x", "path": "x", "kind": "folder"}, "data": {"train": []}, "method": {"stage": "sft"},
        "training": {"output_dir": "/models/my run", "arguments": {"report_to": list(names), **arguments}},
    }  # fmt: skip
    return Config.model_validate(made)


@pytest.mark.parametrize(
    ("names", "environ", "more", "online"),
    [
        (("none",), {}, {}, ()),
        (("tensorboard", "wandb"), {}, {}, ("wandb",)),
        (("wandb", "swanlab"), {"WANDB_MODE": "offline", "SWANLAB_MODE": "local"}, {}, ()),
        (("wandb",), {"WANDB_MODE": "online"}, {}, ("wandb",)),
        (("mlflow",), {}, {}, ()),
        (("mlflow",), {"MLFLOW_TRACKING_URI": "file:///data/mlruns"}, {}, ()),
        (("mlflow",), {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}, {}, ("mlflow",)),
        (("trackio",), {}, {}, ()),
        (("trackio",), {}, {"trackio_space_id": "me/runs"}, ("trackio",)),
        (("comet_ml",), {}, {}, ("comet_ml",)),
    ],
)
def test_which_need_a_network(names: tuple[str, ...], environ: dict[str, str], more: dict[str, Any], online: tuple[str, ...]) -> None:
    assert trackers.tracked_online(config(*names, **more), environ) == online


def test_variables_of_those_that_are_named_and_of_no_others() -> None:
    around = {"WANDB_API_KEY": "k", "WANDB_PROJECT": "p", "MLFLOW_TRACKING_URI": "http://u:p@h", "SWANLAB_API_KEY": "s", "HOME": "/h"}
    assert trackers.variables(config("wandb"), around) == {"WANDB_API_KEY": "k", "WANDB_PROJECT": "p"}
    assert set(trackers.variables(config("mlflow", "swanlab"), around)) == {"MLFLOW_TRACKING_URI", "SWANLAB_API_KEY"}
    assert trackers.variables(config("none"), around) == {}


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Puts modules of these names on Python's path; no login is anywhere."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(*names: str) -> None:
        for name in names:
            (tmp_path / f"{name}.py").touch()

    return put


def test_what_is_kept_here_is_beside_the_model_unless_the_caller_says_otherwise(there: Callable[..., None]) -> None:
    there("wandb", "mlflow", "swanlab", "trackio", "tensorboard")
    around = {"WANDB_MODE": "offline", "SWANLAB_API_KEY": "k"}
    training.settle(config("wandb", "mlflow", "swanlab", "trackio", "tensorboard"), around)
    assert around == {
        "WANDB_MODE": "offline", "SWANLAB_API_KEY": "k", "WANDB_DIR": "/models/my run", "SWANLAB_LOG_DIR": "/models/my run/swanlog",
        "TRACKIO_DIR": "/models/my run/trackio", "MLFLOW_TRACKING_URI": "file:///models/my%20run/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true",
    }  # fmt: skip
    around = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "TRACKIO_DIR": "/elsewhere"}
    training.settle(config("mlflow", "trackio"), dict(around))
    assert "MLFLOW_ALLOW_FILE_STORE" not in around and around["TRACKIO_DIR"] == "/elsewhere"


def test_a_missing_package_or_login_is_told_before_the_model_is_loaded(there: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="report_to: trackio needs the package trackio"):
        training.settle(config("trackio"), {})
    there("wandb", "swanlab")
    for name, key in (("wandb", "WANDB_API_KEY"), ("swanlab", "SWANLAB_API_KEY")):
        with pytest.raises(InputError, match=f"report_to: {name} has no login here: {key} is not set"):
            training.settle(config(name), {})
        training.settle(config(name), {key: "k"})
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").touch()
    training.settle(config("wandb"), {})


def test_trackers_are_closed_with_the_outcome_and_a_fault_of_theirs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def fails() -> None:
        raise RuntimeError("no network")

    monkeypatch.setitem(sys.modules, "swanlab", SimpleNamespace(get_run=lambda: object(), finish=fails))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=object(), finish=lambda exit_code: told.append(exit_code)))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(active_run=lambda: object(), end_run=told.append))
    training.close(10)
    training.close(0)
    assert told == [10, "FAILED", 0, "FINISHED"]
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(active_run=lambda: None))
    training.close(0)
