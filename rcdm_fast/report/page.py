"""The page: a summary beside three images, how to read it, then every experiment, how it was made, and downloads.

Everything is inside the one file; it loads nothing. Knows nothing about experiments but the type of their results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rcdm_fast.analysis.result import Analysis, Finding
from rcdm_fast.analysis.rules import RULES
from rcdm_fast.report import figures, sections

_FIRST, _FAILED, _IMAGES = 5, 2, 3  # claims of the first screen, those that do not hold, and images
HOW = (
    "<b>Samples</b> are images drawn from a representation alone. What all samples of a photograph share is in its "
    "representation; what differs between them is not, or the decoder does not draw it.",
    "A <b>slope</b> says how far samples follow a change of the photograph, such as a shift: 1 entirely, 0 not at all. "
    f"<b>Kept</b>: the whole 95 % interval lies above {RULES.kept_above:g}. <b>Dropped</b>: it lies within "
    f"&plusmn;{RULES.dropped_within:g}, and no readout finds the change in the representation either. "
    "<b>Inconclusive</b> is no finding: more images or a better decoder may decide it.",
    "Numbers in brackets are 95 % intervals. In small charts the dot is the value, the line its interval. Claims with "
    "a p-value are decided together (Holm), so that many claims make no false one likely.",
    "<b>MRR</b> is 1 where the photograph's own representation is always the nearest one to that of its sample. It is "
    "comparable within one encoder only.",
)


def render(
    title: str,
    about: str,
    results: Sequence[Analysis],
    left_out: Mapping[str, str],
    facts: Mapping[str, object],
    methods: str = "",
    numbers: Mapping[str, Any] | None = None,
    rates: Sequence[str] = (),
) -> str:
    """The HTML text.

    Args:
        title, about: heading and the sentence below it.
        results: what was measured, in the order of the page.
        left_out: experiments that could not be run, with the reason.
        facts: versions, device, date and command, shown at the end.
        methods: how it was measured, for a paper.
        numbers: what the page offers as JSON to download.
        rates: sentences on how often verdicts are wrong.
    """
    stored = figures.stored([(each.name, each.figures) for each in results])
    findings = [finding for result in results for finding in result.findings]
    body = [
        f'<nav aria-label="Contents"><details id="contents"><summary>Contents</summary>{_contents(results)}</details>'
        f'</nav><main id="top"><h1>{escape(title)}</h1><p class="soft">{escape(about)}</p>',
        _summary(results, findings, rates, numbers is not None),
        f'<aside class="how" aria-label="How to read this"><h2>How to read this</h2>'
        f"{''.join(f'<p>{each}</p>' for each in HOW)}</aside>",
        _claims(results) if findings else "",
        *(sections.section(result, stored) for result in results),
        _left_out(left_out),
        _made(facts, methods),
        "</main>",
    ]
    told = [_counts(findings), *(each.sentence for each in _strongest(findings)[:2])] if findings else [about]
    return f"{_head(title, ' '.join(told))}{chr(10).join(body)}{_end(numbers)}"


def _head(title: str, description: str) -> str:
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    meta = {"og:title": title, "og:description": description, "og:type": "article", "og:site_name": "rcdm_fast"}
    tags = "".join(f'<meta property="{name}" content="{escape(value, quote=True)}">' for name, value in meta.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="description" content="{escape(description, quote=True)}">{tags}'
        f"<title>{escape(title)}</title><style>{css}</style></head><body>"
    )


def _end(numbers: Mapping[str, Any] | None) -> str:
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    plain = "" if numbers is None else json.dumps(numbers, default=str).replace("</", "<\\/")
    data = f'<script type="application/json" id="numbers">{plain}</script>' if plain else ""
    return f"{data}<script>{script}</script></body></html>\n"


def _contents(results: Sequence[Analysis]) -> str:
    links = [("top", "Summary"), ("claims", "All claims")] if any(each.findings for each in results) else []
    links += [(each.name, each.title) for each in results] + [("again", "How it was made")]
    return "<ol>" + "".join(f'<li><a href="#{escape(to)}">{escape(said)}</a></li>' for to, said in links) + "</ol>"


def _counts(findings: Sequence[Finding]) -> str:
    holds, fails, open_ = (sum(each.holds is verdict for each in findings) for verdict in (True, False, None))
    return f"Of {len(findings)} claims {holds} hold, {fails} do not hold, and {open_} are inconclusive."


def _strongest(findings: Sequence[Finding]) -> list[Finding]:
    """Claims for the first screen, at most so many: decided ones with numbers first, both that hold and that do not."""
    best = sorted(findings, key=lambda each: (each.holds is None, not each.numbers))
    fail = [each for each in best if each.holds is False][:_FAILED]
    hold = [each for each in best if each.holds][: _FIRST - len(fail)]
    return (hold + fail + [each for each in best if each not in hold and each not in fail])[:_FIRST]


def _summary(results: Sequence[Analysis], findings: Sequence[Finding], rates: Sequence[str], numbers: bool) -> str:
    first = "".join(sections.line(each) for each in _strongest(findings))
    parts = [f"<p><b>{_counts(findings)}</b> {sections.adjusted(findings)}</p>", f'<ul class="claims">{first}</ul>']
    parts += ['<p><a href="#claims">All claims</a></p>'] if len(findings) > _FIRST else []
    parts += [f'<p class="note">How often verdicts are wrong: {escape(each)}.</p>' for each in rates]
    tools = '<button class="get" data-get="numbers">Numbers (JSON)</button>' if numbers else ""
    tools += '<button class="get" data-get="methods">Methods paragraph</button><button data-print>Print</button>'
    heads = [image for each in results for image in each.heads][:_IMAGES]
    images = "".join(
        f'<img {figures.inline(image)} alt="A photograph and samples of its representation">' for image in heads
    )
    aside = (
        f'<figure class="heads">{images}<figcaption>Photographs at the left, samples beside them.</figcaption></figure>'
    )
    said = "".join(parts) if findings else ""
    return f'<div class="summary"><div>{said}<p class="tools">{tools}</p></div>{aside if heads else ""}</div>'


def _claims(results: Sequence[Analysis]) -> str:
    """Every claim as a sentence, by experiment; inconclusive ones folded."""
    parts = ['<section><h2 id="claims">All claims</h2>']
    for result in results:
        if not result.findings:
            continue
        decided = "".join(sections.line(each) for each in result.findings if each.holds is not None)
        unsure = [each for each in result.findings if each.holds is None]
        parts.append(f'<h3><a href="#{escape(result.name)}">{escape(result.title)}</a></h3>')
        parts.append(f'<ul class="claims">{decided}</ul>' if decided else "")
        if unsure:
            lines = "".join(map(sections.line, unsure))
            parts.append(f"<details><summary>{len(unsure)} inconclusive</summary>")
            parts.append(f'<ul class="claims">{lines}</ul></details>')
    return "".join(parts) + "</section>"


def _left_out(left_out: Mapping[str, str]) -> str:
    rows = "".join(f"<li><b>{escape(name)}</b>: {escape(reason)}</li>" for name, reason in left_out.items())
    return f'<section><h2 id="left-out">Left out</h2><ul>{rows}</ul></section>' if rows else ""


def _made(facts: Mapping[str, object], methods: str) -> str:
    parts = ['<section><h2 id="again">How it was made</h2>']
    if command := str(facts.get("command", "")):
        parts.append(f'<pre id="command">{escape(command)}</pre>')
        parts.append('<p class="tools"><button data-copy="command">Copy the command</button></p>')
    if methods:
        parts.append(f'<h3>For the methods of a paper</h3><p id="methods">{escape(methods)}</p>')
        parts.append('<p class="tools"><button data-copy="methods">Copy the paragraph</button></p>')
    shown = escape(json.dumps(facts, indent=1, default=str))
    parts.append(
        f"<details><summary>Versions, hashes, device and times</summary><pre>{shown}</pre></details></section>"
    )
    return "".join(parts)
