"""A run that was stopped, failed or lost goes on from its last checkpoint, as a new run with the same recipe, stack, engine and devices."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fl import paths, pin, resolve
from fl.decide import Options
from fl.errors import RecipeError, UsageError
from fl.images import tags
from fl.run_status import RunStatus

_AGAIN: Final = "overwrite_output_dir=false"
"""Without it a recipe that overwrites would remove the checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """How a run is started again."""

    source: str
    overrides: tuple[str, ...]
    directory: Path
    """Where it was started: relative paths start there."""
    options: Options
    checkpoint: Path


def again(status: RunStatus, *, trust: bool = False) -> Again:
    """What goes on with a run. UsageError where nothing is to go on with, RecipeError where its inputs or checkpoint are gone."""
    _refuse_going(status)
    told, plan, config = (_read(status, name) for name in ("recipe.json", "plan.json", "config.json"))
    directory = Path(told["directory"])
    if not directory.is_dir():
        raise RecipeError(f"{status.name} was started in {directory}, which is not there any more", f"mkdir -p {directory}")
    return Again(
        source=_source(status, told),
        overrides=(*told["overrides"], _AGAIN),
        directory=directory,
        options=_options(plan, trust=trust, pinned=pin.for_lane(directory, plan["lane"]) is not None),
        checkpoint=_checkpoint(status, Path(config["training"]["output_dir"])),
    )


def _refuse_going(status: RunStatus) -> None:
    if not status.over:
        what = "goes on" if status.launcher is not None else "goes on although its launcher has gone"
        raise UsageError(f"{status.name} {what}: it is {status.state}", f"fl attach {status.name}\nfl stop {status.name}")
    if status.state == "finished":
        raise UsageError(f"{status.name} has finished; there is nothing to go on with", "fl run RECIPE num_train_epochs=…")
    if status.state == "broken":
        raise UsageError(f"{status.name} cannot be resumed: {status.message}", f"fl rm {status.name}")


def _read(status: RunStatus, name: str) -> dict[str, Any]:
    try:
        value = json.loads((status.folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{status.name} cannot be resumed: its {name} is missing or cannot be read", "the command that started it, again"
        ) from error
    if not isinstance(value, dict):
        raise UsageError(f"{status.name} cannot be resumed: its {name} is not what fl wrote", "the command that started it, again")
    return value


def _source(status: RunStatus, told: dict[str, Any]) -> str:
    """The recipe where it was, if it is still the same; else the copy in the run's folder."""
    copy = status.folder / "recipe.yaml"
    if told["shipped"] and told["name"] in resolve.shipped_recipes():
        return str(told["name"])
    try:
        same = Path(told["path"]).read_bytes() == copy.read_bytes()
    except OSError:
        same = False
    return str(told["path"]) if same else str(copy)


def _options(plan: dict[str, Any], *, trust: bool, pinned: bool) -> Options:
    """The decisions of then, as flags: another machine state must not lead to another stack in the middle of a training.

    `pinned`: the project's fl.lock names the image, and the plan may have it under its digest or a mirror's name.
    """
    reference = plan["image"]["reference"]
    registry = reference.rsplit("/", 1)[0] if reference and "/" in reference else None
    own = pinned or reference is None or reference == tags.reference(plan["stack"], registry=registry)
    python, processes = Path(plan["argv"][0]), plan.get("processes", {}).get("per_node", 1)
    alone = f"count:{processes}" if processes > 1 else None  # on a processor
    made = plan["engine"] != "host" or python.is_relative_to(paths.cache_home() / "environments")
    return Options(
        hw=plan["lane"], engine=None if plan["engine"] == "host" and not made else plan["engine"], stack=plan["stack"],
        python=None if made else python, image=None if own else reference,
        devices=",".join(str(index) for index in plan["accelerators"]) or alone, force=True, trust=trust,
    )  # fmt: skip


def _checkpoint(status: RunStatus, output: Path) -> Path:
    """The newest checkpoint that was written to its end: the state is written last."""
    found = [folder for folder in output.glob("checkpoint-*") if folder.name[11:].isdigit() and (folder / "trainer_state.json").is_file()]
    if not found:
        raise RecipeError(
            f"{status.name} left no checkpoint in {output}: there is nothing to go on from",
            "the command that started it begins anew; save_steps=… keeps checkpoints on the way",
        )
    return max(found, key=lambda folder: int(folder.name[11:]))
