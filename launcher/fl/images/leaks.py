"""Secrets that must not be in an image: in its history, environment and labels, by form and by this machine's own values. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

_FORMS: Final = (
    ("a password in a URL", re.compile(r"://[^/\s:@\"']+:[^/\s@\"']+@")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY")),
    ("certificates", re.compile(r"-----BEGIN CERTIFICATE")),
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{20,}")),
    ("a GitHub token", re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})")),
    ("an AWS key", re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("an API key", re.compile(r"\bsk-[A-Za-z0-9_-]{24,}")),
    (
        "a value that is called secret",
        re.compile(r"\b\w*(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIALS?)(?<!_PATH)(?<!_FILE)=(?!/run/secrets)[^\s\"';]{4,}", re.I),
    ),
)
_CALLED: Final = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.I)
_SHORTEST: Final = 8
"""Characters: a shorter value is in every text by chance."""


def own(environ: Mapping[str, str], urls: Iterable[str]) -> dict[str, str]:
    """Value → what it is, of secrets that this machine has: variables that are called so, and passwords in the addresses of indexes."""
    found = {value: f"the value of {name}" for name, value in environ.items() if _CALLED.search(name) and "/" not in value}
    for url in urls:
        if (password := urlsplit(url).password) is not None:
            found[password] = f"the password of {urlsplit(url).hostname}"
    return {value: what for value, what in found.items() if len(value) >= _SHORTEST}


def leaks(places: Mapping[str, str], secrets: Mapping[str, str]) -> list[str]:
    """What of `places` (where → text) looks like a secret or is one of `secrets`. The secret itself is not repeated."""
    found = []
    for where, text in places.items():
        found += [f"{where} holds {what}" for what, form in _FORMS if form.search(text)]
        found += [f"{where} holds {what}" for value, what in secrets.items() if value in text]
    return found
