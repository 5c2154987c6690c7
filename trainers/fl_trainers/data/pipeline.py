"""From the config's data sets to rows of token ids, and what was left out on the way."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_trainers.config import Config, Dataset
from fl_trainers.data import mix, packing, ranking, sources
from fl_trainers.data.encode import Encoded, encode, settings_of
from fl_trainers.data.formats import ASKING, HALVES, Conversation, Report, check_columns, conversation, halved, raw_text, said
from fl_trainers.data.guess import guessed
from fl_trainers.errors import InputError
from fl_trainers.progress import Events, log

Item = tuple[str, Conversation | str]
"""Where a row came from (data set and row number) and what it says: a conversation, or a text in stage pt."""


@dataclass
class Prepared:
    """Rows ready for the collator: input_ids, labels and, in packs that keep their parts apart, the parts' lengths."""

    train: Any
    """A sequence of rows, or a stream of them."""
    eval: dict[str, Sequence[dict[str, Any]]] = field(default_factory=dict)
    report: Report = field(default_factory=Report)
    rows: int = 0
    tokens: int = 0
    preview: tuple[str, str] = ("", "")
    """The first row as text, and the part of it that counts."""


def read(config: Config, dataset: Dataset, report: Report) -> list[Item]:
    """The usable rows of one data set. Raises InputError when there is none."""
    rows = sources.load(dataset, config.run.cache)
    if len(rows) == 0:
        raise InputError(f"data set {dataset.name}: {dataset.path} is empty")
    columns = _columns(rows)
    dataset = guessed(dataset, columns, sources.filled(rows[0]), config.method.stage)
    check_columns(dataset, columns, stage=config.method.stage)
    ranking.check(dataset, columns, config.method.stage)
    numbered: Sequence[int] = range(len(rows))
    if dataset.num_samples is not None:
        numbered = mix.resample(numbered, dataset.num_samples, seed(config))
    if config.data.max_samples is not None:
        numbered = numbered[: config.data.max_samples]
    report.read += len(numbered)
    typed = not isinstance(rows, list)
    chosen = ((number, sources.filled(rows[number]) if typed else rows[number]) for number in numbered)
    items = list(convert(config, dataset, chosen, report))
    if not items:
        raise InputError(none_left(dataset, len(numbered), report), remedy_of(report))
    lost = len(numbered) - len(items)
    if lost > config.data.max_dropped * len(numbered):
        message, remedy = too_many(lost, len(numbered), report, config.data.max_dropped)
        raise InputError(f"data set {dataset.name}: {message}", remedy)
    return items


def none_left(dataset: Dataset, count: int, report: Report) -> str:
    """The message about a data set of which no row is of use."""
    reasons = "; ".join(
        f"{number} {reason.removeprefix(report.prefix)} ({report.named(reason)})"
        for reason, number in report.counts.items() if reason.startswith(report.prefix)
    )  # fmt: skip
    return f"data set {dataset.name}: none of its {count} rows can be trained on: {reasons}"


def remedy_of(report: Report) -> str:
    """What to do about rows of which none is of use, where it can be told."""
    named = any("unknown role" in reason for reason in report.counts)
    return "name the roles by `tags: {user_tag: …, assistant_tag: …}` in its dataset_info.json entry" if named else ""


def too_many(lost: int, count: int, report: Report, most: float) -> tuple[str, str]:
    """Message and remedy where more rows are dropped than the recipe allows."""
    reasons = "; ".join(report.told(reason) for reason in report.dropped)
    share = math.ceil(100 * lost / count) / 100
    return (
        f"{lost} of {count} rows cannot be trained on, more than the share of {most:g} that may be left out: {reasons}",
        f"mend the rows, or accept it: `fl: {{max_dropped: {share}}}` in the recipe",
    )


