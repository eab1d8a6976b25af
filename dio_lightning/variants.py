"""What was changed in a model at test time, in words for a table: "FreeForm, iterations [200, 100, 50]"."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dio_lightning.arguments import CONFIG, Place, content_of, find, load, short, split
from dio_lightning.usage import named_class

TRAINING = ("objective", "optimizer", "scheduler")
"""Parts of a model that a test does not use."""


def variant(words: Sequence[str], trained: bool) -> str:
    """The settings of the model that differ from those of its checkpoint, or from those of its config without one.

    Args:
        words: the command line; the config of the checkpoint is the first.
        trained: whether there is one. Other configs change its settings then, else they are what is changed.
    """
    options = split(words[1:])[1]
    configs = [content_of(option) or {} for option in options if option.name in CONFIG]
    base = configs[:1] if trained else configs
    changed: dict[Place, Any] = {}
    for config in configs[1:] if trained else []:
        changed |= dict(_leaves(config.get("model"), ("model",)))
    changed |= {o.place: _value(o.value) for o in options if o.name not in CONFIG and o.place[:1] == ("model",)}
    return ", ".join(filter(None, (_words(place, value, base) for place, value in changed.items())))


def _words(place: Place, value: Any, base: Sequence[object]) -> str:  # noqa: ANN401
    """One change; empty where it is none, or a test does not see it."""
    if len(place) < 2 or place[1] in TRAINING:
        return ""
    before = next((part for config in reversed(base) if (part := find(config, place)) is not None), None)
    if isinstance(before, Mapping) and isinstance(before.get("class_path"), str):
        before = before["class_path"]
    if isinstance(value, str) and named_class(value) is not None:
        return "" if isinstance(before, str) and short(before) == short(value) else short(value)
    return "" if value == before else f"{place[-1]} {value}"


def _leaves(part: object, place: Place) -> Iterator[tuple[Place, Any]]:
    """Settings and class names of a part of a config."""
    if not isinstance(part, Mapping):
        yield place, part
        return
    if "class_path" in part:
        yield place, part["class_path"]
    inside = part.get("init_args")
    for key, value in {**part, **(inside if isinstance(inside, Mapping) else {})}.items():
        if key not in ("class_path", "init_args"):
            yield from _leaves(value, (*place, key))


def _value(text: str | None) -> Any:  # noqa: ANN401
    try:
        return load(text or "")
    except ValueError:
        return text
