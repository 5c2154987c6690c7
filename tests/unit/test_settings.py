"""settings.py: what the caller's file may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl import settings
from fl.errors import UsageError


def test_no_file_means_defaults(tmp_path: Path) -> None:
    assert settings.load(tmp_path / "config.yaml") == settings.Settings()


def test_registry_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("registry: registry.example.org/team\n")
    assert settings.load(file).registry == "registry.example.org/team"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("registri: x\n", "unknown setting `registri`"),
        ("registry: [1]\n", "must be a text"),
        ("- a\n", "must be a mapping"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        settings.load(file)
    assert str(file) in error.value.message


def test_the_nearest_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("registri: x\n")
    with pytest.raises(UsageError) as error:
        settings.load(file)
    assert "registry" in error.value.remedy
