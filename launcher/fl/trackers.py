"""What trackers of `report_to` ask of a run: a network, and the caller's variables, which may hold keys and passwords. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fl_trainers.config import Config

_PREFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "wandb": ("WANDB_",), "swanlab": ("SWANLAB_",), "mlflow": ("MLFLOW_", "HF_MLFLOW_"), "comet_ml": ("COMET_",), "trackio": ("TRACKIO_",),
    "tensorboard": ("TENSORBOARD_LOGGING_DIR",), "clearml": ("CLEARML_",), "neptune": ("NEPTUNE_",), "dvclive": ("DVCLIVE_", "HF_DVCLIVE_"),
}  # fmt: skip
"""How the variables of each begin."""
_MODES: Final = {"wandb": "WANDB_MODE", "swanlab": "SWANLAB_MODE"}
_LOCAL: Final = ("offline", "local", "disabled", "dryrun")


def names(config: Config) -> tuple[str, ...]:
    """Those that the recipe names."""
    said = config.training.arguments.get("report_to") or "none"
    return tuple(name for name in ([said] if isinstance(said, str) else said) if name != "none")


def variables(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's variables of the trackers that a recipe names: where they log to, as whom. They travel as secrets do."""
    prefixes = tuple(prefix for name in names(config) for prefix in _PREFIXES.get(name, ()))
    return {name: value for name, value in environ.items() if prefixes and name.startswith(prefixes)}


def tracked_online(config: Config, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Those that log to another machine."""
    return tuple(name for name in names(config) if not _stays_here(name, config, environ))


def _stays_here(name: str, config: Config, environ: Mapping[str, str]) -> bool:
    if name == "mlflow":
        return environ.get("MLFLOW_TRACKING_URI", "file:").startswith(("file:", "/", "."))
    if name == "trackio":
        return not config.training.arguments.get("trackio_space_id")
    return name == "tensorboard" or environ.get(_MODES.get(name, ""), "") in _LOCAL
