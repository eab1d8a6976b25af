"""The command line of an experiment before it is parsed: options in any order, and what a change of class leaves over.

jsonargparse reads from left to right: an option of a class before the class is named, or before the config that names
it, is refused; and when the class changes, it keeps every setting whose name the new class knows too.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from dio_lightning.usage import declaration, named_class, parameters

CONFIG = ("--config", "-c")
PLAIN = (bool, int, float, str)
Place = tuple[str, ...]
"""Keys from the top of a config to a part, without init_args: ("model", "layer", "solver")."""


@dataclass
class Option:
    """An option and the values behind it, as typed."""

    words: list[str]

    @property
    def name(self) -> str:
        """--data.root, also of --data.root=X."""
        return self.words[0].partition("=")[0]

    @property
    def place(self) -> Place:
        """Which part or setting it is about."""
        parts = self.name.lstrip("-").rstrip("+").split(".")
        return tuple(part for part in parts if part not in ("init_args", "class_path"))

    @property
    def value(self) -> str | None:
        """What it is set to; None without a value."""
        _, sign, text = self.words[0].partition("=")
        return text if sign else (self.words[1] if len(self.words) > 1 else None)


@dataclass(frozen=True)
class Change:
    """A part that became another class, and settings of the old one that the new one would have understood."""

    place: Place
    old: str
    new: str
    left: dict[str, Any] = field(default_factory=dict)


def split(words: Sequence[str]) -> tuple[list[str], list[Option]]:
    """The words before the first option, and the options."""
    first: list[str] = []
    options: list[Option] = []
    for word in words:
        if re.match(r"--[A-Za-z]|-[a-z]($|=)", word):
            options.append(Option([word]))
        elif options:
            options[-1].words.append(word)
        else:
            first.append(word)
    return first, options


def ordered(words: Sequence[str]) -> list[str]:
    """The same options, configs first and a class before its settings; otherwise in the order that they were typed.

    A part that is named again behind its settings (a second entry of a list) stays where it is.
    """
    first, options = split(words)
    configs = [option for option in options if option.name in CONFIG]
    others: list[Option] = []
    for option in (option for option in options if option.name not in CONFIG):
        places = [other.place for other in others]
        below = next((i for i, place in enumerate(places) if _below(place, option.place)), None)
        named_before = option.place in places
        others.insert(len(others) if below is None or named_before else below, option)
    return [*first, *(word for option in [*configs, *others] for word in option.words)]


def without_leftovers(words: Sequence[str]) -> tuple[list[str], list[Change]]:
    """The command line with configs in which a part of another class keeps nothing that means something else.

    Where a later config or an option names another class for a part, that part keeps the settings that both classes
    declare alike, with the same type and default (`sigma` of Descent and GaussNewton, `clip` of all data sets on disk);
    others, such as `root` of Learn2Reg and of PairsCSV, start from the new class's default.
    """
    first, options = split(words)
    configs = [content_of(option) if option.name in CONFIG else None for option in options]
    changes: list[Change] = []
    for index, option in enumerate(options):
        content = configs[index]
        named = dict(_classes(content)) if content is not None else _choice(option)
        earlier = [config for config in configs[:index] if config is not None]
        for place, name in named.items():
            change = _changed(place, name, earlier)
            changes += [change] if change is not None else []
            _keep_own_defaults(place, name, [*earlier, *([content] if content is not None else [])])
    result = list(first)
    for option, content in zip(options, configs, strict=True):
        same = content is None or content == content_of(option)
        result += option.words if same else ["--config", yaml.safe_dump(content, sort_keys=False)]
    given = {option.place for option in options}
    kept = [
        Change(c.place, c.old, c.new, {k: v for k, v in c.left.items() if (*c.place, k) not in given}) for c in changes
    ]
    return result, kept


def load(text: str) -> Any:  # noqa: ANN401
    """YAML as jsonargparse reads it: 1e-3 is a number.

    Raises:
        ValueError: if it is not YAML.
    """
    try:
        return get_loader("yaml")(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def find(config: object, place: Place) -> Any:  # noqa: ANN401
    """The part of a config at a place, None if it has none."""
    for key in place:
        if not isinstance(config, Mapping):
            return None
        inside = config.get("init_args")
        config = inside[key] if isinstance(inside, Mapping) and key in inside else config.get(key)
    return config


def short(name: str) -> str:
    """A class's own name, without its module."""
    return name.rpartition(".")[2]


