"""`dio-lightning register --csv`: all pairs of a table, one after another or in several processes."""

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from typing import Any

from dio_lightning.allocation import keep_freed_memory
from dio_lightning.errors import TERMINATED, debugging, fail, user_message
from dio_lightning.headers import read_header
from dio_lightning.registration.command import arguments_of
from dio_lightning.registration.interrupts import end
from dio_lightning.registration.progress import Progress, progress
from dio_lightning.registration.single import check_folder, single


def batch(options: argparse.Namespace) -> None:
    """Register every pair of the table; exits with code 3 if one has failed.

    What is wrong with any of them is said before the first begins. A pair whose report.json is of the same files and
    settings is skipped; the failure of one stops no other.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: if nothing could be begun.
    """
    if not options.csv.is_file():
        raise FileNotFoundError(f"{options.csv} does not exist, expected a table of pairs")
    with progress(silent=options.quiet or options.json) as shown:
        shown.stage("reading the table")
        from dio_lightning.registration.results import Results, row_of
        from dio_lightning.registration.table import Task, tasks_of

        check_folder(options.out)
        tasks, faults = tasks_of(options)
        earlier = {task.name: task.report for task in tasks} if not options.overwrite else {}
        before = {task.name: report for task in tasks if (report := earlier.get(task.name)) is not None}
        faults += [
            f"{task.outputs.report} is of other files or settings, expected --overwrite or another --out"
            for task in tasks
            if task.name in before and task.of_others(before[task.name])
        ]
        _stop(faults)
        worker = Worker(tasks[0].options)
        _stop(list(worker.faults(tasks)))
        table = Results(options.out, tasks, options.overwrite)
        shown.total(len(tasks))
        for task in tasks:
            if task.name in before:
                table.add(row := row_of(task, before[task.name]))
                shown.ended(f"{task.name}: {row['verdict']}, done before")
        todo: list[Task] = [task for task in tasks if task.name not in before]
        table.begin(bool(todo))
        for task, report in _inline(worker, todo, shown) if options.jobs == 1 else spread(todo, options.jobs):
            table.add(row := row_of(task, report))
            shown.ended(f"{task.name}: {row['verdict']}: {row['sentence']}")
        table.write_page(options.command)
    table.say(options)


class Worker:
    """What does one pair after another, with a model that is loaded once.

    Args:
        options: those of one pair; what is of the pair alone does not count.

    Raises:
        FileNotFoundError, ValueError: if the options cannot be followed, whatever the pair.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from dio_lightning.registration.deformable import changed, local_correlation
        from dio_lightning.registration.pipeline import check_stages, device_of

        arguments = arguments_of(options)
        about = {name: arguments[name] or None for name in ("model", "transformation", "terms")}
        check_stages(arguments["stages"], about)
        device_of(options.device)
        if options.check_export:
            from dio_lightning.registration.export import simple_itk

            simple_itk()
        self.module = None
        if options.model is not None:
            from dio_lightning.api import load

            self.module = load(options.model)
        self._weights = options.model
        method = local_correlation((64, 64, 64)) if self.module is None else deepcopy(self.module)
        changed(method, arguments["transformation"], arguments["terms"])

    def faults(self, tasks: Sequence[Any]) -> Iterator[str]:
        """A sentence for every image that has not as many dimensions as the networks of the model take."""
        from dio_lightning.networks.dimension import check_dimension

        if self.module is None:
            return
        for path in dict.fromkeys(path for task in tasks for path in (task.options.fixed, task.options.moving)):
            try:
                check_dimension(self.module, {str(path): read_header(path).dimension}, self._weights)
            except ValueError as error:
                yield str(error)

    def __call__(self, task: Any, shown: Progress) -> Mapping[str, Any] | str:  # noqa: ANN401
        """The report of a task, or why it has none."""
        shown.pair(task.name)
        notes = {"pair": task.name, "fingerprint": task.fingerprint}
        arguments = {"outputs": task.outputs, "module": self.module, "notes": notes, "truth": task.truth}
        try:
            return single(task.options, shown, **arguments).report
        except Exception as error:
            if debugging():
                raise
            return user_message(error) or f"{type(error).__name__}: {error}"


def _stop(faults: Sequence[str]) -> None:
    """Print what is wrong, a line each, and exit."""
    if len(faults) > 1:
        for fault in faults:
            sys.stderr.write(f"dio-lightning: error: {fault}\n")
        fail(f"register: {len(faults)} things are wrong with the table, so no pair was begun")
    if faults:
        fail(f"register: {faults[0]}")


def _inline(worker: Worker, todo: Sequence[Any], shown: Progress) -> Iterator[tuple[Any, Mapping[str, Any] | str]]:
    """One after another, in this process."""
    for task in todo:
        yield task, worker(task, shown)


def spread(todo: Sequence[Any], jobs: int) -> Iterator[tuple[Any, Mapping[str, Any] | str]]:
    """In several processes of one thread each, as they end."""
    if not todo:
        return
    others = {*multiprocessing.active_children()}
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(todo)), spawn, _begin, (todo[0].options,))
    try:
        waiting = {pool.submit(_work, task): task for task in todo}
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except BrokenProcessPool:
                yield waiting[future], "a process ended before its pair, perhaps for lack of memory"
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in {*multiprocessing.active_children()} - others:
            process.terminate()
        raise
    pool.shutdown()


_worker: list[Worker] = []
"""Of a process of `spread`: one."""


def _begin(options: argparse.Namespace) -> None:
    """Make a process ready."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the first one ends the others
    signal.signal(signal.SIGTERM, end)
    _worker.append(Worker(options))


def _work(task: Any) -> Mapping[str, Any] | str:  # noqa: ANN401
    try:
        return _worker[0](task, Progress())
    except SystemExit:
        os._exit(TERMINATED)  # the pool would go on with the next pair
