"""`python -m fl_trainers.fetch config.json [NAME[@REVISION]]…`: what a run would ask the hub for, into the caches where it looks first.

The names are models and adapters; data sets are those of the config. They are loaded with the code that the run uses, so that what is
cached is what the run will open.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fl_trainers.config import Config
from fl_trainers.errors import InputError, TrainerError
from fl_trainers.progress import Events, log, start_log

WEIGHTS = (".safetensors", ".bin")
"""Formats that are loaded, the first that a repository has."""
OTHERS = (".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ckpt", ".gguf", ".tflite", ".ot")
ELSEWHERE = ("original/", "onnx/", "openvino/", "coreml/", "gguf/")
"""Folders with the same weights in formats of other programs."""
T = TypeVar("T")
_CLIENTS = ("httpx", "httpcore", "requests", "huggingface_hub")
"""Whose errors mean that the hub did not answer as it should."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 done, 5 what was asked for cannot be had, 2 usage."""
    from fl_trainers.__main__ import take_secrets

    take_secrets(os.environ)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    start_log()
    if not arguments:
        log.error("usage: python -m fl_trainers.fetch config.json [NAME[@REVISION]]…")
        return 2
    config = Config.read(Path(arguments[0]))
    events = Events(Path(config.run.events))
    try:
        for name in arguments[1:]:
            files, size = model(*name.partition("@")[::2])
            events.emit("fetch", kind="model", name=name.partition("@")[0], files=files, bytes=size)
        for found in (*config.data.train, *config.data.eval):
            if found.source == "hub" and not Path(found.path).is_absolute():
                events.emit("fetch", kind="dataset", name=found.path, rows=rows(config, found.name))
    except TrainerError as error:
        events.error(type(error).__name__, error.message, error.exit_code, error.remedy)
        return error.exit_code
    return 0


def model(name: str, revision: str) -> tuple[int, int]:
    """(files, bytes) of a model or adapter in the hub's cache, all that loading opens and no second format of the weights."""
    from huggingface_hub import HfApi, snapshot_download

    def fetched() -> tuple[int, int]:
        info = HfApi().model_info(name, revision=revision or None)
        wanted = chosen([file.rfilename for file in info.siblings or ()])
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
        got = [file for file in folder.rglob("*") if file.is_file()]
        return len(got), sum(file.stat().st_size for file in got)

    return explained(f"model {name}", fetched)


def chosen(files: list[str]) -> list[str]:
    """What of a repository's files is fetched. Pure."""
    kept = [file for file in files if not file.endswith(OTHERS) and not file.startswith(ELSEWHERE)]
    best = next((suffix for suffix in WEIGHTS if any(file.endswith(suffix) for file in kept)), None)
    others = tuple(suffix for suffix in WEIGHTS if suffix != best)
    # the index of a format that is not taken would promise shards that are not there
    return [file for file in kept if not file.removesuffix(".index.json").endswith(others)]


def rows(config: Config, name: str) -> int:
    """Rows of a data set, its files in the hub's cache and prepared in the run's.

    Rows that are prepared already would keep `datasets` from fetching the files, and a cache without them counts as not whole.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    from fl_trainers.data import sources

    dataset = next(one for one in (*config.data.train, *config.data.eval) if one.name == name)
    if config.data.streaming:
        raise InputError(f"data set {name}: streaming reads the hub while it trains", "streaming: false, or give the files as local data")
    explained(f"data set {dataset.path}", lambda: HfApi().dataset_info(dataset.path))
    if not any(Path(HF_HUB_CACHE, f"datasets--{dataset.path.replace('/', '--')}").glob("snapshots/*/*")):
        import datasets

        arguments = {"data_dir": dataset.folder, "split": dataset.split, "download_mode": "reuse_cache_if_exists"}
        datasets.disable_progress_bars()
        explained(
            f"data set {dataset.path}",
            lambda: datasets.load_dataset(dataset.path, dataset.subset, cache_dir=config.run.cache, **arguments),
        )
    return len(sources.load(dataset, config.run.cache))


def explained(what: str, ask: Callable[[], T]) -> T:
    """The hub's many errors as one of ours, with what to do. `what` is `model NAME` or `data set NAME`."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT", "the hub")
    try:
        return ask()
    except GatedRepoError as error:
        raise InputError(f"the {what} is gated: its owners must let you in", "accept its terms on its page, then HF_TOKEN=…") from error
    except RevisionNotFoundError as error:
        raise InputError(f"the {what} has no such revision", "model_revision: main") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{endpoint} has no {what}, or not for you", "the name as its page has it; HF_TOKEN=… if private") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (28, 122):
            raise InputError(f"the disk is full: the {what} does not fit", "HF_HOME=/other/disk moves the hub's cache") from error
        if not isinstance(error, OSError) and not type(error).__module__.startswith(_CLIENTS):
            raise
        raise InputError(f"the {what} cannot be fetched from {endpoint}: {_first(error)}", "try again: what has arrived is kept") from error


def _first(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
