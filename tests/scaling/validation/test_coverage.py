"""Simulated studies: does a 90 % interval hold the truth 90 times in 100?"""

import pytest

from scaling.laws import LAWS
from scaling.validation.coverage import coverage, ladder
from tests.helpers.scaling_tables import TRUTH

POINT = {"N": 1e10, "D": 8e11}  # ten times the largest size and ten times its tokens
STUDIES = 500  # a true 90 % shows as 87.4 to 92.6 in 95 of 100 such counts


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True], ids=["iid", "clustered"])
@pytest.mark.parametrize("points", [20, 60])
def test_intervals_cover_as_often_as_they_say(points, clustered):
    found = coverage(LAWS["chinchilla"], TRUTH, ladder(points, clustered), POINT, studies=STUDIES, draws=160)
    assert found.failed == 0
    print(found.covered)
    assert all(0.87 <= share <= 0.93 for share in found.covered.values()), found.covered
    assert abs(found.bias) < 0.005


def test_a_wrong_law_is_not_rescued_by_its_interval():
    """Kaplan's law has no irreducible loss: its intervals are confidently wrong about an extrapolation."""
    found = coverage(LAWS["chinchilla"], TRUTH, ladder(60), POINT, LAWS["kaplan_nd"], studies=20, draws=100)
    assert found.covered["new"] < 0.2
    assert found.bias < -0.05
