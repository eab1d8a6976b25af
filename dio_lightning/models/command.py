"""`dio-lightning models`: the models that come with the package, and the card of one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import ASCII, ROUNDED
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dio_lightning.models.card import Card, card_of
from dio_lightning.models.catalogue import model_paths, weights_path
from dio_lightning.usage import CommandParser


def models(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = CommandParser(
        "dio-lightning models",
        description="Trained weights that come with the package. A name goes wherever a file of weights goes: "
        "test --ckpt_path NAME, register --model NAME, dio_lightning.load(NAME).",
    )
    parser.add_argument("name", nargs="?", help="show its card: data, scores, limits (also of a .safetensors file)")
    parser.add_argument("--json", action="store_true", help="print cards as JSON, and nothing else")
    options = parser.parse_args(argv)
    paths = model_paths() if options.name is None else {options.name: weights_path(options.name)}
    cards = {name: card_of(path) for name, path in paths.items()}
    if options.json:
        shown = {name: _content(card, paths[name]) for name, card in cards.items()}
        print(json.dumps(shown if options.name is None else shown[options.name], indent=2, ensure_ascii=False))
    elif options.name is None:
        _show(listing(cards, paths))
    else:
        _show(sheet(options.name, cards[options.name]))


def listing(cards: Mapping[str, Card], paths: Mapping[str, Path]) -> Table:
    """A row a model."""
    table = Table("model", "MB", "what it registers", box=ROUNDED)
    for name, card in cards.items():
        table.add_row(escape(name), f"{paths[name].stat().st_size / 1e6:.1f}", escape(card.about))
    return table


def sheet(name: str, card: Card) -> Table:
    """The card of a model."""
    table = Table(title=escape(name), box=ROUNDED, show_header=False)
    table.add_row("about", escape(card.about))
    table.add_row("data", escape(card.data))
    for test, result in card.scores.items():
        table.add_row("score", escape(f"{test}: {result}"))
    for limit in card.limits:
        table.add_row("limit", escape(limit))
    table.add_row("trained by", escape(f"{card.command} (seed {card.seed}, commit {card.commit})"))
    table.add_row("written by", escape(f"dio-lightning {card.version}"))
    return table


def _show(table: Table) -> None:
    """Print a table; plain lines when the output is no terminal."""
    console = Console()
    if not console.is_terminal:
        console, table.box = Console(width=160, no_color=True), ASCII
    console.print(table, highlight=False)


def _content(card: Card, path: Path) -> dict[str, object]:
    return {**asdict(card), "bytes": path.stat().st_size}
