"""Kahneman-Tversky optimization: answers that were liked become likelier, those that were not less so."""

from __future__ import annotations

from typing import Any

from fl_trainers import session as common
from fl_trainers.session import Session


def load(session: Session) -> None:
    """Rows, tokenizer and model."""
    common.read_rows(session)
    common.open_model(session)


def data(session: Session) -> None:
    """Questions and answers as token ids, with labels on the last answers. Says so where all answers are liked, or none is."""
    prepared = common.tokenize(session)
    if session.config.data.streaming:
        return
    if len(kinds := {bool(row["liked"]) for row in prepared.train}) == 1:
        every = "every answer is liked" if kinds.pop() else "no answer is liked"
        session.events.warn("data", f"{every}: kto learns from the difference between both kinds, and has one here")


def trainer(session: Session) -> Any:
    """The loop over preferences."""
    from fl_trainers.preference import PreferenceLoop

    return common.build_loop(session, PreferenceLoop)


def train(session: Session, loop: Any) -> None:
    """Asks before, trains."""
    common.answer_before(session)
    common.run_loop(session, loop)


def save(session: Session, loop: Any) -> None:
    """Weights, results, picture, card; asks after."""
    common.save_all(session, loop)
