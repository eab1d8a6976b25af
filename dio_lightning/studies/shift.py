"""Trained methods on data that they were not trained on, with no fine-tuning (Jena et al., DIO, 2024, Table 2)."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor

from dio_lightning.callbacks.pair_scores import one_pair, score_pair
from dio_lightning.callbacks.warming import warm_up
from dio_lightning.pair import Pair
from dio_lightning.studies.files import free, write
from dio_lightning.studies.loading import Loaded, PairId, load_all
from dio_lightning.studies.shift_candidates import Candidate, candidates, check
from dio_lightning.studies.shift_domains import Domain, Plan, read_plan
from dio_lightning.studies.shift_figure import figure
from dio_lightning.studies.shift_refine import Refinement
from dio_lightning.studies.shift_report import FILES, REFINED, Study, markdown
from dio_lightning.studies.shift_rows import SCORES, Solved, Store


def shift(
    weights: Sequence[str],
    domains: Path,
    out: Path,
    root: Path,
    options: Sequence[str] = (),
    refinement: Refinement = Refinement(),
    limit: int | None = None,
    rivals: tuple[str, str] = ("DIO", "VoxelMorph"),
    surface: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> str:
    """Score every method on every domain; writes shift.csv, .md, .png, .svg and shift_structures.csv.

    Args:
        weights: as `load` takes them; those of one name are its seeds.
        domains: the file of domains, see `read_plan`; a domain whose folder is not there is left out, and named.
        out: the folder to write to.
        root: the folder of the domains' folders.
        options: overrides of every model, as `dio-lightning test` takes them.
        refinement: the instance optimisation that follows each trained method in a row of its own; 0 steps: none.
        limit: pairs of each domain at most.
        rivals: of which the first is asked whether it loses less Dice than the second.
        surface: Hausdorff distances too.
        resume: take rows of unchanged weights and settings from the folder.
        overwrite: replace files that are there.

    Returns:
        The Markdown.

    Raises:
        FileNotFoundError, ValueError: for weights, domains or data that are not as expected.
        FileExistsError: an output is there.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected at least 1 pair")
    free(out, FILES, overwrite or resume)
    plan = read_plan(domains, root, surface)
    there = [domain for domain in plan.domains if domain.there()]
    missing = [domain for domain in plan.domains if domain not in there]
    if plan.reference not in [domain.name for domain in there]:
        place = next(domain.place for domain in plan.domains if domain.name == plan.reference)
        raise FileNotFoundError(f"{root / place} does not exist: expected the reference domain {plan.reference!r}")
    built = [domain.build() for domain in there]
    loaded = load_all(weights, options, ready=False)
    check(loaded)
    for one in loaded:
        one.module.to(loaded[0].module.device)
    rows = candidates(loaded, options, refinement)
    store = Store.open(out, resume)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("pairs", total=None)
        for domain in there:
            # popped, so that its images are freed before the next ones are read
            measure(domain, built.pop(0), plan, loaded[0], rows, store, limit, (progress, task))
    study = Study(store.rows, plan, [domain.name for domain in there], missing, refinement, rivals)
    text, picture = markdown(study), figure(study)
    write(out, store.contents() | dict(zip(FILES[2:], (text, picture, picture), strict=True)))
    return text


def measure(
    domain: Domain,
    data: LightningDataModule,
    plan: Plan,
    first: Loaded,
    rows: Sequence[Candidate],
    store: Store,
    limit: int | None,
    bar: tuple[Progress, TaskID],
) -> None:
    """All candidates on all pairs of a domain, into the store."""
    data.prepare_data()
    data.setup("test")
    store.names[domain.name] = getattr(data, "label_names", {})
    progress, task = bar
    count = _count(data, limit) * len(rows)
    progress.update(task, total=(progress.tasks[0].total or 0) + count, description=domain.name)
    cold = [row.module for row in rows if row.module is not None and row.refine is None]
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
        known = [store.get(row.name, row.weights, domain.name, one, key) for one in ids]
        if all(known):
            yield from (one for one in known if one is not None)
            continue
        source = row.name.removesuffix(REFINED) + row.weights
        if last is None or last[0] != source:
            last = (source, *_timed(lambda: row.register(pair), pair))
        u, seconds = last[1], last[2]
        if row.refine is not None:
            refine, base = row.refine, u
            u, more = _timed(lambda: refine(pair, base), pair)
            seconds += more
        resampled = not row.keeps_grid(pair)
        for i, one in enumerate(ids):
            scores, labels = score_pair(u[i : i + 1].detach().float(), one_pair(pair, i), plan.scores)
            found = {name: float(value) for name, value in scores.items() if name in SCORES}
            found["seconds"] = seconds / len(ids)
            dice = {int(label["label"]): float(label["dice"]) for label in labels}
            yield Solved(row.name, row.weights, domain.name, one, found, dice, resampled, key)


def _timed(solve: Callable[[], Tensor], pair: Pair) -> tuple[Tensor, float]:
    """A displacement and the seconds that it took."""
    start = _clock(pair["fixed"].device)
    with torch.no_grad():
        u = solve()
    return u, _clock(pair["fixed"].device) - start


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _count(data: LightningDataModule, limit: int | None) -> int:
    dataset = data.test_dataloader().dataset
    return len(dataset) if limit is None else min(limit, len(dataset))
