"""Disturb a sweep at random until time is up, and prove that it ends like an undisturbed one, bit for bit.

A round begins with an empty directory and launches the sweep again and again. Faults strike while it runs and damage is
done between two launches, until the round has had its share; then the sweep is left to finish, and what it measured is
compared with the undisturbed sweep: records, metrics, events, and checksums of the last checkpoints.

    python scripts/bench/soak.py --minutes 10
    python scripts/bench/soak.py my-sweep.yaml --minutes 60 --faults 20 --seed 3 --out runs/my-soak

Every other argument is a key of the sweep or of its runs, as in sweep.py. The seed decides which faults come, in which
order and after how long; what they meet depends on the machine. OUT holds the sweeps and soak.json.
"""

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from configs.cli import Parser, run_command
from configs.metrics_rows import METRICS, read_rows
from configs.run_record import complete_record
from data.files import write_json
from train.checkpoint.manifest import damage, newest_first, read_manifest, step_of
from train.supervision.processes import processes_of
from train.sweep.expand import load_sweep
from train.sweep.run import Run, Sweep

SWEEP = Path(__file__).resolve().parents[1] / "sweep.py"
LADDER = SWEEP.parent.parent / "configs/sweeps/studies/soak.yaml"
TIMES = {"seconds", "tokens_per_second", "flops_per_second_per_device", "mfu"}
"""Fields of records and rows that are times or speeds."""
BANDS = {"loss_smooth", "band_low", "band_high", "alert"}
"""Fields of rows that depend on which of the siblings had finished."""
PATIENCE = 300.0
"""Seconds in which a sweep must end when nothing disturbs it any more."""
AFTERLIFE = 20.0
"""Seconds beyond its `grace_seconds` in which the processes of a sweep that has ended must end."""


# ------------------------------------------------------------------------------- while the sweep runs


@dataclass
class Launch:
    """One launch of the sweep in `directory`."""

    process: subprocess.Popen[bytes]
    directory: Path

    def sweep(self) -> list[psutil.Process]:
        """The process that was launched, and below it the guard."""
        with suppress(psutil.Error):
            return [psutil.Process(self.process.pid)]
        return []

    def launchers(self) -> list[psutil.Process]:
        """Both processes of the `deepspeed` launcher, of every worker."""
        return [p for p in processes_of(self.directory) if _says(p, "--jobs") and not _has_rank(p)]

    def ranks(self) -> list[psutil.Process]:
        """The training processes."""
        return [p for p in processes_of(self.directory) if _says(p, "--jobs") and _has_rank(p)]

    def wandb(self) -> list[psutil.Process]:
        """W&B's own processes."""
        return [p for p in processes_of(self.directory) if _says(p, "wandb-core")]

    def everything(self) -> list[psutil.Process]:
        """All of them, and the sweep's guard."""
        children = [child for sweep in self.sweep() for child in sweep.children()]
        return [*self.sweep(), *children, *processes_of(self.directory)]


def _says(process: psutil.Process, word: str) -> bool:
    with suppress(psutil.Error):
        return any(word in argument for argument in process.cmdline())
    return False


def _has_rank(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "RANK" in process.environ()
    return False


def send(number: signal.Signals, process: psutil.Process) -> None:
    """Send a signal."""
    process.send_signal(number)


def fill_disk(process: psutil.Process) -> None:
    """Let each write of a process, and of those it starts from now on, fail as on a full disk (with EFBIG)."""
    _, most = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (0, most))


@dataclass(frozen=True)
class Strike:
    """What is done to one, or to all, of some processes."""

    blow: Callable[[psutil.Process], None]
    victims: Callable[[Launch], list[psutil.Process]]
    at_all: bool = False

    def __call__(self, launch: Launch, draw: random.Random) -> bool:
        """Strike; return whether there was anybody."""
        there = self.victims(launch)
        hit = False
        for process in there if self.at_all else draw.sample(there, min(1, len(there))):
            with suppress(psutil.Error):  # it has just ended by itself
                self.blow(process)
                hit = True
        return hit


