"""What a run reads and writes on this machine: found by following the config's paths. The edge between config and plan."""

from __future__ import annotations

import os
from pathlib import Path

from fl import hub_cache as hub_cache_of
from fl import mounts
from fl.grants import Mount
from fl_trainers.config import Config


def read(config: Config) -> tuple[Mount, ...]:
    """Read-only mounts for model, adapters, data, media, and files that training arguments name."""
    wanted: list[str] = []
    if config.model.kind in ("folder", "gguf"):
        wanted.append(config.model.path)
    wanted += [adapter for adapter in config.model.adapters if Path(adapter).is_absolute()]
    wanted += [path for path, hub in _others(config) if not hub]
    wanted += [data.path for data in (*config.data.train, *config.data.eval) if Path(data.path).is_absolute()]
    wanted += [name.rpartition(":")[0] for name in config.method.grpo.reward_funcs if ":" in name]
    wanted += [config.data.media_dir] if config.data.media_dir else []
    named = [value for value in config.training.arguments.values() if isinstance(value, str) and value.startswith("/")]
    wanted += [value for value in named if Path(value).exists()]
    if isinstance(config.training.resume_from_checkpoint, str):
        wanted.append(config.training.resume_from_checkpoint)
    return tuple(Mount(source=path, target=path) for start in wanted for path in _with_links(start))


def _others(config: Config) -> list[tuple[str, bool]]:
    """(folder or hub name, whether it is one of the hub) of a reference and of what judges answers."""
    method = config.method
    models = [other for other in (method.reference, method.ppo.reward_model) if other is not None]
    found = [(other.path, other.kind == "hub") for other in models if other.kind != "tiny"]
    adapters = [adapter for other in models for adapter in other.adapters]
    adapters += [method.ppo.reward_adapter] if method.ppo.reward_adapter is not None else []
    return found + [(adapter, not Path(adapter).is_absolute()) for adapter in adapters]


def _with_links(path: str) -> list[str]:
    """A path, and what the links in it lead to: a hub snapshot's repository, or the targets one by one."""
    found = [mounts.repository(path)]
    real = str(Path(path).resolve())
    if real != path and mounts.repository(real) != found[0]:
        found.append(mounts.repository(real))
    if Path(path).is_dir() and found[0] == path:
        targets = {str(entry.resolve()) for entry in Path(path).iterdir() if entry.is_symlink()}
        found += sorted({mounts.repository(target) for target in targets if not target.startswith((path + "/", real + "/"))})
    return found


def written(config: Config) -> tuple[str, ...]:
    """Folders that the trainer writes: the output, and caches that it was given."""
    folders = [config.training.output_dir, config.run.cache, config.model.converted, config.data.tokenized_path]
    return tuple(folder for folder in folders if folder)


def hub(config: Config) -> tuple[str, ...]:
    """Hub names of models and data sets that this config needs."""
    names = [config.model.path] if config.model.kind == "hub" else []
    names += [adapter for adapter in config.model.adapters if not Path(adapter).is_absolute()]
    names += [path for path, hub in _others(config) if hub]
    return tuple(names + [data.path for data in (*config.data.train, *config.data.eval) if not Path(data.path).is_absolute()])


def hub_cache() -> Path:
    """The caller's hub cache, where transformers would look for it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser().absolute()
    home = os.environ.get("HF_HOME")
    return (Path(home).expanduser().absolute() if home else Path.home() / ".cache" / "huggingface") / "hub"


def missing(config: Config) -> tuple[str, ...]:
    """Hub names of models and data sets that are not here whole; of a data set the part that is asked for."""
    found = [name for name in hub(config) if not in_hub_cache((name,), hub_cache())]
    for data in (*config.data.train, *config.data.eval):
        if not Path(data.path).is_absolute() and config.run.cache is not None and data.path not in found:
            here = hub_cache_of.prepared(Path(config.run.cache), data.path, data.subset, data.folder)
            found += [] if here else [data.path]
    return tuple(found)


def in_hub_cache(names: tuple[str, ...], cache: Path) -> bool:
    """True when every name has a whole snapshot in the cache, so that nothing is to be fetched."""
    return all(hub_cache_of.whole(cache, name) for name in names)
