"""What several tests share: a small corpus and a way to start a run on several ranks."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.helpers.fork_server import Forked, fork_python

settings.register_profile("shared machine", deadline=None)  # an example may wait for a core
settings.load_profile("shared machine")

ROOT = Path(__file__).parent.parent
"""The checkout, where the README's commands are typed."""


SLOWEST_FIRST = [
    "train/supervision/test_supervision.py",
    "train/checkpoint/test_resharding.py",
    "train/engine/test_parity.py",
    "train/distributed/test_multinode.py",
    "train/stability/test_spike_guard.py",
    "scripts/test_soak.py",
    "train/launch/test_scheduler.py",
    "train/engine/test_topologies.py",
    "scripts/test_known_entropy.py",
    "train/checkpoint/test_resume.py",
    "scripts/test_sweep.py",
    "scaling/validation/test_coverage.py",
    "test_old_files.py",
    "model/test_parametrization.py",
    "train/cost/test_memory.py",
    "train/launch/test_worker.py",
    "train/checkpoint/test_export.py",
    "scaling/report/test_report.py",
    "train/engine/test_combinations.py",
    "train/sweep/test_trunk.py",
    "train/engine/test_release.py",
    "data/loading/test_mixture.py",
]
"""Files of more than ten seconds, by their time: a worker that begins one of them at last lets the others wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slowest files. Skip tests marked `gpu` where there is none."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if any("gpu" in item.keywords for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if "gpu" in item.keywords:
                    item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(scope="session", autouse=True)
def _quiet_environment() -> Iterator[None]:
    """Keep tests off the network and on one thread each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 400 documents made of 300 words with Zipf frequencies; the same on every machine."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(300)]
    weights = [1 / rank for rank in range(1, 301)]
    path = tmp_path_factory.mktemp("text") / "small.jsonl"
    with path.open("w") as file:
        for _ in range(400):
            text = " ".join(draw.choices(words, weights, k=draw.randint(50, 150))) + "."
            file.write(json.dumps({"text": text}) + "\n")
    return path


@pytest.fixture(scope="session")
def small_run(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run configuration of a 2-block model on the small text: 30 steps in a few seconds."""
    folder = tmp_path_factory.mktemp("small")
    path = folder / "small.yaml"
    path.write_text(
        f"""
name: small
model: {{style: modern, n_layer: 2, d_model: 16, n_head: 2}}
data:
  source: files
  files: ["{small_text}"]
  vocab_size: 300
  validation_fraction: 0.1
  directory: "{folder / "corpora"}"
train: {{sequence_length: 32, global_batch_size: 8, micro_batch_size: 2, steps: 30}}
optimizer: {{lr: 0.01}}
eval: {{tokens: 1500}}
log_every: 1
wandb: {{mode: disabled}}
"""
    )
    return path


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    """Poll until `happened`, or fail."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def start_rank(
    rank: int,
    world_size: int,
    port: int,
    arguments: list[str],
    program: Sequence[str] = ("-m", "train"),
) -> Forked | subprocess.Popen[str]:
    """Start one rank the way the launcher would; where there is no GPU, without imports of its own."""
    import torch

    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if not torch.cuda.is_available():  # which a process that is forked could not use
        return fork_python([*program, *arguments], environment)
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class Ranks:
    """The processes of one run, started the way the launcher starts them but without its 5 seconds."""

    def __init__(self, world_size: int, arguments: list[str], program: Sequence[str] = ("-m", "train")) -> None:
        port = free_port()
        self.processes = [start_rank(rank, world_size, port, arguments, program) for rank in range(world_size)]

    def finish(self, timeout: float = 240) -> tuple[int, str]:
        """Wait for all; return the largest exit status and the joined output."""
        try:
            with ThreadPoolExecutor(len(self.processes)) as readers:  # all at once: a full pipe would stop a process
                outputs = list(readers.map(lambda process: process.communicate(timeout=timeout)[0], self.processes))
        finally:
            for process in self.processes:
                process.kill()  # nothing where it has ended
        return max(abs(process.returncode) for process in self.processes), "\n".join(outputs)


def run_ranks(world_size: int, config: Path, run_dir: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train to the end on `world_size` ranks and return the rows of `metrics.jsonl`."""
    status, output = Ranks(world_size, ["--config", str(config), "--run-dir", str(run_dir), *overrides]).finish()
    assert status == 0, output
    return read_rows(run_dir)


def run_cases(world_size: int, config: Path, cases: list[dict[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """Train cases one after another in one launch (see `parity_ranks`) and return their results by name."""
    import torch

    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    arguments = [str(config), str(folder / "cases.json"), str(folder / "results.pt")]
    status, output = Ranks(world_size, arguments, ("-m", "tests.helpers.parity_ranks")).finish(timeout=500)
    assert status == 0, output
    return torch.load(folder / "results.pt")


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def read_record(run_dir: Path) -> dict[str, Any]:
    """A run's `record.json`."""
    return json.loads((run_dir / "record.json").read_text())
