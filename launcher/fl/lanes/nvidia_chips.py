"""NVIDIA's chips: PCI device ids and product names → compute capability (`sm_90`). Identifiers beat names.

Sources: the public PCI id repository (vendor 10de: the chip stands before the bracket), NVIDIA's list of compute capabilities.
"""

from __future__ import annotations

import re
from typing import Final

_RANGES: Final[tuple[tuple[int, int, str], ...]] = (
    (0x0FC0, 0x0FFF, "sm_30"),  # GK107
    (0x1000, 0x102C, "sm_35"),  # GK110
    (0x102D, 0x102D, "sm_37"),  # GK210: Tesla K80
    (0x102E, 0x103F, "sm_35"),  # GK110
    (0x1180, 0x11FF, "sm_30"),  # GK104, GK106
    (0x1280, 0x12BF, "sm_35"),  # GK208
    (0x1340, 0x13BF, "sm_50"),  # GM107, GM108
    (0x13C0, 0x143F, "sm_52"),  # GM204, GM206
    (0x15F0, 0x15FF, "sm_60"),  # GP100
    (0x17C0, 0x17FF, "sm_52"),  # GM200
    (0x1B00, 0x1D7F, "sm_61"),  # GP102, GP104, GP106, GP107, GP108
    (0x1D80, 0x1DFF, "sm_70"),  # GV100
    (0x1E00, 0x1FFF, "sm_75"),  # TU102, TU104, TU106, TU117
    (0x2080, 0x20FF, "sm_80"),  # GA100
    (0x2180, 0x21FF, "sm_75"),  # TU116
    (0x2200, 0x227F, "sm_86"),  # GA102
    (0x2300, 0x237F, "sm_90"),  # GH100
    (0x2400, 0x25FF, "sm_86"),  # GA103, GA104, GA106, GA107
    (0x2680, 0x28FF, "sm_89"),  # AD102, AD103, AD104, AD106, AD107
    (0x2900, 0x297F, "sm_100"),  # GB100
    (0x2B80, 0x2BFF, "sm_120"),  # GB202
    (0x2C00, 0x2C7F, "sm_120"),  # GB203
    (0x2D00, 0x2DFF, "sm_120"),  # GB206, GB207
    (0x2F00, 0x2F7F, "sm_120"),  # GB205
)

_NAMES: Final[tuple[tuple[str, str], ...]] = (
    (r"\bGB10\b", "sm_121"),
    (r"\bThor\b", "sm_110"),
    (r"\bOrin\b", "sm_87"),
    (r"\bXavier\b", "sm_72"),
    (r"\bG?B300\b", "sm_103"),
    (r"\bG?B[12]00\b", "sm_100"),
    (r"\b(RTX 50[5-9]0|RTX PRO \d000( \w+)* Blackwell)\b", "sm_120"),
    (r"\b(G?H[12]00|H800|H20)\b", "sm_90"),
    (r"\b(L4|L20|L40[SG]?|RTX 40[5-9]0|RTX \d000( SFF)? Ada)\b", "sm_89"),
    (r"\b(A100X?|A800|A30X?)\b", "sm_80"),
    (r"\b(A40|A10[GM]?|A16|A2|RTX 30[5-9]0|RTX A\d000)\b", "sm_86"),
    (r"\b(T4G?|RTX 20[678]0|GTX 16[356]0|Quadro RTX \d000|TITAN RTX)\b", "sm_75"),
    (r"\b(V100S?|TITAN V|Quadro GV100)\b", "sm_70"),
    (r"\b(P100|Quadro GP100)\b", "sm_60"),
    (r"\b(P4|P40|GTX 10[5-8]0|Quadro P\d{3,4}|TITAN Xp?)\b", "sm_61"),
)


def arch_of_device(device: int | None) -> str | None:
    """By PCI device id, which is exact."""
    return next((arch for low, high, arch in _RANGES if device is not None and low <= device <= high), None)


def arch_of_name(name: str | None) -> str | None:
    """By product name, the last resort."""
    return next((arch for pattern, arch in _NAMES if name and re.search(pattern, name)), None)


def arch_of_capability(text: str | None) -> str | None:
    """`9.0` → `sm_90`, `12.0` → `sm_120`."""
    match = re.fullmatch(r"(\d{1,2})\.(\d)", (text or "").strip())
    return f"sm_{match[1]}{match[2]}" if match else None