def convert(config: Config, dataset: Dataset, rows: Iterable[tuple[int, sources.Row]], report: Report) -> Iterator[Item]:
    """Rows as conversations or texts; what cannot be used is counted."""
    for number, row in rows:
        where = f"{dataset.name} row {number + 1}"
        if config.method.stage == "pt":
            text = raw_text(row, dataset, where)
            if text and not halved(text):
                yield where, text
            else:
                report.count(HALVES if text else "empty text", where)
            continue
        pair = dataset.ranking and config.method.stage in ranking.PAIRS
        better = ranking.answer(row, dataset, dataset.columns.chosen, where) if pair else None
        made = better if isinstance(better, str) else conversation(row, dataset, where, better, asking=config.method.stage in ASKING)
        if isinstance(made, str):
            report.count(made, where)
            continue
        if pair:
            worse = ranking.worse(row, dataset, where)
            if isinstance(worse, str):
                report.count(worse, where)
                continue
            made.rejected = worse
        elif config.method.stage == "kto":
            made.liked = ranking.liked(row, dataset, where)
            if made.liked is None:
                report.count("nobody says whether the answer is liked", where)
                continue
        if any(map(halved, said(made))):
            report.count(HALVES, where)
            continue
        _system(made, config)
        yield where, made


def _system(made: Conversation, config: Config) -> None:
    """A bundled template has the recipe's default in it, which an empty system text gives way to; another one is given it as a message."""
    first = made.messages[0]
    if config.data.template is not None:
        if first["role"] == "system" and not first["content"]:
            del made.messages[0]
    elif config.data.default_system and first["role"] != "system":
        made.messages.insert(0, {"role": "system", "content": config.data.default_system})


def _columns(rows: Any) -> set[str]:
    names = getattr(rows, "column_names", None)
    return set(names) if names else {key for row in rows for key in row}


def seed(config: Config) -> int:
    """The run's seed, of data too."""
    arguments = config.training.arguments
    value = arguments.get("data_seed")
    return int(arguments.get("seed", 42) if value is None else value)


def items_of(config: Config, report: Report) -> tuple[list[Item], dict[str, list[Item]]]:
    """Training and evaluation rows as the recipe mixes and splits them."""
    if not config.data.train and config.training.do_train:
        raise InputError("the recipe names no data set to train on", "`dataset: NAME` in the recipe")
    if config.data.streaming:
        from fl_trainers.data import streaming

        return streaming.look(config, report)
    sets = [read(config, dataset, report) for dataset in config.data.train]
    train = mix.mix(sets, config.data.mix_strategy, config.data.interleave_probs, seed(config)) if sets else []
    if config.data.mix_strategy == "interleave_under":
        used = {id(item) for item in train}
        for where in (item[0] for rows in sets for item in rows if id(item) not in used):
            report.count("left out by interleave_under, which ends with its shortest set", where)
    held = held_sets(config, report)
    if config.data.val_size and train:
        if len(train) < 2:
            raise InputError("val_size is set, but there is only one row to train on")
        train, held[""] = mix.split(train, config.data.val_size, seed(config))
    return train, held


def held_sets(config: Config, report: Report) -> dict[str, list[Item]]:
    """The rows of eval_dataset, all together or by data set."""
    held: dict[str, list[Item]] = {}
    for dataset in config.data.eval:
        key = dataset.name if config.data.eval_on_each_dataset else ""
        held.setdefault(key, []).extend(read(config, dataset, report.of_evaluation()))
    return held


def texts(items: Iterable[Item]) -> Iterator[str]:
    """Everything that is said in the rows, in order."""
    for _, item in items:
        if isinstance(item, str):
            yield item
        else:
            yield from (str(message["content"]) for message in item.messages)
            yield from [str(item.rejected["content"])] if item.rejected else []


def prepare(config: Config, tokenizer: Any, train: list[Item], held: dict[str, list[Item]], report: Report, events: Events) -> Prepared:
    """Tokenizes what items_of gave, and tells what was left out or cut."""
    if config.data.streaming:  # what happens to the sample is told when its rows come with the stream
        report = Report()
    before = sum(report.dropped.values())
    rows = tokenized(config, tokenizer, train, report)
    lost = sum(report.dropped.values()) - before
    if rows and lost > config.data.max_dropped * len(train):
        raise InputError(*too_many(lost, len(train), report, config.data.max_dropped))
    if not rows and train:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in report.counts.items())
        raise InputError(f"no row can be trained on: {reasons}", "a larger cutoff_len, or other data")
    prepared = Prepared(rows, report=report, rows=len(train), tokens=sum(len(row["input_ids"]) for row in rows))
    for key, items in held.items():
        prepared.eval[key] = tokenized(config, tokenizer, items, report.of_evaluation(), packed=False)
    tell(report, events)
    if config.data.streaming and train:
        from fl_trainers.data.streaming import Stream, Telling

        tell_not_drawn(config, events)

        prepared.report = Telling(events, config.data.max_dropped)
        prepared.train, prepared.rows, prepared.tokens = Stream(config, tokenizer, prepared.report), 0, 0
    if rows:
        labels = [label for label in rows[0]["labels"] if label >= 0]
        prepared.preview = (tokenizer.decode(rows[0]["input_ids"]), tokenizer.decode(labels))
    return prepared


