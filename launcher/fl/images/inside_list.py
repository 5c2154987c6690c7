"""What is installed where this runs, as JSON on stdout. Stands alone: it is sent into images of any version through `python3 -`."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from typing import Any


def installed() -> list[dict[str, Any]]:
    """Every distribution: version, licence as its metadata tell it, and what it requires."""
    found = []
    for one in importlib.metadata.distributions():
        told = one.metadata
        licences = [line.split(" :: ")[-1] for line in told.get_all("Classifier") or () if line.startswith("License :: ")]
        words = [*(told.get_all("License-Expression") or ()), *(told.get_all("License") or ())]
        found.append({
            "name": told["Name"],
            "version": one.version,
            "license": next((word.strip().split("\n")[0][:80] for word in words if word.strip()), None),
            "classifiers": licences,
            "requires": one.requires or [],
        })  # fmt: skip
    return sorted(found, key=lambda entry: str(entry["name"]).lower())


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"python": sys.version.split()[0], "packages": installed()}) + "\n")
