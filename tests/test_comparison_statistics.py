"""Wilcoxon's test and Holm's correction against SciPy, against all sign patterns, and by hand."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from dio_lightning.scores.statistics import holm, paired, signed_rank, subjects
from dio_lightning.scores.summary import unit


def test_holm_by_hand():
    # 0.01 x 3, then 0.03 x 2 = 0.06, then 0.04 x 1 = 0.04, which may not be below 0.06
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]), "never above 1"
    adjusted = holm([0.04, math.nan, 0.01])
    assert math.isnan(adjusted[1]) and adjusted[::2] == pytest.approx([0.04, 0.02]), (
        "what was not tested is not counted"
    )
    assert holm([]) == []


def test_wilcoxon_drops_zeros_and_is_exact_for_few_pairs():
    ours = {(str(i), "x"): float(value) for i, value in enumerate([1, 2, 3, 4, 5, 0, 0])}
    found = paired(ours, dict.fromkeys(ours, 0.0))
    assert (found.units, found.zeros, found.direction) == (7, 2, 1)
    assert found.p == pytest.approx(2 / 2**5), "five of five positive: 2 of 32 sign patterns"
    assert found.difference == pytest.approx(15 / 7), "the mean difference counts the zeros"
    assert paired(ours, ours).p == 1.0
    # the rank sum decides, not the mean: one large loss against many small gains
    skewed = {(str(i), "x"): value for i, value in enumerate([0.1, 0.2, 0.3, 0.4, 0.5, -9.0])}
    found = paired(skewed, dict.fromkeys(skewed, 0.0))
    assert found.difference < 0 < found.direction


@pytest.mark.parametrize("size", [1, 2, 7, 12, 50, 51])
def test_signed_rank_is_that_of_scipy(size):
    generator = np.random.default_rng(size)
    for shift in (-0.5, 0.0, 2.0):
        values = generator.normal(shift, 1, size)
        p, direction = signed_rank(values.tolist())
        assert p == pytest.approx(stats.wilcoxon(values).pvalue, rel=1e-9)
        ranks = stats.rankdata(abs(values))
        assert direction == np.sign(ranks[values > 0].sum() - ranks[values < 0].sum())


def test_signed_rank_with_ties_counts_all_signs():
    values = np.array([1, -1, 2, 2, 2, 3, -4, 5])
    ranks = stats.rankdata(abs(values))
    sums = np.array([ranks[np.array(signs) > 0].sum() for signs in product([-1, 1], repeat=8)])
    seen = ranks[values > 0].sum()
    exact = 2 * min((sums <= seen).mean(), (sums >= seen).mean())
    assert signed_rank(values.tolist())[0] == pytest.approx(exact)


def test_units_and_subjects():
    assert unit(("A_s040", "B_s040")) == ("A", "B")
    assert unit(("sub_s001", "sub_s002")) == ("sub_s001", "sub_s002"), "slices are paired at equal index"
    assert (
        subjects([(a, b) for a in "ABCD" for b in "ABCD" if a != b]) == 4 and subjects([("a", "b"), ("c", "d")]) is None
    )
