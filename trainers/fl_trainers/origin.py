"""What a checkpoint was made of: kept beside it, so that a run on another model does not go on from it unnoticed.

Shapes tell nothing of that: two fine-tuned models of one family have the same, and an adapter of one is of no use on the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fl_trainers import artefacts
from fl_trainers.config import Config
from fl_trainers.errors import InputError
from fl_trainers.progress import Events

FILE = "fl_origin.json"
PIECES, LENGTH = 64, 4096
"""So many pieces of so many bytes are read of each file of weights: also a model of which two layers differ is known by them."""
LOCATION = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
"""Of a config.json: what says where and by what it was written, not which model it is."""


def of(config: Config, source: str, tokenizer: Any) -> dict[str, Any]:
    """The record of this run. source: what `from_pretrained` opened, a folder or a name that is in the hub's cache by now."""
    model = config.model
    base: dict[str, Any] = {"name": model.name}
    if model.kind == "tiny":  # made of the seed and of the run's own texts
        words = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        base |= {"built_in": model.path, "seed": config.training.arguments.get("seed", 42)}
        base["vocabulary_sha256"] = hashlib.sha256(words).hexdigest()
    else:
        base["config_sha256"] = _settings(source, model.revision)
        base["weights_sha256"] = None if model.train_from_scratch else _weights(source, model.revision)
        if model.train_from_scratch:
            base["seed"] = config.training.arguments.get("seed", 42)
    adapters = [_digest([path]) for folder in model.adapters for path in (Path(folder) / "adapter_model.safetensors",) if path.is_file()]
    quantized = model.quantization and {"bits": model.quantization.bits, "type": model.quantization.type}
    return {"schema": 1, "model": base, "adapters": adapters, "stage": config.method.stage, "quantization": quantized}


def data_of(config: Config, sequences: Any) -> dict[str, Any]:
    """What rows are trained on: the data sets' names, and of what is no stream how many sequences there are and a hash of some."""
    found: dict[str, Any] = {"sets": [one.name for one in config.data.train]}
    if not config.data.streaming and len(sequences):
        digest = hashlib.sha256()
        for place in sorted({len(sequences) * number // PIECES for number in range(PIECES)}):
            digest.update(json.dumps(dict(sequences[place]), sort_keys=True, default=_plain).encode())
        found |= {"sequences": len(sequences), "sha256": digest.hexdigest()}
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Iterable) else str(value)


def note_changes(checkpoint: Path, here: dict[str, Any], events: Events) -> None:
    """Says what is other than when the checkpoint was made, though the run can go on from it: the rows, and how the weights are held."""
    try:
        there = dict(json.loads((checkpoint / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return  # must_match has said so
    if isinstance(there.get("data"), dict) and there["data"] != here["data"]:
        before, now = (_rows(record["data"]) for record in (there, here))
        other = f"of {before}, and the recipe's are {now}" if before != now else f"named {now} as well, with another content"
        message = f"{checkpoint.name} was trained on other rows: {other}. As many steps as it has done are skipped of the recipe's"
        events.warn("checkpoint", message, checkpoint=checkpoint.name)
    if isinstance(there.get("quantization", ""), dict | None) and there["quantization"] != here["quantization"]:
        before, now = (_bits(record["quantization"]) for record in (there, here))
        message = f"{checkpoint.name} was trained with quantization_bit {before}, the recipe has {now}: expect another loss"
        events.warn("checkpoint", message, checkpoint=checkpoint.name)


def _rows(data: dict[str, Any]) -> str:
    names = ", ".join(map(str, data.get("sets") or ())) or "no data set"
    return f"{names} ({data['sequences']} sequences)" if "sequences" in data else names


def _bits(quantized: dict[str, Any] | None) -> str:
    return "none" if quantized is None else f"{quantized.get('bits')} ({quantized.get('type')})"


def _file(source: str, name: str, revision: str) -> Path | None:
    """Of a folder or of the hub's cache; nothing is fetched."""
    from transformers.utils import cached_file

    with contextlib.suppress(OSError, ValueError):
        found = cached_file(source, name, revision=revision, local_files_only=True)
        return None if found is None else Path(found)
    return None


def _settings(source: str, revision: str) -> str | None:
    path = _file(source, "config.json", revision)
    if path is None:
        return None
    kept = {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key not in LOCATION}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _weights(source: str, revision: str) -> str | None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = _file(source, f"{name}.index.json", revision)
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())) if index is not None else [name]
        found = [path for part in names if (path := _file(source, part, revision)) is not None]
        if found:
            return _digest(found)
    return None


def _digest(paths: Iterable[Path]) -> str:
    """Of the sizes of the files and of pieces at equal distances."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for number in range(PIECES):
                file.seek(max(size - LENGTH, 0) * number // (PIECES - 1))
                digest.update(file.read(LENGTH))
    return digest.hexdigest()


def write(checkpoint: Path, record: dict[str, Any]) -> None:
    """Puts the record into a checkpoint that is written already."""
    artefacts.write_json(checkpoint / FILE, record)


def must_match(checkpoint: Path, here: dict[str, Any], config: Config, events: Events) -> None:
    """Raises InputError where a checkpoint was made of another model or by another stage; one that does not say so is noted.

    A checkpoint that is the model of the recipe as well fits itself.
    """
    try:
        there = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
        model, stage = dict(there["model"]), str(there["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        message = f"{checkpoint.name} does not say which model it was made of; it is taken for {config.model.name}"
        events.warn("checkpoint", message, checkpoint=checkpoint.name)
        return
    if stage != here["stage"]:
        start = "adapter_name_or_path" if config.method.finetuning_type in ("lora", "oft") else "model_name_or_path"
        raise InputError(
            f"{checkpoint} does not go on with this recipe: it was made by stage {stage}, and the recipe's is {here['stage']}",
            f"`{start}: {checkpoint}` and another output_dir begin stage {here['stage']} from it; "
            "`overwrite_output_dir: true` starts anew",
        )
    if config.model.kind == "folder" and Path(config.model.path).resolve() == checkpoint.resolve():
        return
    apart = [key for key in here["model"] if key != "name" and here["model"][key] is not None and model.get(key) != here["model"][key]]
    if apart or there.get("adapters", []) != here["adapters"]:
        raise InputError(
            f"{checkpoint} does not go on with this recipe: it was made of {_told(model, apart)}, and the recipe's model is "
            f"{_told(here['model'], apart)}" + ("" if apart else ", with other adapters merged into it or gone on with"),
            f"`model_name_or_path: {model.get('name')}` as it was, another output_dir, or `overwrite_output_dir: true`, which starts anew",
        )


def _told(model: dict[str, Any], apart: list[str]) -> str:
    """A model by its name and by what is not the same."""
    said = ", ".join(f"{key.removesuffix('_sha256')} {str(model[key])[: 12 if key.endswith('_sha256') else None]}"
                     for key in apart if model.get(key) is not None)
    return f"{model.get('name')}{f' ({said})' if said else ''}"
