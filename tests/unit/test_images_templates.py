"""images/templates.py: what is said of a template that is broken; what they render to is in test_images_render.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl import matrix, paths
from fl.cli import main
from fl.errors import ImageError
from fl.images import templates


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.j2": '{% include "b.j2" %}', "b.j2": '{% include "c/c.j2" %}', "c/c.j2": '{% extends "a.j2" %}'}, "b.j2 → c/c.j2 → a.j2"),
        ({"a.j2": '{% include "b.j2" %}', "b.j2": '{% include "b.j2" %}'}, "circle: b.j2 → b.j2"),
        ({"a.j2": "x\n{% if %}\n"}, "a.j2, line 2: Expected an expression"),
        ({"a.j2": '{% include "b.j2" %}', "b.j2": "\n\n{% endfor %}"}, "b.j2, line 3: Encountered unknown tag 'endfor'"),
        ({"a.j2": '{% include "b.j2" %}'}, "a.j2 wants the template b.j2, which is not there"),
        ({"a.j2": "FROM {{ bsae }}"}, "a.j2 cannot be filled: 'bsae' is undefined"),
        ({"a.j2": "FROM {{ base + 1 }}"}, "a.j2 cannot be filled: can only concatenate str"),
        ({"a.j2": "FROM {{ base | nosuch }}"}, "a.j2, line 1: No filter named 'nosuch'"),
        ({"a.j2": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"}, "a.j2 cannot be filled: maximum recursion depth exceeded"),
        ({"a.j2": '{% set other = "a.j2" %}{% include other %}'}, "a.j2 cannot be filled: maximum recursion depth exceeded"),
    ],
)
def test_a_broken_template_is_said_with_its_place(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ImageError) as error:
        templates.render(tmp_path, "a.j2", {"base": "debian"})
    assert said in error.value.message
    assert error.value.remedy


def test_a_template_that_is_included_twice_is_no_circle(tmp_path: Path) -> None:
    (tmp_path / "a.j2").write_text('{% include "b.j2" %}{% include "b.j2" %}')
    (tmp_path / "b.j2").write_text("{{ base }}\n")
    assert templates.render(tmp_path, "a.j2", {"base": "x"}) == "x\nx\n"


def test_the_command_ends_with_7(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "Dockerfile.j2").write_text('{% include "cpu/Dockerfile.j2" %}')
    rows = matrix.load()
    monkeypatch.setattr(matrix, "load", lambda: rows)
    monkeypatch.setattr(paths, "IMAGES", tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["images", "render", "cpu-torch213"])
    assert ended.value.code == 7
    assert "circle: cpu/Dockerfile.j2 → cpu/Dockerfile.j2" in capsys.readouterr().err
