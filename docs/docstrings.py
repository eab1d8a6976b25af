"""Docstrings in the site: they are plain text with code in backticks, so signs that Markdown would take are escaped."""

import re
from typing import Any

import griffe

CODE = re.compile(r"(`[^`]*`)")
SIGNS = re.compile(r"(?<!\\)([*\[\]<])")
NAME = re.compile(r"^\s*\*{1,2}\w+:", re.MULTILINE)
"""An argument such as `*inputs:`, whose name the signature has too."""


def plain(text: str) -> str:
    """A docstring whose shapes (b, d, *s) and brackets stay what they are."""
    names = {
        found.start() + found[0].index("*") + i for found in NAME.finditer(text) for i in range(found[0].count("*"))
    }
    parts, at = [], 0
    for i, part in enumerate(CODE.split(text)):
        start = at
        at += len(part)
        if i % 2 == 0:
            part = SIGNS.sub(lambda sign: sign[0] if start + sign.start() in names else f"\\{sign[0]}", part)
        parts.append(part)
    return "".join(parts)


class Plain(griffe.Extension):
    """What mkdocstrings calls for every object that it reads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401
        """Escape an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
