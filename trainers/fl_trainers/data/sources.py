"""Rows out of files and the hub. What cannot be read is said with the file, the line and what was found."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fl_trainers import lean
from fl_trainers.config import Dataset
from fl_trainers.errors import InputError

Row = dict[str, Any]
READERS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
DIRECT = 256 * 2**20
"""Bytes. JSON up to this size is read here, beyond it through `datasets`, which gives each column one type and, where a row has
another, names neither row nor value; it also takes a second to import."""


def load(dataset: Dataset, cache: str | None) -> list[Row] | Any:
    """All rows of a data set: a list, or a `datasets.Dataset`, whose rows are read from disk when asked for."""
    if dataset.source == "hub":
        return _hub(dataset, cache)
    files = files_of(dataset)
    kind = READERS[files[0].suffix.lower()]
    if kind in ("csv", "text"):
        return [row for file in files for row in (_read_csv(file) if kind == "csv" else _read_text(file))]
    if kind in ("json", "jsonl") and sum(file.stat().st_size for file in files) <= DIRECT:
        return [row for file in files for row in _read_json(file, lines=kind == "jsonl")]
    return _explain(dataset, lambda: _load_dataset(kind, files, cache, streaming=False))


def stream(dataset: Dataset, cache: str | None) -> Iterator[Row]:
    """The rows one after another, without holding them all."""
    if dataset.source == "hub":
        yield from map(filled, _hub(dataset, cache, streaming=True))
        return
    files = files_of(dataset)
    kind = READERS[files[0].suffix.lower()]
    if kind in ("csv", "text"):
        for file in files:
            yield from _read_csv(file) if kind == "csv" else _read_text(file)
    elif kind == "jsonl":
        for file in files:
            yield from _stream_lines(file)
    elif kind == "json" and sum(file.stat().st_size for file in files) <= DIRECT:
        for file in files:
            yield from _read_json(file, lines=False)
    else:
        yield from map(filled, _explain(dataset, lambda: _load_dataset(kind, files, cache, streaming=True)))


def filled(row: Row) -> Row:
    """A row of `datasets` without what no row said: every object of a column has all keys there that any of them has, null where it had
    none. Tools and calls would get parameters that they do not have."""
    return {name: _said(value) for name, value in row.items()}


def _said(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _said(one) for name, one in value.items() if one is not None}
    return [_said(one) for one in value] if isinstance(value, list) else value


def files_of(dataset: Dataset) -> list[Path]:
    """The file, or the files of the folder, which must be of one type."""
    path = Path(dataset.path)
    if not path.exists():
        parent = path.parent
        names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, 1)
        raise InputError(
            f"data set {dataset.name}: {path} does not exist",
            f"there is {parent / near[0]}"
            if near
            else f"{parent} holds: {', '.join(sorted(names)[:10]) or 'nothing'}"
            if parent.is_dir()
            else f"nor does {parent}",
        )
    files = sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in READERS) if path.is_dir() else [path]
    if any(file.suffix == ".arrow" for file in files):  # `save_to_disk` of datasets writes these beside its rows
        files = [file for file in files if file.name not in ("state.json", "dataset_info.json")]
    kinds = sorted({READERS.get(file.suffix.lower(), file.suffix or "no suffix") for file in files})
    if len(kinds) != 1 or kinds[0] not in READERS.values():
        found = "no file of a known type" if not files else f"files of the types {', '.join(kinds)}"
        raise InputError(f"data set {dataset.name}: {path}: {found}", f"one of {', '.join(READERS)}; a folder holds one type only")
    return files


def _read_json(file: Path, *, lines: bool) -> list[Row]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}", "convert it: iconv -t UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    rows = _parse_lines(file, text) if lines else _parse_document(file, text)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{file}: row {number} is {describe(row)}, an object with columns is needed")
    return rows


def _parse_document(file: Path, text: str) -> list[Row]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if "Extra data" in error.msg:  # one object a line under the name .json is common
            return _parse_lines(file, text)
        raise InputError(f"{file}: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"{file} is nested too deeply to be data") from error
    if isinstance(document, dict):
        lists = [key for key, value in document.items() if isinstance(value, list)]
        if len(lists) == 1 and len(document) <= 3:
            return list(document[lists[0]])
        return [document] if text.strip().count("\n") == 0 else _refuse(file, document)
    if not isinstance(document, list):
        return _refuse(file, document)
    return document


def _refuse(file: Path, document: Any) -> list[Row]:
    raise InputError(
        f"{file} holds {describe(document)}, a list of rows is needed", "a JSON list of objects, or one object a line (.jsonl)"
    )


def _parse_lines(file: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                raise _no_json(file, number, error) from error
    return rows


def _stream_lines(file: Path) -> Iterator[Row]:
    """One object a line, of a file that need not fit into memory."""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{file}: line {number} is {describe(row)}, an object with columns is needed")
                    yield row
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: byte {error.start}", "convert it: iconv -t UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise _no_json(file, number, error) from error


def _no_json(file: Path, number: int, error: ValueError | RecursionError) -> InputError:
    what = f" at column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else f": {error}"
    return InputError(f"{file}: line {number} is not JSON{what}", "one JSON object a line")


def _read_csv(file: Path) -> Iterator[Row]:
    """Every cell is a text: "42", "NA" and "" are answers too."""
    csv.field_size_limit(2**31 - 1)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
            twice = sorted({name for name in reader.fieldnames or () if list(reader.fieldnames or ()).count(name) > 1})
            if twice:
                raise InputError(f"{file}: the header has column {twice[0]} twice", "another name for one of the two")
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{file}: line {reader.line_num} has not as many cells as the header, which has {len(reader.fieldnames or ())}"
                    )
                yield row
    except csv.Error as error:
        raise InputError(f"{file}: line {reader.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: byte {error.start}", "convert it: iconv -t UTF-8") from error


def _read_text(file: Path) -> Iterator[Row]:
    """One row a line, empty lines left out."""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            yield from ({"text": line.rstrip("\n")} for line in stream if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: byte {error.start}", "convert it: iconv -t UTF-8") from error


def _load_dataset(kind: str, files: list[Path], cache: str | None, *, streaming: bool) -> Any:
    lean.reveal("datasets", "pandas")
    import datasets

    datasets.disable_progress_bars()
    builder = "json" if kind == "jsonl" else kind
    return datasets.load_dataset(builder, data_files=[str(file) for file in files], split="train", cache_dir=cache, streaming=streaming)


def _hub(dataset: Dataset, cache: str | None, *, streaming: bool = False) -> Any:
    lean.reveal("datasets", "pandas")
    import datasets

    datasets.disable_progress_bars()
    arguments = {"data_dir": dataset.folder, "split": dataset.split, "cache_dir": cache, "streaming": streaming}
    return _explain(dataset, lambda: datasets.load_dataset(dataset.path, dataset.subset, **arguments))


def _explain(dataset: Dataset, read: Callable[[], Any]) -> Any:
    """`datasets` raises many classes, its own and pyarrow's; the first line of the cause says what is wrong."""
    try:
        return read()
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        if "EmptyDataset" in type(error).__name__ or "corresponds to no data" in str(error):
            return []
        hint = "check its name; without a network `fl fetch RECIPE` where there is one, or a file" if dataset.source == "hub" else ""
        if "onfig name is missing" in lines[0] or "configurations" in lines[0] or "BuilderConfig" in lines[0]:
            lines[0] = " ".join(lines[:2])[:300]  # the second line names them
            hint = '`"subset": "…"` in its dataset_info.json entry says which part'
        raise InputError(f"data set {dataset.name}: {dataset.path} cannot be read: {lines[0]}", hint) from error


def describe(value: Any) -> str:
    """A value in the words of a message: its kind and its beginning."""
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return f"{kinds.get(type(value), type(value).__name__)} ({shown[:60]}{'…' if len(shown) > 60 else ''})"
