"""ModelScope as a hub: which names of a recipe come from there, the folders that they land in, and the fetching.

A repository is fetched before anything starts, by a child process with ModelScope's own client (the extra `fl[modelscope]`). What trains
opens a folder, and needs no network for it. The folder is whole or absent: it arrives under another name.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from fl import paths, settings
from fl.errors import EngineError, FlError, RecipeError, UsageError

if TYPE_CHECKING:
    from fl.resolve_model import ModelKind
    from fl_trainers.config import Config, Other

Kind = Literal["models", "datasets"]
_NAME: Final = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_REVISION: Final = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)*")
_POLL: Final = 0.1
_STOPPING: Final = 5
"""Seconds that the child has for its end."""
_AGAIN: Final = "the same command, again: what has arrived is kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """One that a run needs."""

    kind: Kind
    name: str
    revision: str

    @property
    def folder(self) -> Path:
        """Where it is, or will be after `fetch`."""
        return root() / self.kind / self.name / self.revision.replace("/", "--")


def root() -> Path:
    """The cache's part for ModelScope: `models/OWNER/NAME/REVISION`, `datasets/…`."""
    return paths.cache_home() / "modelscope"


def in_use(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether names of a hub are ModelScope's: as USE_MODELSCOPE_HUB says, else as the settings do."""
    told = environ.get("USE_MODELSCOPE_HUB", "")
    return told.lower() in ("1", "true", "y") if told else settings.load().mirrors.modelscope_hub


def endpoint(environ: Mapping[str, str] = os.environ) -> str | None:
    """The caller's MODELSCOPE_ENDPOINT or the settings' mirror; None: where the client looks by itself."""
    return environ.get("MODELSCOPE_ENDPOINT") or settings.load().mirrors.modelscope


def repository(kind: Kind, name: str, revision: str = "main") -> Repository:
    """RecipeError for what is no name there. `main` is their `master`."""
    if not _NAME.fullmatch(name):
        raise RecipeError(f"{name!r} is no name on ModelScope, which has OWNER/NAME", "the name as its page on ModelScope has it")
    if not _REVISION.fullmatch(revision):
        raise RecipeError(f"{revision!r} is no revision of {name} on ModelScope", "model_revision: master")
    return Repository(kind=kind, name=name, revision="master" if revision == "main" else revision)


def located(path: str, kind: ModelKind, revision: str) -> tuple[str, ModelKind]:
    """(path, kind) of a model: its folder, where `resolve_model.locate` found the name of a hub and the hub is ModelScope."""
    return (str(repository("models", path, revision).folder), "folder") if kind == "hub" and in_use() else (path, kind)


def place(config: Config) -> Config:
    """The config with folders instead of ModelScope's names of models and adapters, which are there after `fetch`."""
    if not in_use():
        return config

    def other(one: Other | None) -> Other | None:
        if one is None:
            return None
        path, kind = located(one.path, one.kind, "main")
        return one.model_copy(update={"path": path, "kind": kind, "adapters": tuple(map(_adapter, one.adapters))})

    model, method = config.model, config.method
    path, kind = located(model.path, model.kind, model.revision)
    judge = method.ppo.reward_adapter
    ppo = {"reward_model": other(method.ppo.reward_model), "reward_adapter": judge if judge is None else _adapter(judge)}
    changed = {"reference": other(method.reference), "ppo": method.ppo.model_copy(update=ppo)}
    placed = model.model_copy(update={"path": path, "kind": kind, "adapters": tuple(map(_adapter, model.adapters))})
    return config.model_copy(update={"model": placed, "method": method.model_copy(update=changed)})


def _adapter(name: str) -> str:
    return name if Path(name).is_absolute() else str(repository("models", name).folder)


def asked(config: Config) -> tuple[Repository, ...]:
    """The repositories whose folders a config names, each once."""
    others = [other for other in (config.method.reference, config.method.ppo.reward_model) if other is not None]
    places = [config.model.path, *config.model.adapters]
    places += [place for other in others for place in (other.path, *other.adapters)]
    places += [config.method.ppo.reward_adapter] if config.method.ppo.reward_adapter else []
    places += [data.path for data in (*config.data.train, *config.data.eval)]
    return tuple(found for place in dict.fromkeys(places) if (found := of(place)) is not None)


def of(place: str) -> Repository | None:
    """The repository whose folder that is; None for any other place."""
    parts = Path(place).relative_to(root()).parts if Path(place).is_relative_to(root()) else ()
    if len(parts) != 4:
        return None
    kind, owner, name, revision = parts
    return Repository(kind="models" if kind == "models" else "datasets", name=f"{owner}/{name}", revision=revision.replace("--", "/"))


def fetch(repositories: Iterable[Repository], report: Callable[[str], None], check: Callable[[], None]) -> None:
    """Makes sure that their folders are there. `check` raises where it is to stop; what has arrived is kept for the next time.

    UsageError where the client is not installed, RecipeError where ModelScope has not what was asked for or does not give it.
    """
    missing = [one for one in repositories if not one.folder.is_dir()]
    if not missing:
        return
    if find_spec("modelscope_hub") is None:
        names = ", ".join(one.name for one in missing)
        said = f"{names}: fetched from ModelScope with its own client, which is not installed here"
        raise UsageError(said, "python -m pip install 'fl[modelscope]'\nor a folder: model_name_or_path=DIR")
    address = endpoint()
    report(f"fetching {', '.join(one.name for one in missing)} from {address or 'ModelScope'}")
    wanted = [{"kind": one.kind, "name": one.name, "revision": one.revision, "folder": str(one.folder)} for one in missing]
    root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fl-modelscope-") as work:
        files = [Path(work, name) for name in ("request.json", "events.jsonl", "log.txt")]
        files[0].write_text(json.dumps({"endpoint": address, "repositories": wanted}), encoding="utf-8")
        environment = {**os.environ, "MODELSCOPE_CACHE": str(root() / ".client")}
        with files[1].open("wb") as out, files[2].open("wb") as log:
            command = [sys.executable, "-m", "fl.modelscope_child", str(files[0])]
            child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True)
        try:
            last = _follow(child, files[1], report, check)
        finally:
            _end(child)
        if child.returncode:
            raise _failure(last, files[2], child.returncode)


def _follow(child: subprocess.Popen[bytes], events: Path, report: Callable[[str], None], check: Callable[[], None]) -> dict[str, Any]:
    """Its words to the screen until its end; the last of them."""
    last: dict[str, Any] = {}
    with events.open(encoding="utf-8") as stream:
        while True:
            over = child.poll() is not None
            for line in stream:
                last = json.loads(line)
                if "told" in last:
                    report(str(last["told"]))
            if over:
                return last
            check()
            time.sleep(_POLL)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(_STOPPING)
        child.kill()
        child.wait()


def _failure(last: Mapping[str, Any], log: Path, code: int) -> FlError:
    if "error" in last:
        return RecipeError(str(last["error"]), str(last["remedy"]))
    tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
    return EngineError("\n".join([f"the fetching from ModelScope ended with exit code {code}", *(f"  | {line}" for line in tail)]), _AGAIN)
