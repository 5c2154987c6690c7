"""The audit as Markdown and as one self-contained HTML page. Pure: cells and records in, text out; every string is escaped."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fl.audit import ORDER, Cell
from fl.ui import clean

_COLOURS: Final = {
    "proven": "#1a7f37", "failed": "#cf222e", "stale": "#9a6700", "declared": "#57606a", "impossible": "#8c959f", "unknown": "#afb8c1",
}  # fmt: skip


def markdown(rows: Mapping[str, Mapping[str, Cell]], lanes: Sequence[str]) -> str:
    """A table of models and lanes, then why."""
    lines = ["| model | " + " | ".join(lanes) + " |", "|---" * (len(lanes) + 1) + "|"]
    for model, row in rows.items():
        lines.append(f"| {_md(model)} | " + " | ".join(row[lane].state if lane in row else "" for lane in lanes) + " |")
    told = [cell for row in rows.values() for cell in row.values() if cell.state in ("proven", "failed", "stale")]
    lines += ["", *(f"- **{_md(c.model)}** on {c.stack}: {c.state}, {_md(c.why)}" for c in told)] if told else []
    return "\n".join(lines) + "\n"


def _md(text: str) -> str:
    """Text that can end no cell and start no markup."""
    text = html.escape(" ".join(clean(text).split()), quote=False)
    return re.sub(r"([\\|`\[\]*])", r"\\\1", text)


def page(cells: Sequence[Cell], records: Mapping[str, Mapping[str, Any]], stacks: Sequence[str], title: str) -> str:
    """One page: a table of models and stacks with a filter, each cell linked to its newest record below."""
    models: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        models.setdefault(cell.model, {})[cell.stack] = cell
    counts = {state: sum(cell.state == state for cell in cells) for state in ORDER}
    head = "".join(f"<th>{_h(stack)}</th>" for stack in stacks)
    body = "".join(_row(model, row, stacks, records) for model, row in models.items())
    legend = " ".join(
        f'<label><input type="checkbox" value="{s}" checked> <b style="color:{_COLOURS[s]}">{s}</b> {counts[s]}</label>' for s in ORDER
    )
    shown = [id for cell in cells for id in cell.evidence if id in records]  # noqa: A001
    details = "".join(_record(id, records[id]) for id in dict.fromkeys(shown))  # noqa: A001
    details = details or "<p>The ledger holds no record of these.</p>"
    return _PAGE.format(title=_h(title), legend=legend, head=head, body=body, details=details)


def _row(model: str, row: Mapping[str, Cell], stacks: Iterable[str], records: Mapping[str, Any]) -> str:
    made = []
    for stack in stacks:
        cell = row.get(stack)
        if cell is None:
            made.append("<td></td>")
            continue
        text = f'<b style="color:{_COLOURS[cell.state]}">{cell.state}</b>'
        newest = next((id for id in cell.evidence if id in records), None)  # noqa: A001
        link = f'<a href="#{_h(newest)}">{text}</a>' if newest else text
        made.append(f'<td data-state="{cell.state}" title="{_h(cell.why)}">{link}<span>{_h(cell.why)}</span></td>')
    return f"<tr><th>{_h(model)}</th>{''.join(made)}</tr>"


def _record(id: str, record: Mapping[str, Any]) -> str:  # noqa: A002
    text = _h(json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True))
    name = _h(str((record.get("model") or {}).get("name")))
    head = f"{name}, {_h(str(record.get('stack')))}, {_h(str(record.get('outcome')))}, {_h(str(record.get('time')))}"
    return f'<details id="{_h(id)}"><summary>{head}</summary><pre>{text}</pre></details>'


def _h(text: str) -> str:
    return html.escape(clean(text), quote=True)


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #1f2328; }}
h1 {{ font-size: 1.4rem; }} input[type=search] {{ font: inherit; padding: .3rem .6rem; width: 20rem; }} label {{ margin-right: 1rem; }}
table {{ border-collapse: collapse; margin-top: 1rem; }} th, td {{ border: 1px solid #d0d7de; padding: .35rem .6rem; text-align: left; }}
thead th {{ position: sticky; top: 0; background: #f6f8fa; z-index: 1; }}
tbody th {{ font-weight: 500; position: sticky; left: 0; background: #fff; }} thead th:first-child {{ left: 0; z-index: 2; }}
 td {{ vertical-align: top; }}
td span {{ display: block; font-size: .75rem; color: #656d76; max-width: 15rem; }} td a {{ text-decoration-color: #d0d7de; }}
pre {{ background: #f6f8fa; padding: .8rem; overflow: auto; }} details {{ margin: .3rem 0; }}
tr.away {{ display: none; }} td.away * {{ display: none; }}
</style></head><body>
<h1>{title}</h1>
<p><input type="search" id="filter" placeholder="model" aria-label="filter by model"> {legend}</p>
<table><thead><tr><th>model</th>{head}</tr></thead><tbody id="rows">{body}</tbody></table>
<h2>Records</h2>{details}
<script>
const box = document.getElementById("filter"), states = [...document.querySelectorAll("label input")];
function show() {{
  const word = box.value.toLowerCase(), wanted = new Set(states.filter(s => s.checked).map(s => s.value));
  for (const row of document.getElementById("rows").rows) {{
    let any = false;
    for (const cell of row.querySelectorAll("td")) {{
      const on = wanted.has(cell.dataset.state); any = any || on; cell.classList.toggle("away", !on);
    }}
    row.classList.toggle("away", !any || !row.cells[0].textContent.toLowerCase().includes(word));
  }}
}}
box.addEventListener("input", show); states.forEach(s => s.addEventListener("change", show));
addEventListener("hashchange", () => {{ const d = document.getElementById(location.hash.slice(1)); if (d) d.open = true; }});
</script></body></html>
"""
