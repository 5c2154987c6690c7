"""What training_loss.png shows, and what the screen says of an evaluation."""

from __future__ import annotations

import pytest

from fl import ui
from fl.progress import View
from fl_trainers import plot


def test_each_data_set_has_its_own_evaluation_loss() -> None:
    history = [
        {"step": 1, "loss": 3.0}, {"step": 2, "eval_news_loss": 2.5, "eval_news_runtime": 1.0}, {"step": 2, "eval_talk_loss": 2.0},
        {"step": 4, "eval_news_loss": 1.5}, {"step": 4, "train_loss": 2.0},
    ]  # fmt: skip
    assert plot.held_losses(history) == {"evaluation loss, news": [(2, 2.5), (4, 1.5)], "evaluation loss, talk": [(2, 2.0)]}
    assert plot.held_losses([{"step": 2, "eval_loss": 1.0}]) == {"evaluation loss": [(2, 1.0)]}


def test_the_trend_runs_through_a_falling_loss_and_not_above_it() -> None:
    losses = [5 * 0.9**step for step in range(60)]
    trend = plot.trend(losses, 0.8)
    above = [one - other for one, other in zip(trend, losses, strict=True)]
    assert max(map(abs, above[5:-5])) < 0.5 and len(trend) == 60
    assert plot.trend([2.0] * 5, 0.95) == pytest.approx([2.0] * 5)


def test_an_evaluation_names_its_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ui, "step", said.append)
    view = View()
    for event in ({"eval_loss": 1.5, "loss": 1.5}, {"eval_news_loss": 2.0, "loss": None}):
        view.event({"event": "eval", **event})
    assert [line.split(",")[0] for line in said] == ["evaluation: loss 1.5000", "evaluation of news: loss 2.0000"]
