"""Loss curves against references: tight on the same stack, within a band against the CPU in fp32; docs/conform.md derives the band."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fl import paths
from fl.conform_set import Case
from fl.errors import EvidenceError

CPU: Final = "cpu-torch213"
"""The stack whose fp32 curves every other one is held against."""
TIGHT: Final = 1e-3
"""Largest difference of a loss on the same stack, relative to it where it is above 1: another chip of the same kind, other sums."""
ROUNDOFF: Final = {"fp32": 2.0**-24, "bf16": 2.0**-9, "pure_bf16": 2.0**-9, "fp16": 2.0**-12}
"""Half the distance of neighbouring numbers at 1."""
SPREAD: Final = 4.0
"""How often the difference that the same precision makes on the CPU; other devices round in other places, but as often."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A reference: the losses of a case, and the recipe that they are of."""

    recipe_sha256: str
    loss: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One comparison."""

    name: str
    """`STACK/CASE` of the reference."""
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the numbers are those of the reference."""
        return self.difference <= self.allowed


def path(stack: str) -> Path:
    """Where a stack's curves are."""
    return paths.REFERENCES / f"{stack}.json"


def read(stack: str) -> dict[str, Curve]:
    """Case → curve; none for a stack that has no references."""
    try:
        document = json.loads(path(stack).read_text(encoding="utf-8"))
        return {name: Curve(c["recipe_sha256"], tuple(float(x) for x in c["loss"])) for name, c in document["curves"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"the references {path(stack)} cannot be read: {error}", f"git checkout {path(stack)}") from error


def document(stack: str, made: Mapping[str, Any], curves: Mapping[str, Curve]) -> str:
    """The text of a stack's file."""
    rows = {name: {"recipe_sha256": c.recipe_sha256, "loss": [round(x, 6) for x in c.loss]} for name, c in sorted(curves.items())}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    return f'{{"schema": 1, "stack": {json.dumps(stack)}, "made": {json.dumps(dict(made))}, "curves": {{\n{lines}\n}}}}\n'


def fault(loss: Sequence[float | None]) -> str | None:
    """What is wrong with a curve by itself."""
    bad = [step for step, value in enumerate(loss, 1) if value is None or not math.isfinite(value)]
    if bad:
        return f"the loss is no number at step {bad[0]}"
    return None if loss else "no loss was logged"


def tight(case: Case, recipe_sha256: str, loss: Sequence[float], stack: str, curves: Mapping[str, Curve]) -> Compared | None:
    """Against the same stack's own curve; None: it has none of this recipe."""
    reference = curves.get(case.name)
    if reference is None or reference.recipe_sha256 != recipe_sha256:
        return None
    scale = max(1.0, *(abs(value) for value in reference.loss))
    return Compared(name=f"{stack}/{case.name}", difference=_difference(loss, reference.loss), allowed=TIGHT * scale)


def against_cpu(case: Case, loss: Sequence[float], cpu: Mapping[str, Curve]) -> Compared | None:
    """Against the CPU's fp32 curve of the same run; None: there is none, or random numbers enter it, which other devices draw otherwise."""
    reference, own = cpu.get(case.twin), cpu.get(case.name)
    if reference is None or case.drawn:
        return None
    return Compared(name=f"{CPU}/{case.twin}", difference=_difference(loss, reference.loss), allowed=band(case, reference, own))


def band(case: Case, reference: Curve, own: Curve | None) -> float:
    """What the precision may change: SPREAD times what it changed on the CPU, and never less than eight roundings of the largest
    loss or TIGHT of it, whichever is more."""
    largest = max(1.0, *(abs(value) for value in reference.loss))
    seen = _difference(own.loss, reference.loss) if own is not None else 0.0
    return max(SPREAD * seen, 8 * ROUNDOFF[case.precision] * largest, TIGHT * largest)


def _difference(loss: Sequence[float], reference: Sequence[float]) -> float:
    """The largest one of any step; infinite where one curve is longer."""
    if len(loss) != len(reference):
        return math.inf
    return max((abs(a - b) for a, b in zip(loss, reference, strict=True)), default=math.inf)
