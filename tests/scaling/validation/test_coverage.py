"""Simulated studies: does a 90 % interval hold the truth 90 times in 100?"""

from functools import cache

import numpy as np
import pytest

from scaling.laws import LAWS
from scaling.validation.coverage import Coverage, coverage, ladder
from tests.helpers.scaling_tables import TRUTH

POINT = {"N": 1e10, "D": 8e11}  # ten times the largest size and ten times its tokens
STUDIES = 200  # a true 90 % shows as 85.8 to 94.2 in 95 of 100 such counts, and as 87.9 to 92.1 over four designs
DESIGNS = [(20, False), (20, True), (60, False), (60, True)]
ONE, ALL = (0.85, 0.95), (0.87, 0.93)
HALF = 0.589  # what an interval half as wide as a normal 90 % holds


@cache
def studied(points: int, clustered: bool) -> Coverage:
    return coverage(LAWS["chinchilla"], TRUTH, ladder(points, clustered), POINT, studies=STUDIES, draws=160)


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True], ids=["iid", "clustered"])
@pytest.mark.parametrize("points", [20, 60])
def test_intervals_cover_as_often_as_they_say(points, clustered):
    found = studied(points, clustered)
    assert found.failed == 0
    assert all(ONE[0] <= share <= ONE[1] for share in found.covered.values()), found.covered
    assert abs(found.bias) < 0.005


@pytest.mark.slow
def test_intervals_cover_as_often_over_all_designs():
    found = [studied(*design).covered for design in DESIGNS]
    shares = {name: np.mean([covered[name] for covered in found]) for name in found[0]}
    assert all(ALL[0] <= share <= ALL[1] for share in shares.values()), shares


def test_intervals_half_as_wide_would_be_noticed():
    """Negative control."""
    found = coverage(LAWS["chinchilla"], TRUTH, ladder(20), POINT, studies=60, draws=160, level=HALF)
    assert all(share < ONE[0] - 0.1 for share in found.covered.values()), found.covered


def test_a_wrong_law_is_not_rescued_by_its_interval():
    """Kaplan's law has no irreducible loss: its intervals are confidently wrong about an extrapolation."""
    found = coverage(LAWS["chinchilla"], TRUTH, ladder(60), POINT, LAWS["kaplan_nd"], studies=20, draws=100)
    assert found.covered["new"] < 0.2
    assert found.bias < -0.05
