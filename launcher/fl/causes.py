"""What vendors' tools, engines and libraries say when something is wrong: the text → what it means and what to do. Pure.

One table, the more specific texts first. Sources: NVIDIA's container toolkit and CUDA Compatibility guide, the CUDA runtime's error
codes, AMD's ROCm documentation, Huawei's ascend-docker-runtime, and reports of users.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fl.errors import EngineError, FlError, HardwareError, ImageError, TrainingError
from fl.hardware import LaneName

_LIMIT: Final = 1 << 18
"""Characters of a text that are looked at, from its end: what stopped a program stands there."""
_CDI: Final = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
_DRIVER_FILES: Final = "ls /usr/local/Ascend/driver/lib64/driver   on the host; a container gets them with `fl run --engine docker`"


@dataclass(frozen=True, slots=True)
class Cause:
    """`error` is the class of the failure, and so its exit code, where nothing else tells."""

    code: str
    lane: LaneName | None
    cause: str
    cure: str
    error: type[FlError]


def explain(text: str) -> Cause | None:
    """The first known cause in a text (a log's end, a daemon's answer); None when it holds no known one."""
    text = text[-_LIMIT:]
    for known in _KNOWN:
        if (match := known.pattern.search(text)) is not None:
            words = [" ".join((group or "").split())[:120] for group in match.groups()]
            return Cause(known.code, known.lane, known.cause.format(*words), known.cure.format(*words), known.error)
    return None


@dataclass(frozen=True, slots=True)
class _Known:
    code: str
    lane: LaneName | None
    pattern: re.Pattern[str]
    cause: str
    cure: str
    error: type[FlError]


def _known(code: str, lane: LaneName | None, error: type[FlError], pattern: str, cause: str, cure: str) -> _Known:
    return _Known(code, lane, re.compile(pattern, re.I), cause, cure, error)


def _number(code: int) -> str:
    """A pattern for an error number of CUDA: only where CUDA is spoken of on the same line."""
    about, number = "(?:cuda|ptx|triton|nvrtc|toolchain)", rf"\berrors?(?: code)?[ :(=]{{0,3}}{code}\b"
    return rf"{about}[^\n]{{0,80}}?{number}|{number}[^\n]{{0,80}}?{about}|\bcuda\w*[ :(]{{1,3}}{code}\b"


_NVIDIA: Final = (
    _known(
        "driver-library-mismatch", "cuda", HardwareError,
        r"driver/library version mismatch|NVML_ERROR_LIB_RM_VERSION_MISMATCH|API mismatch: the client has the version",
        "NVIDIA's kernel module and its libraries are of different versions: the driver was updated and the old module is still loaded",
        "sudo reboot\nor, with no process on the GPUs: sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && sudo modprobe nvidia",
    ),
    _known(
        "nvml-unknown-gpu", "cuda", HardwareError, r"detection error: nvml error: unknown error",
        "one GPU of this machine is in an error state, and NVIDIA's hook then fails for all of them",
        "nvidia-smi   shows ERR! at the broken one\nsudo nvidia-smi -r -i N   resets it\nsudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml   leaves it out",
    ),
    _known(
        "nvml-unknown", "cuda", HardwareError, r"failed to initialize NVML: unknown error",
        "the container lost its GPUs while it ran: `systemctl daemon-reload` rewrote the device rules of its cgroup",
        "start the run again\n" + _CDI + "   devices of a CDI spec survive a reload",
    ),
    _known(
        "cuda-requirement", "cuda", HardwareError, r"unsatisfied condition: (cuda ?>= ?[\d.]+|driver ?>= ?[\d.]+|[^\n,\"]{1,80})",
        "the image asks for more than this driver has ({0})",
        "fl matrix explain   shows which stack fits this driver, and which driver the others need",
    ),
    _known(
        "no-toolkit", "cuda", EngineError,
        r"could not select device driver|unknown or invalid runtime name: nvidia|nvidia-container-runtime-hook[^\n]{0,80}not found",
        "Docker has nothing that passes NVIDIA GPUs into containers: nvidia-container-toolkit is not installed, or not registered",
        "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker\n"
        "--engine host   needs no toolkit",
    ),
    _known(
        "toolkit-no-driver", "cuda", HardwareError, r"nvidia-container-cli: initialization error: (load library failed: libnvidia-ml|nvml error: driver not loaded)",
        "NVIDIA's container toolkit is there, but the driver that it should pass on is not",
        "nvidia-smi   on the host must work first; install NVIDIA's driver or `sudo modprobe nvidia`",
    ),
    _known(
        "unknown-gpu", "cuda", HardwareError, r"nvidia-container-cli: device error: ([^\n:]{1,80}: )?unknown device",
        "a GPU was asked for that the driver does not have (any more)", "fl hw   shows the GPUs of now",
    ),
    _known(
        "stale-cdi", "cuda", EngineError,
        r"(?:stat|error stat'?ing|failed to stat|bind mount|mount)[^\n]{0,200}?(lib(?:EGL_nvidia|GLX_nvidia|nvidia|cuda|nvcuvid|nvoptix)[\w.-]{0,60}\.so\.[\d.]+)"
        r"[^\n]{0,80}no such file",
        "the CDI spec names {0}, which is gone: it was written for another version of the driver",
        _CDI,
    ),
    _known(
        "cdi-unknown-device", "cuda", EngineError, r"unresolvable CDI devices? ([\w./=:, -]{1,120})|CDI device injection failed",
        "the engine finds no CDI spec that has the device {0}", _CDI,
    ),
    _known(
        "no-driver", "cuda", HardwareError, r"couldn'?t communicate with the NVIDIA driver|failed to initialize NVML: driver not loaded",
        "a GPU may be there, but NVIDIA's kernel driver is not loaded",
        "sudo modprobe nvidia\nsudo dmesg | grep -i nvidia   says why it does not load (Secure Boot, another kernel, nouveau)",
    ),
    _known(
        "no-nvml", "cuda", HardwareError,
        r"couldn'?t find libnvidia-ml|libnvidia-ml\.so(\.1)?: cannot open shared object|failed to initialize NVML: (library not found|not found)",
        "the driver's library libnvidia-ml is not here: no driver on a host; in a container, one started without the `utility` capability",
        "on the host: install NVIDIA's driver\nin a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ),
    _known(
        "system-not-ready", "cuda", HardwareError, _number(802) + r"|system not yet initialized|CUDA_ERROR_SYSTEM_NOT_READY",
        "the NVLink fabric is not ready (error 802): this machine has NVSwitches, and its fabric manager does not run",
        "sudo systemctl enable --now nvidia-fabricmanager\nit must be of the driver's version: nv-fabricmanager --version",
    ),
    _known(
        "system-driver-mismatch", "cuda", HardwareError,
        r"unsupported display driver / cuda driver combination|" + _number(803) + r"|CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "libcuda and the kernel driver do not belong together (error 803): a cuda-compat library stands before the driver's own",
        "unset LD_LIBRARY_PATH, and take /usr/local/cuda/compat out of it\nor upgrade NVIDIA's driver; GeForce has no forward compatibility",
    ),
    _known(
        "forward-compat", "cuda", HardwareError,
        r"forward compatibility was attempted on non supported HW|" + _number(804) + r"|CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "CUDA's forward compatibility was tried on a GPU that has none (error 804): only data-centre GPUs and Jetson do",
        "fl matrix explain   shows the stacks for this driver\nor upgrade NVIDIA's driver",
    ),
    _known(
        "ptx-too-new", "cuda", HardwareError,
        r"PTX was compiled with an unsupported toolchain|CUDA_ERROR_UNSUPPORTED_PTX_VERSION|unsupported \.version \d|" + _number(222),
        "code was made by a CUDA newer than this driver can compile (error 222): minor-version compatibility does not cover PTX, "
        "so Triton and torch.compile fail first",
        "fl matrix explain   shows the stack of this driver's own CUDA\nor upgrade NVIDIA's driver",
    ),
    _known(
        "driver-too-old", "cuda", HardwareError,
        r"driver on your system is too old|CUDA driver version is insufficient for CUDA runtime|CUDA_ERROR_INSUFFICIENT_DRIVER",
        "the driver is older than this CUDA allows", "fl matrix explain   shows which stack fits this driver",
    ),
    _known(
        "exclusive-mode", "cuda", HardwareError, r"CUDA-capable device\(?s?\)? (is/are|are all|are) busy or unavailable",
        "another process has the GPU, and its compute mode lets only one in",
        "nvidia-smi   shows the process\nsudo nvidia-smi -c DEFAULT   lets several in",
    ),
    _known(
        "no-uvm", "cuda", HardwareError, r"CUDA unknown error - this may be due to an incorrectly set up environment|cudaErrorUnknown|CUDA_ERROR_UNKNOWN",
        "CUDA cannot start although the driver is loaded: mostly /dev/nvidia-uvm is missing or closed, as after a suspend or in a container",
        "sudo nvidia-modprobe -u -c=0\nls -l /dev/nvidia-uvm",
    ),
    _known(
        "no-device", "cuda", HardwareError, r"no CUDA-capable device is detected|No CUDA GPUs are available|CUDA_ERROR_NO_DEVICE",
        "CUDA sees no GPU: none was passed into this container, or CUDA_VISIBLE_DEVICES names none that is here",
        "fl hw   shows what is here\nunset CUDA_VISIBLE_DEVICES",
    ),
    _known(
        "gpu-lost", "cuda", HardwareError, r"GPU has fallen off the bus|GPU is lost|Xid \([^)\n]{1,60}\): 79\b",
        "a GPU does not answer on the bus any more (Xid 79): power, heat or a broken card",
        "sudo reboot\nsudo dmesg | grep Xid   if it comes back, the card or its place is broken",
    ),
    _known(
        "ecc", "cuda", HardwareError, r"uncorrectable ECC error|CUDA_ERROR_ECC_UNCORRECTABLE",
        "a GPU's memory has an error that ECC could not correct", "nvidia-smi -q -d ECC,ROW_REMAPPER\nsudo nvidia-smi -r -i N   resets the GPU",
    ),
)

_AMD: Final = (
    _known(
        "kfd-permission", "rocm", HardwareError, r"unable to open /dev/kfd[^\n]{0,40}permission denied|/dev/kfd[^\n]{0,40}(permission denied|EACCES)",
        "/dev/kfd may not be opened by this user: it belongs to the group render (or video)",
        "sudo usermod -aG render,video $USER   then log in again\nid   must show the group that `ls -ln /dev/kfd` shows",
    ),
    _known(
        "kfd-refused", "rocm", HardwareError, r"unable to open /dev/kfd[^\n]{0,40}(invalid argument|operation not permitted)",
        "the kernel refuses /dev/kfd to this process ({0}), although rocm-smi may work: the tool reads other files",
        "in a container: start it with --device /dev/kfd and its render nodes\nsudo dmesg | grep -i kfd",
    ),
    _known(
        "kfd-missing", "rocm", HardwareError, r"unable to open /dev/kfd[^\n]{0,40}no such file|ROCk module is NOT loaded",
        "/dev/kfd is not here: the driver amdgpu is not loaded, or this container was started without it",
        "sudo modprobe amdgpu\nin a container: --device /dev/kfd --device /dev/dri/renderD…",
    ),
    _known(
        "wrong-gfx-override", "rocm", HardwareError, r"memory access fault by GPU node",
        "the GPU read memory that is not its own, as with code for another chip: HSA_OVERRIDE_GFX_VERSION names a chip that this one is not",
        "unset HSA_OVERRIDE_GFX_VERSION\nfl matrix explain   shows whether a stack has code for this chip",
    ),
    _known(
        "no-code-amd", "rocm", HardwareError,
        r"hipErrorNoBinaryForGpu|unable to find code object for all current devices|HIP error: invalid device function",
        "this torch has no code for this GPU", "fl matrix explain   shows which stack has code for it",
    ),
    _known(
        "group-by-name", "rocm", EngineError, r"unable to find group (\w{1,32})|no matching entries in group file",
        "the group {0} was given by name, and the image knows no such name: groups of device nodes are passed by number",
        "--group-add $(stat -c %g /dev/kfd)   or let `fl run` pass it",
    ),
)

_ASCEND: Final = (
    _known(
        "card-in-use", "ascend", HardwareError, r"\b(?:ret|return|code|error|dcmi)\b[^\n]{0,60}-8020\b(?!\.)|because the device is used",
        "a card is already mapped into another container (-8020): a container owns its cards alone, and one used card blocks all of them",
        "docker ps   shows the other container; stop it\n--devices free   takes only free cards",
    ),
    _known(
        "dcmi-init", "ascend", HardwareError, r"\b(?:ret|return|code|error|dcmi)\b[^\n]{0,60}-8005\b(?!\.)",
        "DCMI could not start (-8005): on older drivers so says a card that another container has, else the manager nodes are missing",
        "ls -l /dev/davinci_manager /dev/devmm_svm /dev/hisi_hdc\n--devices free   takes only free cards",
    ),
    _known(
        "board-type", "ascend", HardwareError, r"ret is -9005\b|board type[^\n]{0,60}-9005\b",
        "the driver does not know this board (-9005)", "install the driver (HDK) of this product, then restart the machine",
    ),
    _known(
        "driver-files", "ascend", EngineError, r"(libc_sec\.so|libdrvdsmi\w*\.so|libascend_hal\.so|libmmpa\.so|libdcmi\.so)[^\n]{0,80}(cannot open|no such file|not found)",
        "{0} is not found: the driver's lib64 of the host is not mounted into this container, or not on its library path",
        _DRIVER_FILES,
    ),
    _known(
        "cann-environment", "ascend", EngineError, r"(libascendcl\.so|libhccl\.so|libge_runner\.so)[^\n]{0,80}(cannot open|no such file)",
        "{0} is not found: CANN's environment is not set", "source /usr/local/Ascend/ascend-toolkit/set_env.sh",
    ),
)

_ALL: Final = (
    _known(
        "no-code", "cuda", HardwareError, r"no kernel image is available for execution on the device|is not compatible with the current PyTorch installation",
        "this torch has no code for this GPU", "fl matrix explain   shows which stack has code for it",
    ),
    _known(
        "shared-memory", None, EngineError,
        r"dataloader worker[^\n]{0,80}bus error|out of shared memory|error while creating shared memory segment|shm_open[^\n]{0,60}no space left",
        "/dev/shm is too small for data loaders or collectives",
        "sudo mount -o remount,size=16G /dev/shm\ndataloader_num_workers=0   needs none; docker: --shm-size 16g",
    ),
    _known(
        "memlock", None, EngineError, r"ibv_(reg_mr|create_qp|create_cq)\w*[^\n]{0,80}cannot allocate memory|rlimit_memlock|memlock[^\n]{0,40}too (low|small)",
        "the limit of locked memory is too low for RDMA or pinned memory",
        "ulimit -l unlimited\npersistent: `* - memlock unlimited` in /etc/security/limits.d/memlock.conf, or LimitMEMLOCK=infinity in the daemon's unit",
    ),
    _known(
        "device-memory", None, TrainingError, r"(CUDA|HIP|NPU|XPU) out of memory|torch\.(cuda\.)?OutOfMemoryError|OUT_OF_DEVICE_MEMORY",
        "the device's memory is full", "per_device_train_batch_size=1\ngradient_checkpointing: true, a smaller cutoff_len, or quantization_bit: 4",
    ),
    _known(
        "level-zero", "xpu", HardwareError, r"PI_ERROR_DEVICE_NOT_FOUND|ZE_RESULT_ERROR_UNINITIALIZED|No XPU devices are available",
        "Level Zero finds no GPU: no render node that this user may open, or ZE_AFFINITY_MASK names none",
        "fl hw   shows the nodes\nsudo usermod -aG render $USER   then log in again",
    ),
)

_ENGINES: Final = (
    _known(
        "socket-permission", None, EngineError, r"permission denied while trying to connect to the docker",
        "Docker's socket may not be opened by this user", "sudo usermod -aG docker $USER   then log in again\n--engine podman or --engine host need no daemon",
    ),
    _known(
        "no-daemon", None, EngineError, r"cannot connect to the docker daemon|is the docker daemon running",
        "no Docker daemon answers", "sudo systemctl start docker\n--engine host   needs none",
    ),
    _known(
        "subordinate-ids", None, EngineError, r"insufficient UIDs or GIDs available in user namespace|no subuid ranges found|newuidmap[^\n]{0,60}(not permitted|not found)",
        "rootless containers need subordinate uids and gids, and this user has none",
        "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER && podman system migrate",
    ),
    _known(
        "platform", None, ImageError, r"exec format error|image'?s? platform \(?([\w/]{1,40})\)? does not match",
        "the image is for another processor than this machine's", "fl images build   makes one for this machine\n--engine host   needs none",
    ),
    _known(
        "certificate-time", None, ImageError, r"certificate has expired or is not yet valid",
        "a server's certificate is not valid at this machine's time: either it expired, or the clock is wrong",
        "date   must be right: sudo timedatectl set-ntp true",
    ),
    _known(
        "certificate", None, ImageError, r"certificate signed by unknown authority|self[- ]signed certificate|CERTIFICATE_VERIFY_FAILED",
        "a certificate between here and the server is not trusted: a proxy, or a registry with an authority of its own",
        "its authority's certificate belongs into /usr/local/share/ca-certificates: sudo update-ca-certificates, then restart the daemon",
    ),
    _known(
        "rate-limit", None, ImageError, r"toomanyrequests|pull rate limit",
        "the registry lets this address pull no more for now", "docker login   raises the limit\nor wait, or configure a mirror",
    ),
    _known(
        "disk-full", None, EngineError, r"no space left on device|ENOSPC|disk quota exceeded",
        "a disk is full", "df -h\nfl doctor   shows which; docker system prune frees the engine's",
    ),
)

_KNOWN: Final = (*_ASCEND, *_NVIDIA, *_AMD, *_ALL, *_ENGINES)
