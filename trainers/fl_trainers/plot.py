"""training_loss.png: the logged losses, their trend, and the evaluation losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

INK, PALE, BLUE, RED = "#1f2933", "#9fb3c8", "#2563eb", "#dc2626"


def trend(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smoothed, total, norm = [], 0.0, 0.0
    for value in values:
        total = total * weight + value * (1 - weight)
        norm = norm * weight + (1 - weight)
        smoothed.append(total / norm)
    return smoothed


def draw(history: Sequence[dict[str, Any]], path: Path, title: str) -> bool:
    """Writes the picture; False when there is nothing to draw."""
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    held = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if not train:
        return False
    import logging

    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    steps, losses = [step for step, _ in train], [loss for _, loss in train]
    many = len(train) > 12
    axes.plot(steps, losses, color=PALE if many else BLUE, linewidth=1.2 if many else 2, marker="o", markersize=2.5 if many else 4,
              label="training loss" if not many else "training loss, as logged")  # fmt: skip
    if many:
        axes.plot(steps, trend(losses, 0.8 if len(train) < 100 else 0.95), color=BLUE, linewidth=2.2, label="trend")
    if held:
        axes.plot(
            [step for step, _ in held],
            [loss for _, loss in held],
            color=RED,
            linewidth=2,
            marker="D",
            markersize=4.5,
            label="evaluation loss",
        )
    axes.annotate(f"{losses[-1]:.3f}", (steps[-1], losses[-1]), textcoords="offset points", xytext=(6, 6), color=INK, fontsize=9)
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=10)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.04, y=0.1)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, labelsize=9)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    FigureCanvasAgg(figure).print_png(str(path))
    return True
