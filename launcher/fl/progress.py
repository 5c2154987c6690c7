"""A run on the screen, drawn from its events: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fl import ui

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_EVERY = 5.0
"""Seconds between two plain lines."""


class View:
    """Shows events as they come. `quiet` shows nothing but warnings (for --json)."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.losses: list[float] = []
        self.rewards: list[float] = []
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._printed = 0.0

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def event(self, event: Mapping[str, Any]) -> None:
        """One event of design §4.7."""
        handler = getattr(self, "_" + str(event.get("event")), None) if str(event.get("event")) in _SHOWN else None
        if handler is not None:
            handler(event)

    def _warning(self, event: Mapping[str, Any]) -> None:
        self._pause()
        ui.warning(str(event.get("message", "")))

    def _model(self, event: Mapping[str, Any]) -> None:
        if self.quiet:
            return
        total, trained = event.get("parameters"), event.get("trainable_parameters")
        parts = [str(event.get("name", "")), *(f"{_count(n)} {what}" for n, what in ((total, "parameters"), (trained, "trained")) if n)]
        parts += [str(event[key]) for key in ("device", "dtype", "attention") if event.get(key)]
        ui.step("model: " + ", ".join(parts))

    def _data(self, event: Mapping[str, Any]) -> None:
        if not self.quiet:
            rows, tokens, held = event.get("rows"), event.get("tokens"), event.get("eval_rows")
            parts = ["a stream of rows" if event.get("streaming") else f"{rows} rows"]
            parts += [f"{_count(tokens)} tokens"] if tokens else []
            parts += [f"{held} held out"] if held else []
            ui.step("data: " + ", ".join(parts))

    def _step(self, event: Mapping[str, Any]) -> None:
        loss = event.get("loss")
        if isinstance(loss, int | float):
            self.losses.append(float(loss))
        if isinstance(reward := event.get("reward"), int | float):
            self.rewards.append(float(reward))
        if self.quiet:
            return
        if sys.stderr.isatty():
            self._draw(event)
        elif event.get("step") in (1, event.get("max_steps")) or time.monotonic() - self._printed >= _EVERY:
            self._printed = time.monotonic()
            ui.say(f"  step {event.get('step')}/{event.get('max_steps')}  {self._figures(event)}")

    def _eval(self, event: Mapping[str, Any]) -> None:
        if not self.quiet:
            self._pause()
            accuracy = event.get("eval_accuracy")
            more = f", accuracy {_number(accuracy)}" if isinstance(accuracy, int | float) else ""
            found = ((name, event.get(f"eval_{name}")) for name in _SCORES)
            more += "".join(f", {name} {value:.2f}" for name, value in found if isinstance(value, int | float))
            losses = {key[5:-5]: event[key] for key in event if key.startswith("eval_") and key.endswith("_loss") and len(key) > 10}
            name, loss = next(iter(losses.items()), ("", event.get("loss", event.get("eval_loss"))))
            ui.step(f"evaluation{' of ' * bool(name)}{name}: loss {_number(loss)}{more}")

    def _predict(self, event: Mapping[str, Any]) -> None:
        if not self.quiet:
            found = ((name, event.get(f"predict_{name}")) for name in _SCORES)
            scores = [f"{name} {value:.2f}" for name, value in found if isinstance(value, int | float)]
            ui.step(", ".join([f"predictions: {event.get('rows')} answers", *scores]))

    def _save(self, event: Mapping[str, Any]) -> None:
        if not self.quiet:
            self._pause()
            ui.step(f"saved {event.get('path', '')}")

    def _figures(self, event: Mapping[str, Any]) -> str:
        speed = event.get("tokens_per_second")
        parts = [
            f"loss {_number(self.losses[-1] if self.losses else None)}",
            *([f"reward {_number(event['reward'])}"] if isinstance(event.get("reward"), int | float) else []),
            *([f"{speed:,.0f} tokens/s"] if isinstance(speed, int | float) else []),
        ]
        if isinstance(event.get("memory_mib"), int | float):
            parts.append(f"{event['memory_mib']:,.0f} MiB")
        if isinstance(event.get("mfu"), int | float):
            parts.append(f"MFU {event['mfu']:.0%}")
        return "  ".join(parts)

    def _draw(self, event: Mapping[str, Any]) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("  training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=False)
            self._task = self._bar.add_task("training", total=None, figures="")
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=event.get("step"), total=event.get("max_steps"), figures=self._figures(event))

    def _pause(self) -> None:
        """Ends the bar, so that a line of text does not tear it; the next step starts another."""
        self.close()

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


_SHOWN = frozenset({"warning", "model", "data", "step", "eval", "predict", "save"})
_SCORES = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "?"


def _count(value: object) -> str:
    """1234567 → `1.2 M`."""
    if not isinstance(value, int | float):
        return "?"
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def comparison(rows: Sequence[Mapping[str, str]]) -> None:
    """The same prompts answered before and after training, side by side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="The same questions, before and after", title_justify="left", show_lines=True)
    for name, ratio in (("question", 3), ("before", 5), ("after", 5)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for row in rows:
        table.add_row(*(Text(ui.clean(str(row.get(key, "")).replace("\n", " "))) for key in ("prompt", "before", "after")))
    Console(width=None if sys.stdout.isatty() else 110).print(table)
