"""SVG in light and dark, written by hand: what the pictures of the concept pages are made of."""

from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

Range = tuple[float, float]
STYLE = """text { font-family: system-ui, sans-serif; font-size: 14px; fill: #1f2328; }
    .m { text-anchor: middle; } .e { text-anchor: end; } .t { font-size: 16px; font-weight: 600; }
    .p { fill: #ffffff; } .g { stroke: #c3cad2; stroke-width: 1; fill: none; }
    .k { stroke: #5f6b78; stroke-width: 1.6; fill: none; }
    .a { stroke: #0072b2; stroke-width: 2.4; fill: none; } .b { stroke: #d55e00; stroke-width: 2.4; fill: none; }
    .c { stroke: #007a5a; stroke-width: 2.4; fill: none; stroke-dasharray: 7 4; }
    .fa { fill: #0072b2; } .fb { fill: #d55e00; } .fc { fill: #007a5a; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; } .p { fill: #0d1117; } .g { stroke: #3a434d; } .k { stroke: #9aa7b4; }
      .a { stroke: #56b4e9; } .b { stroke: #f0a05a; } .c { stroke: #3fd0a4; }
      .fa { fill: #56b4e9; } .fb { fill: #f0a05a; } .fc { fill: #3fd0a4; }
    }"""


class Drawing:
    """An SVG of this size, in light and dark; colours are those of Okabe and Ito, which anybody can tell apart."""

    def __init__(self, width: int, height: int, says: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(says)}">',
            f"  <style>\n    {STYLE}\n  </style>",
            '  <defs><marker id="h" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto"><path class="fb" d="M0 0L10 5L0 10z"/></marker></defs>',
            f'  <rect class="p" width="{width}" height="{height}" rx="12"/>',
        ]

    def line(self, points: Sequence[tuple[float, float]], kind: str, arrow: bool = False) -> None:
        """A polyline through points in pixels."""
        end = ' marker-end="url(#h)"' if arrow else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'  <polyline class="{kind}" points="{path}"{end}/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 4.5) -> None:
        """A filled circle."""
        self.parts.append(f'  <circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """A line of text; `m` is centred, `e` ends here, `t` is a title."""
        self.parts.append(f'  <text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>')

    def svg(self) -> str:
        """The file."""
        return "\n".join([*self.parts, "</svg>", ""])


class Axes:
    """Numbers to pixels: x from left to right, y upwards."""

    def __init__(
        self, drawing: Drawing, corner: tuple[float, float], size: tuple[float, float], x: Range, y: Range
    ) -> None:
        self.drawing, self.corner, self.size, self.x, self.y = drawing, corner, size, x, y
        (left, top), (width, height) = corner, size
        drawing.line([(left, top), (left, top + height), (left + width, top + height)], "k")

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        (left, top), (width, height) = self.corner, self.size
        across, up = ((v - low) / (high - low) for v, (low, high) in ((x, self.x), (y, self.y)))
        return left + width * across, top + height * (1 - up)

    def curve(self, function: Callable[[float], float], kind: str) -> None:
        """The graph of a function."""
        low, high = self.x
        places = [low + (high - low) * i / 60 for i in range(61)]
        self.drawing.line([self.at(x, min(max(function(x), self.y[0]), self.y[1])) for x in places], kind)

    def stairs(self, states: Sequence[float], kind: str) -> None:
        """z, f(z), f(f(z)), ... as the staircase between a graph and the diagonal."""
        corners = [self.at(states[0], states[0])]
        for z, fz in pairwise(states):
            corners += [self.at(z, fz), self.at(fz, fz)]
        self.drawing.line(corners, kind)
        for z, fz in pairwise(states):
            self.drawing.dot(*self.at(z, fz), f"f{kind}")