KILL, TERM, INT, STOP = (
    partial(send, number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
)
STRIKES = {
    "SIGKILL of the sweep": Strike(KILL, Launch.sweep),
    "SIGTERM of the sweep": Strike(TERM, Launch.sweep),
    "SIGINT of the sweep": Strike(INT, Launch.sweep),
    "SIGKILL of a launcher": Strike(KILL, Launch.launchers),
    "SIGTERM of a launcher": Strike(TERM, Launch.launchers),
    "SIGKILL of a rank": Strike(KILL, Launch.ranks),
    "SIGTERM of a rank": Strike(TERM, Launch.ranks),
    "SIGSTOP of a rank": Strike(STOP, Launch.ranks),
    "SIGKILL of W&B's process": Strike(KILL, Launch.wandb),
    "SIGKILL of everything at once": Strike(KILL, Launch.everything, at_all=True),
    "disk full for a rank": Strike(fill_disk, Launch.ranks),
    "disk full for everything": Strike(fill_disk, Launch.everything, at_all=True),
}


# ------------------------------------------------------------------------------ between two launches


def flip_bit(file: Path, draw: random.Random) -> None:
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def cut_off(file: Path, draw: random.Random, least: int = 0) -> None:
    """Leave only the beginning of a file, at least so many bytes of it."""
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(least, len(content))])


def delete(file: Path, draw: random.Random) -> None:
    """Delete a file."""
    file.unlink()


def damage_checkpoint(harm: Callable[[Path, random.Random], None], run: Run, draw: random.Random) -> bool:
    """Harm a file of the newest checkpoint of an unfinished run, if an intact one is left to continue from."""
    checkpoints = newest_first(run.directory / "checkpoints")
    intact = [path for path in checkpoints if not damage(path)]
    if complete_record(run.directory) or len(intact) < 2 or intact[0] != checkpoints[0]:
        return False
    harm(draw.choice(sorted(intact[0].iterdir())), draw)
    return True


def tear_metrics(run: Run, draw: random.Random) -> bool:
    """Cut the log of an unfinished run off, anywhere after the rows of the checkpoint that it continues from."""
    path = run.directory / METRICS
    intact = [step_of(path) for path in newest_first(run.directory / "checkpoints") if not damage(path)]
    rows = path.read_bytes().splitlines(keepends=True)
    durable = sum(len(row) for row in rows if _step(row) <= max(intact, default=0))
    if complete_record(run.directory) or durable == path.stat().st_size:
        return False
    cut_off(path, draw, durable)
    return True


def _step(row: bytes) -> float:
    try:
        return float(json.loads(row)["step"])
    except ValueError:  # torn already
        return float("inf")


def tear_record(run: Run, draw: random.Random) -> bool:
    """Cut off the record of a complete run."""
    there = complete_record(run.directory) is not None
    if there:
        cut_off(run.directory / "record.json", draw)
    return there


def tear_journal(run: Run, draw: random.Random) -> bool:
    """Cut off the events of the sweep."""
    cut_off(run.directory.parent / "events.jsonl", draw)
    return True


WOUNDS: dict[str, Callable[[Run, random.Random], bool]] = {
    "checkpoint: a bit flipped": partial(damage_checkpoint, flip_bit),
    "checkpoint: a file cut off": partial(damage_checkpoint, cut_off),
    "checkpoint: a file deleted": partial(damage_checkpoint, delete),
    "metrics.jsonl cut off": tear_metrics,
    "record.json cut off": tear_record,
    "events.jsonl of the sweep cut off": tear_journal,
}


# ------------------------------------------------------------------------------------------------ W&B


