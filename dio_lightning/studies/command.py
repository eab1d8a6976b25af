"""The command line of the studies: `dio-lightning study NAME ...`."""

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from dio_lightning.errors import fail
from dio_lightning.studies.study import Study
from dio_lightning.usage import nearest


class Entry(NamedTuple):
    """A study in the registry: where its class is, and what it finds out."""

    path: str
    about: str


STUDIES = {
    "convergence": Entry(
        "convergence.Convergence", "scores of every method after each step, beyond those that it was trained with"
    ),
    "solvers": Entry("solvers.Solvers", "what each solver needs to reach the fixed point of DEQReg"),
    "memory": Entry("memory.Memory", "memory of one training step of every method, as its steps grow"),
    "adjoints": Entry(
        "adjoints.Adjoints", "gradients of DEQReg's and DIO's weights by every adjoint, against the exact ones"
    ),
    "landscape": Entry("landscape.Landscape", "the energy that DIO descends on, around the truth, and Dice by overlap"),
    "shift": Entry("shift.Shift", "scores of every method on data that it was not trained on"),
}


def study(argv: Sequence[str]) -> None:
    """Run the study that the first argument names; its table is printed too."""
    if not argv or argv[0] in ("-h", "--help"):
        print("dio-lightning study NAME ..., NAME one of\n")
        print("\n".join(f"  {name:12} {entry.about}" for name, entry in STUDIES.items()))
        return
    name, *rest = argv
    if name not in STUDIES:
        hint = nearest(name, STUDIES)
        fail(f"study: there is no study {name!r}, expected one of {', '.join(STUDIES)}{hint}")
    place = rest.index("--") if "--" in rest else len(rest)
    asked = study_class(name).parse(STUDIES[name].about, rest[:place], rest[place + 1 :])
    tables = asked.run()
    from dio_lightning.reports.terminal import show  # draws in matplotlib, which no help text needs

    show(tables)
    print(f"wrote {asked.out}")


def study_class(name: str) -> type[Study]:
    """The class that the registry has under a name; its file is imported now, which is all that `--help` waits for."""
    module, _, attribute = STUDIES[name].path.rpartition(".")
    return getattr(import_module(f"dio_lightning.studies.{module}"), attribute)
