"""The profile of E."""

import pytest

from scaling.errors import FitError
from scaling.fit.estimate import fit
from scaling.fit.profile import profile
from scaling.laws import LAWS
from tests.helpers.scaling_tables import simulated

CHINCHILLA = LAWS["chinchilla"]


def test_profile_of_E_holds_the_estimate_and_widens_with_noise():
    width = []
    for noise in (0.002, 0.008):
        points = simulated(noise=noise, seed=2)
        fitted = fit(CHINCHILLA, points)
        found = profile(fitted, points.run)
        assert found.low < fitted.params["E"] < found.high
        assert found.objective.min() == pytest.approx(fitted.certificate.objective, rel=1e-3)
        inside = found.objective <= found.threshold
        assert (inside == ((found.values >= found.low) & (found.values <= found.high))).mean() > 0.95
        width.append(found.high - found.low)
    assert width[1] > 2 * width[0]
    with pytest.raises(FitError, match="cannot be profiled"):
        profile(fitted, points.run, "A")
