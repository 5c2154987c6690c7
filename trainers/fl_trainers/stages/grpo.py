"""Group relative policy optimization: the model answers, reward functions judge, better answers than the group's mean become likelier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl_trainers import rewards
from fl_trainers import session as common
from fl_trainers.data.encode import asked, render
from fl_trainers.data.formats import Conversation
from fl_trainers.data.pipeline import Item, Prepared
from fl_trainers.errors import InputError
from fl_trainers.session import Session


def load(session: Session) -> None:
    """Rows, tokenizer and model."""
    common.read_rows(session)
    common.open_model(session)


def data(session: Session) -> None:
    """Questions with their answers: the last answer of a row is what reward functions compare with, all before it is the question."""
    train, held = session.items
    rows = _questions(session, train)
    if not rows and (session.config.training.do_train or not held):
        raise InputError("no row can be trained on: every question is longer than cutoff_len", "a larger cutoff_len, or other data")
    kept: dict[str, Sequence[dict[str, Any]]] = {name: _questions(session, items) for name, items in held.items()}
    if empty := [name for name, questions in kept.items() if not questions]:
        raise InputError(f"no row of {empty[0] or 'the evaluation'} can be evaluated on: every question is longer than cutoff_len",
                         "a larger cutoff_len, or other data")  # fmt: skip
    first = next(iter([*rows, *(row for questions in kept.values() for row in questions)]))
    asking = first["prompt"]
    shown = render(session.tokenizer, Conversation(asking), len(asking), prompt=True, thinking=asked(session.config))
    session.prepared = Prepared(rows, kept, session.report, len(rows), preview=(shown, first["answer"]))
    session.events.emit(
        "data", rows=len(rows), sequences=len(rows), tokens=0, eval_rows=sum(map(len, kept.values())), dropped_or_cut=session.report.counts
    )


def trainer(session: Session) -> Any:
    """TRL's trainer with our rewards."""
    from datasets import Dataset
    from transformers import EarlyStoppingCallback, PrinterCallback

    from fl_trainers.grpo_loop import GrpoLoop
    from fl_trainers.watch import Watch

    if session.prepared is None:
        raise AssertionError("rows are read before the loop is built")
    sets = {name: Dataset.from_list(list(rows)) for name, rows in session.prepared.eval.items()}
    train = session.prepared.train or next(iter(session.prepared.eval.values()))  # TRL wants some, also where nothing is trained
    held = next(iter(sets.values())) if len(sets) == 1 else (sets or None)
    session.follow = Watch(session.events, session.device, session.folder, session.origin)
    loop = GrpoLoop(
        config=session.config, device=session.device, model=session.model, args=session.arguments,
        reward_funcs=rewards.load(session.config.method.grpo.reward_funcs, session.events),
        train_dataset=Dataset.from_list(list(train)), eval_dataset=held, processing_class=session.tokenizer,
        callbacks=[session.follow],
    )  # fmt: skip
    loop.remove_callback(PrinterCallback)
    if session.config.method.early_stopping_steps is not None:
        loop.add_callback(EarlyStoppingCallback(early_stopping_patience=session.config.method.early_stopping_steps))
    session.follow.loop = loop
    return loop


def train(session: Session, loop: Any) -> None:
    """Asks before, trains."""
    common.answer_before(session)
    common.run_loop(session, loop)


def save(session: Session, loop: Any) -> None:
    """Weights, results, picture, card; asks after."""
    common.save_all(session, loop)


def _questions(session: Session, items: list[Item]) -> list[dict[str, Any]]:
    """Rows of TRL's form: prompt, a list of messages; answer, a text. Questions that are too long are counted and left out."""
    found = []
    for where, item in items:
        if isinstance(item, str):
            raise InputError(f"{where}: a plain text has no question", "alpaca, sharegpt or openai rows")
        if item.tools:
            raise InputError(f"{where}: its tools cannot be shown: stage grpo asks by messages alone", "stage ppo, or rows without tools")
        last = item.asked
        text = render(session.tokenizer, item, last, prompt=True, thinking=asked(session.config))
        if len(session.tokenizer(text, add_special_tokens=False)["input_ids"]) > session.config.data.cutoff_len:
            session.report.count(f"question longer than {session.config.data.cutoff_len} tokens", where)
            continue
        answer = str(item.messages[last]["content"]) if last < len(item.messages) else ""
        found.append({"prompt": item.messages[:last], "answer": answer})
    return found
