"""The audit as Markdown and as one self-contained HTML page. Pure: cells and records in, text out; every string is escaped."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fl.audit import ORDER, Cell
from fl.audit_html import SCRIPT, STYLE
from fl.ui import clean

_HUGE: Final = 1e15
"""What no loss and no memory is: numbers of a record may be anything."""


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


def page(cells: Sequence[Cell], records: Mapping[str, Mapping[str, Any]], stacks: Sequence[str], title: str, about: str = "") -> str:
    """One page: a table of models and stacks with a filter, each cell linked to its records below."""
    models: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        models.setdefault(cell.model, {})[cell.stack] = cell
    lane_of = {cell.stack: cell.lane for cell in cells}
    counts = {state: sum(cell.state == state for cell in cells) for state in ORDER}
    head = "".join(f'<th data-lane="{_h(lane_of.get(s, ""))}">{_h(s)}<small>{_h(lane_of.get(s, ""))}</small></th>' for s in stacks)
    boxes = "".join(
        f'<label><input type="checkbox" value="{s}" checked> <span class="state {s}">{s}</span> {counts[s]}</label>' for s in ORDER
    )
    lanes = "".join(f"<option>{_h(lane)}</option>" for lane in dict.fromkeys(lane_of.get(s, "") for s in stacks))
    named = dict.fromkeys(id for cell in cells for id in cell.evidence if id in records)  # noqa: A001
    shown = [_record(id, records[id]) for id in named]  # noqa: A001
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{_h(title)}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>{STYLE}</style></head><body>
<h1>{_h(title)}</h1>
<p class="about">{_h(about)}</p>
<div class="filters"><input type="search" id="filter" placeholder="filter by model" aria-label="filter by model">
<select id="lane" aria-label="lane"><option value="">every lane</option>{lanes}</select>
<fieldset aria-label="states">{boxes}</fieldset><label><input type="checkbox" id="full"> every reason</label></div>
<div class="scroll"><table><thead><tr><th>model</th>{head}</tr></thead>
<tbody id="rows">{"".join(_row(model, row, stacks, records) for model, row in models.items())}</tbody></table>
<p id="none" class="away">No model is as asked.</p></div>
<h2>Records</h2>{"".join(shown) or "<p>The ledger holds no record of these.</p>"}
<script>{SCRIPT}</script></body></html>
"""


def _row(model: str, row: Mapping[str, Cell], stacks: Iterable[str], records: Mapping[str, Any]) -> str:
    made = []
    for stack in stacks:
        cell = row.get(stack)
        if cell is None:
            made.append("<td></td>")
            continue
        here = [id for id in cell.evidence if id in records]  # noqa: A001
        state, why = cell.state, _h(cell.why)
        text = f'<a class="state {state}" href="#{_h(here[0])}">{state}</a>' if here else f'<span class="state {state}">{state}</span>'
        text += "".join(f' <a class="more" href="#{_h(id)}">{place}</a>' for place, id in enumerate(here[1:], 2))  # noqa: A001
        quiet = "" if here else ' class="quiet"'
        made.append(f'<td data-state="{state}"{quiet} title="{why}"><b>{_h(stack)}: </b>{text}<p>{why}</p></td>')
    counts = {state: sum(cell.state == state for cell in row.values()) for state in ORDER}
    total = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"<tr><th>{_h(model)}<small>{total}</small></th>{''.join(made)}</tr>"


def _record(id: str, record: Mapping[str, Any]) -> str:  # noqa: A002
    model, accelerator, method = (_part(record, key) for key in ("model", "accelerator", "method"))
    outcome = record.get("outcome")
    colour = {"passed": "proven", "failed": "failed"}.get(str(outcome), "stale")
    method_text = " ".join(str(method[key]) for key in ("stage", "finetuning_type") if method.get(key))
    rest = (record.get("stack"), accelerator.get("name"), method_text, str(record.get("time"))[:10])
    head = f'<span class="state {colour}">{_h(str(outcome))}</span> {_h(str(model.get("name")))} '
    head += f"<small>{_h(', '.join(str(one) for one in rest if one))}</small>"
    return (
        f'<details id="{_h(id)}"><summary>{head}</summary><dl>{_facts(id, record)}</dl><pre>{_h(_compact(record))}</pre></details>\n'
    )


def _facts(id: str, record: Mapping[str, Any]) -> str:  # noqa: A002
    """What a reader looks for first: record, failure, image, speed, the losses as a curve."""
    failure, image, metrics = (_part(record, key) for key in ("failure", "image", "metrics"))
    loss = [x for x in metrics.get("loss") or () if isinstance(x, int | float)] if isinstance(metrics.get("loss"), list) else []
    told = {
        "record": id, "image": " ".join(str(image[key]) for key in ("reference", "digest") if image.get(key)),
        "failure": ": ".join(str(failure[key]) for key in ("type", "message") if failure.get(key)),
        "tokens per second": metrics.get("tokens_per_second"), "memory": _mib(metrics.get("peak_memory_mib")),
        "loss": f"{loss[0]:.4g} → {loss[-1]:.4g} in {len(loss)} logged steps" if loss and max(map(abs, loss)) < _HUGE else "",
    }  # fmt: skip
    rows = "".join(f"<dt>{name}</dt><dd>{_h(str(value))}</dd>" for name, value in told.items() if value)
    return rows + (f"<dt>curve</dt><dd>{_curve([float(x) for x in loss])}</dd>" if told["loss"] and len(loss) > 2 else "")


def _mib(value: Any) -> str:
    return f"{value:.0f} MiB" if isinstance(value, int | float) and abs(value) < _HUGE else ""


def _curve(loss: Sequence[float]) -> str:
    """The losses as a line; of a long run at most 240 of them."""
    kept = loss[:: max(1, len(loss) // 240)]
    low, high = min(kept), max(kept)
    points = " ".join(
        f"{1 + 238 * place / (len(kept) - 1):.1f},{3 + 34 * (high - value) / (high - low or 1):.1f}" for place, value in enumerate(kept)
    )
    line = f'<polyline fill="none" stroke="currentColor" stroke-width="1.5" points="{points}"/>'
    return f'<svg width="240" height="40" role="img" aria-label="losses">{line}</svg>'


def _compact(record: Mapping[str, Any]) -> str:
    """The record as JSON with lists of numbers on one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
    return re.sub(r"\[\n([-+.\deE,\s]+?)\n *\]", lambda found: f"[{' '.join(found[1].split())}]", text)


def _part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _h(text: str) -> str:
    return html.escape(clean(text), quote=True)
