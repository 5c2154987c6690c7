"""`python -m fl.modelscope_child REQUEST`: fetches repositories with ModelScope's own client, and tells of it in JSON lines on stdout.

A process of its own, so that it can be stopped: the client's threads and its hours of patience end with it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from shutil import rmtree
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fl.errors import RecipeError

if TYPE_CHECKING:
    from modelscope_hub import HubApi

_AGAIN: Final = "the same command, again: what has arrived is kept"
_LOOK: Final = 1.0
"""Seconds between two looks at whether the launcher lives."""
_EVERY: Final = 5.0
"""Seconds between two words of progress."""
_WEIGHTS: Final = (".safetensors", ".bin")
_OTHERS: Final = (".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ckpt", ".gguf", ".tflite", ".ot")
_ELSEWHERE: Final = ("original/", "onnx/", "openvino/", "coreml/", "gguf/")


def tell(**words: Any) -> None:
    """One line for the launcher."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 done, 5 what was asked for cannot be had."""
    from modelscope_hub import HubApi

    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    request = json.loads(Path(arguments[0]).read_bytes())
    api, address = HubApi(endpoint=request["endpoint"]), request["endpoint"] or "ModelScope"
    for one in request["repositories"]:
        try:
            with _explained(address, one["kind"].removesuffix("s"), one["name"], one["revision"]):
                repository(api, one["kind"].removesuffix("s"), one["name"], one["revision"], Path(one["folder"]))
        except RecipeError as error:
            tell(error=error.message, remedy=error.remedy)
            return error.exit_code
    return 0


def _end_with(launcher: int) -> None:
    """A launcher that was killed cannot stop its child: it looks for itself whether there still is one."""
    while os.getppid() == launcher:
        time.sleep(_LOOK)
    os._exit(1)


def repository(api: HubApi, kind: str, name: str, revision: str, target: Path) -> None:
    """One repository into its folder, which appears when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_name(f"{target.name}.lock")):
        if target.is_dir():  # another process was first
            return
        listed = {file.path: file for file in api.list_repo_files(name, kind, revision=revision) if file.type != "tree"}
        wanted = chosen(listed) if kind == "model" else list(listed)
        _check(name, wanted)
        partial = target.with_name(f"{target.name}.partial")
        _drop(partial, wanted)
        entries = [{"Path": path, "Size": listed[path].size or None, "Sha256": listed[path].sha256} for path in wanted]
        size = sum(listed[path].size for path in wanted)
        callback = _progress(name, size)
        api.download_repo(name, kind, revision=revision, local_dir=partial, file_list=entries, progress_callbacks=[callback])
        _drop(partial, wanted)
        partial.rename(target)
    tell(told=f"{name}: {len(wanted)} files, {size / 1e6:.0f} MB")


def chosen(files: Iterable[str]) -> list[str]:
    """What of a model's files is fetched: one format of the weights and everything beside it, as `fl_trainers.fetch` does. Pure."""
    kept = [file for file in files if not file.endswith(_OTHERS) and not file.startswith(_ELSEWHERE)]
    best = next((suffix for suffix in _WEIGHTS if any(file.endswith(suffix) for file in kept)), None)
    others = tuple(suffix for suffix in _WEIGHTS if suffix != best)
    return [file for file in kept if not file.removesuffix(".index.json").endswith(others)]


def _check(name: str, files: list[str]) -> None:
    """Nothing is written outside the folder, whatever the list says."""
    for file in files:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts or "\\" in file or "\0" in file:
            raise RecipeError(f"{name}: its list of files names {file!r}, which leads out of it: nothing was fetched", "another repository")
    if not files:
        raise RecipeError(f"{name} has no files on ModelScope that a training opens", "the name as its page on ModelScope has it")


def _drop(folder: Path, wanted: list[str]) -> None:
    """Files of an earlier attempt that the repository has no longer; parts of those that it has stay, to be gone on with."""
    known = {*wanted, *(f"{file}.incomplete" for file in wanted)}
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if str(inside) not in known and not any(wish.startswith(f"{inside}/") for wish in wanted):
            rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)


def _progress(name: str, size: int) -> type[Any]:
    """A class as the client wants one for each file; together they count the repository's bytes."""
    from modelscope_hub import ProgressCallback

    class Progress(ProgressCallback):
        """Adds up the files of one repository."""

        lock: ClassVar[Lock] = Lock()
        done: ClassVar[int] = 0
        said: ClassVar[float] = time.monotonic()

        def update(self, size_: int) -> None:
            """Bytes more; negative where the client starts a file anew."""
            kind = type(self)
            with kind.lock:
                kind.done += size_
                if time.monotonic() - kind.said >= _EVERY:
                    kind.said = time.monotonic()
                    tell(told=f"{name}: {kind.done / 1e6:.0f} of {size / 1e6:.0f} MB")

    return Progress


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(endpoint: str, kind: str, name: str, revision: str) -> Iterator[None]:
    """The client's many errors as one of ours, with what to do."""
    from modelscope_hub import errors
    from requests import RequestException

    what = f"{'data set' if kind == 'dataset' else 'model'} {name}"
    try:
        yield
    except errors.NotExistError as error:
        said = f"{endpoint} has no {what}, or no revision {revision} of it, or not for you"
        raise RecipeError(said, "the name as its page on ModelScope has it; MODELSCOPE_API_TOKEN=… if private") from error
    except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
        raise RecipeError(f"the {what} is not open to you at {endpoint}: {_first(error)}", "MODELSCOPE_API_TOKEN=…") from error
    except errors.FileDownloadError as error:
        file, cause = next(iter(error.failed_files.items()), ("", error))
        raise _of_file(endpoint, what, file, cause) from error
    except (errors.HubError, RequestException, OSError) as error:
        raise _of_file(endpoint, what, "", error) from error


def _of_file(endpoint: str, what: str, file: str, cause: BaseException) -> RecipeError:
    from modelscope_hub import errors

    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return RecipeError(f"the disk is full: the {what} does not fit", "XDG_CACHE_HOME=/other/disk moves the cache")
    if isinstance(cause, errors.FileIntegrityError):
        said = f"{file} of the {what} is not what {endpoint} lists (checksum or size), and was thrown away: {_first(cause)}"
        return RecipeError(said, f"{_AGAIN}\nif it stays so, the repository or the mirror is broken")
    where = f"{file} of the {what}" if file else f"the {what}"
    return RecipeError(f"{where} cannot be fetched from {endpoint}: {_first(cause)}", _AGAIN)


def _first(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
