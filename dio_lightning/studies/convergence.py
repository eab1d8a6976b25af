"""What becomes of a registration when it takes other steps than it was trained with (DEQReg, Table 2)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dio_lightning.fields import resize
from dio_lightning.layers import Record, Run
from dio_lightning.modules import RegistrationModule
from dio_lightning.pair import Pair
from dio_lightning.studies.convergence_report import FILES, Curve, curves_csv, figure, markdown
from dio_lightning.studies.files import free, write
from dio_lightning.studies.loading import Loaded, PairId, load_all
from dio_lightning.studies.scoring import check_counts, score, seen_steps


def convergence(
    weights: Sequence[str],
    out: Path,
    options: Sequence[str] = (),
    steps: int = 96,
    at: Sequence[int] | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> str:
    """Score every test pair after each step; writes convergence.csv, .md, .png and .svg, returns the Markdown.

    Coarser levels take the steps that they were trained with; no sample stops early at the finest one. A method that
    takes no steps, does not report them, or was trained with more than are asked for, is run as it was trained.

    Args:
        weights: as `load` takes them; those of one name are its seeds.
        out: the folder to write to.
        options: overrides of every model, as `dio-lightning test` takes them.
        steps: how many are taken at the finest level.
        at: after which of them scores are taken; by default all in 2-D, ever fewer in 3-D.
        limit: pairs at most.
        overwrite: replace files that are there.

    Raises:
        FileNotFoundError, ValueError: for weights or data that are not as expected, before any work.
        FileExistsError: an output is there.
    """
    check_counts(steps, at, limit)
    free(out, FILES, overwrite)
    loaded = load_all(weights, options)
    _check_seeds(loaded)
    curves: list[Curve] = []
    while loaded:
        start, one = time.perf_counter(), loaded.pop(0)
        curves.append(follow(one, steps, at, limit, curves[0].pairs if curves else None))
        spent = time.perf_counter() - start
        print(f"{one.name} ({one.weights}): {len(curves[-1].pairs)} pairs in {spent:.0f} s", flush=True)
    text = markdown(curves, steps)
    picture = figure(curves)
    write(out, dict(zip(FILES, [curves_csv(curves), text, picture, picture], strict=True)))
    return text


def follow(
    loaded: Loaded, steps: int, at: Sequence[int] | None, limit: int | None, known: Sequence[PairId] | None = None
) -> Curve:
    """The scores of one set of weights after each step, on the pairs `known` if they are given.

    Raises:
        ValueError: if the pairs are others.
    """
    module = loaded.module
    curve = Curve(loaded.name, str(loaded.weights), module.steps, {})
    varied = curve.trained <= steps and takes_steps(module)
    for ids, pair in loaded.batches(limit):
        place = len(curve.pairs)
        if known is not None and ids != list(known[place : place + len(ids)]):
            raise ValueError(f"{loaded.weights} is tested on the pair {ids[0]}, the first weights are not")
        found = None
        if varied:
            found = _watched(loaded, pair, steps, seen_steps(at, pair["fixed"].ndim - 2, steps, [curve.trained]))
            varied = found is not None
        if found is None:
            with torch.no_grad():
                found = {curve.trained: score(module.register(pair), pair, loaded.scores)}
        for step, scores in found.items():
            for name, values in scores.items():
                curve.add(name, step, ids, values.tolist())
    if known is not None and curve.pairs != list(known):
        raise ValueError(f"{loaded.weights} has {len(curve.pairs)} test pairs, the first weights {len(known)}")
    return curve


def takes_steps(module: RegistrationModule) -> bool:
    """Whether a method takes steps at its finest level, and their number may be set."""
    if module.steps < 1:
        return False
    try:
        module.steps = module.steps
    except ValueError:
        return False
    return True


def _watched(loaded: Loaded, pair: Pair, steps: int, at: Sequence[int]) -> dict[int, dict[str, Tensor]] | None:
    """Scores of one batch by step, None if the method does not report its steps."""
    watch = _Watch(loaded, pair, at)
    with torch.no_grad():
        loaded.module.register(pair, Run(steps=steps, observe=watch))
    return watch.all() if watch.last is not None else None


@dataclass
class _Watch:
    """Scores the states of a batch as they come, at the steps that are wanted."""

    loaded: Loaded
    pair: Pair
    at: Sequence[int]
    found: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    count: int = 0
    last: Tensor | None = None

    def __call__(self, record: Record) -> None:
        """See one state; of the finest level, the last that is entered, those after a step count."""
        if record.step == 0:
            self.count, self.found, self.last = 0, {}, None
            return
        u, self.count = record.displacement, record.step
        if self.count in self.at:
            self.found[self.count] = {**self._score(u), "residual": _change(u, self.last)}
        self.last = u.clone()

    def all(self) -> dict[int, dict[str, Tensor]]:
        """Scores by step; a batch whose samples all broke off keeps its last state."""
        assert self.last is not None
        missing = [step for step in self.at if step > self.count]
        if missing:
            scores = self._score(self.last) | {"residual": _change(self.last, None)}
            self.found |= {step: scores for step in missing}
        return self.found

    def _score(self, u: Tensor) -> dict[str, Tensor]:
        return score(resize(u, self.pair["fixed"].shape[2:]), self.pair, self.loaded.scores)


def _change(u: Tensor, before: Tensor | None) -> Tensor:
    """||u - before|| / ||u|| of every sample (b,), NaN where nothing is known of the state before."""
    size = u.flatten(1).norm(dim=1)
    return torch.full_like(size, torch.nan) if before is None else (u - before).flatten(1).norm(dim=1) / (size + 1e-9)


def _check_seeds(loaded: Sequence[Loaded]) -> None:
    """Weights of one name are one method, trained with one number of steps."""
    first: dict[str, Loaded] = {}
    for one in loaded:
        other = first.setdefault(one.name, one)
        if type(one.module) is not type(other.module) or one.module.steps != other.module.steps:
            raise ValueError(
                f"{one.weights} and {other.weights} differ in method or steps ({one.module.steps} and "
                f"{other.module.steps}), so they are no seeds of {one.name!r}: tell them apart by NAME=WEIGHTS"
            )
