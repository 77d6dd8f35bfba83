"""One process trains many runs of any topology, each as if it were alone."""

from pathlib import Path

import pytest
import torch

from tests.conftest import run_cases

PIPELINE = "--parallel.pipeline_stages=2"
CASES = {
    "dp2": [],
    "pp2-bf16": [PIPELINE, "--precision=bf16"],
    "zero3": ["--parallel.zero_stage=3"],
    "pp2-recompute": [PIPELINE, "--train.activation_checkpointing=true"],
    "zero2-bf16": ["--parallel.zero_stage=2", "--precision=bf16"],
    "pp2-zero0": [PIPELINE, "--parallel.zero_stage=0"],
}
ROTARY_TABLES = 2048
"""Bytes that stay on purpose: tables that depend on nothing but shapes (model/transformer.py)."""


@pytest.mark.slow
def test_a_run_does_not_depend_on_those_before_it(small_run: Path, tmp_path: Path) -> None:
    """Forwards and backwards, each run has others before it, and the first of each order has none."""
    cases = [{"name": name, "overrides": [*overrides, "--train.steps=5"]} for name, overrides in CASES.items()]
    forwards = run_cases(2, small_run, cases, tmp_path / "forwards")
    backwards = run_cases(2, small_run, cases[::-1], tmp_path / "backwards")
    for name in CASES:
        one, other = forwards[name], backwards[name]
        assert one["losses"] == other["losses"], name
        assert one["norms"] == other["norms"], name
        for parameter, gradient in one["gradients"].items():
            assert torch.equal(gradient, other["gradients"][parameter]), f"{name}: {parameter}"
        for left_bytes, left_groups in (one["left_over"], other["left_over"]):
            assert left_bytes <= ROTARY_TABLES, f"{name}: release kept tensors"
            assert left_groups == 0, f"{name}: release kept process groups"
