"""What AMD's tools and libraries say, what it means, what to do."""

from __future__ import annotations

from typing import Final

from fl.causes_form import known
from fl.errors import EngineError, HardwareError

CAUSES: Final = (
    known(
        "kfd-permission",
        "rocm",
        HardwareError,
        r"unable to open /dev/kfd[^\n]{0,40}permission denied|/dev/kfd[^\n]{0,40}(permission denied|EACCES)",
        "/dev/kfd may not be opened by this user: it belongs to the group render (or video)",
        "sudo usermod -aG render,video $USER   then log in again\nid   must show the group that `ls -ln /dev/kfd` shows",
    ),
    known(
        "kfd-refused",
        "rocm",
        HardwareError,
        r"unable to open /dev/kfd[^\n]{0,40}(invalid argument|operation not permitted)",
        "the kernel refuses /dev/kfd to this process ({0}), although rocm-smi may work: the tool reads other files",
        "in a container: start it with --device /dev/kfd and its render nodes\nsudo dmesg | grep -i kfd",
    ),
    known(
        "kfd-missing",
        "rocm",
        HardwareError,
        r"unable to open /dev/kfd[^\n]{0,40}no such file|ROCk module is NOT loaded",
        "/dev/kfd is not here: the driver amdgpu is not loaded, or this container was started without it",
        "sudo modprobe amdgpu\nin a container: --device /dev/kfd --device /dev/dri/renderD…",
    ),
    known(
        "wrong-gfx-override",
        "rocm",
        HardwareError,
        r"memory access fault by GPU node",
        "the GPU read memory that is not its own, as with code for another "
        "chip: HSA_OVERRIDE_GFX_VERSION names a chip that this one is not",
        "unset HSA_OVERRIDE_GFX_VERSION\nfl matrix explain   shows whether a stack has code for this chip",
    ),
    known(
        "no-code-amd",
        "rocm",
        HardwareError,
        r"hipErrorNoBinaryForGpu|unable to find code object for all current devices|HIP error: invalid device function",
        "this torch has no code for this GPU",
        "fl matrix explain   shows which stack has code for it",
    ),
    known(
        "no-device-amd",
        "rocm",
        HardwareError,
        r"No HIP GPUs are available|hipErrorNoDevice|no ROCm-capable device is detected",
        "ROCm sees no GPU: none was passed into this container, or ROCR_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES names none that is here",
        "fl hw   shows what is here\nunset ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES",
    ),
    known(
        "group-by-name",
        "rocm",
        EngineError,
        r"unable to find group (\w{1,32})|no matching entries in group file",
        "the group {0} was given by name, and the image knows no such name: groups of device nodes are passed by number",
        "--group-add $(stat -c %g /dev/kfd)   or let `fl run` pass it",
    ),
)
