"""Reward modelling: a value head on the model learns which of two answers is the better one."""

from __future__ import annotations

from typing import Any

from fl_trainers import session as common
from fl_trainers.session import Session


def load(session: Session) -> None:
    """Rows, tokenizer, model, and the value head on it."""
    from fl_trainers import reward_model, sharding, value_head

    sharding.check_saving(session.config)
    common.read_rows(session)
    common.open_model(session)
    value_head.leave_out_logits(session.model)
    session.model = value_head.Scorer(session.model)
    reward_model.add_head(session.config, session.model, session.device.dtype)


def data(session: Session) -> None:
    """Questions with two answers as token ids."""
    common.tokenize(session)


def trainer(session: Session) -> Any:
    """The loop over pairs."""
    from fl_trainers.reward_model import RewardLoop

    return common.build_loop(session, RewardLoop)


def train(session: Session, loop: Any) -> None:
    """Asks before, trains."""
    common.answer_before(session)
    common.run_loop(session, loop)


def save(session: Session, loop: Any) -> None:
    """Weights, value head, results, picture, card; asks after."""
    common.save_all(session, loop)
