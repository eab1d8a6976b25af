"""What a model says of itself: what it was trained on, how it scores, where it fails."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

CARD = "dio_lightning_card"
"""Key of a weights file's metadata under which its card lies, as YAML text."""


@dataclass(frozen=True)
class Card:
    """What comes with published weights.

    Attributes:
        about: one sentence: which images it registers, and how it came about.
        data: what it was trained on, and on how many people.
        scores: a test to its results, both in words.
        limits: where it is not to be trusted, a sentence each.
        seed: of the training.
        command: that trained it.
        commit: of this repository, at which the command was run.
        version: of the package that wrote the file.
    """

    about: str
    data: str
    scores: dict[str, str]
    limits: list[str]
    seed: int
    command: str
    commit: str
    version: str = ""

    @classmethod
    def parsed(cls, text: str, where: str) -> "Card":
        """The card of a YAML text.

        Raises:
            ValueError: if it is no card; `where` says whose.
        """
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{where}: its card is no YAML ({' '.join(str(error).split())})") from error
        names = {field.name for field in fields(cls)}
        needed = names - {"version"}
        content = content if isinstance(content, dict) else {}
        if problems := [*(f"no {name}" for name in sorted(needed - {*content})), *_unknown(content, names)]:
            raise ValueError(f"{where}: its card has {', '.join(problems)}, expected {', '.join(sorted(needed))}")
        kinds: dict[str, type] = {"scores": dict, "limits": list, "seed": int}
        for name, value in content.items():
            if not isinstance(value, kind := kinds.get(name, str)):
                raise ValueError(f"{where}: {name} of its card is {value!r}, expected a {kind.__name__}")
        return cls(**content)

    def text(self) -> str:
        """As YAML, which `parsed` reads."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True, width=120)


def card_of(weights: Path) -> Card:
    """The card of a weights file, of which nothing else is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a .safetensors file, or one without a card.
    """
    if not weights.is_file():
        raise FileNotFoundError(f"weights {weights} do not exist")
    try:
        with safe_open(weights, "np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{weights} is not a readable safetensors file ({error})") from error
    if CARD not in metadata:
        raise ValueError(f"{weights} has no card: `dio-lightning export --card` writes one")
    return Card.parsed(metadata[CARD], str(weights))


def _unknown(content: dict[Any, Any], names: set[str]) -> list[str]:
    return [f"an unknown {key}" for key in content if key not in names]
