"""Data sets by name: entries of dataset_info.json → what the config holds. Opens dataset_info.json, looks at the data files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from fl import modelscope
from fl.errors import RecipeError
from fl.recipe_keys import nearest
from fl.recipe_yaml import place_at
from fl.resolve_model import absolute
from fl_trainers.config import Columns, Dataset, Formatting, Tags

SUFFIXES: Final = ("json", "jsonl", "ndjson", "csv", "tsv", "parquet", "arrow", "txt")
_ENTRY: Final = frozenset(
    {
        "hf_hub_url",
        "ms_hub_url",
        "om_hub_url",
        "script_url",
        "cloud_file_name",
        "file_name",
        "formatting",
        "ranking",
        "subset",
        "split",
        "folder",
        "num_samples",
        "columns",
        "tags",
        "file_sha1",
    }
)
_OPENAI_TAGS: Final = Tags(
    role_tag="role",
    content_tag="content",
    user_tag="user",
    assistant_tag="assistant",
    observation_tag="tool",
    function_tag="function",
    system_tag="system",
)


def datasets(names: Sequence[str], dataset_dir: str, base: Path) -> tuple[Dataset, ...]:
    """The data sets; `base` is what relative paths are relative to."""
    if not names:
        return ()
    if dataset_dir == "ONLINE":
        return tuple(_direct(name, base) or Dataset(name=name, source="hub", path=_online(name), guess=True) for name in names)
    folder = absolute(dataset_dir, base)
    direct = {name: found for name in names if (found := _direct(name, base)) is not None}
    if len(direct) == len(set(names)):
        return tuple(direct[name] for name in names)
    info, shown = read_info(folder)
    return tuple(_dataset(name, info, folder, shown) if name in info or name not in direct else direct[name] for name in names)


def _online(name: str) -> str:
    """The hub's name, or the folder that a data set of ModelScope will be in."""
    return str(modelscope.repository("datasets", name).folder) if modelscope.in_use() else name


def _direct(name: str, base: Path) -> Dataset | None:
    """A data set that is named by the path of its file or folder; None where the name is an entry's."""
    if not (name.startswith(("/", "./", "../", "~")) or _suffix(Path(name)) in SUFFIXES):
        return None
    return Dataset(name=Path(name).stem, source="file", path=str(absolute(name, base)), guess=True)


def read_info(folder: Path) -> tuple[dict[str, Any], Path]:
    """The content of dataset_info.json and its path."""
    path = folder / "dataset_info.json"
    if not folder.is_dir():
        raise RecipeError(
            f"The folder of data sets {folder} is not there.",
            "dataset_dir: the folder of dataset_info.json, from the folder you start fl in",
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        info = json.loads(text)
    except FileNotFoundError:
        raise RecipeError(f"{path} is not there; it names the data sets.", _example()) from None
    except json.JSONDecodeError as error:
        raise RecipeError(f"{place_at(text, error.pos, str(path))}: {error.msg}.", "Check commas, quotes and brackets there.") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}.") from None
    if not isinstance(info, dict):
        raise RecipeError(f"{path}: wanted an object of data sets by name, found a {type(info).__name__}.", _example())
    return info, path


def _example() -> str:
    return 'dataset_info.json: {"mine": {"file_name": "mine.json"}}'


def _dataset(name: str, info: dict[str, Any], folder: Path, shown: Path) -> Dataset:
    entry = info.get(name)
    if entry is None:
        near = nearest(name, list(info))
        hint = f" Did you mean {near!r}?" if near else f" It names {', '.join(sorted(info)[:8]) or 'none'}{' …' if len(info) > 8 else ''}."
        raise RecipeError(f"The data set {name!r} is not in {shown}.{hint}", f"dataset: {near}" if near else _example())
    where = f"{shown}, data set {name!r}"
    if not isinstance(entry, dict):
        raise RecipeError(f"{where}: wanted an object, found a {type(entry).__name__}.", _example())
    _known(entry, _ENTRY, where)
    source, path = _source(entry, folder, where)
    formatting = _formatting(entry.get("formatting", "alpaca"), where)
    samples = entry.get("num_samples")
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise RecipeError(f"{where}: num_samples: wanted a whole number above 0, found {samples!r}.")
    pairs = entry.get("ranking", False)
    if not isinstance(pairs, bool):
        raise RecipeError(f"{where}: ranking: wanted true or false, found {pairs!r}.")
    columns = _columns(entry, formatting, where)
    if pairs and "columns" not in entry:
        columns = columns.model_copy(update={"chosen": "chosen", "rejected": "rejected"})
    return Dataset(
        name=name,
        source=source,
        path=path,
        subset=_text(entry, "subset", where),
        split=_text(entry, "split", where) or "train",
        folder=_text(entry, "folder", where),
        num_samples=samples,
        formatting=formatting,
        ranking=pairs,
        columns=columns,
        tags=_tags(entry, formatting, where),
    )