@contextmanager
def silent_server() -> Iterator[int]:
    """A port where connections are taken and, without a word, closed after two seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):  # the end
                while True:
                    threading.Timer(2.0, server.accept()[0].close).start()

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])


NOBODY = 9
"""The discard port, where nobody listens."""


def wandb_online(port: int) -> dict[str, str]:
    """Environment in which W&B has a key and its server at a port of this machine."""
    address = f"http://127.0.0.1:{port}"
    return {"WANDB_MODE": "online", "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}


# --------------------------------------------------------------------------------------------- rounds


@dataclass
class FaultTally:
    """What came of one kind of fault."""

    count: int = 0
    rounds: set[int] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)
    """From a fault to the end of the sweep, where no other fault came between."""


@dataclass
class Soak:
    """A sweep, and what was done to it so far."""

    config: Path
    overrides: list[str]
    out: Path
    draw: random.Random
    pause: float
    """Seconds between faults, on average."""
    connections: dict[str, dict[str, str]]
    """What is wrong with W&B -> environment of the sweep."""
    began: float = field(default_factory=time.monotonic)
    tallies: dict[str, FaultTally] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    troubles: dict[int, list[str]] = field(default_factory=dict)
    """Of each round what must not happen, in sentences."""

    def sweep(self, name: str) -> Sweep:
        """The sweep, in a directory of `out`."""
        return load_sweep(self.config, [*self.overrides, f"--runs_dir={self.out / name}"])

    def undisturbed(self) -> float:
        """Run the sweep once as it is; return its seconds. Raises RuntimeError when it fails."""
        begin = time.monotonic()
        if self._launch(self.sweep("undisturbed"), {}).process.wait():
            raise RuntimeError(f"undisturbed, the sweep fails; see {self.out}/sweeps.log")
        return time.monotonic() - begin

    def round(self, number: int, faults: int) -> None:
        """Disturb the sweep so many times, let it finish, and compare."""
        self.troubles[number] = []
        sweep, left = self.sweep(f"round-{number}"), faults
        while True:
            disturbs = left > 0
            environment: dict[str, str] = {}
            if disturbs and self.draw.random() < 0.5:
                left -= self._wound(sweep, number)
            if disturbs and self.draw.random() < 0.25:
                fault = self.draw.choice(sorted(self.connections))
                environment = self.connections[fault]
                self._note(fault, number)
            launch = self._launch(sweep, environment)
            left -= self._strike(launch, number, max(left, 0))
            self.statuses[launch.process.returncode] += 1
            if left <= 0 or self.draw.random() < 0.5:  # otherwise it is launched again while the guard is still at it
                self._require_no_orphans(launch, number, sweep.config.grace_seconds)
            if launch.process.returncode == 0:
                break
            if not disturbs:
                self._trouble(number, f"the last, undisturbed launch ended with status {launch.process.returncode}")
                break
        for sentence in differences(self.sweep("undisturbed"), sweep):
            self._trouble(number, sentence)

    def _launch(self, sweep: Sweep, environment: dict[str, str]) -> Launch:
        command = [sys.executable, str(SWEEP), str(self.config), *self.overrides]
        wandb = {"WANDB_MODE": "disabled"} | environment
        with (self.out / "sweeps.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, f"--runs_dir={sweep.config.directory}", f"--wandb.mode={wandb['WANDB_MODE']}"],
                stdout=log,
                stderr=log,
                env=os.environ | wandb,
                # A shell has what it runs in the background ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        return Launch(process, sweep.config.directory)

    def _wound(self, sweep: Sweep, number: int) -> bool:
        begun = [run for run in sweep.runs if (run.directory / METRICS).exists()]
        fault = self.draw.choice(sorted(WOUNDS))
        if processes_of(sweep.config.directory):
            return False  # they write
        done = any(WOUNDS[fault](run, self.draw) for run in self.draw.sample(begun, len(begun)))
        if done:
            self._note(fault, number)
        return done

    def _strike(self, launch: Launch, number: int, most: int) -> int:
        """Strike at random moments until the sweep has ended, at most so many times; return how many times."""
        struck, fault, at = 0, "", 0.0
        while True:
            try:
                launch.process.wait(self.draw.expovariate(1 / self.pause) if struck < most else PATIENCE)
            except subprocess.TimeoutExpired:
                if struck == most:
                    self._trouble(number, f"still running after {PATIENCE:.0f} s; the last fault was '{fault}'")
                    STRIKES["SIGKILL of everything at once"](launch, self.draw)
                    continue
                drawn = self.draw.choice(sorted(STRIKES))
                if STRIKES[drawn](launch, self.draw):
                    self._note(drawn, number)
                    struck, fault, at = struck + 1, drawn, time.monotonic()
                continue
            if fault:
                self.tallies[fault].seconds.append(time.monotonic() - at)
            return struck

    def _require_no_orphans(self, launch: Launch, number: int, grace: float) -> None:
        deadline = time.monotonic() + grace + AFTERLIFE
        while (left := processes_of(launch.directory)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            self._trouble(number, f"process {process.pid} outlived its sweep: {' '.join(process.cmdline())[:200]}")
            process.kill()

    def _note(self, fault: str, number: int) -> None:
        tally = self.tallies.setdefault(fault, FaultTally())
        tally.count += 1
        tally.rounds.add(number)
        self._say(f"round {number}: {fault}")

    def _trouble(self, number: int, sentence: str) -> None:
        self.troubles[number].append(sentence)
        self._say(f"round {number} FAILED: {sentence}")

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)


# ----------------------------------------------------------------------------------------- comparison


def measured(run: Run) -> dict[str, Any]:
    """Return all that a run measured and left, without times and bands."""
    checkpoints = newest_first(run.directory / "checkpoints")
    return {
        "record.json": _without_times(record.flat()) if (record := complete_record(run.directory)) else {},
        "metrics.jsonl": _rows(run.directory / METRICS),
        "events.jsonl": _rows(run.directory / "events.jsonl"),
        "the last checkpoint": read_manifest(checkpoints[0])["files"] if checkpoints else {},
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    return [_without_times(row) for row in read_rows(path)]


def _without_times(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in TIMES | BANDS}


def differences(expected: Sweep, found: Sweep) -> list[str]:
    """Say where the runs of two sweeps differ."""
    sentences = []
    for one, other in zip(expected.runs, found.runs, strict=True):
        wanted, got = measured(one), measured(other)
        sentences += [f"{other.directory}: {part} differs" for part in wanted if wanted[part] != got[part]]
    return sentences


def table(soak: Soak) -> str:
    """One line for each kind of fault."""
    lines = [f"{'fault':36}{'times':>6}{'rounds':>8}{'seconds to the end, median':>28}  verdict"]
    for fault, tally in sorted(soak.tallies.items()):
        seconds = f"{statistics.median(tally.seconds):.1f}" if tally.seconds else "-"
        verdict = "identical" if not any(soak.troubles[number] for number in tally.rounds) else "in a failed round"
        lines.append(f"{fault:36}{tally.count:6}{len(tally.rounds):8}{seconds:>28}  {verdict}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the soak; return the exit status."""
    parser = Parser(__doc__, {"0": "each round ended like the undisturbed sweep", "1": "one did not"}, overrides=True)
    parser.add_argument("config", type=Path, nargs="?", default=LADDER, metavar="SWEEP.yaml", help="the sweep")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin rounds for so long (default: %(default)g)")
    parser.add_argument("--faults", type=int, default=10, help="of each round (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=8.0, help="seconds between faults, on average")
    parser.add_argument("--seed", type=int, default=0, help="decides the faults")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="an empty directory")
    return run_command(parser, run, arguments, (RuntimeError,))


