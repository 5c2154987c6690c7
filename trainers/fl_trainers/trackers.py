"""Trackers of `report_to`: there before the model is loaded, with what they keep on the disk beside the model."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import MutableMapping
from pathlib import Path

from fl_trainers.config import Config
from fl_trainers.errors import InputError
from fl_trainers.progress import log

MODULES = {
    "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",), "swanlab": ("swanlab",),
    "trackio": ("trackio",), "comet_ml": ("comet_ml",), "clearml": ("clearml",), "dvclive": ("dvclive",), "neptune": ("neptune",),
    "codecarbon": ("codecarbon",), "dagshub": ("dagshub",),
}  # fmt: skip
"""What each imports: one of them must be there."""
_LOGINS = {
    "wandb": ("WANDB_API_KEY", "WANDB_MODE", ("offline", "disabled", "dryrun"), ("~/.netrc", "~/_netrc")),
    "swanlab": ("SWANLAB_API_KEY", "SWANLAB_MODE", ("offline", "local", "disabled"), ("~/.swanlab/.netrc",)),
}
"""Key, mode, modes without a login, and where a login is kept."""


def names(config: Config) -> list[str]:
    """Those that the recipe names, `none` left out."""
    said = config.training.arguments.get("report_to") or []
    return [name for name in ([said] if isinstance(said, str) else said) if name != "none"]


def settle(config: Config, environ: MutableMapping[str, str]) -> None:
    """Where trackers write on this machine, unless the caller's variables say otherwise: below the output folder, which outlives the run.

    InputError for one whose package or login is not there: it would end the training after the model was loaded.
    """
    folder = Path(config.training.output_dir).absolute()
    for name in names(config):
        modules = MODULES.get(name, ())
        if modules and all(importlib.util.find_spec(module) is None for module in modules):
            raise InputError(f"report_to: {name} needs the package {modules[0]}, which this environment does not have",
                             "`fl run` without --python and --image brings it, where it is an extra; or report_to: none")  # fmt: skip
        _need_login(name, environ)
        for variable, value in _places(name, folder, environ).items():
            environ.setdefault(variable, value)


def _need_login(name: str, environ: MutableMapping[str, str]) -> None:
    if name not in _LOGINS:
        return
    key, mode, without, files = _LOGINS[name]
    if environ.get(key) or environ.get(mode, "") in without or any(Path(file).expanduser().is_file() for file in files):
        return
    raise InputError(f"report_to: {name} has no login here: {key} is not set", f"{key}=… of your account, or {mode}=offline: "
                     "what it logs then stays in output_dir")  # fmt: skip


def _places(name: str, folder: Path, environ: MutableMapping[str, str]) -> dict[str, str]:
    if name == "mlflow" and "MLFLOW_TRACKING_URI" not in environ:
        return {"MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    known = {"wandb": ("WANDB_DIR", "."), "swanlab": ("SWANLAB_LOG_DIR", "swanlog"), "trackio": ("TRACKIO_DIR", "trackio")}
    return {known[name][0]: str(folder / known[name][1])} if name in known else {}


def close(code: int) -> None:
    """Lets trackers write what they hold: the process ends without the interpreter's own tidying, in which they would."""
    for name in ("wandb", "swanlab", "mlflow"):
        module = sys.modules.get(name)
        try:
            if name == "wandb" and module is not None and module.run is not None:
                module.finish(exit_code=code)
            elif name == "swanlab" and module is not None and module.get_run() is not None:
                module.finish()
            elif name == "mlflow" and module is not None and module.active_run() is not None:
                module.end_run("FINISHED" if code == 0 else "FAILED")
        except Exception as error:  # noqa: BLE001 - the training has ended as it has, whatever a tracker says
            log.warning("%s could not be closed: %s", name, error)
