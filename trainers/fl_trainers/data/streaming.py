"""`streaming: true`: rows are read, converted and tokenized while training goes on; no more than a buffer of them is held."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from fl_trainers.config import Config, Dataset
from fl_trainers.data import mix, pipeline, ranking, sources
from fl_trainers.data.formats import Report, check_columns
from fl_trainers.data.guess import guessed
from fl_trainers.errors import InputError
from fl_trainers.progress import Events

SAMPLE = 256
"""Rows that are looked at before the model is opened: their faults are found in a second."""
BATCH = 64
"""Rows tokenized at once, where packing needs no more."""
PATIENCE = 100
"""Rows read before the share of dropped ones is judged."""


class Telling(Report):
    """A report of rows that are still coming: each cause is told when it first happens."""

    def __init__(self, events: Events | None, most: float) -> None:
        super().__init__()
        self.events, self.most = events, most

    def count(self, reason: str, where: str, rows: int = 1) -> None:
        super().count(reason, where, rows)
        if self.events is not None and self.counts[reason] == rows:
            self.events.warn("rows", f"from the stream: {reason} ({where}); more of the kind are counted", reason=reason, count=rows)
        lost = sum(self.dropped.values())
        if self.read >= PATIENCE and lost > self.most * self.read:
            raise InputError(*pipeline.too_many(lost, self.read, self, self.most))


def items(config: Config, report: Report) -> Iterator[pipeline.Item]:
    """One pass over all data sets, mixed as the recipe says."""
    sets = [partial(_one, config, dataset, report) for dataset in config.data.train]
    yield from mix.woven(sets, config.data.mix_strategy, config.data.interleave_probs, pipeline.seed(config))


def _one(config: Config, dataset: Dataset, report: Report) -> Iterator[pipeline.Item]:
    rows = sources.stream(dataset, config.run.cache)
    most = config.data.max_samples
    numbered = enumerate(rows if most is None else itertools.islice(rows, most))
    first = next(numbered, None)
    if first is None:
        raise InputError(f"data set {dataset.name}: {dataset.path} is empty")
    dataset = guessed(dataset, first[1], first[1], config.method.stage)
    check_columns(dataset, first[1], stage=config.method.stage)
    ranking.check(dataset, first[1], config.method.stage)

    def counted() -> Iterator[tuple[int, sources.Row]]:
        for pair in itertools.chain([first], numbered):
            report.read += 1
            yield pair

    used = False
    for item in pipeline.convert(config, dataset, counted(), report):
        used = True
        yield item
    if not used:
        raise InputError(pipeline.none_left(dataset, report.read, report), pipeline.remedy_of(report))


def look(config: Config, report: Report) -> tuple[list[pipeline.Item], dict[str, list[pipeline.Item]]]:
    """The first rows, and those held for evaluation: the first `val_size` of the stream, or the sets of eval_dataset."""
    size = config.data.val_size
    if size and size < 1:
        raise InputError("val_size is a share, but nobody knows how long a stream is", "a number of rows: val_size: 100")
    held = pipeline.held_sets(config, report)
    coming = items(config, report)
    if size:
        held[""] = list(itertools.islice(coming, int(size)))
    sample = list(itertools.islice(coming, SAMPLE))
    if not sample:
        raise InputError("no row is left to train on", "a smaller val_size, or more data")
    return sample, held


class Stream(IterableDataset):  # type: ignore[misc]
    """Rows for the collator, pass after pass; every pass is shuffled anew within the buffer."""

    def __init__(self, config: Config, tokenizer: Any, report: Report) -> None:
        self.config, self.tokenizer, self.report = config, tokenizer, report
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before every pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        data, worker = self.config.data, get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tokenizer's threads did not survive the fork; it would wait for them
        first = self.epoch == 0
        report = self.report if first and number == 0 else Report()  # every worker reads all rows, and each tokenizes its own
        coming: Iterator[pipeline.Item] = itertools.islice(items(self.config, report), int(data.val_size), None)
        if data.shuffle:
            coming = mix.shuffled(coming, data.buffer_size, pipeline.seed(self.config) + self.epoch)
        mine = itertools.islice(coming, number, None, count)
        size = data.preprocessing_batch_size if data.packing else min(BATCH, data.preprocessing_batch_size)
        while batch := list(itertools.islice(mine, size)):
            yield from pipeline.tokenized(self.config, self.tokenizer, batch, self.report if first else Report())


@contextlib.contextmanager
def faults_of_workers() -> Iterator[None]:
    """A fault that a worker met is told in its own words: torch wraps them in a traceback."""
    try:
        yield
    except InputError as error:
        mark = f"{InputError.__name__}: "
        if "DataLoader worker" not in error.message:
            raise
        raise InputError(error.message.rpartition(mark)[2].strip()) from error
