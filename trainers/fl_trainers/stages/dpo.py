"""Direct preference optimization: the better of two answers becomes likelier than the worse one, held near the model as it was."""

from __future__ import annotations

from typing import Any

from fl_trainers import session as common
from fl_trainers.session import Session


def load(session: Session) -> None:
    """Rows, tokenizer and model."""
    common.read_rows(session)
    common.open_model(session)


def data(session: Session) -> None:
    """Questions and answers as token ids, with labels on the last answers."""
    common.tokenize(session)


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
