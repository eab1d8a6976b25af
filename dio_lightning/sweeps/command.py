"""The command line of sweeps: `dio-lightning sweep FILE --trials N`."""

import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from dio_lightning.errors import TERMINATED
from dio_lightning.sweeps.file import Sweep, read_sweep
from dio_lightning.usage import CommandParser

RUNS = Path("runs/sweeps")


def sweep(argv: Sequence[str]) -> None:
    """Search what a sweep file says; goes on where it was when it is started again.

    Raises:
        FileNotFoundError, ValueError: in one sentence, for whatever cannot be searched.
    """
    options = _parser().parse_args(argv)
    for name, number in (("--trials", options.trials), ("--workers", options.workers)):
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}, expected at least 1")
    if find_spec("optuna") is None:
        raise ValueError('sweep needs the package optuna: pip install "dio-lightning[sweep]"')
    asked = read_sweep(options.file)
    folder = options.out or RUNS / options.file.stem
    storage, name = options.storage or f"sqlite:///{folder / 'study.db'}", options.name or options.file.stem
    if options.overwrite:
        _remove(folder, storage, name)
    trials = options.trials if options.trials is not None else asked.cap
    run_sweep(asked, folder, storage, name, trials, workers=options.workers, seed=options.seed)
    print(f"wrote {folder}")


def run_sweep(
    asked: Sweep,
    folder: Path,
    storage: str,
    name: str,
    trials: int | None,
    workers: int = 1,
    seed: int = 0,
    every: float = 1.0,
    grace: float = 120.0,
) -> None:
    """Search with some workers until so many trials have ended, and write the report.

    Args:
        asked: what the file says.
        folder: of the sweep; a trial has a folder of its own in it.
        storage: URL of Optuna's database.
        name: of the study.
        trials: how many, those of earlier times included; None for a whole grid.
        workers: trials at a time.
        seed: of the search.
        every: seconds between two looks at a trial.
        grace: seconds without a sign of life after which a worker elsewhere counts as gone.

    Raises:
        ValueError: in one sentence, if nothing works.
        SystemExit: after SIGTERM; the trials that ran have saved and wait again.
    """
    import optuna

    from dio_lightning.sweeps.queue import Queue
    from dio_lightning.sweeps.report import show, write_report
    from dio_lightning.sweeps.space import corners
    from dio_lightning.sweeps.trial import check
    from dio_lightning.sweeps.work import Worker

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not (folder / "trials.csv").exists() and not any(folder.glob("trial_*")):
        if complaint := check(asked.command(corners(asked.parameters)[0]), folder):
            raise ValueError(complaint)
    queue = Queue(asked, folder, storage, name, seed, grace)
    print(f"{queue.fill(trials)} trials of {name}, {workers} at a time, in {folder}", flush=True)
    stop = threading.Event()
    team = [Worker(queue.twin(), stop, _say, every) for _ in range(workers)]
    with _Ending(stop) as signals:
        _together([worker.run for worker in team], stop)
    write_report(asked, queue.study, folder)
    if complaint := next((worker.complaint for worker in team if worker.complaint), ""):
        raise ValueError(complaint)
    if signals.number is not None:
        raise KeyboardInterrupt if signals.number == signal.SIGINT else SystemExit(TERMINATED)
    show(asked, queue.study, folder)


class _Ending:
    """Within it SIGTERM and Ctrl-C set an event, and do nothing else."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.number: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "_Ending":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._set) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.stop.set()


def _together(tasks: Sequence[Callable[[], None]], stop: threading.Event) -> None:
    """Run tasks in threads, which leaves signals to this one; the first error stops all and is raised."""
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _remove(folder: Path, storage: str, name: str) -> None:
    """What an earlier sweep left in its folder and its storage, and nothing else."""
    from dio_lightning.sweeps.queue import remove_study

    if folder.is_dir():
        remove_study(storage, name)
        for path in folder.glob("trial_[0-9]*"):
            shutil.rmtree(path)
        (folder / "trials.csv").unlink(missing_ok=True)


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> CommandParser:
    parser = CommandParser(
        "dio-lightning sweep", description="Search the parameters of a W&B sweep file by Optuna, without an account."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="sweep file, such as experiments/sweeps/dio.yaml")
    parser.add_argument("--trials", type=int, metavar="N", help="how many in all (default: a whole grid)")
    storage = "URL of the database that all workers share (default: sqlite:///OUT/study.db)"
    parser.add_argument("--storage", metavar="URL", help=storage)
    parser.add_argument("--workers", type=int, default=1, metavar="K", help="trials at a time (default: %(default)s)")
    out = f"folder of the sweep, in which each trial has its own (default: {RUNS}/NAME OF FILE)"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=out)
    parser.add_argument("--name", help="of the study in the storage (default: the file's name)")
    parser.add_argument("--seed", type=int, default=0, help="of the search (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="begin anew, instead of going on")
    return parser
