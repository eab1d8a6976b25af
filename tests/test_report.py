"""What is done with scored pairs: gathered, summarised, written."""

import json
import math

import pytest
from torch.utils.data import DataLoader, DistributedSampler

from dio_lightning.callbacks import write_atomic
from dio_lightning.callbacks.gathering import Key, Scored, dataset_index, merge
from dio_lightning.scores.rows import to_csv
from dio_lightning.scores.summary import summarise, summary_json


def fake(index, dice, fixed="0001", loader=0):
    row = {"fixed_id": fixed, "moving_id": "0002", "dice": dice}
    return Scored(Key(loader, index, fixed, "0002"), row, [])


def test_pairs_that_a_sampler_repeated_count_once_and_in_order():
    first = [fake(0, 0.1, "0001"), fake(2, 0.3, "0003")]
    second = [fake(1, 0.2, "0002"), fake(0, 0.1, "0001")]
    assert [pair.row["dice"] for pair in merge([second, first])] == [0.1, 0.2, 0.3]
    # the same images twice in the data set, or in two loaders, are different pairs
    assert len(merge([[fake(0, 0.1), fake(1, 0.1), fake(0, 0.1, loader=1)]])) == 3


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_index_of_a_dealt_pair(shuffle):
    data = list(range(10, 17))
    for rank in range(3):
        sampler = DistributedSampler(data, num_replicas=3, rank=rank, shuffle=shuffle)
        read_here = list(DataLoader(data, sampler=sampler, batch_size=None))
        assert [10 + dataset_index(DataLoader(data, sampler=sampler), k) for k in range(3)] == read_here
    assert dataset_index(DataLoader(data), 4) == 4


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "summary.json"
    write_atomic(path, "first, long\n")
    write_atomic(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_bytes() == "größer\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["summary.json"]


def test_summaries_leave_out_what_is_not_finite():
    assert summarise([1, 2.0, 6, math.nan, None, math.inf, "x"]) == {
        "mean": 3.0,
        "std": pytest.approx(math.sqrt(14 / 3)),
        "median": 2.0,
        "n": 3,
    }
    rows = [{"fixed_id": "a", "dice": 0.5}, {"fixed_id": 'b,"', "folds": math.nan}]
    assert to_csv(rows, ["fixed_id", "dice", "tre", "folds"]) == 'fixed_id,dice,folds\na,0.5,\n"b,""",,nan\n'
    assert json.loads(summary_json(rows, ""))["dice"]["n"] == 1
