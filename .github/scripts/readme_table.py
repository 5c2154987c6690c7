"""Puts what `fl matrix list --md --brief` says between the marks in README.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BEGIN, END = "<!-- stacks: fl matrix list --md --brief -->\n", "<!-- /stacks -->"


def main(readme: Path) -> None:
    """The file is whole or as before; ValueError where the marks are not there."""
    command = [sys.executable, "-m", "fl", "matrix", "list", "--md", "--brief"]
    table = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    text = readme.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    part = readme.with_suffix(".part")
    part.write_text(f"{head}{BEGIN}{table.strip()}\n{END}{tail}", encoding="utf-8")
    part.replace(readme)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
