"""References and reward models of a recipe → the config's fields; their files are looked at as those of the first model are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fl.errors import RecipeError
from fl.resolve_model import check_adapters, check_model, locate, locate_adapters

if TYPE_CHECKING:
    from fl_trainers.config import Config, Other, Ppo

Get = Callable[[str], Any]
HEADS: Final = ("value_head.safetensors", "value_head.bin")


def reference(get: Get, cwd: Path) -> Other | None:
    """What dpo, kto and ppo compare with; None: the model as it was."""
    return _other(get, "ref_model", cwd)


def ppo(get: Get, cwd: Path) -> Ppo:
    """The config's part of stage ppo."""
    from fl_trainers.config import Ppo

    full = get("reward_model_type") == "full"
    (adapter,) = locate_adapters((get("reward_model") or "",), None, cwd)
    return Ppo(
        reward_model=_other(get, "reward_model", cwd) if full else None,
        reward_adapter=adapter if get("reward_model") and not full else None,
        epochs=get("ppo_epochs"),
        buffer_size=get("ppo_buffer_size"),
        score_norm=get("ppo_score_norm"),
        target=get("ppo_target"),
        whiten_rewards=get("ppo_whiten_rewards"),
    )


def _other(get: Get, key: str, cwd: Path) -> Other | None:
    """The model that a key names, with its adapters. No file is opened."""
    from fl_trainers.config import Other, Quantization

    name, bits = get(key), get(f"{key}_quantization_bit")
    if not name:
        return None
    with _blaming(key):
        path, kind = locate(name, cwd)
    if kind == "gguf":
        raise RecipeError(f"{key}: {name} is a GGUF file, which only model_name_or_path can be.", f"{key}: a folder or a hub name")
    return Other(
        name=name,
        path=path,
        kind=kind,
        adapters=locate_adapters(get(f"{key}_adapters") or (), None, cwd),
        quantization=Quantization(bits=bits, type=get("quantization_type"), double=get("double_quantization")) if bits else None,
    )


def check(config: Config) -> None:
    """Refuses folders and files that cannot be what the recipe says they are. Hub names are left to the trainer."""
    method = config.method
    for file in (name.rpartition(":")[0] for name in method.grpo.reward_funcs if ":" in name):
        if not Path(file).is_file():
            raise RecipeError(f"reward_funcs: the file {file} is not there.", "FILE.py:FUNCTION, from the folder you start fl in")
    for key, other in (("ref_model", method.reference), ("reward_model", method.ppo.reward_model)):
        if other is not None:
            with _blaming(key):
                if other.kind != "tiny":
                    check_model(other.path, other.kind, from_scratch=False)
            with _blaming(f"{key}_adapters"):
                check_adapters(other.adapters)
    judge = method.ppo.reward_model
    if judge is not None:
        key = "reward_model_adapters" if judge.adapters else "reward_model"
        _check_head(key, judge.adapters[-1] if judge.adapters else judge.path)
    if method.ppo.reward_adapter is not None:
        with _blaming("reward_model"):
            check_adapters((method.ppo.reward_adapter,))
        _check_head("reward_model", method.ppo.reward_adapter)


def _check_head(key: str, folder: str) -> None:
    place = Path(folder)
    if place.is_absolute() and not any((place / name).is_file() for name in HEADS) and not _classifies(place / "config.json"):
        raise RecipeError(f"{key}: {folder} has no {HEADS[0]}: it is no reward model.", f"{key}: the output folder of a run with stage: rm")


def _classifies(settings: Path) -> bool:
    """Whether a model is one for sequence classification, whose `score` layer is as good as a value head."""
    try:
        found = json.loads(settings.read_bytes()).get("architectures")
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(found, list) and any("ForSequenceClassification" in str(name) for name in found)


@contextmanager
def _blaming(key: str) -> Iterator[None]:
    """Errors about a model begin with the key that named it."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{key}: {error.message}", f"{key}: the folder of a model or adapter, or a name on the hub") from None
