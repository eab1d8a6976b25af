"""What a mistyped option or class may have meant: one sentence with the nearest name, or with the choices."""

import argparse
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any, NoReturn, get_args, get_origin

from dio_lightning.errors import fail, one_sentence

UNCHOSEN = {
    "LightningDataModule": "no data set chosen yet: add --config with a file that names one, or --data CLASS",
    "RegistrationModule": "no model chosen yet: add --config with a file that names one, or --model CLASS",
}
"""A base class in a parser's complaint: its options came and nobody said which subclass is meant."""
OURS = ("data_modules", "dio_lightning")
ROOTS = (*OURS, "torch", "lightning")
"""Packages whose classes are offered."""
GONE = {"rivals": "--rivals has gone: which method loses less stands in the table of drops that `study shift` writes"}
"""Options of earlier versions, and what serves instead."""
MANY = 20
"""Of more classes than this, ours alone are listed."""
TOP = {"data": "LightningDataModule", "model": "RegistrationModule"}


class CommandParser(argparse.ArgumentParser):
    """A command's parser, whose errors are one sentence with the nearest option."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with code 2."""
        name = self.prog.removeprefix("dio-lightning ")
        fail(f"{name}: {explained(message, options_of(self))}")


def nearest(word: str, choices: Iterable[str]) -> str:
    """A clause to append, which asks whether the choice nearest to the word was meant; empty if none is near."""
    spelt = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), spelt, 1, 0.65)
    return f", did you mean {spelt[close[0]]!r}?" if close else ""


def explained(message: str, options: Iterable[str] = ()) -> str:
    """A parser's message as one sentence that says what was probably meant.

    Args:
        message: of argparse or jsonargparse, of any number of lines.
        options: what the parser accepts, such as --trainer.max_epochs.
    """
    sentence = one_sentence(message)
    where = re.search(r" \(in (\S+)\)$", sentence)
    owner = where[1] if where else ""
    if owner.rpartition(".")[2] in UNCHOSEN and "there is no class" not in sentence:
        return UNCHOSEN[owner.rpartition(".")[2]]
    if missing := re.fullmatch(r"the following arguments are required: (.*)", sentence):
        return _required(missing[1], sentence)
    if unknown := re.search(r"there is no class '([^']+)'", sentence):
        return _no_class(unknown[1], sentence, owner)
    option = re.search(r"(?:Option '|unrecognized arguments: --)([\w.]+)", sentence)
    if option and option[1] in GONE:
        return GONE[option[1]]
    if option and owner:
        names = parameters(named_class(owner))
        return sentence + (nearest(option[1], names) or (f", its options are {', '.join(names)}" if names else ""))
    if option:
        return sentence + nearest(f"--{option[1]}", options)
    return sentence


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """All long options of a parser and of its commands."""
    options: list[str] = []
    for action in parser._actions:
        options += [text for text in action.option_strings if text.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            options += [text for name in list(action.choices or ()) for text in options_of(action.choices[name])]
    return options


def named_class(name: str) -> type | None:
    """The class of a dotted path, or of a bare name that a loaded package exports; None if there is none."""
    module, _, attribute = name.rpartition(".")
    if module:
        try:
            named = getattr(importlib.import_module(module), attribute, None)
        except ImportError:
            return None
        return named if isinstance(named, type) else None
    for loaded, content in list(sys.modules.items()):
        if _package(loaded) in ROOTS and isinstance(named := vars(content).get(name), type):
            return named
    return None


def owner_of(cls: type, name: str) -> type | None:
    """The class, of `cls` and its bases, that declares the parameter `name` of its construction; None if none does."""
    for base in cls.__mro__:
        if is_dataclass(base) and name in inspect.get_annotations(base):
            return base
        if is_dataclass(base) or "__init__" not in vars(base):
            continue
        signature = inspect.signature(vars(base)["__init__"]).parameters
        if name in signature and signature[name].kind not in (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        ):
            return base
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values()):
            return None
    return None


