"""Every document's links lead somewhere, and its commands are ones that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page.name} links to {link}"


def test_every_page_is_in_the_site() -> None:
    text = (ROOT / "scripts" / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    site = yaml.safe_load(text)

    def pages(node: object) -> set[str]:
        if isinstance(node, str):
            return {node}
        parts = node.values() if isinstance(node, dict) else node
        return set().union(*(pages(part) for part in parts))  # type: ignore[union-attr]

    there = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert pages(site["nav"]) == there


def _commands() -> list[str]:
    """Lines of shell examples that call our own program, without comments, continuations joined."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                plain = line.split(" #")[0].replace("[", "").replace("]", "").replace("...", "").strip()
                if plain.startswith("maskfield "):
                    lines.append(plain)
    return sorted(set(lines))


@pytest.mark.parametrize("line", _commands())
def test_commands_of_the_documents_are_parsed(line: str) -> None:
    from maskfield_ns import cli

    cli.parse(shlex.split(line)[1:])
