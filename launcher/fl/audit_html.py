"""The fixed parts of the page of `fl audit --html`: its looks, on wide and narrow windows, light and dark, and its filter."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --ground: #ffffff; --head: #f6f8fa; --line: #d8dee4; --text: #1f2328; --dim: #59636e; --link: #0969da;
  --proven: #1a7f37; --failed: #cf222e; --stale: #9a6700; --declared: #59636e; --impossible: #8250df; --unknown: #818b98; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --head: #161b22; --line: #30363d; --text: #e6edf3; --dim: #9198a1;
  --link: #58a6ff; --proven: #3fb950; --failed: #f85149; --stale: #d29922; --declared: #9198a1; --impossible: #bc8cff;
  --unknown: #767e87; } }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; margin: 0; padding: 1.5rem 2rem; color: var(--text);
  background: var(--ground); }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; } a { color: var(--link); }
.about { color: var(--dim); margin: 0 0 1rem; font-size: .85rem; overflow-wrap: anywhere; }
.filters { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin-bottom: .75rem; }
.filters input[type=search], .filters select { font: inherit; color: inherit; background: var(--ground); border: 1px solid var(--line);
  border-radius: 6px; padding: .3rem .6rem; } .filters input[type=search] { width: 18rem; max-width: 100%; }
fieldset { display: flex; flex-wrap: wrap; gap: .25rem .9rem; border: 0; margin: 0; padding: 0; } label { white-space: nowrap; }
.state { font-weight: 600; color: var(--tone); } .proven { --tone: var(--proven); } .failed { --tone: var(--failed); }
.stale { --tone: var(--stale); } .declared { --tone: var(--declared); } .impossible { --tone: var(--impossible); }
.unknown { --tone: var(--unknown); }
.scroll { overflow: auto; max-height: 85vh; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: separate; border-spacing: 0; font-size: .85rem; }
th, td { border-bottom: 1px solid var(--line); border-right: 1px solid var(--line); padding: .4rem .6rem; text-align: left;
  vertical-align: top; }
thead th { position: sticky; top: 0; background: var(--head); z-index: 1; white-space: nowrap; }
thead th small { display: block; color: var(--dim); font-weight: 400; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--ground); min-width: 11rem; max-width: 16rem;
  overflow-wrap: anywhere; }
tbody th small { display: none; color: var(--dim); font-weight: 400; }
thead th:first-child { left: 0; z-index: 2; } td { min-width: 9rem; max-width: 15rem; }
td a { text-decoration-thickness: 1px; text-underline-offset: 2px; } td a.state { color: var(--tone); }
td .more { font-size: .75rem; } td p { margin: .1rem 0 0; color: var(--dim); font-size: .78rem; overflow-wrap: anywhere;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
td p:hover, td p:focus, body.full td p { -webkit-line-clamp: none; } body:not(.full) td.quiet p { display: none; }
td b { display: none; } .away, td.off > * { display: none; } #none { color: var(--dim); padding: 1rem; margin: 0; }
details { border: 1px solid var(--line); border-radius: 8px; margin: .4rem 0; scroll-margin-top: 1rem; }
details.at { border-color: var(--link); box-shadow: 0 0 0 1px var(--link); }
summary { padding: .45rem .7rem; cursor: pointer; overflow-wrap: anywhere; } summary small { color: var(--dim); }
details dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .2rem .7rem .6rem; font-size: .85rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; } svg { display: block; color: var(--link); }
pre { background: var(--head); margin: 0; padding: .8rem; overflow: auto; font-size: .78rem; max-height: 30rem;
  border-radius: 0 0 8px 8px; }
@media (max-width: 700px) {
  body { padding: 1rem; font-size: 16px; } .filters input[type=search] { width: 100%; } .scroll { border: 0; max-height: none; }
  thead { display: none; } table, tbody, tr, tbody th, td { display: block; max-width: none; min-width: 0; border-right: 0; }
  tbody th { position: static; font-size: 1rem; border: 0; padding: 0 0 .2rem; } td { border: 0; padding: .2rem 0; }
  tr { border-bottom: 1px solid var(--line); padding: .7rem 0; } td b { display: inline; font-weight: 400; color: var(--dim); }
  tbody th small { display: block; }
  td:empty, td.off, tr.away, body:not(.full) td.quiet { display: none; } details dl { grid-template-columns: 1fr; }
}
@media print { .filters { display: none; } .scroll { max-height: none; overflow: visible; } }
"""

SCRIPT: Final = """
const box = document.getElementById("filter"), lane = document.getElementById("lane"), full = document.getElementById("full");
const states = [...document.querySelectorAll("fieldset input")], rows = document.getElementById("rows").rows;
const heads = [...document.querySelectorAll("thead th")].slice(1);
function show() {
  const word = box.value.trim().toLowerCase(), wanted = new Set(states.filter(s => s.checked).map(s => s.value));
  document.body.classList.toggle("full", full.checked);
  let shown = 0;
  for (const row of rows) {
    let any = false;
    [...row.cells].slice(1).forEach((cell, place) => {
      const away = lane.value && heads[place].dataset.lane !== lane.value, on = !away && wanted.has(cell.dataset.state);
      any = any || on; cell.classList.toggle("off", !on); cell.classList.toggle("away", Boolean(away));
    });
    const off = !any || !row.cells[0].firstChild.textContent.toLowerCase().includes(word);
    row.classList.toggle("away", off); shown += off ? 0 : 1;
  }
  heads.forEach(head => head.classList.toggle("away", Boolean(lane.value) && head.dataset.lane !== lane.value));
  document.getElementById("none").classList.toggle("away", shown > 0);
}
function open_record() {
  const found = document.getElementById(location.hash.slice(1));
  for (const other of document.querySelectorAll("details.at")) other.classList.remove("at");
  if (found && found.tagName === "DETAILS") { found.open = true; found.classList.add("at"); found.scrollIntoView(); }
}
box.addEventListener("input", show);
for (const control of [lane, full, ...states]) control.addEventListener("change", show);
addEventListener("hashchange", open_record);
document.addEventListener("click", event => { if (event.target.closest('a[href^="#"]')) setTimeout(open_record); });
show(); open_record();
"""
