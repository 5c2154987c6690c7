"""training_loss.png: the logged losses, their trend, the evaluation losses, and below them rewards or accuracies where there are any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BELOW = (
    {"eval_reward": "the same in evaluation", "reward": "reward"},
    {"rewards/accuracies": "accuracy, as logged", "eval_accuracy": "evaluation accuracy"},
    {"rewards/margins": "margin of the better answers", "eval_rewards/margins": "the same in evaluation"},
)
"""Figures that say more than a loss does, by their name in the log; of the groups the first whose last figure is there, else the next."""

LONGEST = 84
"""Characters of a title that fit; of a longer one the beginning, a path, is left out."""
INK, PALE, BLUE, RED = "#1f2933", "#9fb3c8", "#2563eb", "#dc2626"
OTHERS = (RED, "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d")
"""Of the evaluation losses, where each data set has its own."""


def trend(values: Sequence[float], width: int) -> list[float]:
    """At each place a straight line through its neighbours, near ones weighing more: an average alone lies above a loss that falls, and
    at both ends off it. width: the standard deviation of the weights, in places. Values that are no numbers count nothing.
    """
    weights = [math.exp(-((away / width) ** 2) / 2) for away in range(3 * width + 1)]
    return [_line(values, place, weights) for place in range(len(values))]


def _line(values: Sequence[float], place: int, weights: Sequence[float]) -> float:
    """The height at `place` of the line with the least squared distance, weighted."""
    total = first = second = height = slope = 0.0
    for other in range(max(0, place - len(weights) + 1), min(len(values), place + len(weights))):
        away, value = other - place, values[other]
        if math.isfinite(value):
            weight = weights[abs(away)]
            total, first, second = total + weight, first + weight * away, second + weight * away * away
            height, slope = height + weight * value, slope + weight * away * value
    spread = total * second - first * first
    if total == 0:
        return math.nan
    return (second * height - first * slope) / spread if spread > 1e-9 else height / total


def held_losses(history: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Label → (step, loss) of the evaluations: one of all rows, or one of each data set."""
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for key in entry:
            if key.startswith("eval_") and key.endswith("_loss"):
                name = key.removeprefix("eval").removesuffix("loss").strip("_")
                found.setdefault(f"evaluation loss{', ' * bool(name)}{name}", []).append((entry["step"], entry[key]))
    return found


def draw(history: Sequence[dict[str, Any]], path: Path, title: str) -> bool:
    """Writes the picture; False when there is nothing to draw."""
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    held = held_losses(history)
    if not train:
        return False
    import logging

    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = _below(history)
    figure = Figure(figsize=(8, 6.5 if shown else 4.5), dpi=150, layout="constrained")
    axes, *below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2)) if shown else (figure.add_subplot(),)
    steps, losses = [step for step, _ in train], [loss for _, loss in train]
    many = len(train) > 12
    axes.plot(steps, losses, color=PALE if many else BLUE, linewidth=1.2 if many else 2, marker="o", markersize=2.5 if many else 4,
              label="training loss" if not many else "training loss, as logged")  # fmt: skip
    if many:
        width = 3 if len(train) < 100 else min(max(10, len(train) // 40), 50)
        axes.plot(steps, trend(losses, width), color=BLUE, linewidth=2.2, label="trend")
    for number, (label, points) in enumerate(held.items()):
        axes.plot(*zip(*points, strict=True), color=OTHERS[number % len(OTHERS)], linewidth=2, marker="D", markersize=4.5, label=label)
    axes.annotate(f"{losses[-1]:.3f}", (steps[-1], losses[-1]), textcoords="offset points", xytext=(6, 6), color=INK, fontsize=9)
    axes.set_title(title if len(title) <= LONGEST else f"…{title[-LONGEST:]}", loc="left", fontsize=11, color=INK, pad=10)
    axes.set_ylabel("loss", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _style(axes)
    if min(losses) >= 0:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))
    for panel in below:
        _second(panel, shown)
    (below or [axes])[-1].set_xlabel("step", color=INK)
    FigureCanvasAgg(figure).print_png(str(path))
    return True


def _below(history: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Label → (step, figure) of what is drawn below the losses; empty: nothing is."""
    logged = {key for entry in history for key in entry}
    for group in BELOW:
        *others, last = group
        if last in logged or (group is BELOW[-1] and logged & set(others)):
            return {group[key]: [(entry["step"], entry[key]) for entry in history if key in entry] for key in group if key in logged}
    return {}


def _second(axes: Any, shown: dict[str, list[tuple[int, float]]]) -> None:
    """Rewards, margins or accuracies over the same steps."""
    for label, points in shown.items():
        held = "evaluation" in label
        axes.plot(
            *zip(*points, strict=True), color=RED if held else BLUE, linewidth=2, marker="D" if held else "o",
            markersize=4 if held else 2.5, label=label,
        )  # fmt: skip
    _style(axes)
    if any("accuracy" in label for label in shown):
        axes.set_ylim(-0.05, 1.05)


def _style(axes: Any) -> None:
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.04, y=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, labelsize=9)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
