"""The page of `fl audit --html` in a real browser: it shows, filters and links, and nothing in a record runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ledger_records import record

from fl import audit, audit_pages
from fl.ledger_index import entry_of
from fl.matrix import load

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>\x1b[31m'


OPEN = re.compile(r'<details id="([0-9a-f]{64})"[^>]*\bopen=""')


def page(tmp_path: Path, more: str = "", lanes: tuple[str, ...] = ("cpu",)) -> Path:
    """The page of two models, one with a hostile name; `more`: a script that acts as its reader."""
    records = [record(), record(model={"name": HOSTILE}, outcome="failed", failure={"type": "X", "message": HOSTILE})]
    now = audit.now(load(), "t" * 64, lambda stack: frozenset({"l" * 64}))
    entries = [entry_of(one) for one in records]
    models = {entry.model: [entry.model_type] for entry in sorted(entries, key=lambda entry: entry.model)}
    stacks = [one.id for one in now.matrix.stacks if one.lane in lanes and (one.lane != "cpu" or one.id == "cpu-torch213")]
    cells = [c for c in audit.cells(entries, now, models=models) if c.stack in stacks]
    text = audit_pages.page(cells, {one["id"]: one for one in records}, stacks, "What works where")
    file = tmp_path / "page.html"
    file.write_text(text.replace("</body>", f"<script>{more}</script></body>"), encoding="utf-8")
    return file


def browse(file: Path, *words: str, fragment: str = "") -> str:
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={file.parent / 'profile'}", "--window-size=1200,800",
         "--virtual-time-budget=2000", *words, f"file://{file}{fragment}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def rows(dom: str) -> list[str]:
    """Of every row of the table whether it shows: `` or `away`."""
    return re.findall(r'<tr(?: class="(\w*)")?><th>', dom.split('<tbody id="rows">')[1].split("</tbody>")[0])


def test_it_shows_and_nothing_in_a_record_runs(tmp_path: Path) -> None:
    dom = browse(page(tmp_path), "--dump-dom")
    assert "<title>What works where</title>" in dom and "<img" not in dom and rows(dom) == ["", ""]
    picture = tmp_path / "page.png"
    browse(page(tmp_path), f"--screenshot={picture}", "--hide-scrollbars")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_the_filter_and_the_boxes(tmp_path: Path) -> None:
    by_name = 'box.value = "acme"; box.dispatchEvent(new Event("input"));'
    assert rows(browse(page(tmp_path, by_name), "--dump-dom")) == ["away", ""]
    by_state = 'const b = states.find(s => s.value == "proven"); b.checked = false; b.dispatchEvent(new Event("change"));'
    assert rows(browse(page(tmp_path, by_state), "--dump-dom")) == ["", "away"]


def test_a_cell_leads_to_its_record(tmp_path: Path) -> None:
    click = 'document.querySelector("#rows a").click();'
    dom = browse(page(tmp_path, click), "--dump-dom")
    assert len(OPEN.findall(dom)) == 1


def test_a_link_to_a_record_opens_it(tmp_path: Path) -> None:
    file = page(tmp_path)
    (first, *_) = re.findall(r'<details id="([0-9a-f]{64})"', file.read_text())
    assert OPEN.findall(browse(file, "--dump-dom", fragment=f"#{first}")) == [first]


def test_one_lane(tmp_path: Path) -> None:
    choose = 'lane.value = "cuda"; lane.dispatchEvent(new Event("change"));'
    dom = browse(page(tmp_path, choose, lanes=("cpu", "cuda")), "--dump-dom")
    heads = re.findall(r'<th data-lane="(\w+)"(?: class="(\w*)")?>', dom)
    assert ("cpu", "away") in heads and {shown for lane, shown in heads if lane == "cuda"} == {""}
    assert rows(dom) == ["", ""]


def test_a_narrow_window_scrolls_in_one_direction_only(tmp_path: Path) -> None:
    measure = "document.title = `${document.documentElement.scrollWidth <= innerWidth} ${innerWidth}`;"
    dom = browse(page(tmp_path, measure, lanes=("cpu", "cuda", "rocm")), "--window-size=500,900", "--dump-dom")
    assert "<title>true 500</title>" in dom, re.findall("<title>.*</title>", dom)
