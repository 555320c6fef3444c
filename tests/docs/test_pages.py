"""The documents: their examples run, their links lead somewhere, and no public name is missing."""

import doctest
import re
import runpy
from pathlib import Path

import pytest

import sparseprune

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *PAGES,
    *sorted(ROOT.glob("examples/*.md")),
    *sorted(ROOT.glob("bench/**/*.md")),
]
EXAMPLE = re.compile(r"^```pycon\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^(`{3,})[^`]*?^\1$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")
INCLUDE = re.compile(r"^```\{include\} (?P<path>\S+)\n(?P<options>.*?)^```$", re.DOTALL | re.MULTILINE)
DESCRIBED = re.compile(r"auto(?:class|data|function|module):: (\S+)")


@pytest.mark.parametrize(
    "page", [path for path in PAGES if EXAMPLE.search(path.read_text("utf-8"))], ids=lambda p: p.stem
)
def test_examples_of_pages(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "\n".join(EXAMPLE.findall(page.read_text("utf-8")))
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    told: list[str] = []
    result = doctest.DocTestRunner().run(test, out=told.append)
    assert not result.failed, "".join(told)


def test_public_names_are_in_the_api() -> None:
    described = {name for page in PAGES for name in DESCRIBED.findall(page.read_text("utf-8"))}
    public = {
        "sparseprune.jit.load" if name == "jit" else f"sparseprune.{name}" for name in sparseprune.__all__
    }
    public |= {f"sparseprune.scores.{name}" for name in sparseprune.scores.METHODS}
    others = set(sparseprune.interchange.__all__) - set(sparseprune.__all__)
    public |= {f"sparseprune.interchange.{name}" for name in others}
    assert not sorted(public - described)


def test_links_lead_to_files_and_headings() -> None:
    dead = []
    for document in DOCUMENTS:
        for link in LINK.finditer(CODE.sub("", document.read_text("utf-8"))):
            if "://" in link["path"]:
                continue
            path = document.parent / link["path"] if link["path"] else document
            if not path.is_file() or (link["anchor"] and link["anchor"] not in anchors(path)):
                dead.append(f"{document.relative_to(ROOT)}: {link[0]}")
    assert not dead


def anchors(document: Path) -> set[str]:
    """What the headings are called in links: their words in lower case, joined by hyphens."""
    headings = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_what_pages_include_is_there() -> None:
    for page in PAGES:
        for include in INCLUDE.finditer(page.read_text("utf-8")):
            text = (page.parent / include["path"]).read_text("utf-8")
            marks = dict(re.findall(r'^:(.*): "(.*)"$', include["options"], re.MULTILINE))
            assert text.partition(marks["start-after"])[2].partition(marks["end-before"])[1], (page, marks)


def test_the_picture_is_what_its_script_draws() -> None:
    drawn = runpy.run_path(str(DOCS / "dataflow.py"))["drawing"]()
    assert (DOCS / "dataflow.svg").read_text("utf-8") == drawn
