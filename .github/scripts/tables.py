"""Puts what a command of fl says between the marks `<!-- NAME: COMMAND -->` and `<!-- /NAME -->` of a page."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

MARKED = re.compile(r"<!-- (\w+): fl ([\w -]+) -->\n.*?<!-- /\1 -->", re.DOTALL)


def main(page: Path) -> None:
    """The page is whole or as before; ValueError where it has no marks."""
    text = page.read_text(encoding="utf-8")

    def told(found: re.Match[str]) -> str:
        command = [sys.executable, "-m", "fl", *shlex.split(found[2])]
        table = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        return f"<!-- {found[1]}: fl {found[2]} -->\n{table.strip()}\n<!-- /{found[1]} -->"

    new, count = MARKED.subn(told, text)
    if not count:
        raise ValueError(f"{page} has no marks")
    part = page.with_suffix(".part")
    part.write_text(new, encoding="utf-8")
    part.replace(page)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(Path(name))
