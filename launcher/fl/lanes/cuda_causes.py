"""What NVIDIA's tools, hook and libraries say, what it means, what to do. The more specific texts first."""

from __future__ import annotations

from typing import Final

from fl.causes_form import known
from fl.errors import EngineError, HardwareError

_CDI: Final = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"


def _number(code: int) -> str:
    """A pattern for an error number of CUDA: only where CUDA is spoken of on the same line."""
    about, number = "(?:cuda|ptx|triton|nvrtc|toolchain)", rf"\berrors?(?: code)?[ :(=]{{0,3}}{code}\b"
    return rf"{about}[^\n]{{0,80}}?{number}|{number}[^\n]{{0,80}}?{about}|\bcuda\w*[ :(]{{1,3}}{code}\b"


CAUSES: Final = (
    known(
        "driver-library-mismatch",
        "cuda",
        HardwareError,
        r"driver/library version mismatch|NVML_ERROR_LIB_RM_VERSION_MISMATCH|API mismatch: the client has the version",
        "NVIDIA's kernel module and its libraries are of different versions: the driver was updated and the old module is still loaded",
        "sudo reboot\nor, with no process on the GPUs: sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && sudo modprobe nvidia",
    ),
    known(
        "nvml-unknown-gpu",
        "cuda",
        HardwareError,
        r"detection error: nvml error: unknown error",
        "one GPU of this machine is in an error state, and NVIDIA's hook then fails for all of them",
        "nvidia-smi   shows ERR! at the broken one\nsudo nvidia-smi -r -i N   resets it\n"
        "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml   leaves it out",
    ),
    known(
        "nvml-unknown",
        "cuda",
        HardwareError,
        r"failed to initialize NVML: unknown error",
        "the container lost its GPUs while it ran: `systemctl daemon-reload` rewrote the device rules of its cgroup",
        "start the run again\n" + _CDI + "   devices of a CDI spec survive a reload",
    ),
    known(
        "cuda-requirement",
        "cuda",
        HardwareError,
        r"unsatisfied condition: (cuda ?>= ?[\d.]+|driver ?>= ?[\d.]+|[^\n,\"]{1,80})",
        "the image asks for more than this driver has ({0})",
        "fl matrix explain   shows which stack fits this driver, and which driver the others need",
    ),
    known(
        "no-toolkit",
        "cuda",
        EngineError,
        r"could not select device driver|failed to discover GPU vendor from CDI"
        r"|unknown or invalid runtime name: nvidia|nvidia-container-runtime-hook[^\n]{0,80}(?:not found|no such file)",
        "Docker has nothing that passes NVIDIA GPUs into containers: nvidia-container-toolkit is not installed, or not registered",
        "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker\n"
        "--engine host   needs no toolkit",
    ),
    known(
        "toolkit-no-driver",
        "cuda",
        HardwareError,
        r"nvidia-container-cli: initialization error: (load library failed: libnvidia-ml|nvml error: driver not loaded)",
        "NVIDIA's container toolkit is there, but the driver that it should pass on is not",
        "nvidia-smi   on the host must work first; install NVIDIA's driver or `sudo modprobe nvidia`",
    ),
    known(
        "unknown-gpu",
        "cuda",
        HardwareError,
        r"nvidia-container-cli: device error: ([^\n:]{1,80}: )?unknown device",
        "a GPU was asked for that the driver does not have (any more)",
        "fl hw   shows the GPUs of now",
    ),
    known(
        "stale-cdi",
        "cuda",
        EngineError,
        r"(?:stat|error stat'?ing|failed to stat|bind mount|mount)[^\n]{0,200}?(lib(?:EGL_nvidia"
        r"|GLX_nvidia|nvidia|cuda|nvcuvid|nvoptix)[\w.-]{0,60}\.so\.[\d.]+)"
        r"[^\n]{0,80}no such file",
        "the CDI spec names {0}, which is gone: it was written for another version of the driver",
        _CDI,
    ),
    known(
        "cdi-unknown-device",
        "cuda",
        EngineError,
        r"unresolvable CDI devices? ([\w./=:, -]{1,120})|CDI device injection failed",
        "the engine finds no CDI spec that has the device {0}",
        _CDI,
    ),
    known(
        "no-driver",
        "cuda",
        HardwareError,
        r"couldn'?t communicate with the NVIDIA driver|failed to initialize NVML: driver not loaded",
        "a GPU may be there, but NVIDIA's kernel driver is not loaded",
        "sudo modprobe nvidia\nsudo dmesg | grep -i nvidia   says why it does not load (Secure Boot, another kernel, nouveau)",
    ),
    known(
        "no-nvml",
        "cuda",
        HardwareError,
        r"couldn'?t find libnvidia-ml|libnvidia-ml\.so(\.1)?: cannot open shared object"
        r"|failed to initialize NVML: (library not found|not found)",
        "the driver's library libnvidia-ml is not here: no driver on a host; in a container, one started without the `utility` capability",
        "on the host: install NVIDIA's driver\nin a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ),
    known(
        "system-not-ready",
        "cuda",
        HardwareError,
        _number(802) + r"|system not yet initialized|CUDA_ERROR_SYSTEM_NOT_READY",
        "the NVLink fabric is not ready (error 802): this machine has NVSwitches, and its fabric manager does not run",
        "sudo systemctl enable --now nvidia-fabricmanager\nit must be of the driver's version: nv-fabricmanager --version",
    ),
    known(
        "system-driver-mismatch",
        "cuda",
        HardwareError,
        r"unsupported display driver / cuda driver combination|" + _number(803) + r"|CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "libcuda and the kernel driver do not belong together (error 803): a cuda-compat library stands before the driver's own",
        "unset LD_LIBRARY_PATH, and take /usr/local/cuda/compat out of it\n"
        "or upgrade NVIDIA's driver; GeForce has no forward compatibility",
    ),
    known(
        "forward-compat",
        "cuda",
        HardwareError,
        r"forward compatibility was attempted on non supported HW|" + _number(804) + r"|CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "CUDA's forward compatibility was tried on a GPU that has none (error 804): only data-centre GPUs and Jetson do",
        "fl matrix explain   shows the stacks for this driver\nor upgrade NVIDIA's driver",
    ),
    known(
        "ptx-too-new",
        "cuda",
        HardwareError,
        r"PTX was compiled with an unsupported toolchain|CUDA_ERROR_UNSUPPORTED_PTX_VERSION|unsupported \.version \d|" + _number(222),
        "code was made by a CUDA newer than this driver can compile (error 222): minor-version compatibility does not cover PTX, "
        "so Triton and torch.compile fail first",
        "fl matrix explain   shows the stack of this driver's own CUDA\nor upgrade NVIDIA's driver",
    ),
    known(
        "driver-too-old",
        "cuda",
        HardwareError,
        r"driver on your system is too old|CUDA driver version is insufficient for CUDA runtime|CUDA_ERROR_INSUFFICIENT_DRIVER|"
        + _number(35),
        "the driver is older than this CUDA allows",
        "fl matrix explain   shows which stack fits this driver",
    ),
    known(
        "exclusive-mode",
        "cuda",
        HardwareError,
        r"CUDA-capable device\(?s?\)? (is/are|are all|are) busy or unavailable",
        "another process has the GPU, and its compute mode lets only one in",
        "nvidia-smi   shows the process\nsudo nvidia-smi -c DEFAULT   lets several in",
    ),
    known(
        "no-uvm",
        "cuda",
        HardwareError,
        r"CUDA unknown error - this may be due to an incorrectly set up environment|cudaErrorUnknown|CUDA_ERROR_UNKNOWN|" + _number(999),
        "CUDA cannot start although the driver is loaded: mostly /dev/nvidia-uvm "
        "is missing or closed, as after a suspend or in a container",
        "sudo nvidia-modprobe -u -c=0\nls -l /dev/nvidia-uvm",
    ),
    known(
        "no-device",
        "cuda",
        HardwareError,
        r"no CUDA-capable device is detected|No CUDA GPUs are available|CUDA_ERROR_NO_DEVICE|" + _number(100),
        "CUDA sees no GPU: none was passed into this container, or CUDA_VISIBLE_DEVICES names none that is here",
        "fl hw   shows what is here\nunset CUDA_VISIBLE_DEVICES",
    ),
    known(
        "gpu-lost",
        "cuda",
        HardwareError,
        r"GPU has fallen off the bus|GPU is lost|unable to determine the device handle for GPU|Xid \([^)\n]{1,60}\): 79\b",
        "a GPU does not answer on the bus any more (Xid 79): power, heat or a broken card",
        "sudo reboot\nsudo dmesg | grep Xid   if it comes back, the card or its place is broken",
    ),
    known(
        "ecc",
        "cuda",
        HardwareError,
        r"uncorrectable ECC error|CUDA_ERROR_ECC_UNCORRECTABLE",
        "a GPU's memory has an error that ECC could not correct",
        "nvidia-smi -q -d ECC,ROW_REMAPPER\nsudo nvidia-smi -r -i N   resets the GPU",
    ),
    known(
        "no-code",
        "cuda",
        HardwareError,
        r"no kernel image is available for execution on the device|is not compatible with the current PyTorch installation",
        "this torch has no code for this GPU",
        "fl matrix explain   shows which stack has code for it",
    ),
)
