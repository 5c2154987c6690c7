"""Proximal policy optimization: the model answers, a reward model or functions judge, better answers than expected become likelier."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from fl_trainers import session as common
from fl_trainers.data.encode import asked, render
from fl_trainers.data.formats import Conversation
from fl_trainers.data.pipeline import Item, Prepared
from fl_trainers.errors import InputError
from fl_trainers.session import Session


def load(session: Session) -> None:
    """Rows, tokenizer, model, and the value head on it."""
    from fl_trainers import reward_model, sharding
    from fl_trainers.ppo_loop import Actor

    sharding.check_saving(session.config)
    common.read_rows(session)
    common.open_model(session)
    session.model = Actor(session.model, dropout=0.0)
    reward_model.add_head(session.config, session.model, session.device.dtype)


def data(session: Session) -> None:
    """Questions as token ids: the last answer of a row is what reward functions compare with, all before it is the question."""
    rows = [row for item in session.items[0] if (row := _question(session, item)) is not None]
    if not rows:
        raise InputError("no row can be trained on: every question is longer than cutoff_len", "a larger cutoff_len, or other data")
    held: dict[str, Sequence[dict[str, Any]]] = {
        name: [row for item in items if (row := _question(session, item)) is not None] for name, items in session.items[1].items()
    }
    if empty := [name for name, kept in held.items() if not kept]:
        raise InputError(f"no row of {empty[0] or 'the evaluation'} can be evaluated on: every question is longer than cutoff_len",
                         "a larger cutoff_len, or other data")  # fmt: skip
    tokens = sum(len(row["input_ids"]) for row in rows)
    session.prepared = Prepared(rows, held, session.report, len(rows), tokens, preview=(rows[0]["text"], rows[0]["answer"]))
    session.events.emit("data", rows=len(rows), sequences=len(rows), tokens=tokens, eval_rows=sum(map(len, held.values())),
                        dropped_or_cut=session.report.counts)  # fmt: skip


def trainer(session: Session) -> Any:
    """The loop over rounds of answers. Its judge is loaded last: what is wrong with data and model is told before."""
    from fl_trainers import ppo_judge
    from fl_trainers.ppo_loop import PpoLoop

    arguments, config = session.arguments, session.config
    size, accumulate = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    arguments.per_device_train_batch_size = size * accumulate * config.method.ppo.buffer_size
    arguments.gradient_accumulation_steps = 1
    judge = ppo_judge.load(config, session.model.pretrained_model, session.tokenizer, session.device, session.events)
    return common.build_loop(session, PpoLoop, judge=judge, size=size, accumulate=accumulate)


def train(session: Session, loop: Any) -> None:
    """Asks before, trains."""
    common.answer_before(session)
    common.run_loop(session, loop)


def save(session: Session, loop: Any) -> None:
    """Weights, value head, results, picture, card; asks after."""
    common.save_all(session, loop)


def _question(session: Session, item: Item) -> dict[str, Any] | None:
    """A row's question with its ids; None where it is too long, which is counted."""
    where, talk = item
    if not isinstance(talk, Conversation):
        raise InputError(f"{where}: a plain text has no question", "alpaca, sharegpt or openai rows")
    last = talk.asked
    text = render(session.tokenizer, talk, last, prompt=True, thinking=asked(session.config))
    ids = session.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) > session.config.data.cutoff_len:
        session.report.count(f"question longer than {session.config.data.cutoff_len} tokens", where)
        return None
    answer = str(talk.messages[last]["content"]) if last < len(talk.messages) else ""
    return {"input_ids": array("i", ids), "prompt": talk.messages[:last], "answer": answer, "text": text}
