"""Rules of generated answers: do_predict and predict_with_generate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def rule(get: Callable[[str], Any]) -> Iterator[tuple[str, str]]:
    """The key to blame and what is wrong."""
    generates, predicts = get("predict_with_generate"), get("do_predict")
    if predicts and not generates:
        yield "do_predict", "predictions are generated answers: write `predict_with_generate: true` too"
    if not generates:
        return
    if get("stage") != "sft":
        yield "predict_with_generate", "only with `stage: sft`"
    if not get("eval_dataset") and not get("val_size"):
        yield "predict_with_generate", "needs rows to answer: set eval_dataset or val_size"
    if get("fsdp"):
        yield "predict_with_generate", "not together with fsdp, which spreads the weights; predict in a run of its own with the saved model"
