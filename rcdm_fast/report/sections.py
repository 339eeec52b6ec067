"""A section of the page: an experiment's claims with a small chart each, figures, charts, tables, method and settings.

Numbers behind a chart, and charts of many rows, are folded away, but not on paper. Knows nothing about experiments but
the type of their results.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape

from rcdm_fast.analysis.charts import chart, shortened, small
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.report.figures import Key, Stored

KINDS = {True: "holds", False: "fails", None: "open"}  # classes of claims by verdict; the sentences say it in words
MANY = 12  # rows of a chart that is folded away
_LONG = 32  # letters of a name in a table


def adjusted(findings: Sequence[Finding]) -> str:
    """A sentence on the claims that were adjusted for how many there are; empty if none was."""
    count = sum(each.adjusted is not None for each in findings)
    if not count:
        return ""
    return f"{count} have a p-value and are decided together by Holm's method at 5\u00a0%; intervals are unadjusted."


def line(finding: Finding) -> str:
    """A claim as an item of a list."""
    return f'<li class="{KINDS[finding.holds]}">{escape(finding.sentence)}</li>'


def section(result: Analysis, stored: Mapping[Key, Stored]) -> str:
    """The experiment's part of the page; `stored` has its figures."""
    parts = [f'<section><h2 id="{escape(result.name)}">{escape(result.title)}</h2>']
    parts += [_finding(finding) for finding in result.findings]
    parts += [
        _figure(result.name, name, stored[result.name, name], result.captions.get(name, "")) for name in result.figures
    ]
    parts += [_table(table, f"{result.name}-{table.name}") for table in result.tables]
    settings = json.dumps(dict(result.settings), indent=1, default=str)
    parts.append(f"<details><summary>Method and settings</summary><p>{escape(result.method)}</p>")
    parts.append(f"<p>Model: {escape(result.model)}</p><pre>{escape(settings)}</pre></details></section>")
    return "\n".join(parts)


def _finding(finding: Finding) -> str:
    return (
        f'<div class="finding {KINDS[finding.holds]}"><div><p>{escape(finding.sentence)}</p>'
        f"<details><summary>Numbers</summary><p>{escape(finding.measured)}</p></details></div>"
        f"{small(finding.numbers)}</div>"
    )


def _figure(section: str, name: str, stored: Stored, caption: str) -> str:
    text, size = escape(caption or name), f'width="{stored.width}" height="{stored.height}"'
    tag = f'<img src="{stored.source}" {size} alt="{text}">'
    get = f'<button class="get" data-figure="{escape(section)}-{escape(name)}.{stored.kind}">Download</button>'
    below = f'<figcaption>{text} <span class="tools">{get}</span></figcaption>'
    return f'<figure id="{escape(section)}-{escape(name)}"><div class="wide">{tag}</div>{below}</figure>'


def _table(table: Table, name: str) -> str:
    head = "".join(f'<th scope="col"><button>{escape(column)}</button></th>' for column in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    body = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    body += f'<p class="tools"><button class="get" data-table="{escape(name)}.csv">Download CSV</button></p>'
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    drawn = chart(table)
    if drawn:
        get = f'<p class="tools"><button class="get" data-chart="{escape(name)}.svg">Download SVG</button></p>'
        drawn, body = f'<div class="chart">{drawn}{get}</div>', _folded("Numbers", body)
    elif len(table.rows) > MANY:
        body = _folded(f"Table of {len(table.rows)} rows", body)
    if drawn and len(table.rows) > MANY and "<polyline" not in drawn:
        drawn = _folded(f"Chart of {len(table.rows)} rows", drawn)
    return f'<div class="table"><h3>{escape(table.title)}</h3>{drawn}{note}{body}</div>'


def _folded(summary: str, body: str) -> str:
    return f'<details class="numbers"><summary>{summary}</summary>{body}</details>'


def _cell(cell: Cell) -> str:
    """A cell, with what it is sorted by, and a long name on hover."""
    text = cell_text(cell)
    value = cell.value if isinstance(cell, Interval) else cell
    number = isinstance(value, int | float) and math.isfinite(value)
    sorted_by = f' data-v="{float(value):.9g}"' if number and value is not None else ""
    if isinstance(cell, str) and len(text) > _LONG and " " not in text:
        return f'<td title="{escape(text, quote=True)}">{escape(shortened(text, _LONG))}</td>'
    return f"<td{sorted_by}>{escape(text)}</td>"
