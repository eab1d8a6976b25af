"""Why features find what intensities do not: the energy around the truth, and Dice with and without overlap."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from dio_lightning.scores.records import Record, Records, of_batch
from dio_lightning.studies.rendering import Line, Panel, draw, table, to_csv
from dio_lightning.studies.study import PairStudy, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dio_lightning.loaded import Loaded


@dataclass(frozen=True, kw_only=True)
class Landscape(PairStudy):
    """Of test pairs the energy that DIO descends on, over translations along an axis, and Dice before and after."""

    name = "landscape"
    reach: int = option(24, "how many offsets are taken to either side", metavar="N")
    every: float = option(2.0, "voxels from one offset to the next", float, metavar="VOXELS")

    def measure(self, loaded: "Loaded") -> Iterator[Record]:
        """Energies under (factor of the level, offset), Dice under 0 before and 1 after."""
        from dio_lightning.landscape import energies, without
        from dio_lightning.studies.watching import as_trained, score

        offsets = [self.every * place for place in range(-self.reach, self.reach + 1)]
        for ids, pair in loaded.batches(self.limit):
            for factor, values in energies(loaded.module, pair, offsets).items():
                for offset, energy in zip(offsets, values.tolist(), strict=True):
                    yield from of_batch(loaded.name, loaded.given, (factor, offset), ids, "energy", energy)
            for after, scores in enumerate([score(without(pair), pair, loaded), as_trained(loaded, pair)]):
                yield from of_batch(loaded.name, loaded.given, after, ids, "dice", scores["dice"].tolist())

    def tables(self, records: Records) -> list[str]:
        """The mean energy of every method, level and offset."""
        return [
            to_csv([dict(zip(("method", "level", "offset", "energy"), row, strict=True)) for row in _mean(records)])
        ]

    def markdown(self, records: Records) -> str:
        """Dice of the pairs whose labels overlap at the start, and of the others."""
        rows = []
        for name in records.methods:
            before, after = (records.pairs(name, "dice", when) for when in (0, 1))
            for kind, pairs in (
                ("yes", [p for p in before if before[p]]),
                ("no", [p for p in before if not before[p]]),
            ):
                dice = [after[p] for p in pairs]
                shown = [fmean(before[p] for p in pairs), fmean(dice), min(dice)] if pairs else []
                rows.append([name, kind, str(len(pairs)), *([f"{x:.3f}" for x in shown] or ["–"] * 3)])
        return table(["method", "overlap", "pairs", "Dice before", "after", "least"], rows) + "\n"

    def figure(self, records: Records) -> "Figure":
        """The energy over offsets, a panel a level; each method's is 1 where it is highest."""
        rows, panels = _mean(records), []
        for level in sorted({row[1] for row in rows}, reverse=True):
            lines = []
            for name in records.methods:
                x, y = zip(*((row[2], row[3]) for row in rows if row[:2] == (name, level)), strict=True)
                lines.append(Line(name, x, [energy / (max(y) or 1.0) for energy in y]))
            panels.append(Panel(f"voxels off the truth (level {level})", "energy", lines, across="linear"))
        return draw(*panels)


def _mean(records: Records) -> list[tuple[str, int, int, float]]:
    """Method, level, offset and the mean energy over pairs and seeds."""
    places = [(name, *at) for name in records.methods for at in records.conditions(name, "energy")]
    return [(name, level, x, records.moments(name, "energy", (level, x)).mean) for name, level, x in places]
