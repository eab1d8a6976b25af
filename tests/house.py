"""`make house`: how large the house is, whether imports run in circles, what an addition touches; no dependencies."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
PACKAGES = ("dio_lightning", "data_modules")
ADDITIONS = {
    "score": ("its function", "the list of scores"),
    "study": ("its file", "the list of studies"),
    "term": ("its file", "losses/__init__.py", "its test"),
    "method": ("modules/NAME.py", "modules/__init__.py", "tests/test_NAME.py", "experiments/lab/NAME.yaml"),
}
"""What an addition touches; tests that use tests/dummies.py add one of a kind to a copy of the house and run it."""


def files() -> list[Path]:
    """Every file of the library and of the data modules."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    """The module of a file: dio_lightning.fields.grid, and dio_lightning.fields for its __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def room(path: Path) -> str:
    """The package of a file, or its own module if it lies directly under the library."""
    parts = dotted(path).split(".")
    return ".".join(parts[:2]) if path.parent != ROOT / parts[0] else parts[0]


def at_import(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when a module is imported: neither those of a function nor those for type checkers."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody", "handlers"):
                inner = getattr(node, name, [])
                yield from at_import([part for part in inner if isinstance(part, ast.stmt | ast.ExceptHandler)])


def graph() -> dict[str, set[str]]:
    """For each module the modules of ours that it imports when it is imported."""
    modules = {dotted(path): path for path in files()}
    edges: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in at_import(ast.parse(path.read_text(encoding="utf-8")).body):
            if isinstance(node, ast.Import):
                wanted = {alias.name for alias in node.names}
            else:
                # `from dio_lightning.challenge import command` imports a module
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted = {i if i in modules else str(node.module) for i in inside}
            edges[name] |= (wanted & modules.keys()) - {name}
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or through others: each such set once, sorted."""
    reach: dict[str, set[str]] = {}
    for start in edges:
        todo, reached = [start], set()
        while todo:
            for module in edges.get(todo.pop(), ()):
                if module not in reached:
                    reached.add(module)
                    todo.append(module)
        reach[start] = reached
    both = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in edges if a in reach[a]}
    return sorted(sorted(circle) for circle in both)


def report() -> str:
    """The numbers, as a table and a few lines."""
    rooms: dict[str, list[int]] = {}
    for path in files():
        rooms.setdefault(room(path), []).append(lines(path))
    width = max(map(len, rooms))
    table = [f"{name:{width}}  {len(sizes):5}  {sum(sizes):6}" for name, sizes in sorted(rooms.items())]
    longest = max(files(), key=lines)
    sizes = [lines(path) for path in files()]
    loops = circles(graph())
    return "\n".join(
        [
            f"{'package':{width}}  files   lines",
            *table,
            f"{'all':{width}}  {len(sizes):5}  {sum(sizes):6}",
            "",
            f"median of a file: {median(sizes):g} lines; longest: {longest.relative_to(ROOT)}, {lines(longest)}",
            f"circles of imports: {len(loops)}" + "".join(f"\n  {' <-> '.join(loop)}" for loop in loops),
            *(
                f"a new {kind} touches {len(touched)} files: {', '.join(touched)}"
                for kind, touched in ADDITIONS.items()
            ),
        ]
    )


if __name__ == "__main__":
    print(report())
    sys.exit(bool(circles(graph())))
