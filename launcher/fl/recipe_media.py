"""Recipes for models that see or hear: refused in this version, before a model is fetched that could not be loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

MEDIA_TEMPLATES: Final = frozenset((
    "dots_ocr", "ernie_vl", "glm4v", "glm4_5v", "glm_ocr", "granite3_vision", "intern_vl", "intern_s1", "keye_vl", "kimi_vl", "lfm2_vl",
    "mllama", "moss_vl", "llava", "llava_next", "llava_next_llama3", "llava_next_mistral", "llava_next_qwen", "llava_next_yi",
    "llava_next_video", "llava_next_video_mistral", "llava_next_video_yi", "mimo_vl", "minicpm_v", "minicpm_v_4_6", "minicpm_o",
    "paligemma", "paligemma_chat", "pixtral", "qwen2_audio", "qwen2_omni", "qwen3_omni", "qwen3_omni_nothink", "qwen2_vl", "qwen3_vl",
    "qwen3_vl_nothink", "video_llava", "yi_vl", "youtu_vl",
))  # fmt: skip
"""Chat templates whose models all see or hear. Families that transformers also loads as text models alone (Gemma 3, Llama 4, Qwen3.5,
Mistral Small) are not among them."""


def rule(get: Callable[[str], Any]) -> Iterator[tuple[str, str]]:
    """Blames `template`: of all keys it alone tells, since neither model nor data is opened."""
    name = get("template")
    if name in MEDIA_TEMPLATES:
        yield "template", f"{name} belongs to models that see or hear; this version trains text models only, no pictures, videos or sounds"