def _below(place: Place, other: Place) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def content_of(option: Option) -> dict[str, Any] | None:
    """A config that `--config` names or spells out; None where jsonargparse has to say what is wrong with it."""
    text = option.value or ""
    try:
        if "\n" not in text and Path(text).is_file():
            text = Path(text).read_text(encoding="utf-8")
        content = load(text)
    except (ValueError, OSError):
        return None
    return content if isinstance(content, dict) else None


def _classes(content: object, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Every part of a config that names its class, from the outside in."""
    if not isinstance(content, Mapping):
        return
    if isinstance(content.get("class_path"), str):
        yield place, content["class_path"]
    inside = content.get("init_args")
    for key, value in {**content, **(inside if isinstance(inside, Mapping) else {})}.items():
        if key not in ("class_path", "init_args", "dict_kwargs"):
            yield from ((place_, name) for place_, name in _classes(value, (*place, key)))
            if isinstance(value, str) and place and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value):
                yield (*place, key), value


def _choice(option: Option) -> dict[Place, str]:
    """The class that an option of the command line names, or the classes of the part that it spells out."""
    value = option.value or ""
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value):
        return {option.place: value}
    if not value.startswith("{"):
        return {}
    try:
        return {(*option.place, *place): name for place, name in _classes(load(value))}
    except ValueError:
        return {}


def _changed(place: Place, new: str, earlier: Sequence[dict[str, Any]]) -> Change | None:
    """Cut the part at a place in the earlier configs to what is left of it in the new class."""
    parts = [part for config in earlier if isinstance(part := find(config, place), dict)]
    old = next((part["class_path"] for part in reversed(parts) if isinstance(part.get("class_path"), str)), None)
    after = named_class(new)
    # what is no class jsonargparse refuses, with a sentence about what the user typed
    if old is None or short(old) == short(new) or after is None:
        return None
    before = named_class(old)
    left: dict[str, Any] = {}
    for part in parts:
        settings = part.get("init_args") or {}
        for key in list(settings):
            now = declaration(after, key)
            if now is None or before is None or declaration(before, key) != now:
                value = settings.pop(key)
                left |= {key: value} if now is not None else {}
        part.pop("dict_kwargs", None)
        if "class_path" in part:
            part["class_path"] = new
    return Change(place, old, new, left)


def _keep_own_defaults(place: Place, new: str, configs: Sequence[dict[str, Any]]) -> None:
    """Write down what the default of a part would replace.

    jsonargparse takes the settings of that object for those of any class named in its stead, if their names agree.
    """
    above = [part for config in configs if isinstance(part := find(config, place[:-1]), dict)]
    parent = next((part["class_path"] for part in reversed(above) if isinstance(part.get("class_path"), str)), "")
    after, owner = named_class(new), named_class(parent)
    declared = declaration(owner, place[-1]) if owner is not None and place else None
    if after is None or declared is None or type(declared[1]) is after:
        return
    both = [
        key for key in parameters(after) if declaration(type(declared[1]), key) not in (None, declaration(after, key))
    ]
    defaults = {
        key: setting[1] for key in both if (setting := declaration(after, key)) and isinstance(setting[1], PLAIN)
    }
    if not defaults:
        return
    settings: dict[str, Any] = above[-1].setdefault("init_args", {})
    part = settings.get(place[-1])
    part = part if isinstance(part, dict) else {"class_path": new}
    given = part.get("init_args")
    settings[place[-1]] = part | {"init_args": defaults | (given if isinstance(given, dict) else {})}
