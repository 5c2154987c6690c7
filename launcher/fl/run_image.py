"""Which image a run really used, as its engine has it when the run starts: a plan knows neither the digest of an image that is yet to be
pulled, nor its lock; an image that was built here has an id only. Evidence needs all three."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl.plan import Plan

NAME = "image.json"


def note(folder: Path, plan: Plan) -> None:
    """Leaves the engine's answer in the run's folder; nothing where the engine does not know the image by that name."""
    from fl import engines, runs

    facts = engines.get(plan.engine).image(str(plan.image.reference))
    if facts is not None:
        seen = {"schema": 1, "id": facts.id, "digest": facts.digest, "lock_sha256": facts.labels.get("fl.lock.sha256")}
        runs.write_json(folder / NAME, seen)


def seen_in(plan: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    """The plan's document with what was seen of its image. Apptainer's id is a path, which is no hash."""
    if not seen:
        return dict(plan)
    image = plan.get("image")
    shown = dict(image) if isinstance(image, dict) else {}
    ident, built = str(seen.get("id") or ""), seen.get("lock_sha256")
    shown |= {"digest": seen.get("digest") or shown.get("digest"), "id": None if "/" in ident else ident or None}
    pulled = shown.get("source") == "pull" and built is not None
    matches = built == plan.get("lock_sha256") if pulled else plan.get("matches_lock", False)
    return {**plan, "image": shown, "lock_sha256": built or plan.get("lock_sha256"), "matches_lock": matches}
