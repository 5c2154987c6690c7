"""Supervised fine-tuning: the model learns to answer."""

from __future__ import annotations

from typing import Any

from fl_trainers import borders
from fl_trainers import session as common
from fl_trainers.session import Session


def load(session: Session) -> None:
    """Rows, tokenizer and model."""
    common.read_rows(session)
    common.open_model(session)


def data(session: Session) -> None:
    """Conversations as token ids, with labels on the answers."""
    common.tokenize(session)


def trainer(session: Session) -> Any:
    """The loop; the rows of a pack do not see each other."""
    more: dict[str, Any] = {}
    if session.config.method.compute_accuracy:
        more = {"compute_metrics": accuracy, "preprocess_logits_for_metrics": best_tokens}
    packed = session.config.data.packing or session.config.data.neat_packing
    loop = common.build_loop(session, apart=packed, **more)
    if packed and not loop.fast.padding_free:
        borders.must_hold(loop.model, common.mixed(session), tried=not common.sharded(session))
    return loop


def train(session: Session, loop: Any) -> None:
    """Asks before, trains."""
    common.answer_before(session)
    common.run_loop(session, loop)


def save(session: Session, loop: Any) -> None:
    """Weights, results, picture, card; asks after."""
    common.save_all(session, loop)


def best_tokens(logits: Any, _labels: Any) -> Any:
    """Only the likeliest token of each place is kept for the metric: logits of a whole evaluation fill any memory."""
    return (logits[0] if isinstance(logits, (tuple, list)) else logits).argmax(dim=-1)


def accuracy(predicted: Any) -> dict[str, float]:
    """Of each row the share of its counted tokens that the model would have chosen, and the mean of these: LLaMA-Factory's figure."""
    chosen, labels = predicted.predictions[:, :-1], predicted.label_ids[:, 1:]
    rows = [(chosen[row] == labels[row])[labels[row] >= 0] for row in range(len(labels))]
    shares = [float(row.mean()) for row in rows if row.size]
    return {"accuracy": sum(shares) / len(shares) if shares else 0.0}
