"""Which model a recipe means, and what its config.json says of it. Reads small files; loads no weights."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fl.errors import RecipeError
from fl.recipe_keys import nearest

ModelKind = Literal["folder", "hub", "gguf", "tiny"]
TINY: Final = {
    "builtin/tiny-llama": "llama", "builtin/tiny-qwen3": "qwen3", "builtin/tiny-qwen3-moe": "qwen3_moe",
    "builtin/tiny-gemma3": "gemma3_text", "builtin/tiny-glm4": "glm4", "builtin/tiny-deepseek-v3": "deepseek_v3",
    "builtin/tiny-phi3": "phi3", "builtin/tiny-mistral": "mistral",
}  # fmt: skip
"""Tiny models that the trainer makes, with their model types."""
BUILTINS: Final = ("builtin/smollm2-135m", *TINY)
_HUB = re.compile(r"[\w][\w.-]*(?:/[\w][\w.-]*)?")
_SIZE = re.compile(r"(?:^|[-_/])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?=$|[-_./])", re.IGNORECASE)
_QUANTIZED = re.compile(r"[-_](awq|gptq|aqlm)(?=$|[-_.])", re.IGNORECASE)
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known of a model before anything is loaded. None: not known."""

    model_type: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    parameters_from: Literal["weights", "config", "name", "builtin"] | None = None
    """`weights`: counted in the files' headers; `config`: computed from the shape; `name`: read from the model's name."""
    hidden_size: int | None = None
    layers: int | None = None
    vocab_size: int | None = None
    quantized: str | None = None
    """quant_method of a checkpoint that is quantized already (gptq, awq, bitsandbytes, mxfp4 …)."""
    remote_code: bool = False
    """True when config.json names code that comes with the model."""


def locate(name: str, cwd: Path) -> tuple[str, ModelKind]:
    """(path, kind) of a model by name; no file is opened. `builtin/smollm2-135m` is a GGUF file that the launcher fetches."""
    if name.startswith("builtin/"):
        if name not in BUILTINS:
            near = nearest(name, list(BUILTINS))
            raise RecipeError(
                f"There is no built-in model {name!r}; there are {', '.join(BUILTINS)}.", f"model_name_or_path: {near or BUILTINS[0]}"
            )
        return name, "gguf" if name == "builtin/smollm2-135m" else "tiny"
    path = absolute(name, cwd)
    if name.lower().endswith(".gguf"):
        return str(path), "gguf"
    if path.exists() or name.startswith(("/", "./", "../", "~")) or not _HUB.fullmatch(name):
        return str(path), "folder"
    return name, "hub"


def check_model(path: str, kind: ModelKind, *, from_scratch: bool) -> None:
    """Refuses a folder or GGUF file that cannot be a model."""
    place = Path(path)
    if kind == "gguf" and not path.startswith("builtin/"):
        if not place.is_file():
            raise RecipeError(f"The model file {path} is not there.", "model_name_or_path: the path of a .gguf file")
        with place.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise RecipeError(f"{path} is not a GGUF file: it does not begin with `GGUF`.")
    if kind == "folder":
        _check_folder(place, from_scratch)


def _check_folder(folder: Path, from_scratch: bool) -> None:
    if not folder.is_dir():
        what = "is a file; a model is a folder" if folder.exists() else "is not there"
        raise RecipeError(
            f"The model folder {folder} {what}.",
            "model_name_or_path: a folder with config.json, a hub name such as Qwen/Qwen3-0.6B, or " + BUILTINS[0],
        )
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise RecipeError(
                f"{folder} holds an adapter, not a model.", f"adapter_name_or_path: {folder}, and its base model in model_name_or_path"
            )
        raise RecipeError(f"The model folder {folder} has no config.json.", "Give the folder into which the model was saved or downloaded.")
    if not from_scratch and not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        raise RecipeError(
            f"The model folder {folder} has a config.json, but no weights (*.safetensors).",
            "Download the model again, or train_from_scratch: true",
        )


def check_adapters(adapters: tuple[str, ...]) -> None:
    """Refuses adapter folders without adapter_config.json. Hub names are left to the trainer."""
    for name in adapters:
        folder = Path(name)
        if folder.is_absolute() and not (folder / "adapter_config.json").is_file():
            what = "has no adapter_config.json" if folder.is_dir() else "is not there"
            raise RecipeError(f"The adapter folder {name} {what}.", "adapter_name_or_path: the output folder of an earlier LoRA training")


def locate_adapters(names: tuple[str, ...], folder: str | None, cwd: Path) -> tuple[str, ...]:
    """Adapter folders made absolute; hub names stay."""
    joined = [os.path.join(folder, name) if folder else name for name in names]  # noqa: PTH118
    return tuple(name if _HUB.fullmatch(name) and not absolute(name, cwd).is_dir() else str(absolute(name, cwd)) for name in joined)


