"""Two processes say, and write, what one does, for any number of pairs (E8)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, DistributedSampler
from trainings import build, trainer

from data_modules import SyntheticPairs
from data_modules.dealing import DealtBatches
from dio_lightning.callbacks import FieldWriter, RegistrationScores
from dio_lightning.modules import DIO
from dio_lightning.processes import of_all, reads_again

ROOT = Path(__file__).parents[1]
CASES = (("DIO", 1), ("DIO", 5), ("DEQReg", 4), ("VoxelMorph", 5))


@pytest.mark.parametrize("pairs", range(8))
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("world", [2, 3])
def test_batches_are_those_of_one_process_each_counted_once(world, size, pairs) -> None:
    data = list(range(pairs))
    expected = [batch.tolist() for batch in DataLoader(data, size)]  # type: ignore[arg-type]
    for even in (True, False):
        counted, numbers = [], []
        for rank in range(world):
            loader = DataLoader(data, size, sampler=DealtBatches(data, size, even, world, rank))  # type: ignore[arg-type]
            batches = [batch.tolist() for batch in loader]
            numbers.append(len(batches))
            counted += [batch for index, batch in enumerate(batches) if not reads_again(loader, index)]
            assert len(loader) == len(batches) and (even or len(counted) == sum(numbers))
        assert sorted(counted) == expected and (not even or len(set(numbers)) == 1)


def test_lightnings_own_sampler_repeats_at_the_end() -> None:
    data = list(range(5))
    loaders = [DataLoader(data, sampler=DistributedSampler(data, 2, rank, False)) for rank in (0, 1)]  # type: ignore[arg-type]
    again = [[reads_again(loader, index) for index in range(3)] for loader in loaders]
    assert again == [[False, False, False], [False, False, True]]
    assert not reads_again(DataLoader(data), 99) and of_all(3) == [3]  # type: ignore[arg-type]


def everything(folder: Path, **settings: object) -> None:
    """Trains, validates, tests and predicts in every case."""
    for name, pairs in CASES:
        module, place = build(name), folder / f"{name}_{pairs}"
        if isinstance(module, DIO):
            module.opens = [0, 2]
        data = SyntheticPairs((16, 18), 3, train_pairs=4, val_pairs=pairs, test_pairs=pairs)
        parts = [RegistrationScores(), FieldWriter(str(place / "fields"))]
        run = trainer(place, *parts, limit_val_batches=1.0, num_sanity_val_steps=0, max_epochs=2, **settings)
        run.fit(module, datamodule=data)
        scores = {f"fit {k}": float(v) for k, v in run.callback_metrics.items() if "val" in k}
        fixed = build(name)
        for stage in (run.validate, run.test):
            stage(fixed, datamodule=data, verbose=False)
            scores |= {f"{stage.__name__} {k}": float(v) for k, v in run.callback_metrics.items()}
        run.predict(fixed, datamodule=data, return_predictions=False)
        if run.is_global_zero:
            scores |= {f"weight {k}": float(v.double().norm()) for k, v in module.state_dict().items()}
            (place / "scores.json").write_text(json.dumps(scores))


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path, rows) -> None:
    """E8: val/loss counted a pair twice, one pair was an assertion, `ddp` a traceback where levels open late."""
    script = tmp_path / "two.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import torch; torch.set_num_threads(1)\nfrom pathlib import Path\nfrom test_processes import everything\n"
        "everything(Path(sys.argv[1]), devices=2, strategy='ddp', limit_train_batches=2)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "two")], capture_output=True, text=True, timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    # a step of two processes with a pair each is one of two pairs
    everything(tmp_path / "one", accumulate_grad_batches=2, limit_train_batches=4)
    for name, pairs in CASES:
        one, two = (tmp_path / which / f"{name}_{pairs}" for which in ("one", "two"))
        expected, scores = (json.loads((place / "scores.json").read_text()) for place in (one, two))
        assert expected.keys() == scores.keys() and "fit val/loss" in scores and "validate val_loss" in scores
        for key in (key for key in expected if "seconds" not in key and "peak" not in key):
            # of trained weights to what the order of a sum does in Adam's first steps, of fixed ones to rounding
            close = 2e-3 if key.startswith(("fit", "weight")) else 1e-6
            assert scores[key] == pytest.approx(expected[key], rel=close, abs=1e-5), (name, pairs, key)
        assert rows(one) == rows(two) and len(rows(one)) == pairs
        summaries = [json.loads((place / "summary.json").read_text()) for place in (one, two)]
        assert summaries[0]["dice"] == summaries[1]["dice"]
        files = sorted(path.name for path in (one / "fields").iterdir())
        assert files == sorted(path.name for path in (two / "fields").iterdir()) and len(files) == 2 * pairs
        for file in files:
            assert (one / "fields" / file).read_bytes() == (two / "fields" / file).read_bytes()


def test_ddp_is_told_of_levels_that_open_late_alone(tmp_path) -> None:
    for opens, wanted in ([0, 0], None), ([0, 2], True):
        module = build("DIO")
        module.opens = opens
        module.trainer = trainer(tmp_path, strategy=DDPStrategy())
        module.setup("fit")
        assert module.trainer.strategy._ddp_kwargs.get("find_unused_parameters") is wanted
