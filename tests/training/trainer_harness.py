"""Runs the trainer: warm through trainer_server.py, or a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TRAINERS = HERE.parents[1] / "trainers"
SUMS = [{"instruction": f"What is {a} plus {b}?", "input": "", "output": f"It is {a + b}."} for a in range(1, 7) for b in range(1, 7)]


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "RANK", "WORLD_SIZE")}
    return {**kept, "PYTHONPATH": f"{TRAINERS}:{HERE}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass
class Done:
    """One finished run of the trainer."""

    code: int
    output: str
    folder: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    @property
    def losses(self) -> list[float]:
        return [event["loss"] for event in self.events if event["event"] == "step" and "loss" in event]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


class Trainer:
    """Talks to trainer_server.py."""

    def __init__(self, python: Path, *more: str) -> None:
        """more: `deepspeed`. It would compile for a minute, so it finds no compiler."""
        hidden = {"PATH": "/nowhere"} if more else {}
        self.process = subprocess.Popen(
            [python, HERE / "trainer_server.py", *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**environment(), **hidden},
        )  # fmt: skip

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=300)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the trainer server has died"
        return dict(json.loads(line))

    def train(self, config: Path, ranks: int = 1) -> Done:
        """As `python -m fl_trainers CONFIG`, or with torchrun's variables in as many processes, which meet over gloo."""
        answer = self._ask({"config": str(config), "ranks": ranks})
        return Done(answer["code"], answer["output"], config.parent)

    def check(self, name: str, *arguments: Any) -> Any:
        """A function of trainer_checks.py."""
        answer = self._ask({"check": name, "arguments": arguments})
        assert answer["code"] == 0, answer["output"]
        return answer["result"]
