"""`tokenized_path`: rows of token ids kept in a folder and read again, as long as they were made the way the recipe says now.

A folder holds, for each set of rows and each of their columns, all values one after another and where each row begins, as NumPy files,
and `fl_tokens.json`, which is written last: without it the folder is not whole.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from fl_trainers.config import Config
from fl_trainers.data.formats import Report
from fl_trainers.data.pipeline import Prepared, seed
from fl_trainers.errors import InputError
from fl_trainers.progress import Events, log

MARK = "fl_tokens.json"
SINGLE = ("liked",)
"""Columns with one value a row."""


@dataclass(frozen=True)
class Kept(Sequence[dict[str, Any]]):
    """Rows on disk; each is read when it is asked for."""

    columns: dict[str, Any]
    starts: dict[str, Any]
    size: int

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, at: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(self.size))]
        at = int(at) + (self.size if at < 0 else 0)
        if not 0 <= at < self.size:
            raise IndexError(at)
        row: dict[str, Any] = {}
        for name, values in self.columns.items():
            begin, end = int(self.starts[name][at]), int(self.starts[name][at + 1])
            part = array("i", values[begin:end].tobytes())
            row[name] = bool(part[0]) if name in SINGLE else list(part) if name == "parts" else part
        return row


def how(config: Config, tokenizer: Any) -> dict[str, Any]:
    """What decides which ids a row becomes."""
    data = config.data
    return {
        "stage": config.method.stage, "template": data.template, "tool_format": data.tool_format, "tokenizer": digest(tokenizer),
        "cutoff_len": data.cutoff_len, "packing": data.packing, "neat_packing": data.neat_packing, "train_on_prompt": data.train_on_prompt,
        "mask_history": data.mask_history, "enable_thinking": data.enable_thinking, "default_system": data.default_system,
        "preserve_thinking": data.preserve_thinking,
    }  # fmt: skip


def which(config: Config) -> dict[str, Any]:
    """What decides which rows there are."""
    data = config.data
    return {
        "dataset": [one.name for one in data.train], "eval_dataset": [one.name for one in data.eval], "max_samples": data.max_samples,
        "val_size": data.val_size, "mix_strategy": data.mix_strategy, "interleave_probs": list(data.interleave_probs), "seed": seed(config),
        "eval_on_each_dataset": data.eval_on_each_dataset,
    }  # fmt: skip


def digest(tokenizer: Any) -> str:
    """SHA-256 of vocabulary, splitting and chat template."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None and hasattr(core, "to_str"):
        core.no_padding()
        core.no_truncation()
        text = core.to_str()
    else:
        text = json.dumps(sorted(tokenizer.get_vocab().items()))
    ends = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    return hashlib.sha256(json.dumps([text, tokenizer.chat_template, ends]).encode()).hexdigest()[:16]


def is_there(config: Config) -> bool:
    """Whether the recipe's folder holds rows. Raises InputError where it holds something else."""
    if config.data.tokenized_path is None:
        return False
    folder = Path(config.data.tokenized_path)
    if (folder / MARK).is_file():
        return True
    ours = ("fl_", "train", "eval")
    strangers = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(ours)) if folder.is_dir() else []
    if strangers or (folder / "train").is_dir():
        names = strangers or ["train"]
        raise InputError(f"tokenized_path {folder} holds something else ({', '.join(names[:5])}); LLaMA-Factory's folders are not read",
                         "`tokenized_path:` a new folder")  # fmt: skip
    return False


def load(config: Config, tokenizer: Any, events: Events) -> Prepared | None:
    """The rows of the recipe's folder, None when it has none yet. Raises InputError when they were made another way."""
    if not is_there(config):
        return None
    folder = Path(str(config.data.tokenized_path))
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        wrong = _differences(mark["how"], how(config, tokenizer))
        wrong += _differences(mark["which"], which(config)) if config.data.train else []
        if wrong:
            raise InputError(f"tokenized_path {folder} was made otherwise: {'; '.join(wrong)}",
                             "another tokenized_path, or remove that folder, or the recipe as it was")  # fmt: skip
        sets = {name: _open(folder, name, columns, mark["counts"][name]) for name, columns in mark["sets"].items()}
        held: dict[str, Sequence[dict[str, Any]]] = {key: sets[f"eval-{number}"] for number, key in enumerate(mark["held"])}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"tokenized_path {folder} is broken: {error}", "remove that folder, and it is made anew") from error
    newer = [one.name for one in (*config.data.train, *config.data.eval) if one.source == "file" and _changed(one.path, folder / MARK)]
    if newer:
        events.warn("tokens", f"{', '.join(newer)} changed since {folder} was made; the rows of then are trained on")
    log.info("rows of token ids from %s", folder)
    report = Report(mark["dropped_or_cut"], mark["examples"])
    return Prepared(sets["train"], held, report, mark["rows"], mark["tokens"], (mark["preview"][0], mark["preview"][1]))


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [f"{name} was {_short(then.get(name))}, now {_short(now[name])}" for name in now if then.get(name) != now[name]]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _changed(path: str, mark: Path) -> bool:
    place = Path(path)
    return place.exists() and place.stat().st_mtime > mark.stat().st_mtime


def _open(folder: Path, name: str, columns: list[str], count: int) -> Kept:
    import numpy

    values = {column: numpy.load(folder / f"{name}.{column}.npy", mmap_mode="r") for column in columns}
    starts = {column: numpy.load(folder / f"{name}.{column}.starts.npy") for column in columns}
    for column in columns:
        if len(starts[column]) != count + 1 or int(starts[column][-1]) != len(values[column]):
            raise ValueError(f"{name}.{column} has not as many rows as it should")
    return Kept(values, starts, count)


def save(config: Config, tokenizer: Any, prepared: Prepared) -> None:
    """Writes the rows into the recipe's folder; the mark last."""
    folder = Path(str(config.data.tokenized_path))
    sets = {"train": prepared.train, **{f"eval-{number}": rows for number, rows in enumerate(prepared.eval.values())}}
    mark = {
        "schema": 1, "how": how(config, tokenizer), "which": which(config), "held": list(prepared.eval), "rows": prepared.rows,
        "tokens": prepared.tokens, "preview": list(prepared.preview), "dropped_or_cut": prepared.report.counts,
        "examples": prepared.report.examples, "counts": {name: len(rows) for name, rows in sets.items()},
    }  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark["sets"] = {name: _write(folder, name, rows) for name, rows in sets.items()}
        temporary = folder / f"{MARK}.part"
        temporary.write_text(json.dumps(mark, indent=1), encoding="utf-8")
        temporary.replace(folder / MARK)
    except OSError as error:
        raise InputError(f"tokenized_path {folder} cannot be written: {error.strerror}", "free space, or another folder") from error
    log.info("rows of token ids kept in %s", folder)


def _write(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    import numpy

    columns = list(rows[0]) if rows else []
    for column in columns:
        lengths = [1 if column in SINGLE else len(row[column]) for row in rows]
        flat = numpy.empty(sum(lengths), dtype=numpy.int32)
        at = 0
        for row, length in zip(rows, lengths, strict=True):
            flat[at : at + length] = row[column]
            at += length
        numpy.save(folder / f"{name}.{column}.npy", flat)
        numpy.save(folder / f"{name}.{column}.starts.npy", numpy.concatenate([[0], numpy.cumsum(lengths)]).astype(numpy.int64))
    return columns
