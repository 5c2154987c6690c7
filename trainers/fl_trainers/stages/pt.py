"""Continued pre-training: the model learns to go on with plain text."""

from __future__ import annotations

from typing import Any

from fl_trainers import session as common
from fl_trainers.session import Session


def load(session: Session) -> None:
    """Texts, tokenizer and model."""
    common.read_rows(session)
    common.open_model(session)


def data(session: Session) -> None:
    """Texts as blocks of token ids; every token counts."""
    common.tokenize(session)


def trainer(session: Session) -> Any:
    """The loop."""
    return common.build_loop(session)


def train(session: Session, loop: Any) -> None:
    """Trains; texts have no questions to ask before."""
    common.run_loop(session, loop)


def save(session: Session, loop: Any) -> None:
    """Weights, results, picture, card."""
    common.save_all(session, loop)
