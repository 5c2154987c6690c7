"""What Huawei's tools and libraries say, what it means, what to do."""

from __future__ import annotations

from typing import Final

from fl.causes_form import known
from fl.errors import EngineError, HardwareError

_DRIVER_FILES: Final = "ls /usr/local/Ascend/driver/lib64/driver   on the host; a container gets them with `fl run --engine docker`"
_LIBRARIES: Final = r"(libc_sec\.so|libdrvdsmi\w*(?:\.so)?|libascend_hal\.so|libmmpa\.so|libdcmi\.so)"

CAUSES: Final = (
    known(
        "card-in-use",
        "ascend",
        HardwareError,
        r"\b(?:ret|return|code|error|dcmi)\b[^\n]{0,60}-8020\b(?!\.)|because the device is used",
        "a card is already mapped into another container (-8020): a container owns its cards alone, and one used card blocks all of them",
        "docker ps   shows the other container; stop it\n--devices free   takes only free cards",
    ),
    known(
        "dcmi-init",
        "ascend",
        HardwareError,
        r"\b(?:ret|return|code|error|dcmi)\b[^\n]{0,60}-8005\b(?!\.)",
        "DCMI could not start (-8005): on older drivers so says a card that another container has, else the manager nodes are missing",
        "ls -l /dev/davinci_manager /dev/devmm_svm /dev/hisi_hdc\n--devices free   takes only free cards",
    ),
    known(
        "board-type",
        "ascend",
        HardwareError,
        r"ret is -9005\b|board type[^\n]{0,60}-9005\b",
        "the driver does not know this board (-9005)",
        "install the driver (HDK) of this product, then restart the machine",
    ),
    known(
        "driver-files",
        "ascend",
        EngineError,
        rf"{_LIBRARIES}[^\n]{{0,80}}(?:cannot open|no such file|not found|missing)"
        rf"|(?:missing|not find|can't find)[^\n]{{0,40}}?{_LIBRARIES}",
        "{0}{1} is not found: the driver's lib64 of the host is not mounted into this container, or not on its library path",
        _DRIVER_FILES,
    ),
    known(
        "cann-environment",
        "ascend",
        EngineError,
        r"(libascendcl\.so|libhccl\.so|libge_runner\.so)[^\n]{0,80}(cannot open|no such file)",
        "{0} is not found: CANN's environment is not set",
        "source /usr/local/Ascend/ascend-toolkit/set_env.sh",
    ),
)
