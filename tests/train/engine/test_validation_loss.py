"""The error of the validation loss."""

import math

import numpy as np
import pytest

from train.engine.validation_loss import mean_and_variance


def test_variance_of_a_mean_by_sums() -> None:
    losses = np.random.default_rng(0).normal(5.0, 0.1, 200)
    mean, variance = mean_and_variance(200, float(losses.sum()), float((losses**2).sum()))
    assert mean == pytest.approx(losses.mean(), rel=1e-12)
    assert math.sqrt(variance) == pytest.approx(losses.std(ddof=1) / math.sqrt(200), rel=1e-9)
    assert mean_and_variance(4, 12.0, 36.0) == (3.0, 0.0)
    assert math.isnan(mean_and_variance(1, 3.0, 9.0)[1])
