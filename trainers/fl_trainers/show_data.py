"""`python -m fl_trainers.show_data CONFIG OUT ROWS`: the first rows as the model will see them, and what became of all of them.

No weights are opened. OUT becomes one JSON document: {"rows": […], "counts": {…}}, or {"error": {"message", "remedy"}}.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_trainers import lean
from fl_trainers.config import Config
from fl_trainers.data import encode
from fl_trainers.data.encode import IGNORE
from fl_trainers.data.formats import Report
from fl_trainers.errors import TrainerError
from fl_trainers.progress import Events, log

PARTS = {"": ("input_ids", "labels"), "rejected": ("other_ids", "other_labels")}


def main(arguments: list[str]) -> int:
    """The exit code: 0, or that of the fault in the input."""
    path, out, count = arguments
    os.environ.setdefault("TQDM_DISABLE", "1")
    log.addHandler(logging.NullHandler())
    config = Config.read(Path(path))
    lean.hide(config)
    try:
        document, code = describe(config, int(count)), 0
    except TrainerError as error:
        document, code = {"error": {"message": error.message, "remedy": error.remedy}}, error.exit_code
    Path(out).write_text(json.dumps(document), encoding="utf-8")
    return code


def describe(config: Config, count: int) -> dict[str, Any]:
    """The first `count` rows of token ids with their text, and the counts of all."""
    from fl_trainers import model
    from fl_trainers.data import pipeline, tokens

    events, report = Events(Path(config.run.events)), Report()
    stored = tokens.is_there(config) and not config.data.train
    train, held = ([], {}) if stored else pipeline.items_of(config, report)
    if not train and held:  # nothing is trained: what is asked is shown
        train = [item for items in held.values() for item in items]
    tokenizer = model.load_tokenizer(config, model.folder_of(config), pipeline.texts(train), events)
    counts: dict[str, Any] = {"used": len(train), "sequences": len(train)}
    if config.method.stage in ("grpo", "ppo"):
        rows = [(where, question(config, tokenizer, item)) for where, item in train[:count] if not isinstance(item, str)]
    else:
        before = sum(report.dropped.values())
        if config.data.streaming:
            pipeline.tell_not_drawn(config, events)
            made: Sequence[dict[str, Any]] = pipeline.tokenized(config, tokenizer, train, report)
        else:
            prepared = tokens.load(config, tokenizer, events) if stored else None
            prepared = prepared or pipeline.prepare(config, tokenizer, train, held, report, events)
            made, report = prepared.train, prepared.report
        apart = not (stored or config.data.packing or config.data.neat_packing)
        rows = first(config, tokenizer, train, count) if apart else [("", row) for row in made[:count]]
        counts = totals(made) | {"used": prepared.rows if stored and prepared else len(train) - sum(report.dropped.values()) + before}
    counts["repeated"] = len(train) - len({item[0] for item in train})
    counts |= {"read": report.read, "eval_rows": sum(map(len, held.values())), "streaming": config.data.streaming}
    causes = [{"reason": reason, "rows": number, "examples": report.examples[reason], "dropped": reason not in report.shortened}
              for reason, number in report.counts.items()]  # fmt: skip
    return {"rows": [shown(tokenizer, where, row) for where, row in rows], "counts": counts, "causes": causes}


def totals(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Rows, their tokens, and how many of them count; of pairs both answers."""
    shown = [(row[ids], row[labels]) for row in rows for name, (ids, labels) in PARTS.items() if _is_shown(row, name)]
    lengths = [len(ids) for ids, _ in shown]
    trained = sum(sum(label != IGNORE for label in labels) for _, labels in shown)
    return {"sequences": len(rows), "tokens": sum(lengths), "trained_tokens": trained, "longest": max(lengths, default=0)}


def first(config: Config, tokenizer: Any, items: Sequence[Any], count: int) -> list[tuple[str, dict[str, Any]]]:
    """The first rows that survive, each tokenized by itself so that it is known which it is."""
    from fl_trainers.data import pipeline

    found: list[tuple[str, dict[str, Any]]] = []
    for item in items:
        if len(found) == count:
            break
        found += [(item[0], row) for row in pipeline.tokenized(config, tokenizer, [item], Report())]
    return found[:count]


def question(config: Config, tokenizer: Any, item: Any) -> dict[str, Any]:
    """What the model is asked where it is not shown an answer."""
    text = encode.render(tokenizer, item, item.asked, prompt=True, thinking=encode.asked(config))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return {"input_ids": ids, "labels": [IGNORE] * len(ids)}


def shown(tokenizer: Any, where: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row with its ids, labels and the text of each run of tokens that count, or that do not."""
    parts = []
    for name, (ids, labels) in PARTS.items():
        if _is_shown(row, name):
            given, wanted = list(row[ids]), list(row[labels])
            parts.append({"name": name if name or "liked" in row or "other_ids" not in row else "chosen", "input_ids": given,
                          "labels": wanted, "spans": spans(tokenizer, given, wanted)})  # fmt: skip
    made: dict[str, Any] = {"where": where, "parts": parts}
    made |= {"liked": bool(row["liked"])} if "liked" in row else {}
    return made | ({"packed": list(row["parts"])} if row.get("parts") else {})


def _is_shown(row: dict[str, Any], name: str) -> bool:
    """Whether a part is the row's own: of kto the other answer is a neighbour's, for comparison only."""
    return PARTS[name][0] in row and not ("liked" in row and name)


def spans(tokenizer: Any, ids: list[int], labels: list[int]) -> list[dict[str, Any]]:
    """Runs of tokens that are trained or not, as text: a character of several tokens is whole as long as they stand in one run."""
    found: list[dict[str, Any]] = []
    start = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or (labels[place] == IGNORE) != (labels[start] == IGNORE):
            found.append({"text": tokenizer.decode(ids[start:place]), "trained": labels[start] != IGNORE, "tokens": place - start})
            start = place
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
