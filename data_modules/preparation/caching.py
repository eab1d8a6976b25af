"""Prepared cases on disk, found by what they were made of: the bytes of their files and every option of preparation.

MONAI's PersistentDataset finds a case by its path, so a replaced file is served stale; it stops at a file that was cut
off, and moves files between disks, which is not atomic. Hence a store of our own behind MONAI's transforms.
"""

import hashlib
import json
import os
import pickle
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

FORMAT = 1
"""Goes up when what is stored, or how it is made, changes in a way that no option says."""
ANALYZE = (".hdr", ".img", ".mat")
"""Endings of one Analyze or two-file NIfTI volume."""

Cache = bool | Literal["memory", "disk", "none"]
Mode = Literal["memory", "disk", "none"]
Stamp = tuple[tuple[int, ...] | None, ...]
WRITING = ".writing."
"""How the names of files begin that are not whole yet."""
A_DAY = 86400.0
"""Seconds after which nobody writes one any more."""


def cache_mode(cache: Cache) -> Mode:
    """`memory` for True, `none` for False.

    Raises:
        ValueError: for anything else that is not a mode.
    """
    if isinstance(cache, bool):
        return "memory" if cache else "none"
    if cache not in ("memory", "disk", "none"):
        raise ValueError(f"cache is {cache!r}, expected 'memory', 'disk', 'none', true or false")
    return cache


def cache_folder(folder: str | None) -> Path:
    """The folder, by default dio-lightning in $XDG_CACHE_HOME or ~/.cache."""
    if folder is not None:
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "dio-lightning"


def files_of(path: Path) -> list[Path]:
    """A volume's files: itself, or header, voxels and matrix where these lie apart."""
    if path.suffix not in ANALYZE:
        return [path]
    parts = [path.with_suffix(suffix) for suffix in ANALYZE]
    return [part for part in parts if part == path or part.exists()]


def stamp(paths: Mapping[str, Path]) -> Stamp:
    """What the file system says of files, to see that none was touched: None for one that is missing.

    The time of change (ctime) cannot be set back, as that of modification can.
    """
    stats: list[tuple[int, ...] | None] = []
    for part in (part for path in paths.values() for part in files_of(path)):
        status = part.stat() if part.exists() else None
        stats.append(status and (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(stats)


def content_key(paths: Mapping[str, Path], recipe: str) -> str:
    """A name for what the recipe makes of the content of the files, wherever they lie.

    Raises:
        OSError: if a file cannot be read.
    """
    digest = hashlib.blake2b(json.dumps([FORMAT, recipe]).encode(), digest_size=20)
    for kind, path in sorted(paths.items()):
        for part in files_of(path):
            with open(part, "rb") as file:
                digest.update(f"\0{kind}{part.suffix}\0".encode() + hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


class Store:
    """Cases as files `<key>.pt`. Deleting any of them, or the folder, is safe at any time.

    A file is written whole or not at all, so processes, nodes and runs may share a folder. What is read is mapped into
    memory: the processes of a machine share its pages, and a slice costs a slice.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # what killed processes, of this machine or another one, left half-written
        for path in folder.glob(f"{WRITING}*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > A_DAY:
                    path.unlink()

    def load(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under a key; None if there are none, or none that can be read."""
        path = self.folder / f"{key}.pt"
        if not path.is_file():
            return None
        try:
            subject = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except FileNotFoundError:
            return None
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
            subject = None
        if not isinstance(subject, dict) or not {"image", "affine", "voxels"} <= subject.keys():
            warnings.warn(f"{path} cannot be read and is made again", stacklevel=2)
            return None
        return subject

    def save(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Write tensors under a key.

        Raises:
            ValueError: if the folder cannot be written.
        """
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # a random name: processes of two machines may have one number
            handle, temporary = tempfile.mkstemp(prefix=WRITING, dir=self.folder)
            os.close(handle)
            torch.save(tensors, temporary)
            with suppress(FileNotFoundError):  # the folder was emptied meanwhile
                os.chmod(temporary, 0o644)
                os.replace(temporary, self.folder / f"{key}.pt")
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"the disk cache {self.folder} cannot be written ({error}), expected a folder with room: set cache_dir"
            ) from error
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