def run(options: argparse.Namespace) -> int:
    """Begin with an empty directory, a server that hangs up, and a seed."""
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        raise FileExistsError(f"{options.out} is not empty; give another directory by --out")
    with silent_server() as silent:
        connections = {
            "W&B's server refuses": wandb_online(NOBODY),
            "W&B's server hangs up": wandb_online(silent),
            "W&B offline": {"WANDB_MODE": "offline"},
        }
        draw = random.Random(options.seed)
        return _soak(Soak(options.config, options.overrides, options.out, draw, options.pause, connections), options)


def _soak(soak: Soak, options: argparse.Namespace) -> int:
    seconds = soak.undisturbed()
    soak._say(f"the undisturbed sweep took {seconds:.1f} s")
    number = 0
    while number == 0 or time.monotonic() - soak.began < 60 * options.minutes:
        number += 1
        soak.round(number, options.faults)
    print(table(soak))
    troubles = [f"round {n}: {sentence}" for n, sentences in soak.troubles.items() for sentence in sentences]
    faults = {
        fault: {"times": t.count, "rounds": len(t.rounds), "seconds": t.seconds} for fault, t in soak.tallies.items()
    }
    figures = {
        "seed": options.seed,
        "minutes": (time.monotonic() - soak.began) / 60,
        "undisturbed_seconds": seconds,
        "rounds": number,
        "launches": soak.statuses.total(),
        "statuses": {str(status): count for status, count in sorted(soak.statuses.items())},
        "faults": faults,
        "failures": troubles,
        "torch": version("torch"),
        "deepspeed": version("deepspeed"),
    }
    write_json(soak.out / "soak.json", figures)
    total = sum(tally.count for tally in soak.tallies.values())
    print(f"{number} rounds, {figures['launches']} launches, {total} faults in {figures['minutes']:.1f} minutes")
    print(
        *troubles or ["records, metrics, events and checkpoints of every round are those of the undisturbed sweep"],
        sep="\n",
    )
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
