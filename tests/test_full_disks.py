"""What the system says of a file is one sentence with its path, and leaves nothing half-written (E6)."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import batch, build, loader, trainer

from data_modules.preparation.caching import Store
from dio_lightning.callbacks import FieldWriter, Last
from dio_lightning.checkpoint_files import read_checkpoint
from dio_lightning.checkpoints import AtomicCheckpointIO
from dio_lightning.errors import user_message
from dio_lightning.files import replacing, write_atomic
from dio_lightning.volume_files import save_volume

FULL = os.strerror(errno.EFBIG)


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def field(path: Path, format: str) -> None:
    writer = FieldWriter(format=format)  # type: ignore[arg-type]
    writer._save_field(path, torch.rand(1, 2, 40, 40), np.eye(4))


def checkpoint(path: Path, count: int, size: int) -> None:
    weights = {str(i): torch.rand(size) for i in range(count)}
    AtomicCheckpointIO().save_checkpoint({"state_dict": weights}, path)


WRITES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text": ("a.txt", lambda path: write_atomic(path, "x" * 9999)),
    "checkpoint": ("a.ckpt", lambda path: checkpoint(path, 1, 9999)),
    "many small tensors": ("a.ckpt", lambda path: checkpoint(path, 99, 9)),
    "volume": ("a.nii.gz", lambda path: save_volume(path, np.random.rand(9, 9, 99), np.eye(4))),
    "field": ("a.nii.gz", lambda path: field(path.with_name("a"), "nii")),
    "array": ("a.npz", lambda path: field(path.with_name("a"), "npz")),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_full_disk_is_one_sentence_and_the_old_file_stays(name, size, tmp_path) -> None:
    file, write = WRITES[name]
    path = tmp_path / file
    path.write_bytes(b"old")
    with room(size), pytest.raises(OSError) as error:
        write(path)
    assert user_message(error.value) == f"{path}: {FULL}"
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"old"
    write(path)
    assert path.read_bytes() != b"old"


def test_a_training_that_found_the_disk_full_goes_on_when_there_is_room(tmp_path) -> None:
    def fit(epochs: int, start: Path | None = None) -> None:
        settings = {"enable_checkpointing": True, "max_epochs": epochs, "plugins": [AtomicCheckpointIO()]}
        module = build("VoxelMorph")
        trainer(tmp_path, Last(tmp_path), **settings).fit(
            module, loader([batch(0)]), ckpt_path=start, weights_only=True
        )

    fit(1)
    last = tmp_path / "last.ckpt"
    with room(5000), pytest.raises(OSError, match=FULL):
        fit(2, last)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert read_checkpoint(last)["epoch"] == 0 and last.samefile(tmp_path / "previous.ckpt")
    fit(2, last)
    assert read_checkpoint(last)["epoch"] == 1 and read_checkpoint(tmp_path / "previous.ckpt")["epoch"] == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_full_cache_is_one_sentence(tmp_path) -> None:
    store = Store(tmp_path)
    with room(500), pytest.raises(ValueError, match=r"disk cache .* cannot be written .*, expected a folder with room"):
        store.save("key", {"image": torch.rand(999)})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "reason", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ENAMETOOLONG, errno.EACCES]
)
def test_every_error_of_the_system_has_path_and_reason(reason) -> None:
    assert user_message(OSError(reason, os.strerror(reason), "/some/file")) == f"/some/file: {os.strerror(reason)}"
    assert user_message(OSError(reason, os.strerror(reason))) == os.strerror(reason)
    assert user_message(OSError("libcudart.so.12: cannot open shared object file")) is None


def test_a_name_that_is_too_long_is_shortened(command, capsys, tmp_path) -> None:
    path = tmp_path / ("x" * 300) / "a.txt"
    with pytest.raises(OSError) as error:
        write_atomic(path, "")
    message = user_message(error.value)
    assert message is not None and len(message) < 170 and message.endswith(os.strerror(errno.ENAMETOOLONG))
    with pytest.raises(OSError) as error:
        write_atomic(tmp_path / f"{'y' * 254}", "")  # the temporary name beside it is longer still
    assert str(tmp_path) in str(error.value) and ".y" not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_other_errors_within_a_file_stay_what_they_are(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="another"), replacing(tmp_path / "a"):
        (tmp_path / "another").read_bytes()
    with pytest.raises(ValueError, match="mine"), replacing(tmp_path / "a"):
        raise ValueError("mine")
