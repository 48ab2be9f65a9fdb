"""README and docs/ tell the truth: every Python block runs, every link leads somewhere, and the site builds."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import torch

import focal_cuda
from bench import results

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(page for page in ROOT.glob("docs/**/*.md") if "_generated" not in page.parts)])
# ```python gpu: compiled everywhere, run where there is a GPU.
BLOCK = re.compile(r"^```python(?P<gpu> gpu)?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r"^```\{include\} (\S+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its code, in which brackets mean other things and a # is no heading."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, words joined by hyphens, everything else left out."""
    included = [file for path in INCLUDE.findall(page.read_text()) if (file := page.parent / path).exists()]
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    here = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return here.union(*map(anchors, included))


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=name)
@pytest.mark.usefixtures("threads")
def test_python_blocks_run_from_top_to_bottom(page: Path, tmp_path, monkeypatch):
    text = page.read_text()
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}  # one: a reader who pastes the blocks in turn keeps what the first defined
    for block in BLOCK.finditer(text):
        lines_before = text[: block.start("code")].count("\n")
        code = compile("\n" * lines_before + block["code"], name(page), "exec")
        if not block["gpu"] or torch.cuda.is_available():
            exec(code, namespace)


def test_the_blocks_are_found():
    counts = {name(page): len(BLOCK.findall(page.read_text())) for page in PAGES}
    assert counts["README.md"] >= 2 and counts["docs/recipes.md"] >= 10 and counts["docs/faq.md"] >= 9
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


def test_the_line_of_a_bad_label_is_the_one_that_the_page_shows(raising_backend: str):
    page = (ROOT / "docs" / "device-side-asserts.md").read_text()
    masks = torch.zeros(2, 64, 64, dtype=torch.long)
    masks[1, 32, 15] = 255
    with pytest.raises(IndexError) as error:
        focal_cuda.softmax_focal_loss(torch.randn(2, 19, 64, 64), masks)
    assert f"\n{error.value}\n" in page


# --- the site --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, str]:
    """The HTML of each page, as `make docs` builds it, but in a fresh folder."""
    folder = tmp_path_factory.mktemp("site")
    sphinx = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    command = [*sphinx, "--doctree-dir", folder / "doctrees", ROOT / "docs", folder / "html"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return {str(page.relative_to(folder / "html")): page.read_text() for page in folder.glob("html/**/*.html")}


def test_the_site_has_every_page_and_leads_to_it(site: dict[str, str]):
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs"):
            path = str(page.relative_to(ROOT / "docs").with_suffix(".html"))
            assert path in site and (path == "index.html" or f'href="{path}"' in site["index.html"]), path


def test_the_api_has_every_public_name(site: dict[str, str]):
    api = "".join(text for path, text in site.items() if path.startswith("api/"))
    for public in set(focal_cuda.__all__) - {"__version__"}:
        assert f'id="{"module-" if public in ("compat", "reference") else ""}focal_cuda.{public}"' in api, public
    assert r"-\alpha_t (1 - p_t)^\gamma \log p_t" in unescape(site["api/losses.html"])  # formulas come through
    assert "Equivalent to" in site["api/losses.html"]


def test_tables_in_the_readme_and_on_the_site_are_the_same(site: dict[str, str]):
    """Both are made from bench/results: a figure that stands in one of them stands in the other."""
    readme = (ROOT / "README.md").read_text()
    measured = readme[readme.index("<!-- bench:start -->") : readme.index("<!-- bench:end -->")]
    cells = [cell.strip() for line in measured.splitlines() if line.startswith("|") for cell in line.split("|")]
    assert len(cells) > 50
    shown = unescape(re.sub(r"<[^>]+>", "", site["performance.html"]))
    assert not [cell for cell in cells if not cell.startswith("--") and cell not in shown]
    for function in re.findall(r"^\| `(\w+)`", readme, re.MULTILINE):
        assert function in focal_cuda.__all__ and function in site["index.html"]


def test_no_gpu_figure_is_claimed_before_there_is_one(site: dict[str, str]):
    measured = any(
        document["environment"]["device"] == "cuda" for document in results.all_devices(results.FOLDER).values()
    )
    assert ("No GPU figure has been measured" in site["performance.html"]) != measured


def test_figures_and_errors_are_of_this_package(site: dict[str, str]):
    for figure in ("margin", "errors"):
        page = site["concepts.html"] if figure == "margin" else site["numerics.html"]
        for background in ("light", "dark"):
            assert f"_images/{figure}-{background}.svg" in page
    rows = [re.sub(r"<[^>]+>", "", row) for row in re.findall(r"<tr.*?</tr>", site["numerics.html"], re.DOTALL)]
    own = [re.findall(r"\d(?:\.\d+)?e[-+]\d+|NaN", row) for row in rows if "focal_cuda, s" in row]
    assert len(own) == 4 and all(len(row) == 5 and max(map(float, row)) <= 2e-5 for row in own)
    others = [row for row in rows if "1 - p_t" in row or "exp(-F." in row]
    assert sum("NaN" in row for row in others) == 2  # the gradient at gamma = 0.5
