"""A run that its stack or machine does not allow: that is evidence too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fl import wheel
from fl.errors import FlError

if TYPE_CHECKING:
    from fl import matrix
    from fl.choose_engine import Chosen
    from fl.hardware import Accelerator, Hardware, LaneName
    from fl.recipe import Recipe
    from fl_trainers.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What the evidence of such a run is made of."""

    recipe: Recipe
    config: Config
    hardware: Hardware
    plan: Mapping[str, Any]
    """As much of a plan's document as was decided."""


@contextmanager
def told(
    recipe: Recipe, config: Config, hardware: Hardware, chosen: tuple[Accelerator, ...], lane: LaneName, engine: Chosen, rows: matrix.Matrix
) -> Iterator[None]:
    """Errors within carry what was decided before them."""
    try:
        yield
    except FlError as error:
        decided = {
            "schema": 1, "run": config.run.name, "lane": lane, "stack": engine.stack.id, "engine": engine.facts.name, "flavor": "train",
            "image": {"reference": engine.image.reference, "digest": engine.image.digest, "source": engine.image.source},
            "accelerators": [a.index for a in chosen], "recipe_sha256": recipe.sha256, "matrix_sha256": rows.sha256,
            "lock_sha256": engine.lock_sha256, "matches_lock": engine.matches_lock, "trainer_sha256": wheel.code_sha256(),
        }  # fmt: skip
        error.refused = Refused(recipe=recipe, config=config, hardware=hardware, plan=decided)
        raise
