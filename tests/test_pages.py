"""The documentation's frame: links that lead somewhere, pages that are reached, a reference that lacks no name."""

import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import dio_lightning

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import figures  # noqa: E402
import hooks  # noqa: E402

SITE = yaml.safe_load(re.sub(r"!!python\S+ \{.*\}", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
NAV = [place if (ROOT / place).is_file() else f"docs/{place}" for place in hooks.named(SITE["nav"])]
"""Pages of the site, by their file in the repository."""
PAGES = sorted({"README.md", *NAV, *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))})


def anchors(page: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead(page: str, text: str) -> list[str]:
    """Links of a page that lead nowhere: in a clone, in GitHub's view of it, or in the site."""
    lost = []
    for link in hooks.links(text):
        if link.startswith(hooks.WORLD):
            continue
        path, anchor = hooks.target(page, link)
        there = path.endswith(".md") and (ROOT / path).is_file()
        if not (ROOT / path).exists() or (anchor and not (there and anchor in anchors(path))) or not hooks.place(path):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", PAGES)
def test_no_link_of_a_page_is_dead(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert dead(page, text) == []
    brought = hooks.in_site(page, text)
    assert len([*hooks.links(brought)]) == len([*hooks.links(text)])
    assert hooks.CODE.findall(brought) == hooks.CODE.findall(text), "code is left as it is"


def test_a_dead_link_is_seen() -> None:
    text = "[a](nowhere.md) [b](data.md#nothing) [c](data.md#cache) ![d](two_scans.png) [e](../README.md) `[f](no.md)`"
    assert dead("docs/index.md", text) == ["nowhere.md", "data.md#nothing"]


def test_links_become_those_of_the_site() -> None:
    text = "[`f`](../dio_lightning/fields/__init__.py) [g](../dio_lightning/pair.py) [h](../README.md#a) [i](data.md)"
    assert hooks.in_site(
        "docs/performance/README.md", text.replace("../", "../../").replace("data.md", "../data.md")
    ) == (
        "[`f`](../reference/dio_lightning.fields.md) [g](../source/dio_lightning/pair.py.md) [h](../index.md#a) "
        "[i](../data.md)"
    )


def test_no_page_is_an_orphan() -> None:
    """Each is in the site's navigation, and reached by links from the README and from the site's first page alike."""
    assert [page for page in NAV if not (ROOT / page).is_file()] == []
    assert sorted({*PAGES} - {*NAV}) == ["README.md"]
    for start in ("README.md", "docs/index.md"):
        todo, reached = [start], {start}
        while todo:
            page = todo.pop()
            for link in hooks.links((ROOT / page).read_text(encoding="utf-8")):
                path = hooks.target(page, link)[0]
                if path in PAGES and path not in reached:
                    reached.add(path)
                    todo.append(path)
        assert {*NAV} - reached == set()


def test_the_reference_has_every_public_name() -> None:
    listed = [
        hooks.target("docs/reference.md", link)[0] for link in hooks.links((ROOT / "docs/reference.md").read_text())
    ]
    assert sorted(listed) == sorted(f"{package.replace('.', '/')}/__init__.py" for package in hooks.packages())
    for package in hooks.packages():
        text, module = hooks.reference(package), import_module(package)
        names = {name for name in module.__all__ if f"{package}.{name}" in text or f"| [`{name}`][" in text}
        assert names == {*module.__all__}, package
    assert "dio_lightning.fields" in hooks.packages() and "warp" in hooks.public(
        ROOT / "dio_lightning/fields/__init__.py"
    )


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_picture_is_what_the_code_draws(name: str) -> None:
    """To a pixel: the last digit of a solve depends on the machine."""
    numbers = re.compile(r"-?\d+\.\d+|-?\d+")
    drawn, kept = figures.FIGURES[name](), (figures.FOLDER / name).read_text(encoding="utf-8")
    assert numbers.sub("", drawn) == numbers.sub("", kept), "python docs/figures.py draws it again"
    pairs = zip(numbers.findall(drawn), numbers.findall(kept), strict=True)
    assert max(abs(float(a) - float(b)) for a, b in pairs) <= 1


def test_the_gradients_of_the_picture_are_the_series() -> None:
    values = figures.gradients()
    slope = 1 - 1 / values["implicit"]
    for steps in (1, 2, 3, 4, 5):
        assert values[f"phantom {steps}"] == pytest.approx(sum(slope**i for i in range(steps)), rel=1e-6)


def test_the_readme_has_the_numbers_of_the_first_page() -> None:
    first = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    rows = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(rows) == 5 and "\n".join(rows) in first


def test_the_citation_names_this_version() -> None:
    """The keys that CITATION.cff 1.2.0 requires, and the package's own version and licence."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert {"message", "title", "authors"} <= cited.keys() and all(author for author in cited["authors"])
    assert cited["version"] == project["version"] == dio_lightning.__version__
    assert cited["license"] == project["license"]
    for work in cited["references"]:
        assert {"type", "title", "authors"} <= work.keys()
        assert all({"family-names", "given-names"} <= author.keys() for author in work["authors"])


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_an_issue_form_is_one(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.name == "config.yml":
        assert set(content) == {"blank_issues_enabled"}
        return
    assert content["name"] and content["description"]
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in content["body"])
    assert len({part["id"] for part in content["body"]}) == len(content["body"])
