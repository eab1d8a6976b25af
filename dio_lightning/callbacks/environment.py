"""Where and with what a command ran: enough to run it again."""

import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

from dio_lightning.ops import chosen

PACKAGE = "dio-lightning"
HERE = Path(__file__).parent


def environment() -> dict[str, Any]:
    """Command and where it was typed, time, host, devices, versions and, in a clone, the commit; plain data."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    named = (
        "CUDA_VISIBLE_DEVICES",
        "DIO_OPS",
        "OMP_NUM_THREADS",
        "SLURM_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_RESTART_COUNT",
    )
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "directory": os.getcwd(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "operators": f"{chosen()} on the CPU, {chosen('cuda')} on CUDA" if cuda else chosen(),
        "gpus": cuda,
        "commit": _git("rev-parse", "HEAD"),
        "changed": sorted((_git("diff", "HEAD", "--name-only") or "").split()),
        "python": platform.python_version(),
        "packages": _versions(),
        "variables": {name: os.environ[name] for name in named if name in os.environ},
    }


def changes() -> str:
    """What differs from the commit, as a diff; empty outside of a clone."""
    return _git("diff", "HEAD") or ""


def _versions() -> dict[str, str]:
    """Of this package and what it needs, as far as it is installed."""
    try:
        needed = [re.split(r"[^\w.-]", text)[0] for text in requires(PACKAGE) or [] if "extra ==" not in text]
    except PackageNotFoundError:
        needed = []
    versions = {}
    for name in [PACKAGE, *sorted(needed)]:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _git(*words: str) -> str | None:
    """What git says of the clone that this file is part of; None if it is part of none."""
    try:
        command = ["git", "-C", str(HERE), *words]
        tracked = subprocess.run(
            [*command[:3], "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=20
        )
        if tracked.returncode:
            return None
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.rstrip("\n") if said.returncode == 0 else None