def declaration(cls: type, name: str) -> tuple[Any, Any] | None:
    """Type and default of a parameter of a class's construction, as they were declared; None if it has none such."""
    owner = owner_of(cls, name)
    if owner is None:
        return None
    parameter = inspect.signature(owner).parameters[name]
    return parameter.annotation, parameter.default


def parameters(cls: type | None) -> list[str]:
    """Names that the construction of a class accepts, those that its bases take too."""
    names: list[str] = []
    for base in cls.__mro__ if cls is not None else ():
        names += inspect.get_annotations(base) if is_dataclass(base) else ()
        if not is_dataclass(base) and "__init__" in vars(base):
            names += list(inspect.signature(vars(base)["__init__"]).parameters)[1:]
    return [name for name in dict.fromkeys(names) if cls is not None and owner_of(cls, name)]


def choices(annotation: Any) -> list[type]:  # noqa: ANN401
    """Concrete classes that a parameter of this type may be."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        below = [cls for child in annotation.__subclasses__() for cls in choices(child)]
        public = not annotation.__name__.startswith("_") and not inspect.isabstract(annotation)
        return [annotation] * (public and _package(annotation.__module__) in ROOTS) + below
    parts: Sequence[Any] = get_args(annotation)
    parts = parts[-1:] if get_origin(annotation) in (Callable, getattr(Callable, "__origin__", Callable)) else parts
    return [cls for part in parts for cls in choices(part)]


def _required(missing: str, sentence: str) -> str:
    sentences = [UNCHOSEN[TOP[name]] for name in re.findall(r"\b(?:data|model)\b", missing)]
    if len(sentences) == 2:
        return "neither data set nor model chosen yet: add --config with a file that names both, or --data and --model"
    return sentences[0] if sentences else sentence


def _no_class(name: str, sentence: str, owner: str) -> str:
    """The sentence, with where a class has moved to, the nearest name, or all."""
    key = sentence.partition(": ")[0]
    head = f"{key}: there is no class {name!r}"
    if own := _in_own_file(name):
        return head + own
    classes = {cls.__name__: cls for cls in _expected(key, owner if owner != name else "")}
    tail = name.rpartition(".")[2]
    if tail in classes and tail != name:
        return f"{head}, it is {_public(classes[tail])} now"
    listed = sorted(name for name, cls in classes.items() if len(classes) <= MANY or _package(cls.__module__) in OURS)
    hint = nearest(tail, classes)
    # a long list would push the name that was meant out of the sentence
    return (
        head
        + (f" (expected one of {', '.join(listed)})" if listed and not (hint and len(listed) > MANY) else "")
        + hint
    )


def _in_own_file(name: str) -> str:
    """What is wrong with the name of a class in a module of the user's; empty if it is none of theirs."""
    module, _, tail = name.rpartition(".")
    if not module or _package(module) in ROOTS:
        return ""
    try:
        content = vars(importlib.import_module(module))
    except ImportError as error:
        return f": {error}"
    own = [cls.__name__ for cls in content.values() if isinstance(cls, type) and cls.__module__ == module]
    return f" (in {module}: {', '.join(own) or 'no class'})" + nearest(tail, own)


def _expected(key: str, owner: str) -> list[type]:
    parts = key.split(".")
    if not owner and len(parts) == 1 and parts[0] in TOP:
        root = named_class(TOP[parts[0]])
        return [cls for cls in choices(root) if cls.__name__ not in UNCHOSEN]
    cls = named_class(owner or ("Trainer" if parts[0] == "trainer" else ""))
    declared = declaration(cls, parts[-1]) if cls is not None else None
    return choices(declared[0]) if declared is not None else []


def _package(module: str) -> str:
    return module.partition(".")[0]


def _public(cls: type) -> str:
    """The shortest dotted path that leads to a class."""
    parts = cls.__module__.split(".")
    paths = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    place = next(p for p in paths if getattr(sys.modules.get(p), cls.__name__, None) is cls)
    return f"{place}.{cls.__name__}"
