"""Two ranks meet on 127.0.0.1 in a container without a network: the plan of two devices, trained on two processes of the CPU."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_tools import facts_or_skip

from fl import decide, engines, launch, plan
from fl.hardware import Accelerator
from fl.images import tags
from fl.progress import View

pytestmark = pytest.mark.engine
STACK = "cpu-torch213"
TWO = tuple(Accelerator(lane="cpu", index=n, usable=True) for n in range(2))


@pytest.mark.parametrize("name", ["docker", "podman", "apptainer"])
def test_two_ranks_train_without_a_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts_or_skip(name)
    if shutil.which(name) is None or (found := engines.get(name).image(tags.reference(STACK))) is None or not found.local:
        pytest.skip(f"no image {tags.reference(STACK)} for {name}: fl images build {STACK}")
    make = plan.make

    def doubled(request: plan.Request) -> plan.Plan:
        return make(replace(request, chosen=TWO))

    monkeypatch.setattr(plan, "make", doubled)
    monkeypatch.chdir(tmp_path)
    options = decide.Options(hw="cpu", engine=name)
    decision = decide.decide("tiny-sft", [f"output_dir={tmp_path}/out", "max_steps=4"], options)
    assert decision.plan.per_node == 2 and decision.plan.options["network"] == "none"
    assert decision.plan.environment["GLOO_SOCKET_IFNAME"] == "lo" and "127.0.0.1" in decision.plan.argv
    with View(quiet=True) as view:
        record: dict[str, Any] = launch.execute(decision, view)
    assert record["outcome"] == "passed", record
    events = [json.loads(line) for line in (decision.folder / "events.jsonl").read_text().splitlines()]
    assert [event["processes"] for event in events if event["event"] == "start"] == [2]
    started = json.loads((decision.folder / "plan.json").read_text())
    assert started["processes"] == {"nodes": 1, "per_node": 2}
