"""From a displacement and its pair to one row of numbers."""

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.pair import Pair
from dio_lightning.scores.registered import Registered, ScoreOptions
from dio_lightning.scores.rows import Row
from dio_lightning.scores.score import SUFFIX, Score
from dio_lightning.scores.vocabulary import SCORES, of_kind

Scores = tuple[Row, list[Row]]


def one_pair(pair: Pair, index: int) -> Pair:
    """Sample `index` of a batch, as a batch of one."""
    return Pair(**{key: value[index : index + 1] for key, value in pair.items()})  # pyright: ignore


def score_pair(u: Float[Tensor, "1 d *s"], pair: Pair, options: ScoreOptions) -> Scores:
    """Scores of a batch of one, u in voxels: one row, and one row per label that counts.

    Only scores whose inputs the pair holds. <score>_identity are those of u = 0. dice, hd95 and hd are means over
    labels, hd95 and hd without the hd_missed structures that the warp lost; mask_dice is that of the two masks.

    Raises:
        ValueError: masked scores are asked for and the pair has no fixed_mask.
    """
    if options.masked and "fixed_mask" not in pair:
        raise ValueError("masked scores need pairs with a fixed_mask")
    row, labels = _scores(Registered(u, pair, options), SCORES)
    still, still_labels = _scores(
        Registered(torch.zeros_like(u), pair, options), [score for score in SCORES if score.identity]
    )
    for label, before in zip(labels, still_labels, strict=True):
        label |= {f"{name}{SUFFIX}": value for name, value in before.items() if name != "label"}
    return row | {f"{name}{SUFFIX}": value for name, value in still.items()}, labels


def score_some(u: Float[Tensor, "1 d *s"], pair: Pair, options: ScoreOptions, names: Collection[str]) -> Scores:
    """As `score_pair`, these scores alone, and none of u = 0."""
    return _scores(Registered(u, pair, options), [score for score in SCORES if score.name in names])


def score_batch(
    u: Float[Tensor, "b d *s"], pair: Pair, options: ScoreOptions, names: Collection[str]
) -> dict[str, Float[Tensor, " b"]]:
    """Some scores of every sample, u in voxels of the fixed grid; NaN where a pair has none."""
    rows = [score_some(u[i : i + 1], one_pair(pair, i), options, names)[0] for i in range(len(u))]
    columns = {name: [float(row.get(name, torch.nan)) for row in rows] for name in names}
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}


def solver_report(outputs: Mapping[str, object], index: int) -> Row:
    """Steps, convergence (0 or 1) and residual of one sample, as far as the step reported them."""
    reported = {name: torch.as_tensor(outputs[name]).flatten() for name in of_kind("solver") if name in outputs}
    return {name: float(values[index if len(values) > 1 else 0]) for name, values in reported.items()}


def _scores(registered: Registered, scores: Collection[Score]) -> Scores:
    """The row of a pair, and the rows of its labels."""
    row: Row = {}
    labels: list[Row] = []
    for score in scores:
        asked = not score.option or getattr(registered.options, score.option)
        if score.compute is None or not asked or not all(key in registered.pair for key in score.needs):
            continue
        value = score.compute(registered)
        if value is None:
            continue
        if score.labelled:
            values = torch.as_tensor(value)
            labels = labels or [{"label": label} for label in registered.labels]
            for label, one in zip(labels, values.tolist(), strict=True):
                label[score.name] = one
            value = values.nanmean()
        row[score.name] = value if isinstance(value, int) else float(value)
    return row, labels
