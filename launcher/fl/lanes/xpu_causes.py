"""What Intel's libraries say, what it means, what to do."""

from __future__ import annotations

from typing import Final

from fl.causes_form import known
from fl.errors import HardwareError

CAUSES: Final = (
    known(
        "level-zero",
        "xpu",
        HardwareError,
        r"PI_ERROR_DEVICE_NOT_FOUND|ZE_RESULT_ERROR_UNINITIALIZED|No XPU devices are available",
        "Level Zero finds no GPU: no render node that this user may open, or ZE_AFFINITY_MASK names none",
        "fl hw   shows the nodes\nsudo usermod -aG render $USER   then log in again",
    ),
)
