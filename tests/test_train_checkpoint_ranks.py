"""Checkpoints of two processes: every precision, ZeRO stage and pipeline continues, on its own topology and on others.

Both processes train twenty kinds of engine in turn in one launch (`checkpoint_ranks.py`); the tests look at what
they report.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Ranks

from tests.checkpoint_ranks import HALF

FP32, BF16 = 1e-5, 2e-2
"""Tolerances of a changed topology, those of `test_train_topology.py`."""

Results = dict[str, Any]


@pytest.fixture(scope="module")
def out(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which both processes have worked."""
    out = tmp_path_factory.mktemp("ranks")
    status, output = Ranks(2, [str(small_run), str(out)], ("-m", "tests.checkpoint_ranks")).finish(timeout=500)
    assert status == 0, output
    return out


@pytest.fixture(scope="module")
def results(out: Path) -> list[Results]:
    """What each of the two found."""
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def difference(curve: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for (a, _), (b, _) in zip(curve, other, strict=True))


@pytest.mark.slow
def test_same_topology_continues_bit_for_bit(results: list[Results]) -> None:
    for result in results:
        assert len(result["same"]) == 20
        for name, found in result["same"].items():
            assert found["back"] == found["curve"], name  # after a rollback in the engine that trained on
            assert found["new"] == found["curve"], name
            assert found["continues"] == [True, True], name  # what the loop gave, and the random numbers of this rank
        assert result["epoch"] == [True] * 3


@pytest.mark.slow
def test_other_topology_gets_the_state_exactly_and_the_curve_up_to_rounding(results: list[Results]) -> None:
    for result in results:
        assert len(result["other"]) == 16  # each goes on from its neighbour in the list
        for name, (source, found) in result["other"].items():
            assert found["exact"], name
            tolerance = FP32 if name.startswith("fp32") else BF16
            assert difference(found["curve"], result["same"][source]["curve"]) < tolerance, name


@pytest.mark.slow
def test_lost_moments_and_lost_random_states_would_be_noticed(results: list[Results]) -> None:
    for result in results:
        whole = result["same"]["fp32-pp1-zero1-tied"]["curve"]
        assert difference(result["without moments"], whole) > BF16
        assert result["without rng"] is False


@pytest.mark.slow
def test_every_damage_of_every_file_is_met_by_all_together(results: list[Results], out: Path) -> None:
    first, second = (result["damaged"] for result in results)
    assert first == second
    kinds = {"loop.json", "manifest.json", *(f"rng-0000{rank}.json" for rank in (0, 1))}
    kinds |= {f"state-0000{rank}-000.safetensors" for rank in (0, 1)}
    assert {key.split()[1] for key in first} == kinds
    for damage, (here, there) in first.items():
        assert here == there, damage
        if damage.startswith("evil") and "manifest" not in damage:  # its checksum was mended
            assert "step-00000004: cannot be loaded" in here, damage
        else:
            assert here == 2, damage
    assert not (out / "it-ran").exists()


@pytest.mark.slow
def test_rollback_sets_later_checkpoints_aside_until_they_are_passed(results: list[Results]) -> None:
    for result in results:
        steps, aside, passed = result["rolled back"]
        assert steps == [2, 2]
        assert aside == ["step-00000002", f"tombstone-{HALF:08d}"]
        assert passed == ["step-00000002", f"step-{HALF:08d}"]
