"""What `make docs` does beside MkDocs: links as GitHub has them lead to places in the site; the reference is written.

A page of docs/ may link to any file of the repository. Of what is linked, Markdown becomes a page, pictures are copied,
the `__init__.py` of a package is its page of the reference, and other files are shown as they are. Tests use the
functions below without MkDocs, which is imported where MkDocs calls.
"""

import ast
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
COPIED = (".png", ".svg", ".csv")
SHOWN = {
    ".py": "python",
    ".yaml": "yaml",
    ".toml": "toml",
    ".tex": "latex",
    ".cff": "yaml",
    ".sh": "bash",
    ".sbatch": "bash",
}
"""Files that are shown in the site, and their language."""
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
HOME = {"README.md": "docs/index.md"}
"""What a link to a file of the repository means in the site."""
WORLD = ("http://", "https://", "mailto:")


def links(text: str) -> Iterator[str]:
    """Targets of the links and pictures of a Markdown text, those of code left out."""
    for link in LINK.finditer(CODE.sub("", text)):
        yield link[2]


def target(page: str, link: str) -> tuple[str, str]:
    """The file of the repository and the anchor that a link of a page leads to, GitHub's way."""
    path, _, anchor = link.partition("#")
    return (posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page), anchor


def packages() -> list[str]:
    """Packages with public names: those whose `__init__.py` has an `__all__`, the library itself first."""
    files = sorted([*ROOT.glob("dio_lightning/**/__init__.py"), *ROOT.glob("data_modules/**/__init__.py")])
    names = [".".join(path.relative_to(ROOT).parent.parts) for path in files if public(path)]
    return sorted(names, key=lambda name: (not name.startswith("dio_lightning"), name))


def public(path: Path) -> list[str]:
    """The names in the `__all__` of a file, without importing it; none if it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def reference(package: str) -> str:
    """The page of a package's public names; the library's own names lie in its packages, so they are a list."""
    folder = ROOT / package.replace(".", "/")
    names = public(folder / "__init__.py")
    title = f"# {package}\n\n::: {package}\n    options: {{members: false, show_root_heading: false}}\n"
    if package != "dio_lightning":
        return "\n\n".join([title, *(f"::: {package}.{name}" for name in names)]) + "\n"
    homes = {
        name: home
        for home in reversed(packages())
        if home != package
        for name in public(ROOT / home.replace(".", "/") / "__init__.py")
    }
    rows = [f"| [`{name}`][{homes[name]}.{name}] | `{homes[name]}` |" for name in names if name in homes]
    rest = [f"::: {package}.{name}" for name in names if name not in homes]
    return "\n\n".join([title, "\n".join(["| name | package |", "|---|---|", *rows]), *rest]) + "\n"


def place(path: str) -> str | None:
    """Where a file of the repository lies among the site's sources, None if it has no place there."""
    path = HOME.get(path, path)
    file = ROOT / path
    package = posixpath.dirname(path).replace("/", ".")
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if file.name == "__init__.py" and package in packages():
        return f"reference/{package}.md"
    if file.suffix in (".md", *COPIED):
        return path
    if file.is_dir() or file.suffix in SHOWN or not file.suffix:
        return f"source/{path}.md"
    return None


def shown(path: str) -> str:
    """The page of a file that is no page: its text, or of a folder the names of its files."""
    file = ROOT / path
    if not file.is_dir():
        return f"# `{path}`\n\n```{SHOWN.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8').rstrip()}\n```\n"
    inside = sorted(child for child in file.iterdir() if child.name[0] not in "._")
    rows = [
        f"- [{child.name}]({child.name})" if child.suffix in (*SHOWN, ".md", *COPIED) else f"- {child.name}"
        for child in inside
    ]
    return "\n".join([f"# `{path}/`", "", *rows, ""])


def text_of(path: str) -> str:
    """The Markdown of a page, by the file of the repository that it shows, before its links are those of the site."""
    return (ROOT / path).read_text(encoding="utf-8") if path.endswith(".md") else shown(path)


def linked(pages: list[str]) -> list[str]:
    """Files outside docs/ that pages lead to, directly or through one another."""
    todo, reached = [*pages], set(pages)
    while todo:
        page = todo.pop()
        if page.endswith(COPIED) or (place(page) or "").startswith("reference/"):
            continue
        base = f"{page}/" if (ROOT / page).is_dir() else page
        for link in links(text_of(page)):
            path = target(base, link)[0]
            path = HOME.get(path, path)
            if not link.startswith(WORLD) and path not in reached and place(path) and (ROOT / path).exists():
                reached.add(path)
                todo.append(path)
    return sorted(path for path in reached if not path.startswith("docs/"))


def in_site(page: str, text: str) -> str:
    """A page's text with links as the site has them; where a file has no place there, its name stays."""
    here = posixpath.dirname(place(page.rstrip("/")) or "")

    def leads(link: re.Match[str]) -> str:
        if link[2].startswith(WORLD):
            return link[0]
        path, anchor = target(page, link[2])
        there = place(path)
        if there is None or not (ROOT / path).exists():
            return link[0]
        return f"{link[1]}{posixpath.relpath(there, here or '.')}{'#' + anchor if anchor else ''}{link[3]}"

    return outside_code(text, lambda prose: LINK.sub(leads, prose))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with everything changed but its code."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(text[end:])])


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """MkDocs asks which files the site has: those of docs/, what they lead to, and the reference."""
    from mkdocs.structure.files import File, InclusionLevel

    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    nav = [uri for uri in named(config.nav) if (ROOT / uri).is_file()]
    for path in linked([*pages, *nav]):
        uri = str(place(path))
        if uri.startswith("reference/"):
            continue
        if path.endswith(COPIED):
            file = File.generated(config, uri, abs_src_path=str(ROOT / path))
        else:
            base = f"{path}/" if (ROOT / path).is_dir() else path
            file = File.generated(config, uri, content=in_site(base, text_of(path)))
            file.inclusion = InclusionLevel.INCLUDED if uri in nav else InclusionLevel.NOT_IN_NAV
        files.append(file)
    for package in packages():
        file = File.generated(config, f"reference/{package}.md", content=reference(package))
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def named(nav: Any) -> Iterator[str]:  # noqa: ANN401
    """Every page that a navigation names."""
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else [nav]:
        if isinstance(entry, str):
            yield entry
        else:
            yield from named(entry)


def on_page_markdown(markdown: str, page: "Page", **_: object) -> str:
    """MkDocs asks for the text of a page: what lies outside of docs/ has been brought here already."""
    generated = page.file.generated_by is not None
    return markdown if generated else in_site(f"docs/{page.file.src_uri}", markdown)


def on_post_page(output: str, page: "Page", **_: object) -> str:
    """MkDocs shows a finished page: every public name of a package must stand on its page of the reference."""
    package = page.file.src_uri.removeprefix("reference/").removesuffix(".md")
    if not page.file.src_uri.startswith("reference/") or package == "dio_lightning":
        return output
    from mkdocs.exceptions import PluginError

    names = public(ROOT / package.replace(".", "/") / "__init__.py")
    if missing := [name for name in names if f'id="{package}.{name}"' not in output]:
        raise PluginError(f"{package}: the reference lacks {', '.join(missing)}")
    return output
