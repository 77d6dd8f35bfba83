"""The average over laws, weighted by backtest."""

from dataclasses import replace

import pytest

from scaling.fit import model_averaging as averaging
from scaling.laws import LAWS
from tests.helpers.scaling_tables import TRUTH, simulated

CHINCHILLA = LAWS["chinchilla"]


POINT = {"N": 1e10, "D": 2e11, "C": 1.2e22}


def test_average_prefers_the_true_law_and_knows_that_laws_differ():
    points = simulated(noise=0.002)
    mixed = averaging.average(points, averaging.candidates(pinned_E=1.69), draws=200)
    weight = {m.label: m.weight for m in mixed.members}
    assert sum(weight.values()) == pytest.approx(1.0)
    assert weight["chinchilla"] > weight["kaplan_nd"]
    assert weight["kaplan_nd"] < 0.05
    answer = averaging.predict(mixed, POINT)
    truth = float(CHINCHILLA.evaluate(TRUTH, POINT))
    assert answer["low"] < truth < answer["high"]
    assert answer["between"] > 0
    equal = averaging.Average([replace(m, weight=1 / len(mixed.members)) for m in mixed.members], {})
    wide = averaging.predict(equal, POINT)
    assert wide["between"] > answer["between"]
    assert wide["high"] - wide["low"] > answer["high"] - answer["low"]
