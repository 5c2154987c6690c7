"""Rows with two answers, a better and a worse one (dpo, orpo, simpo, rm), or with one that was liked or not (kto)."""

from __future__ import annotations

import difflib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fl_trainers.config import Dataset
from fl_trainers.data.calls import Message
from fl_trainers.data.collator import Collator
from fl_trainers.data.encode import IGNORE, NOTHING_LEFT, Settings, shares, turns
from fl_trainers.data.formats import Conversation, Report, message_of, text_of
from fl_trainers.data.sources import Row, describe
from fl_trainers.errors import InputError

PAIRS = ("dpo", "orpo", "simpo", "rm")
STAGES = (*PAIRS, "kto")


def check(dataset: Dataset, found: Iterable[str], stage: str) -> None:
    """Refuses a data set that is not of the stage's kind, or that lacks the columns of its answers."""
    if stage in PAIRS and not dataset.ranking:
        raise InputError(f"data set {dataset.name} has no pairs of answers, which stage {stage} compares",
                         "`ranking: true`, `columns: {chosen: …, rejected: …}` in its dataset_info.json entry, or stage: sft")  # fmt: skip
    if stage not in PAIRS:
        if dataset.ranking:
            raise InputError(f"data set {dataset.name} has `ranking: true`, which stage {stage} cannot use", "use stage dpo or rm")
        if stage == "kto" and dataset.columns.kto_tag is None:
            raise InputError(f"data set {dataset.name} says of no row whether its answer is liked, which stage kto needs",
                             "`columns: {kto_tag: label}` in its dataset_info.json entry")  # fmt: skip
    columns = dataset.columns
    wanted = {"chosen": columns.chosen, "rejected": columns.rejected} if stage in PAIRS else {}
    wanted |= {"kto_tag": columns.kto_tag} if stage == "kto" else {}
    present = sorted(found)
    for key, name in wanted.items():
        if name is None or name not in present:
            near = difflib.get_close_matches(name or key, present, 1, 0.5)
            hint = f"`columns: {{{key}: {near[0]}}}` in its dataset_info.json entry" if near else ""
            raise InputError(
                f"data set {dataset.name}: no column {name or '(none)'} (for {key}); it has: {', '.join(present) or 'none'}", hint
            )


def answer(row: Row, dataset: Dataset, column: str | None, where: str) -> Message | str:
    """One answer of a pair: a text, a message, or a conversation that ends with it; or the reason why the row is left out."""
    value = row.get(column or "")
    if isinstance(value, list) and (len(value) == 1 or dataset.columns.messages == dataset.columns.chosen):
        value = value[-1] if value else None
    elif isinstance(value, list):
        raise InputError(f"{where}: column {column} is {describe(value)}, a text or message is needed",
                         "of whole conversations: `formatting: openai`, `columns: {messages: chosen, chosen: …, rejected: …}`")  # fmt: skip
    if isinstance(value, dict):
        made = message_of({dataset.tags.role_tag: dataset.tags.assistant_tag, **value}, dataset, where)
        return made if isinstance(made, str) or made["role"] == "assistant" else f"an answer in the role of {made['role']}"
    return {"role": "assistant", "content": text_of(row, column, where)}


def worse(row: Row, dataset: Dataset, where: str) -> Message | str:
    """The answer that was not chosen."""
    columns = dataset.columns
    chosen, rejected = row.get(columns.chosen or ""), row.get(columns.rejected or "")
    if columns.messages == columns.chosen and isinstance(chosen, list) and isinstance(rejected, list) and chosen[:-1] != rejected[:-1]:
        return "two answers that do not follow the same turns"
    made = answer(row, dataset, columns.rejected, where)
    return made if isinstance(made, str) or made["content"].strip() or "tool_calls" in made else "empty rejected answer"


def liked(row: Row, dataset: Dataset, where: str) -> bool | None:
    """Whether the answer of a kto row is a good one; None: nobody said it."""
    value = row.get(dataset.columns.kto_tag or "")
    known = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    value = value.strip().lower() if isinstance(value, str) else value
    if value is None or value == "":
        return None
    if not isinstance(value, (bool, int, str)) or value not in known:
        raise InputError(f"{where}: column {dataset.columns.kto_tag} is {describe(value)}, true or false is needed")
    return known[value]


@dataclass
class _Cut:
    """A conversation as token ids: all before the last answer, and one or two answers."""

    source: list[int]
    targets: list[list[int]]
    where: str
    liked: bool | None


def encode(
    tokenizer: Any, rows: Sequence[tuple[str, Conversation]], settings: Settings, report: Report, stage: str
) -> list[dict[str, Any]]:
    """Rows for Pairs or Marked. In kto the answer of the row before stands in for a wrong one, from which the distance is estimated."""
    made: list[_Cut] = []
    for where, conversation in rows:
        try:
            made.append(_cut(tokenizer, conversation, settings, where))
        except ValueError as error:
            report.count(str(error), where)
    found = []
    for number, cut in enumerate(made):
        targets = cut.targets if stage in PAIRS else [cut.targets[0]]
        first, *rest = _join(cut, targets, settings.cutoff_len, report)
        if not any(label != IGNORE for one in (first, *rest) for label in one[1][1:]):
            report.count(NOTHING_LEFT, cut.where)
            continue
        second = rest[0] if stage in PAIRS else _join(cut, made[number - 1].targets[:1], settings.cutoff_len, Report())[0]
        row = {"input_ids": first[0], "labels": first[1], "other_ids": second[0], "other_labels": second[1]}
        found.append(row if stage in PAIRS else {**row, "liked": bool(cut.liked)})
    return found


def _cut(tokenizer: Any, conversation: Conversation, settings: Settings, where: str) -> _Cut:
    source, answers = "", []
    others = [] if conversation.rejected is None else [conversation.rejected]
    for last in (conversation.messages[-1], *others):
        parts = turns(tokenizer, Conversation([*conversation.messages[:-1], last], conversation.tools, where=where), settings)
        text = "".join(part.source + part.target for part in parts[:-1]) + parts[-1].source
        source = source or text
        answers.append(parts[-1])
    ids = tokenizer([source, *(part.target for part in answers)], add_special_tokens=False, return_attention_mask=False)["input_ids"]
    ends = [[] if part.closed else [tokenizer.eos_token_id] for part in answers]
    return _Cut(ids[0], [target + end for target, end in zip(ids[1:], ends, strict=True)], where, conversation.liked)


def _join(cut: _Cut, targets: list[list[int]], room: int, report: Report) -> list[tuple[Any, Any]]:
    """Question and answers within the room, the longer answer deciding: LLaMA-Factory's rule."""
    longest = max(len(target) for target in targets)
    source_kept, target_kept = shares(len(cut.source), longest, room)
    if len(cut.source) + longest > room:
        report.count(f"cut to {room} tokens", cut.where)
    source = cut.source[:source_kept]
    return [
        (array("i", source + target[:target_kept]), array("i", [IGNORE] * len(source) + target[:target_kept])) for target in targets
    ]


@dataclass(frozen=True)
class Both:
    """Batches of twice the rows: first the rows themselves, then their others. kto: with a mark for each row."""

    pad: int
    multiple: int = 1
    apart: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        others = [{"input_ids": row["other_ids"], "labels": row["other_labels"]} for row in rows]
        batch = Collator(self.pad, self.multiple)([*rows, *others])
        return {**batch, "liked": torch.tensor([row["liked"] for row in rows])} if "liked" in rows[0] else batch
