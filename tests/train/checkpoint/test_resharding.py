"""Checkpoints of every precision, ZeRO stage, pipeline and cut of matrices continue, on their topology and on others.

Two processes train all kinds of engine in turn in one launch (`checkpoint_ranks.py`), and four some of them in another;
the tests look at what they report.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ranks
from tests.helpers.checkpoint_ranks import HALF

FP32, BF16 = 1e-5, 2e-2
"""Tolerances of a changed topology, those of `test_topologies.py`."""

Results = dict[str, Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where two processes work, and where four do."""
    return tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("four")


def launch(processes: int, small_run: Path, folders: tuple[Path, Path]) -> list[Results]:
    status, output = Ranks(
        processes, [str(small_run), *map(str, folders)], ("-m", "tests.helpers.checkpoint_ranks")
    ).finish(500)
    assert status == 0, output
    return [json.loads((folders[processes == 4] / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def results(small_run: Path, folders: tuple[Path, Path]) -> list[Results]:
    """What each of two processes found."""
    return launch(2, small_run, folders)


def difference(curve: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for (a, _), (b, _) in zip(curve, other, strict=True))


def require_bit_for_bit(result: Results) -> None:
    for name, found in result["same"].items():
        assert found["back"] == found["curve"], name  # after a rollback in the engine that trained on
        assert found["new"] == found["curve"], name
        assert found["continues"] == [True, True], name  # what the loop gave, and the random numbers of this rank


def require_close(result: Results, sources: Results) -> None:
    for name, (source, found) in result["other"].items():
        assert found["exact"], name
        tolerance = FP32 if name.startswith("fp32") else BF16
        assert difference(found["curve"], sources["same"][source]["curve"]) < tolerance, name


@pytest.mark.slow
def test_same_topology_continues_bit_for_bit(results: list[Results]) -> None:
    for result in results:
        assert len(result["same"]) == 20
        require_bit_for_bit(result)
        assert result["epoch"] == [True] * 3


@pytest.mark.slow
def test_other_topology_gets_the_state_exactly_and_the_curve_up_to_rounding(results: list[Results]) -> None:
    for result in results:
        assert len(result["other"]) == 15  # each goes on from its neighbour in the list
        require_close(result, result)


@pytest.mark.slow
def test_two_replicas_of_cut_matrices_or_of_stages_continue_their_own_and_others(
    results: list[Results], small_run: Path, folders: tuple[Path, Path]
) -> None:
    for result in launch(4, small_run, folders):
        assert len(result["same"]) == len(result["other"]) == 4
        require_bit_for_bit(result)
        require_close(result, results[0])


@pytest.mark.slow
def test_lost_moments_and_lost_random_states_would_be_noticed(results: list[Results]) -> None:
    for result in results:
        whole = result["same"]["fp32-pp1-tp1-zero1-tied"]["curve"]
        assert difference(result["without moments"], whole) > BF16
        assert result["without rng"] is False


@pytest.mark.slow
def test_every_damage_of_every_file_is_met_by_all_together(results: list[Results], folders: tuple[Path, Path]) -> None:
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
    assert not (folders[0] / "it-ran").exists()


@pytest.mark.slow
def test_rollback_sets_later_checkpoints_aside_until_they_are_passed(results: list[Results]) -> None:
    for result in results:
        steps, aside, passed = result["rolled back"]
        assert steps == [2, 2]
        assert aside == [f"quarantine-{HALF:08d}", "step-00000002"]
        assert passed == ["step-00000002", f"step-{HALF:08d}"]
