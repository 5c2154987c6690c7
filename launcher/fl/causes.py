"""What vendors' tools, engines and libraries say when something is wrong: the text → what it means and what to do. Pure.

Sources: NVIDIA's container toolkit and CUDA Compatibility guide, the CUDA runtime's error codes, AMD's ROCm documentation, Huawei's
ascend-docker-runtime, and reports of users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from fl.causes_form import Cause, known
from fl.errors import EngineError, ImageError, TrainingError
from fl.lanes import ascend_causes, cuda_causes, rocm_causes, xpu_causes

__all__ = ["Cause", "every", "explain"]

_LIMIT: Final = 1 << 18
"""Characters of a text that are looked at, from its end: what stopped a program stands there."""

_ALL: Final = (
    known(
        "shared-memory",
        None,
        EngineError,
        r"dataloader worker[^\n]{0,80}bus error|out of shared memory"
        r"|error while creating shared memory segment|shm_open[^\n]{0,60}no space left",
        "/dev/shm is too small for data loaders or collectives",
        "sudo mount -o remount,size=16G /dev/shm\ndataloader_num_workers=0   needs none; docker: --shm-size 16g",
    ),
    known(
        "memlock",
        None,
        EngineError,
        r"ibv_(reg_mr|create_qp|create_cq)\w*[^\n]{0,80}cannot allocate memory|rlimit_memlock|memlock[^\n]{0,40}too (low|small)",
        "the limit of locked memory is too low for RDMA or pinned memory",
        "ulimit -l unlimited\n"
        "persistent: `* - memlock unlimited` in /etc/security/limits.d/memlock.conf, or LimitMEMLOCK=infinity in the daemon's unit",
    ),
    known(
        "device-memory",
        None,
        TrainingError,
        r"(CUDA|HIP|NPU|XPU) out of memory|torch\.(cuda\.)?OutOfMemoryError|OUT_OF_DEVICE_MEMORY",
        "the device's memory is full",
        "per_device_train_batch_size=1\ngradient_checkpointing: true, a smaller cutoff_len, or quantization_bit: 4",
    ),
)

_ENGINES: Final = (
    known(
        "socket-permission",
        None,
        EngineError,
        r"permission denied while trying to connect to the docker",
        "Docker's socket may not be opened by this user",
        "sudo usermod -aG docker $USER   then log in again\n--engine podman or --engine host need no daemon",
    ),
    known(
        "no-daemon",
        None,
        EngineError,
        r"cannot connect to the docker daemon|is the docker daemon running",
        "no Docker daemon answers",
        "sudo systemctl start docker\n--engine host   needs none",
    ),
    known(
        "subordinate-ids",
        None,
        EngineError,
        r"insufficient UIDs or GIDs available in user namespace|no subuid ranges found|newuidmap[^\n]{0,60}(not permitted|not found)",
        "rootless containers need subordinate uids and gids, and this user has none",
        "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER && podman system migrate",
    ),
    known(
        "platform",
        None,
        ImageError,
        r"exec format error|image'?s? platform \(?([\w/]{1,40})\)? does not match",
        "the image is for another processor than this machine's",
        "fl images build   makes one for this machine\n--engine host   needs none",
    ),
    known(
        "certificate-time",
        None,
        ImageError,
        r"certificate has expired or is not yet valid",
        "a server's certificate is not valid at this machine's time: either it expired, or the clock is wrong",
        "date   must be right: sudo timedatectl set-ntp true",
    ),
    known(
        "certificate",
        None,
        ImageError,
        r"certificate signed by unknown authority|self[- ]signed certificate|CERTIFICATE_VERIFY_FAILED",
        "a certificate between here and the server is not trusted: a proxy, or a registry with an authority of its own",
        "its authority's certificate belongs into /usr/local/share/ca-certificates: sudo update-ca-certificates, then restart the daemon",
    ),
    known(
        "rate-limit",
        None,
        ImageError,
        r"toomanyrequests|pull rate limit",
        "the registry lets this address pull no more for now",
        "docker login   raises the limit\nor wait, or configure a mirror",
    ),
    known(
        "disk-full",
        None,
        EngineError,
        r"no space left on device|ENOSPC|disk quota exceeded",
        "a disk is full",
        "df -h\nfl doctor   shows which; docker system prune frees the engine's",
    ),
)

_KNOWN: Final = (*ascend_causes.CAUSES, *cuda_causes.CAUSES, *rocm_causes.CAUSES, *xpu_causes.CAUSES, *_ALL, *_ENGINES)


def explain(text: str) -> Cause | None:
    """The first known cause in a text (a log's end, a daemon's answer); None when it holds no known one."""
    return next(every(text), None)


def every(text: str) -> Iterator[Cause]:
    """All known causes in a text, the more specific ones first."""
    text = text[-_LIMIT:]
    for entry in _KNOWN:
        if (match := entry.pattern.search(text)) is not None:
            words = [" ".join((group or "").split())[:120] for group in match.groups()]
            yield replace(entry.meaning, cause=entry.meaning.cause.format(*words), cure=entry.meaning.cure.format(*words))
