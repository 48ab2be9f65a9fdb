"""README and docs/ tell the truth: every Python block runs, every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its code, in which brackets mean other things and a # is no heading."""
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, words joined by hyphens, everything else left out."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=name)
def test_python_blocks_run_from_top_to_bottom(page: Path, tmp_path, monkeypatch):
    text = page.read_text()
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}  # one: a reader who pastes the blocks in turn keeps what the first defined
    for block in BLOCK.finditer(text):
        lines_before = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines_before + block.group(1), name(page), "exec"), namespace)


def test_the_blocks_are_found():
    counts = {name(page): len(BLOCK.findall(page.read_text())) for page in PAGES}
    assert counts["README.md"] >= 2 and counts["docs/recipes.md"] >= 10
    for page in PAGES:  # a fence with an indent or another spelling would not be run
        assert page.read_text().lower().count("```py") == counts[name(page)], name(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path):
    for link in LINK.findall(prose(page)):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name(page)}: {link}"
        assert not anchor or anchor in anchors(file), f"{name(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_files_exist(page: Path):
    """Files of the repository that the prose and its commands name, such as `examples/dense_digits.py`."""
    folders = "bench|csrc|docs|examples|focal_cuda|tests"
    for path in re.findall(rf"(?<![\w/.])(?:{folders})/[\w/.]+\.(?:py|md|h|cu|cpp|cuh|json|txt)\b", page.read_text()):
        assert (ROOT / path).exists(), f"{name(page)}: {path}"
