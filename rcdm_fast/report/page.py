"""The page: verdicts first, then every experiment with its findings, images, charts, tables, method and settings.

Numbers behind a chart are folded away, but not on paper. Everything is inside the one file; it loads nothing. Knows
nothing about experiments but the type of their results.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from rcdm_fast.analysis.result import Analysis, Finding, Table, cell_text
from rcdm_fast.report.charts import chart

_VERDICTS = {True: ("holds", "holds"), False: ("fails", "does not hold"), None: ("open", "inconclusive")}


def render(
    title: str, about: str, results: Sequence[Analysis], left_out: Mapping[str, str], facts: Mapping[str, object]
) -> str:
    """The HTML text.

    Args:
        title, about: heading and the sentence below it.
        results: what was measured, in the order of the page.
        left_out: experiments that could not be run, with the reason.
        facts: versions, device, date and command, shown at the end.
    """
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(about)}</p>', _contents(results)]
    parts += _verdicts(results)
    parts += [_section(result) for result in results]
    if left_out:
        rows = "".join(f"<li><b>{escape(name)}</b>: {escape(reason)}</li>" for name, reason in left_out.items())
        parts.append(f'<h2 id="left-out">Left out</h2><ul>{rows}</ul>')
    parts.append(f'<h2 id="facts">Made by</h2><pre>{escape(json.dumps(facts, indent=1, default=str))}</pre>')
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head><body>"
    )
    return head + "\n".join(parts) + "</body></html>\n"


def _contents(results: Sequence[Analysis]) -> str:
    links = "".join(f'<li><a href="#{escape(each.name)}">{escape(each.title)}</a></li>' for each in results)
    return f"<nav><ul>{links}</ul></nav>"


def _verdicts(results: Sequence[Analysis]) -> list[str]:
    """Every claim and whether it holds, by experiment, those of a group together; numbers are in the sections."""
    findings = [finding for result in results for finding in result.findings]
    if not findings:
        return []
    counts = [sum(finding.holds is verdict for finding in findings) for verdict in _VERDICTS]
    told = "; ".join(f"{word}: {count}" for count, (_, word) in zip(counts, _VERDICTS.values(), strict=True))
    parts = [
        '<h2 id="findings">What was found</h2>',
        f'<p class="soft">{len(findings)} claims ({told}). {_adjusted(findings)}The numbers behind each are in its '
        "section.</p>",
    ]
    for result in results:
        if result.findings:
            parts.append(f'<h3><a href="#{escape(result.name)}">{escape(result.title)}</a></h3>')
        groups: dict[str, list[Finding]] = {}
        for each in result.findings:
            groups.setdefault(each.group or each.claim, []).append(each)
        lines = "".join(_verdict_lines(said, members) for said, members in groups.items())
        parts += [f'<ul class="verdicts">{lines}</ul>'] if lines else []
    return parts


def _adjusted(findings: Sequence[Finding]) -> str:
    """A sentence on the claims that were adjusted for how many there are; empty if none was."""
    count = sum(each.adjusted is not None for each in findings)
    if not count:
        return ""
    return f"{count} with a p-value, decided together by Holm's method at 5 %; intervals are unadjusted. "


def _verdict_lines(said: str, members: Sequence[Finding]) -> str:
    """A claim and its verdict; of a group a line for every verdict that occurs, with what it is said of."""
    lines = "" if len(members) == 1 else f'<li class="claim">{escape(said)}</li>'
    for verdict, (kind, word) in _VERDICTS.items():
        found = [each for each in members if each.holds is verdict]
        of = ", ".join(each.subject for each in found) if lines else "".join(each.claim for each in found)
        if found:
            lines += f'<li class="{kind}">{escape(of)}: <span class="verdict">{word}</span></li>'
    return lines


def _section(result: Analysis) -> str:
    parts = [f'<section><h2 id="{escape(result.name)}">{escape(result.title)}</h2>']
    parts += [_finding(finding) for finding in result.findings]
    parts += [
        _figure(result.name, name, image, result.captions.get(name, "")) for name, image in result.figures.items()
    ]
    parts += [_table(table) for table in result.tables]
    settings = json.dumps(dict(result.settings), indent=1, default=str)
    parts.append(f"<details><summary>Method and settings</summary><p>{escape(result.method)}</p>")
    parts.append(f"<p>Model: {escape(result.model)}</p><pre>{escape(settings)}</pre></details></section>")
    return "\n".join(parts)


def _finding(finding: Finding) -> str:
    kind, word = _VERDICTS[finding.holds]
    return (
        f'<div class="finding {kind}">{escape(finding.claim)}: <span class="verdict">{word}</span>.'
        f"<br>{escape(finding.measured)}</div>"
    )


def _figure(section: str, name: str, image: Image.Image, caption: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = escape(caption or name)
    tag = f'<img src="data:image/png;base64,{data}" width="{image.width}" height="{image.height}" alt="{text}">'
    below = f"<figcaption>{text}</figcaption>"
    return f'<figure id="{escape(section)}-{escape(name)}"><div class="wide">{tag}</div>{below}</figure>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell_text(cell))}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    body = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    drawn = chart(table)
    if drawn:
        body = f'<details class="numbers"><summary>Numbers</summary>{body}</details>'
    return f"<h3>{escape(table.title)}</h3>{drawn}{note}{body}"