def _formatting(value: object, where: str) -> Formatting:
    if value == "alpaca":
        return "alpaca"
    if value == "sharegpt":
        return "sharegpt"
    if value == "openai":
        return "openai"
    near = nearest(str(value), ["alpaca", "sharegpt", "openai"])
    raise RecipeError(
        f"{where}: formatting: wanted alpaca, sharegpt or openai, found {value!r}." + (f" Did you mean {near}?" if near else "")
    )


def _source(entry: dict[str, Any], folder: Path, where: str) -> tuple[Literal["file", "hub"], str]:
    hub, other = _text(entry, "hf_hub_url", where), _text(entry, "ms_hub_url", where)
    if other and (not hub or modelscope.in_use()):
        return "hub", str(modelscope.repository("datasets", other).folder)
    if hub:
        return "hub", hub
    for key, reason in (
        ("om_hub_url", "Modelers"),
        ("script_url", "a loading script"),
        ("cloud_file_name", "cloud storage"),
    ):
        if entry.get(key):
            raise RecipeError(
                f"{where}: lies at {reason} ({key}: {entry[key]}), which this version does not read.",
                'Download it and name the file: {"file_name": "…"}',
            )
    file = _text(entry, "file_name", where)
    if not file:
        raise RecipeError(f"{where}: says nowhere where the data are.", _example())
    return "file", str(absolute(file, folder))


def _text(entry: dict[str, Any], key: str, where: str) -> str | None:
    value = entry.get(key)
    if value is not None and not isinstance(value, str):
        raise RecipeError(f"{where}: {key}: wanted text, found {value!r}.")
    return value or None


def _columns(entry: dict[str, Any], formatting: Formatting, where: str) -> Columns:
    """As LLaMA-Factory: once `columns` is there, columns that it leaves out do not exist."""
    given = entry.get("columns")
    if given is None:
        return Columns(messages="messages") if formatting == "openai" else Columns()
    names = _names(given, frozenset(Columns.model_fields), f"{where}: columns")
    return Columns(**{**dict.fromkeys(Columns.model_fields), **names})


def _tags(entry: dict[str, Any], formatting: Formatting, where: str) -> Tags:
    given = entry.get("tags")
    names = {} if given is None else _names(given, frozenset(Tags.model_fields), f"{where}: tags")
    default = _OPENAI_TAGS if formatting == "openai" and given is None else Tags()
    return default.model_copy(update=names)


def _names(given: object, known: frozenset[str], where: str) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise RecipeError(f"{where}: wanted an object of names, found {given!r:.80}.")
    _known(given, known, where)
    return given


def _known(given: dict[str, Any], known: frozenset[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = nearest(key, sorted(known))
            raise RecipeError(
                f"{where}: unknown field {key!r}." + (f" Did you mean {near!r}?" if near else f" Known: {', '.join(sorted(known))}.")
            )


def check_files(found: Sequence[Dataset]) -> None:
    """Refuses local data that are missing, unreadable, empty or of an unknown type. What stands in them is the trainer's to judge."""
    for dataset in found:
        if dataset.source == "file":
            _check_path(dataset, Path(dataset.path))


def _check_path(dataset: Dataset, path: Path) -> None:
    what = f"The data set {dataset.name!r}"
    if path.is_dir():
        files = sorted(child for child in path.iterdir() if child.is_file() and not _beside(child, path))
        if not files:
            raise RecipeError(f"{what}: the folder {path} holds no files.")
        suffixes = {_suffix(file) for file in files}
        if len(suffixes) > 1:
            raise RecipeError(
                f"{what}: the folder {path} holds files of several types ({', '.join(sorted(suffixes))}).", "Keep one type in a folder."
            )
    elif path.exists():
        files = [path]
    else:
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        raise RecipeError(f"{what}: the file {path} is not there." + (f" Beside it: {near}." if near else ""), f"ls {path.parent}")
    for file in files:
        if _suffix(file) not in SUFFIXES:
            raise RecipeError(f"{what}: {file} is of no known type; known are {', '.join(SUFFIXES)}.")
        if not os.access(file, os.R_OK):
            raise RecipeError(f"{what}: {file} may not be read by you.", f"chmod u+r {file}")
    if all(file.stat().st_size == 0 for file in files):
        raise RecipeError(f"{what}: {path} is empty.", "Put at least one row into it.")


def _beside(file: Path, folder: Path) -> bool:
    """Whether a file of a folder of data holds no rows: descriptions, and what `datasets` writes beside arrow files (`save_to_disk`)."""
    saved = file.name in ("state.json", "dataset_info.json") and any(folder.glob("*.arrow"))
    return saved or file.name.startswith(".") or _suffix(file) == "md" or file.name.upper().startswith("LICENSE")


def _suffix(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")
