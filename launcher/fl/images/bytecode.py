"""Compiles what a step of a build installed: `python bytecode.py SITE BEGIN KEPT`. Sent into builds by itself: no imports of ours.

Every source under SITE that is newer than the file BEGIN gets its byte code, which is not checked against the source when it is loaded:
nothing in an image changes. What was compiled stays in the folder KEPT by its source, place and Python, so that a build that
follows compiles only what is new.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.util
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Final

_MODE: Final = 0o644
_TOGETHER: Final = 32
"""Files that a process gets at once."""


def sources(site: Path, begin: float) -> list[str]:
    """Python sources under a folder that were changed after that moment, in one order."""
    found = []
    for place, folders, files in os.walk(site):
        folders.sort()
        names = (f"{place}/{name}" for name in sorted(files) if name.endswith(".py"))
        found += [name for name in names if os.lstat(name).st_mtime > begin]
    return found


def compile_one(kept: Path, file: str) -> bool:
    """Puts the byte code of a source beside it; False where it is no source for this Python (templates and the like)."""
    target = Path(importlib.util.cache_from_source(file))
    source = Path(file).read_bytes()
    name = hashlib.sha256(b"\0".join([importlib.util.MAGIC_NUMBER, file.encode(), source])).hexdigest()
    known = kept / name[:2] / name
    if known.is_file():
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(known.read_bytes())
    else:
        if not compileall.compile_file(file, quiet=2, force=True, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH):
            return False
        known.parent.mkdir(parents=True, exist_ok=True)
        part = known.with_name(f"{name}.{os.getpid()}")
        part.write_bytes(target.read_bytes())
        part.replace(known)
    target.chmod(_MODE)
    return True


def main(site: str, begin: str, kept: str) -> None:
    """Compiles, by as many processes as there are processors; tells how many sources there were."""
    files = sources(Path(site), Path(begin).stat().st_mtime)
    with ProcessPoolExecutor() as pool:
        done = list(pool.map(partial(compile_one, Path(kept)), files, chunksize=_TOGETHER))
    sys.stdout.write(f"compiled: {sum(done)} of {len(files)} sources\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
