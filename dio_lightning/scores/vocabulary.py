"""All scores, in the order of files and tables. A new one is a function in `measures` and its entry here."""

from collections.abc import Iterable

from dio_lightning.scores import measures
from dio_lightning.scores.score import SUFFIX, Kind, Score, percent, seconds
from dio_lightning.usage import nearest

LABELS, MASKS, POINTS = ((f"fixed_{what}", f"moving_{what}") for what in ("label", "mask", "points"))

# fmt: off
SCORES: tuple[Score, ...] = (
    Score("dice", "Dice", "", 3, "larger", LABELS, measures.dice, labelled=True),
    Score("hd95", "HD95 (mm)", "mm", 2, "smaller", LABELS, measures.hd95, labelled=True, option="surface"),
    Score("hd", "HD (mm)", "mm", 2, "smaller", LABELS, measures.hd, labelled=True, option="surface", shown=False),
    Score("hd_missed", "structures lost", "", 2, "smaller", LABELS, measures.hd_missed, option="surface", constant=True,
          shown=False),
    Score("mask_dice", "mask Dice", "", 3, "larger", MASKS, measures.mask_dice, shown=False),
    Score("tre", "TRE (mm)", "mm", 2, "smaller", POINTS, measures.tre),
    Score("folds", "folds (%)", "%", percent, "smaller", (), measures.folds),
    Score("sdlogj", "SD log J (L2R)", "", 3, "smaller", (), measures.sdlogj),
    Score("std_logj", "SD log J", "", 3, "smaller", (), measures.std_logj),
    Score("seconds", "s a pair", "s", seconds, "smaller", kind="cost"),
    Score("peak_mb", "memory (MiB)", "MiB", 0, "smaller", kind="cost", shown=False),
    Score("steps", "steps", "", 0, "smaller", kind="solver"),
    Score("converged", "converged", "", 2, "larger", kind="solver", shown=False),
    Score("residual", "residual", "", 2, "smaller", kind="solver", shown=False),
)
# fmt: on
_BY_NAME = {score.name: score for score in SCORES}


def of_kind(kind: Kind) -> tuple[str, ...]:
    """Names of the scores of a kind."""
    return tuple(score.name for score in SCORES if score.kind == kind)


def look_up(name: str) -> Score:
    """The score of a name; one that a file alone has is called as there, and neither more nor less of it is better.

    The score of u = 0, NAME_identity, is that of NAME.
    """
    plain = name.removesuffix(SUFFIX)
    return _BY_NAME.get(plain) or Score(plain, plain.replace("_", " "), needs=("fixed",))


def expect(names: Iterable[str], available: Iterable[str], where: str) -> None:
    """Refuse a name that is no score, and one that is a score but not available.

    Args:
        names: what was asked for.
        available: scores that can be had, those of the user's own files among them.
        where: the option, to begin the sentence with.

    Raises:
        ValueError: with the nearest name, or the scores there are.
    """
    have = list(available)
    for name in names:
        if name in have:
            continue
        if name in _BY_NAME:
            raise ValueError(f"{where}: no run has the score {name!r}, they have {', '.join(have)}")
        hint = nearest(name, [*have, *_BY_NAME])
        raise ValueError(f"{where}: there is no score {name!r}, expected some of {', '.join(have)}{hint}")