def model_facts(path: str, kind: ModelKind, name: str = "") -> ModelFacts:
    """Facts of a model as the config holds it: `model.path`, `model.kind`, `model.name`."""
    if kind == "tiny" or name.startswith("builtin/tiny-"):
        return ModelFacts(model_type=TINY.get(name or path), parameters=300_000, parameters_from="builtin")
    if "builtin/smollm2-135m" in (name, path):
        return ModelFacts(
            model_type="llama",
            architecture="LlamaForCausalLM",
            parameters=134_515_008,
            parameters_from="builtin",
            hidden_size=576,
            layers=30,
            vocab_size=49152,
        )
    folder = Path(path) if kind == "folder" else _cached(path) if kind == "hub" else None
    config = _read_json(folder / "config.json") if folder else None
    if not isinstance(config, dict) or folder is None:
        size = _size_in(name or path)
        return ModelFacts(parameters=size, parameters_from="name" if size else None, quantized=quantized_in(name or path))
    return _facts(folder, config, name or path)


def _facts(folder: Path, config: dict[str, Any], name: str) -> ModelFacts:
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    shape = {key: value for key, value in (inner or {}).items() if isinstance(value, int)}
    quantization = config.get("quantization_config")
    counted = None if isinstance(quantization, dict) else _counted(folder)
    computed = _computed(shape)
    size = _size_in(name)
    parameters = counted or computed or size
    architectures = config.get("architectures")
    return ModelFacts(
        model_type=config.get("model_type") if isinstance(config.get("model_type"), str) else None,
        architecture=architectures[0] if isinstance(architectures, list) and architectures else None,
        parameters=parameters,
        parameters_from="weights" if counted else "config" if computed else "name" if size else None,
        hidden_size=shape.get("hidden_size"),
        layers=shape.get("num_hidden_layers"),
        vocab_size=shape.get("vocab_size"),
        quantized=str(quantization.get("quant_method", "unknown")) if isinstance(quantization, dict) else None,
        remote_code=isinstance(config.get("auto_map"), dict),
    )


def _counted(folder: Path) -> int | None:
    """Sum over the headers of the safetensors files: 8 bytes of length, then JSON with every tensor's shape."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        if file.name.startswith("adapter_"):
            continue
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length)) if 0 < length < 50_000_000 else {}
        except (OSError, ValueError):
            return None
        for tensor, entry in header.items():
            if tensor != "__metadata__" and isinstance(entry, dict):
                count = 1
                for size in entry.get("shape", ()):
                    count *= int(size)
                total += count
    return total or None


def _computed(shape: dict[str, int]) -> int | None:
    """Parameters of a decoder from its shape, attention with grouped keys and a gated MLP, experts included."""
    hidden, layers, vocab = shape.get("hidden_size"), shape.get("num_hidden_layers"), shape.get("vocab_size")
    if not hidden or not layers or not vocab:
        return None
    heads = shape.get("num_attention_heads", 1)
    head = shape.get("head_dim") or hidden // max(heads, 1)
    attention = 2 * hidden * head * (heads + shape.get("num_key_value_heads", heads))
    experts = shape.get("num_experts") or shape.get("num_local_experts") or shape.get("n_routed_experts")
    inner = (
        shape.get("moe_intermediate_size") or shape.get("intermediate_size", 4 * hidden)
        if experts
        else shape.get("intermediate_size", 4 * hidden)
    )
    mlp = 3 * hidden * inner * (experts or 1)
    return vocab * hidden * (1 if shape.get("tie_word_embeddings") else 2) + layers * (attention + mlp + 2 * hidden)


def quantized_in(name: str) -> str | None:
    """`Meta-Llama-3-8B-Instruct-AWQ` → awq: what the hub's names say of checkpoints that were quantized already."""
    found = _QUANTIZED.search(name)
    return found[1].lower() if found else None


def _size_in(name: str) -> int | None:
    """`Qwen3-4B-Instruct` → 4e9, `Mixtral-8x7B` → 56e9."""
    found = _SIZE.search(name)
    if not found:
        return None
    return int(float(found[2]) * int(found[1] or 1) * (1e9 if found[3] in "bB" else 1e6))


def _cached(name: str) -> Path | None:
    """The newest snapshot of a model in the hub's cache."""
    home = os.environ.get("HF_HUB_CACHE") or os.path.join(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface", "hub")  # noqa: PTH118
    snapshots = Path(home) / ("models--" + name.replace("/", "--")) / "snapshots"
    try:
        found = sorted((s for s in snapshots.iterdir() if (s / "config.json").is_file()), key=lambda s: s.stat().st_mtime)
    except OSError:
        return None
    return found[-1] if found else None


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def absolute(path: str, cwd: Path) -> Path:
    """The path from the caller's folder, `~` expanded, links kept."""
    return Path(os.path.normpath(cwd / Path(path).expanduser()))
