"""Signatures over a ledger, by ssh-keygen -Y. A hash proves that a record was not changed; only a signature says who vouches for it.

One signature covers a list of ids (`signatures/NAME.ids`, `NAME.ids.sig`), so that thousands of records need one.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fl import ledger
from fl.errors import EvidenceError

NAMESPACE: Final = "fl-evidence"
LARGEST: Final = 64 * 2**20
"""Bytes of a list: a million ids."""


@dataclass(frozen=True, slots=True)
class Signed:
    """One list of ids whose signature holds."""

    file: Path
    signer: str
    ids: frozenset[str]


def _ssh(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(("ssh-keygen", *arguments), input=given, capture_output=True, check=False, timeout=60)
    except FileNotFoundError as error:
        raise EvidenceError("ssh-keygen is not installed, which signs and verifies", "install OpenSSH's client") from error
    except subprocess.TimeoutExpired as error:
        raise EvidenceError("ssh-keygen did not end within a minute", "ssh-add KEY, so that it asks for no passphrase") from error


def sign(folder: Path, key: Path) -> tuple[Path, int]:
    """Signs the ids of every record that holds and that this key has not signed yet; the list's path and how many ids it has."""
    _, faults = ledger.verify(folder)
    if faults:
        raise EvidenceError(f"{faults[0].path} {faults[0].message}; nothing was signed", "fl audit verify")
    place = folder / "signatures"
    mine = _fingerprint(key)
    listed: set[str] = set()
    for file in place.glob("*.ids"):
        if mine is not None and _signature(file).is_file() and _signed_by(file) == mine:
            listed.update(_content(file).decode(errors="replace").split())
    new = sorted({record["id"] for record in ledger.read(folder)} - listed)
    if not new:
        raise EvidenceError("every record is signed already by this key, or there is none", "fl audit verify --signers FILE")
    content = ("\n".join(new) + "\n").encode()
    done = _ssh("-Y", "sign", "-f", str(key), "-n", NAMESPACE, given=content)
    if done.returncode:
        raise EvidenceError(f"ssh-keygen did not sign: {done.stderr.decode(errors='replace').strip()}", "a private key: --key FILE")
    file = place / f"{new[0][:16]}-{len(new)}-{hashlib.sha256(done.stdout).hexdigest()[:8]}.ids"
    try:
        place.mkdir(parents=True, exist_ok=True)
        ledger.write(_signature(file), done.stdout)  # a signature without its list is nothing, a list without one a fault
        ledger.write(file, content)
    except OSError as error:
        raise EvidenceError(f"{place} takes no signature: {error.strerror}", "a ledger that can be written") from error
    return file, len(new)


def _fingerprint(key: Path) -> str | None:
    """Of a private key, also one with a passphrase; None: it is no key, which signing will tell."""
    words = _ssh("-l", "-f", str(key)).stdout.decode(errors="replace").split()
    return words[1] if len(words) > 1 else None


def _signed_by(file: Path) -> str | None:
    """The fingerprint of the key, whosever it is; None where the signature is none of this list."""
    found = _ssh("-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(_signature(file)), given=_content(file))
    return None if found.returncode else found.stdout.decode(errors="replace").split()[-1]


def _signature(file: Path) -> Path:
    return file.with_name(file.name + ".sig")


def _content(file: Path) -> bytes:
    """A list's bytes; EvidenceError where it is none."""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:
            raise EvidenceError(f"{file} is no list of ids", f"rm {file}")
        return file.read_bytes()
    except OSError as error:
        raise EvidenceError(f"{file} cannot be read: {error.strerror}", f"ls -l {file}") from error


def signed(folder: Path, signers: Path) -> tuple[list[Signed], list[ledger.Fault]]:
    """The lists whose signature is by one of `signers` (the format of ssh's ALLOWED SIGNERS), and those that are not. What somebody
    else signed besides is no fault."""
    good: list[Signed] = []
    bad: list[ledger.Fault] = []
    others: list[Path] = []
    for file in sorted((folder / "signatures").glob("*.ids")):
        signature = _signature(file)
        if not signature.is_file():
            bad.append(ledger.Fault(file, "has no signature"))
            continue
        content = _content(file)
        found = _ssh("-Y", "find-principals", "-f", str(signers), "-s", str(signature))
        who = found.stdout.decode(errors="replace").split("\n")[0].strip()
        if found.returncode or not who:
            others.append(file)
            continue
        checked = _ssh("-Y", "verify", "-f", str(signers), "-I", who, "-n", NAMESPACE, "-s", str(signature), given=content)
        if checked.returncode:
            why = " ".join((checked.stderr + checked.stdout).decode(errors="replace").split())[:200]
            bad.append(ledger.Fault(file, f"was changed after {who} signed it, or {who} may not sign evidence: {why}"))
        else:
            good.append(Signed(file, who, frozenset(content.decode(errors="replace").split())))
    covered = frozenset().union(*(one.ids for one in good))
    for file in others:
        if _signed_by(file) is None:
            bad.append(ledger.Fault(file, "was changed after it was signed, or is signed by nothing"))
        elif not covered.issuperset(_content(file).decode(errors="replace").split()):
            bad.append(ledger.Fault(file, f"is signed by a key that is not in {signers.name}"))
    return good, bad
