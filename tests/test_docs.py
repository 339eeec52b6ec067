"""README and pages of the documentation: short where they should be, and no link that leads nowhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.command_calls import COMMANDS

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in Path(__file__).parents[1].glob("docs/*.md")),
)
MOST_LINES, MOST_WORDS = 180, 1200  # of the README: two minutes


def _anchors(text: str) -> set[str]:
    """What headings of a page are called in links."""
    heads = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?s)```.*?```", "", text))
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_and_images_have_texts(checkout: Path, page: str) -> None:
    text = (checkout / page).read_text(encoding="utf-8")
    for mark, label, link in re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```", "", text)):
        if link.startswith(("http://", "https://")):
            continue
        assert label.strip() or not mark, f"{page}: {link} has no text for those who do not see it"
        name, _, anchor = link.partition("#")
        target = (checkout / page).parent / name if name else checkout / page
        assert target.exists(), f"{page}: {link} leads nowhere"
        assert not anchor or anchor in _anchors(target.read_text(encoding="utf-8")), f"{page}: no such heading: {link}"


def test_the_readme_is_read_in_two_minutes(checkout: Path) -> None:
    text = (checkout / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert len(text.split()) <= MOST_WORDS


def test_the_reference_has_every_command(checkout: Path) -> None:
    path = checkout / "docs" / "build.py"
    build = runpy.run_path(str(path))
    page = build["on_page_markdown"]((checkout / "docs" / "cli.md").read_text(encoding="utf-8"))
    heads = re.findall(r"(?m)^## rcdm (.+)$", page)
    assert heads == sorted(COMMANDS.commands)
    assert "Example: rcdm sample cat.jpg" in page
    assert build["on_page_markdown"]("# Another page") == "# Another page"


def test_every_page_is_in_the_contents(checkout: Path) -> None:
    contents = (checkout / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [path.name for path in checkout.glob("docs/*.md") if f": {path.name}\n" not in contents]
    assert not missing