def tell_not_drawn(config: Config, events: Events) -> None:
    """Of streams, one warning for each data set of which a number of rows was to be drawn."""
    for one in config.data.train:
        if one.num_samples is not None:
            events.warn("stream", f"data set {one.name}: num_samples ({one.num_samples}) is not drawn from a stream: all its rows are read")


def tell(report: Report, events: Events) -> None:
    """One warning for each reason why rows were dropped or cut."""
    for reason, count in report.counts.items():
        events.warn("rows", report.told(reason), reason=reason, count=count, examples=report.examples[reason])


def tokenized(config: Config, tokenizer: Any, items: list[Item], report: Report, *, packed: bool = True) -> list[dict[str, Any]]:
    """Rows for the collator; what had to be cut or left out is counted."""
    size = config.data.preprocessing_batch_size
    batches = (items[at : at + size] for at in range(0, len(items), size))
    if config.method.stage == "pt":
        return [_row(row) for row in _pretraining(config, tokenizer, batches, report)]
    rows: list[dict[str, Any]] = []
    for number, batch in enumerate(batches):
        if config.method.stage in ranking.STAGES:
            talks = [(where, item) for where, item in batch if not isinstance(item, str)]
            rows += ranking.encode(tokenizer, talks, settings_of(config), report, config.method.stage)
            continue
        encoded = encode(tokenizer, [(where, item) for where, item in batch if not isinstance(item, str)], settings_of(config), report)
        if packed and (config.data.packing or config.data.neat_packing):
            rows += [_row(joined, parts) for joined, parts in packing.pack(encoded, config.data.cutoff_len)]
        else:
            rows += [_row(row) for row in encoded]
        if number and number % 20 == 0:
            log.info("tokenized %d of %d rows", min((number + 1) * size, len(items)), len(items))
    return rows


def _pretraining(config: Config, tokenizer: Any, batches: Iterable[list[Item]], report: Report) -> Iterator[Encoded]:
    """Texts with the end token, and the begin token where the tokenizer adds it: with packing each batch is joined and cut into blocks of
    cutoff_len, which begin with the begin token in place of their first one; else each text is cut to cutoff_len."""
    size, begin, end = config.data.cutoff_len, _begin(tokenizer), _end_of_text(config, tokenizer)
    for batch in batches:
        ids = tokenizer([str(text) for _, text in batch], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        if config.data.packing:
            rows = [[*(begin or row[:1]), *row[1:]] for row in packing.blocks(([*document, end] for document in ids), size)]
            if sum(map(len, rows)) < sum(map(len, ids)) + len(ids):
                report.count("cut to the last whole block", batch[-1][0])
        else:
            rows = [[*begin, *document, end] for document in ids]
            for (where, _), row in zip(batch, rows, strict=True):
                if len(row) > size:
                    report.count(f"cut to {size} tokens", where)
            rows = [row[:size] for row in rows]
        yield from (Encoded(row, list(row)) for row in rows if len(row) > 1)


def _begin(tokenizer: Any) -> list[int]:
    begin = tokenizer.bos_token_id if getattr(tokenizer, "add_bos_token", False) else None
    return [] if begin is None else [begin]


def _end_of_text(config: Config, tokenizer: Any) -> int:
    """With `template: llama3` the end token is that of an answer; texts end with the model's other one."""
    other = tokenizer.get_vocab().get("<|end_of_text|>") if config.data.template == "llama3" else None
    return int(tokenizer.eos_token_id if other is None else other)


def _row(row: Encoded, parts: list[int] | None = None) -> dict[str, Any]:
    """Ids as 32-bit integers: lists of Python's take eight times the memory."""
    made: dict[str, Any] = {"input_ids": array("i", row.input_ids), "labels": array("i", row.labels)}
    return {**made, "parts": parts} if parts else made
