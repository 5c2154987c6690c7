"""What DeepSpeed and FSDP take for granted and a single process or a small image does not have."""

from __future__ import annotations

import shutil
import socket
from collections.abc import MutableMapping

from fl_trainers.config import Config
from fl_trainers.progress import log


def join_alone(config: Config, environ: MutableMapping[str, str]) -> None:
    """Both want a process group, also where one process is the whole of it: what torchrun would have set."""
    arguments = config.training.arguments
    if "WORLD_SIZE" in environ or not (arguments.get("deepspeed") or arguments.get("fsdp")):
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )  # fmt: skip


def without_compiler(config: Config) -> None:
    """On the CPU DeepSpeed compiles collectives over shared memory and fails where there is no compiler, though gloo has the same."""
    if not config.training.arguments.get("deepspeed") or config.run.lane != "cpu" or shutil.which("c++"):
        return
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder.is_compatible = lambda self, verbose=False: False
    log.info("DeepSpeed: no C++ compiler here, so ranks meet over gloo and not over shared memory")
