"""What training_loss.png shows, and what the screen says of an evaluation."""

from __future__ import annotations

import math

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


def test_the_trend_runs_through_a_falling_loss_to_both_ends() -> None:
    losses = [5 * 0.98**step for step in range(60)]
    assert plot.trend(losses, 3) == pytest.approx(losses, abs=0.05)
    assert plot.trend([2.0] * 5, 10) == pytest.approx([2.0] * 5)
    noisy = [loss + (-1) ** step for step, loss in enumerate(losses)]
    assert plot.trend(noisy, 3)[5:-5] == pytest.approx(losses[5:-5], abs=0.1)
    gaps = [math.nan, *losses[1:20], math.nan, *losses[21:]]
    assert plot.trend(gaps, 3)[2:] == pytest.approx(losses[2:], abs=0.1)
    assert plot.trend([3.0], 3) == [3.0] and plot.trend([], 3) == [] and math.isnan(plot.trend([math.nan], 3)[0])


def test_an_evaluation_names_its_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ui, "step", said.append)
    view = View()
    for event in ({"eval_loss": 1.5, "loss": 1.5}, {"eval_news_loss": 2.0, "loss": None}):
        view.event({"event": "eval", **event})
    assert [line.split(",")[0] for line in said] == ["evaluation: loss 1.5000", "evaluation of news: loss 2.0000"]
