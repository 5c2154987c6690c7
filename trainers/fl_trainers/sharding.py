"""What DeepSpeed and FSDP take for granted and a single process or a small image does not have."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Final

from fl_trainers.config import Config
from fl_trainers.errors import InputError
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


def zero_stage(config: Config) -> int:
    """DeepSpeed's: 1 spreads the optimizer's state over the devices, 2 gradients too, 3 the weights too; 0: nothing, or no DeepSpeed."""
    settings = config.training.arguments.get("deepspeed")
    found = settings.get("zero_optimization") if isinstance(settings, dict) else None
    return int(found.get("stage") or 0) if isinstance(found, dict) else 0


def spreads_weights(config: Config) -> str | None:
    """What keeps each weight in parts on several devices: nobody holds a whole one outside of the layer that computes with it."""
    return "ZeRO-3" if zero_stage(config) == 3 else "fsdp" if config.training.arguments.get("fsdp") else None


FULL: Final = "FULL_STATE_DICT"
GATHER: Final = "stage3_gather_16bit_weights_on_model_save"


def check_saving(config: Config) -> None:
    """For stages whose value head has a file of its own: InputError where spread weights are never brought together."""
    stage, settings = config.method.stage, config.training.arguments.get("fsdp_config") or {}
    kind = settings.get("state_dict_type", settings.get("fsdp_state_dict_type", FULL))
    why = "the value head's file is written from whole weights"
    if config.training.arguments.get("fsdp") and kind != FULL:
        raise InputError(f"stage {stage} with fsdp_config.state_dict_type: {kind}: {why}", f"state_dict_type: {FULL}")
    if zero_stage(config) == 3 and not config.training.arguments["deepspeed"]["zero_optimization"].get(GATHER):
        raise InputError(f"stage {stage} with ZeRO-3: {why}", f'"{GATHER}": true in the file\'s zero_optimization')


DEAD_AFTER: Final = 900
"""Seconds without a new file after which nobody builds any more."""


def forget_dead_builds(environ: Mapping[str, str]) -> list[Path]:
    """torch waits without end and without a word for a `lock` that a killed run left in the middle of a build; gives those taken away."""
    home = Path(environ.get("TORCH_EXTENSIONS_DIR") or "/nowhere")
    gone = []
    for lock in sorted(home.glob("*/lock")):
        try:
            newest = max(path.stat().st_mtime for path in (lock.parent, *lock.parent.iterdir()))
            if time.time() - newest > DEAD_AFTER:
                lock.unlink()
                gone.append(lock)
                log.warning("%s: a build that a run left unfinished is made again", lock.parent)
        except OSError:  # another run was faster, or it is not ours
            continue
    return gone


def without_compiler(config: Config) -> None:
    """On the CPU DeepSpeed compiles collectives over shared memory and fails where there is no compiler, though gloo has the same."""
    if not config.training.arguments.get("deepspeed") or config.run.lane != "cpu" or shutil.which("c++"):
        return
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder.is_compatible = lambda self, verbose=False: False
    log.info("DeepSpeed: no C++ compiler here, so ranks meet over gloo and not over shared memory")
