"""docs/stacks.md: every stack with its versions, platforms, locks and last proof. Pure but for reading locks; the same text every time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fl.images import lock, lock_header
from fl.ledger_index import Entry
from fl.matrix import Matrix, Stack

_HEAD = """\
# Stacks

Written by `fl matrix list --md` from `matrix.yaml`, the locks and the records in `evidence/`; not edited by hand.
What the words mean: [matrix.md](matrix.md). A lock is named by the start of its SHA-256.
"""


@dataclass(frozen=True, slots=True)
class Locked:
    """What is told of one lock."""

    platform: str
    sha256: str | None
    packages: int = 0
    missing: tuple[str, ...] = ()


def locks(stack: Stack, flavor: str = "train") -> list[Locked]:
    """The locks of a row, one a platform."""
    found = []
    for platform in stack.hosts.platforms:
        file = lock.path(stack.id, flavor, platform)
        if file is None:
            found.append(Locked(platform, None))
            continue
        text = file.read_text(encoding="utf-8")
        header = lock_header.parse(text)
        missing = tuple(one.name for one in header.unlocked) if header else ()
        found.append(Locked(platform, lock.sha256(file), len(lock.parse(text)), missing))
    return found


def page(matrix: Matrix, entries: Iterable[Entry]) -> str:
    """The whole page."""
    proofs = _proofs(entries)
    header = ("stack", "lane", "status", "confidence", "runtime", "torch", "Python", "platforms", "last proof")
    lines = [_HEAD, _row(*header), "|---" * len(header) + "|"]
    for stack in matrix.stacks:
        proof = proofs.get(stack.id)
        cells = (
            f"[{stack.id}](#{stack.id})", stack.lane, stack.status, stack.confidence, _pairs(stack.runtime), stack.train.get("torch") or "",
            stack.python, ", ".join(stack.hosts.platforms), proof.time[:10] if proof else "none",
        )  # fmt: skip
        lines.append(_row(*cells))
    for stack in matrix.stacks:
        lines += ["", *_section(matrix, stack, proofs.get(stack.id))]
    return "\n".join(lines) + "\n"


def brief(matrix: Matrix, entries: Iterable[Entry]) -> str:
    """The table of README.md."""
    proofs = _proofs(entries)
    lines = [_row("lane", "stack", "status", "torch", "transformers", "last proof"), "|---" * 6 + "|"]
    for stack in matrix.stacks:
        packages, proof = matrix.packages(stack), proofs.get(stack.id)
        shown = f"{proof.time[:10]}, {_text(proof.device)}" if proof else "none"
        lines.append(_row(stack.lane, stack.id, stack.status, packages.get("torch", ""), packages.get("transformers", ""), shown))
    return "\n".join(lines)


def _proofs(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Stack → its newest run that passed in the environment of its lock."""
    passed = sorted((e for e in entries if e.outcome == "passed" and e.matches_lock), key=lambda e: (e.time, e.id))
    return {entry.stack: entry for entry in passed}


def _section(matrix: Matrix, stack: Stack, proof: Entry | None) -> list[str]:
    base = f"`{stack.base.image}`" + (f", `{stack.base.digest}`" if stack.base.digest else ", no digest recorded")
    lines = [f"## {stack.id}", "", f"- base: {base}", f"- packages: {_pairs(matrix.packages(stack))}"]
    if serving := matrix.packages(stack, "serve"):
        place = f", in the base `{stack.serve_base.image}`" if stack.serve_base else ""
        lines.append(f"- serving: {_pairs(serving)}{place}")
    if stack.hosts.driver:
        lines.append(f"- driver: {_pairs(stack.hosts.driver)}")
    if stack.hosts.arches:
        lines.append(f"- chips: {', '.join(stack.hosts.arches)}")
    lines += [f"- lock for {one.platform}: {_lock(one)}" for one in locks(stack)]
    return [*lines, f"- last proof: {_proof(proof)}"]


def _lock(one: Locked) -> str:
    if one.sha256 is None:
        return "none yet"
    partial = f", without {', '.join(one.missing)}" if one.missing else ""
    return f"`{one.sha256[:12]}`, {one.packages} packages{partial}"


def _proof(entry: Entry | None) -> str:
    if entry is None:
        return "none in `evidence/`"
    told = (entry.time[:10], entry.model, f"{entry.stage} {entry.method}".strip(), entry.device, entry.engine, f"record `{entry.id[:12]}`")
    return _text(", ".join(part for part in told if part))


def _pairs(table: dict[str, str]) -> str:
    return _text(", ".join(f"{name} {value}" for name, value in table.items()))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(text: str) -> str:
    """Text that can end no cell and start no markup."""
    return re.sub(r"([\\|`\[\]*<>])", r"\\\1", " ".join(text.split()))
