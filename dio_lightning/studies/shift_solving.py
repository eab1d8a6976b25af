"""Who finds the displacements of the shift study, and what they come to."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from dio_lightning.callbacks.cost import clock
from dio_lightning.callbacks.warming import warm_up
from dio_lightning.domains import Domain, Plan
from dio_lightning.features import Intensity
from dio_lightning.fields import on_one_grid
from dio_lightning.implicit import Adam, Never
from dio_lightning.layers import OptimizerLayer
from dio_lightning.loaded import Loaded
from dio_lightning.losses import LNCC
from dio_lightning.modules import Refinement
from dio_lightning.pair import Pair
from dio_lightning.scores import SCORES
from dio_lightning.scores.pairs import one_pair, score_some
from dio_lightning.scores.rows import PairId
from dio_lightning.scores.store import Solved, Store
from dio_lightning.studies.shift_report import NOTHING, RATE, REFINED, REGULARITY, WINDOW
from dio_lightning.transformations import Diffeomorphism
from dio_lightning.updates import ImageDescent

TAKEN = tuple(score.name for score in SCORES if score.kind == "pair" and score.shown)
"""Scores of a pair; beside them the seconds."""


@dataclass(frozen=True)
class Candidate:
    """A row of the table, one of its seeds: a name, the weights' name and hash, and how a displacement is found."""

    name: str
    weights: str
    digest: str
    register: Callable[[Pair], Tensor]
    keeps_grid: Callable[[Pair], bool]
    """Whether it takes the moving image of a pair as it is, on whatever grid."""
    refine: Refinement | None = None
    module: LightningModule | None = None
    """The method, to be run once before it is timed."""

    def key(self, domain: Domain, plan: Plan) -> str:
        """A hash of all that its scores depend on, but for the images."""
        refine = self.refine and (self.refine.layer.iterations, self.refine.features.levels, WINDOW, REGULARITY, RATE)
        parts = [self.digest, str(refine), json.dumps(domain.section, sort_keys=True), str(plan.scores), *TAKEN]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def refinement(steps: int, factor: int) -> Refinement | None:
    """Instance optimisation on local correlation, on a grid that is `factor` times coarser; None for no steps."""
    update = ImageDescent(LNCC(WINDOW), regularity=REGULARITY)
    layer = OptimizerLayer([steps], update, Adam(RATE), Diffeomorphism(), stop=Never(), field_sigma=0.0)
    return Refinement(layer, Intensity((factor,))) if steps else None


def candidates(loaded: Sequence[Loaded], options: Sequence[str], refine: Refinement | None) -> list[Candidate]:
    """The rows in order: no registration, then each method as it is and, if it was trained, refined."""
    rows = [Candidate(NOTHING, "", "", _nothing, lambda pair: True)]
    for one in loaded:
        path = str(one.weights) if not one.weights.is_absolute() else one.weights.name
        module = one.module.to(loaded[0].module.device)
        plain = Candidate(
            one.name, path, _digest(one.weights, options), module.register, module.keeps_grid, None, module
        )
        rows.append(plain)
        trained = any(True for _ in module.parameters())
        if refine is not None and trained:
            refine = refine.to(module.device)
            rows.append(replace(plain, name=one.name + REFINED, refine=refine, keeps_grid=_one_grid))
    return rows


def check(loaded: Sequence[Loaded]) -> None:
    """Weights of one name are of one method, and no name is that of another row.

    Raises:
        ValueError: if not.
    """
    kinds: Mapping[str, Loaded] = {one.name: one for one in reversed(loaded)}
    for one in loaded:
        other = kinds[one.name]
        if type(one.module) is not type(other.module):
            raise ValueError(
                f"{one.weights} and {other.weights} are no seeds of one method: give them names, NAME=FILE"
            )
        if one.name == NOTHING or one.name.endswith(REFINED):
            raise ValueError(f"{one.name!r} is the name of a row that the study adds: choose another")


def _one_grid(pair: Pair) -> bool:
    """Instance optimisation compares the images themselves, on the fixed grid."""
    return "moving_affine" not in pair


def _nothing(pair: Pair) -> Tensor:
    """The displacement zero."""
    fixed = pair["fixed"]
    return fixed.new_zeros(len(fixed), fixed.ndim - 2, *fixed.shape[2:])


def _digest(weights: Path, options: Sequence[str]) -> str:
    """Of the weights, the config beside them and the overrides."""
    beside = weights.with_suffix(".yaml")
    digest = hashlib.sha256("\n".join(options).encode())
    for file in (weights, beside) if beside.is_file() else (weights,):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def measure(
    domains: list[tuple[Domain, LightningDataModule]],
    plan: Plan,
    first: Loaded,
    rows: Sequence[Candidate],
    store: Store,
    limit: int | None,
) -> None:
    """All candidates on all pairs of each domain, `limit` at most, into the store. The list is used up."""
    cold = [row.module for row in rows if row.module is not None and row.refine is None]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("pairs", total=0)
        while domains:
            # popped, so that its images are freed before the next ones are read
            domain, data = domains.pop(0)
            data.prepare_data()
            data.setup("test")
            store.structures[domain.name] = getattr(data, "label_names", {})
            count = len(data.test_dataloader().dataset)
            more = min(count, count if limit is None else limit) * len(rows)
            progress.update(task, total=(progress.tasks[0].total or 0) + more, description=domain.name)
            for ids, pair in replace(first, data=data).batches(limit):
                while cold:
                    warm_up(cold.pop(), pair)
                for row in solve(rows, domain, plan, ids, pair, store):
                    store.add(row)
                    progress.advance(task)


def solve(
    rows: Sequence[Candidate], domain: Domain, plan: Plan, ids: Sequence[PairId], pair: Pair, store: Store
) -> Iterator[Solved]:
    """The rows of one batch; a method's displacement is found once for its two rows."""
    last: tuple[str, Tensor, float] | None = None
    for row in rows:
        key = row.key(domain, plan)
        earlier = [store.get(row.name, row.weights, domain.name, one, key) for one in ids]
        if all(earlier):
            yield from (one for one in earlier if one is not None)
            continue
        source = row.name.removesuffix(REFINED) + row.weights
        if last is None or last[0] != source:
            last = (source, *_timed(lambda: row.register(pair), pair))
        u, seconds = last[1], last[2]
        if row.refine is not None:
            refine, base = row.refine, u
            u, more = _timed(lambda: refine(on_one_grid(pair), base)[0], pair)
            seconds += more
        resampled = not row.keeps_grid(pair)
        for i, one in enumerate(ids):
            row_of, labels = score_some(u[i : i + 1].detach().float(), one_pair(pair, i), plan.scores, TAKEN)
            scores = {name: float(value) for name, value in row_of.items()} | {"seconds": seconds / len(ids)}
            dice = {int(label["label"]): float(label["dice"]) for label in labels}
            yield Solved(row.name, row.weights, domain.name, one, scores, dice, resampled, key)


def _timed(solve: Callable[[], Tensor], pair: Pair) -> tuple[Tensor, float]:
    """A displacement and the seconds that it took."""
    start = clock(pair["fixed"].device)
    with torch.no_grad():
        u = solve()
    return u, clock(pair["fixed"].device) - start
