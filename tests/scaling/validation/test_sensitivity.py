"""What a fit owes to the choices of its analyst."""

import pytest

from scaling.laws import LAWS
from scaling.validation.sensitivity import sensitivity
from tests.helpers.scaling_tables import simulated

CHINCHILLA = LAWS["chinchilla"]


POINT = {"N": 1e10, "D": 2e11, "C": 1.2e22}


def test_sensitivity_spans_the_choices_and_says_which_axis_moves_what():
    points = simulated(noise=0.01)
    extra = {"N_non_embedding": points.columns["N"] * 0.8, "N_head": points.columns["N"] * 0.1}
    points = points.with_columns({**points.columns, **extra})
    found = sensitivity(CHINCHILLA, points, POINT)
    assert len(found.settings) + len(found.failed) == 6 * 2 * 3 * 2
    low, middle, high = found.spread["prediction"]
    assert low < middle < high
    assert found.by_axis.keys() == {"objective", "outliers", "N definition", "smallest size"}
    # N counted as a constant share of the total changes A only.
    assert found.by_axis["N definition"]["alpha"][0] == pytest.approx(
        found.by_axis["N definition"]["alpha"][2], rel=1e-5
    )
    assert found.by_axis["N definition"]["prediction"][2] == pytest.approx(
        found.by_axis["N definition"]["prediction"][0], rel=1e-6
    )
    assert "C" in found.fixed_axes["C definition"]
