"""What a recipe means on every lane, before anything runs. Opens neither model nor data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from fl import extras
from fl.errors import RecipeError
from fl.hardware import LaneName
from fl.matrix import Matrix, Stack
from fl.portability import Precision, adapt
from fl.recipe import Recipe
from fl.resolve import draft, read
from fl.resolve_model import quantized_in

LaneVerdict = Literal["runs", "adapted", "refused"]
LANE_NAMES: Final[tuple[LaneName, ...]] = get_args(LaneName)
_ORDER: Final = ("stable", "lts", "edge")


@dataclass(frozen=True, slots=True)
class OnLane:
    """A recipe on one lane: on the row that suits it best."""

    lane: LaneName
    verdict: LaneVerdict
    stack: str | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One value of `lanes`."""
        return {"verdict": self.verdict, "stack": self.stack, "notes": list(self.notes)}


def on_lanes(recipe: Recipe, matrix: Matrix) -> tuple[OnLane, ...]:
    """Every lane's verdict."""
    return tuple(_on_lane(recipe, matrix, lane) for lane in LANE_NAMES)


def lane_and_stack(recipe: Recipe, matrix: Matrix) -> tuple[LaneName, str]:
    """The row to show a config for: the recipe's own stack, or the best one of the lane it names, or of the cpu lane."""
    if recipe.launcher.stack is not None:
        row = matrix.stack(recipe.launcher.stack)
        return row.lane, row.id
    lane: LaneName = next((name for name in LANE_NAMES if name == recipe.launcher.hw), "cpu")
    rows = _rows(matrix, lane)
    return lane, rows[0].id if rows else "none"


def _rows(matrix: Matrix, lane: LaneName) -> list[Stack]:
    return sorted((s for s in matrix.stacks if s.lane == lane and s.status in _ORDER), key=lambda s: _ORDER.index(s.status))


def _on_lane(recipe: Recipe, matrix: Matrix, lane: LaneName) -> OnLane:
    rows = _rows(matrix, lane)
    named = recipe.launcher.stack
    if named is not None and any(row.id == named for row in rows):
        rows = [row for row in rows if row.id == named]
    if recipe.refused:
        return OnLane(lane, "refused", None, tuple(f"{note.key}: {note.note}" for note in recipe.refused))
    if not rows:
        return OnLane(lane, "refused", None, ("the matrix has no stack of this lane",))
    verdicts = [_on_row(recipe, matrix, row) for row in rows]
    return next((v for v in verdicts if v.verdict != "refused"), verdicts[0])


def _on_row(recipe: Recipe, matrix: Matrix, row: Stack) -> OnLane:
    # A row that names no chips runs on the processor, which has no fp16; whether it has bf16 is known on the machine only
    numbers = Precision(fp16=None if row.hosts.arches else False)
    config = draft(recipe, lane=row.lane, stack=row.id)
    quantized = quantized_in(config.model.name)
    try:
        adapted, adaptations = adapt(config, row, numbers, packages=matrix.packages(row), stacks=matrix.stacks, quantized=quantized)
        extra = extras.check(matrix, row, adapted)
    except RecipeError as error:
        return OnLane(row.lane, "refused", row.id, (error.message,))
    notes = [f"{a.key}: {_text(a.before)} → {_text(a.after)} ({a.effect}): {a.reason}" for a in adaptations]
    notes += [f"{one.name} is put beside the stack's own packages: {', '.join(one.packages)}" for one in extra]
    if any(config.training.arguments.get(key) for key in ("bf16", "bf16_full_eval")) or config.method.pure_bf16:
        notes.append("bf16 becomes fp32 on a device that has no fast bf16")
    return OnLane(row.lane, "adapted" if adaptations else "runs", row.id, tuple(notes))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else ",".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True, slots=True)
class Checked:
    """One file of a folder: what its recipe means, or why it cannot be read."""

    file: str
    recipe: Recipe | None
    lanes: tuple[OnLane, ...]
    error: str = ""

    @property
    def refused(self) -> bool:
        """Whether no lane can run it."""
        return self.recipe is None or bool(self.recipe.refused)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """One of each lane."""
        return tuple(lane.verdict for lane in self.lanes) or ("unreadable",) * len(LANE_NAMES)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is refused, each reason once, with the lanes where it is not the same on all."""
        return (self.error,) if self.error else self._told("refused", lambda note: True)

    @property
    def adaptations(self) -> tuple[str, ...]:
        """What is done otherwise than it stands there, in the same form."""
        return self._told("adapted", lambda note: " → " in note)

    def _told(self, verdict: str, wanted: Callable[[str], bool]) -> tuple[str, ...]:
        found: dict[str, list[OnLane]] = {}
        for lane in self.lanes:
            for note in lane.notes if lane.verdict == verdict else ():
                if wanted(note):
                    found.setdefault(note.replace(lane.stack, "its stack") if lane.stack else note, []).append(lane)
        return tuple(_of_lanes(note, lanes) for note, lanes in found.items())

    def to_json(self) -> dict[str, Any]:
        """One entry of `recipes`."""
        if self.recipe is None:
            return {"recipe": self.file, "error": self.error}
        return {**to_json(self.recipe, self.lanes), "recipe": self.file}


def _of_lanes(note: str, lanes: Sequence[OnLane]) -> str:
    """A note with the lanes it is for, unless it is for all; of a single lane the stack has its name."""
    if len(lanes) == 1 and lanes[0].stack:
        note = note.replace("its stack", lanes[0].stack)
    return note if len(lanes) == len(LANE_NAMES) else f"{', '.join(lane.lane for lane in lanes)}: {note}"


def on_folder(files: Iterable[tuple[str, str]], matrix: Matrix, overrides: Sequence[str]) -> tuple[Checked, ...]:
    """Every recipe of a folder on every lane. `files`: the name to show and the path, of each."""
    return tuple(_checked(name, path, matrix, overrides) for name, path in files)


def _checked(name: str, path: str, matrix: Matrix, overrides: Sequence[str]) -> Checked:
    try:
        recipe = read(path, overrides, tolerant=True)
        return Checked(name, recipe, on_lanes(recipe, matrix))
    except RecipeError as error:
        return Checked(name, None, (), error.message.splitlines()[0])


def to_json(recipe: Recipe, lanes: tuple[OnLane, ...]) -> dict[str, Any]:
    """The document of `fl recipe check --json`."""
    return {
        "recipe": recipe.path,
        "keys": [{"key": n.key, "value": _plain(n.value), "verdict": n.verdict, "note": n.note} for n in recipe.keys],
        "lanes": {lane.lane: lane.to_json() for lane in lanes},
    }


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: YAML knows `.inf` and `.nan`, JSON does not."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
