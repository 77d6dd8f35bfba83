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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from operator import methodcaller
from pathlib import Path
from typing import Any

import psutil

from configs.cli import Parser, run_command
from configs.metrics_rows import METRICS, parse_row, read_rows
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
        return self._workers("--jobs", rank=False)

    def ranks(self) -> list[psutil.Process]:
        """The training processes."""
        return self._workers("--jobs", rank=True)

    def wandb(self) -> list[psutil.Process]:
        """W&B's own processes."""
        return self._workers("wandb-core")

    def _workers(self, word: str, rank: bool | None = None) -> list[psutil.Process]:
        found = []
        for process in processes_of(self.directory):
            with suppress(psutil.Error):  # it has just ended
                says = any(word in argument for argument in process.cmdline())
                if says and rank in (None, "RANK" in process.environ()):
                    found.append(process)
        return found

    def everything(self) -> list[psutil.Process]:
        """All of them, and the sweep's guard."""
        children = [child for sweep in self.sweep() for child in sweep.children()]
        return [*self.sweep(), *children, *processes_of(self.directory)]


def fill_disk(process: psutil.Process) -> None:
    """Let each write of a process, and of those it starts from now on, fail as on a full disk (with EFBIG)."""
    _, most = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (0, most))


KILL, TERM, STOP = psutil.Process.kill, psutil.Process.terminate, psutil.Process.suspend
Strike = tuple[Callable[[psutil.Process], object], Callable[[Launch], list[psutil.Process]]]
"""What is done, and to which processes: to one of them, drawn at random, except to all of `Launch.everything`."""
STRIKES: dict[str, Strike] = {
    "SIGKILL of the sweep": (KILL, Launch.sweep),
    "SIGTERM of the sweep": (TERM, Launch.sweep),
    "SIGINT of the sweep": (methodcaller("send_signal", signal.SIGINT), Launch.sweep),
    "SIGKILL of a launcher": (KILL, Launch.launchers),
    "SIGTERM of a launcher": (TERM, Launch.launchers),
    "SIGKILL of a rank": (KILL, Launch.ranks),
    "SIGTERM of a rank": (TERM, Launch.ranks),
    "SIGSTOP of a rank": (STOP, Launch.ranks),
    "SIGKILL of W&B's process": (KILL, Launch.wandb),
    "SIGKILL of everything at once": (KILL, Launch.everything),
    "disk full for a rank": (fill_disk, Launch.ranks),
    "disk full for everything": (fill_disk, Launch.everything),
}


def strike(name: str, launch: Launch, draw: random.Random) -> bool:
    """Strike; return whether there was anybody."""
    blow, victims = STRIKES[name]
    there, hit = victims(launch), False
    for process in there if victims == Launch.everything else draw.sample(there, min(1, len(there))):
        with suppress(psutil.Error):  # it has just ended by itself
            blow(process)
            hit = True
    return hit


def flip_bit(file: Path, draw: random.Random) -> None:
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def cut_off(file: Path, draw: random.Random, least: int = 0) -> None:
    """Leave only the beginning of a file, at least so many bytes of it."""
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(least, len(content))])


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
    rows = [(line, parse_row(line)) for line in path.read_bytes().splitlines(keepends=True)]
    durable = sum(len(line) for line, row in rows if row and row["step"] <= max(intact, default=0))
    if complete_record(run.directory) or durable == path.stat().st_size:
        return False
    cut_off(path, draw, durable)
    return True


def tear_record(run: Run, draw: random.Random) -> bool:
    """Cut off the record of a complete run."""
    if complete_record(run.directory) is None:
        return False
    cut_off(run.directory / "record.json", draw)
    return True


def tear_journal(run: Run, draw: random.Random) -> bool:
    """Cut off the events of the sweep."""
    cut_off(run.directory.parent / "events.jsonl", draw)
    return True


WOUNDS: dict[str, Callable[[Run, random.Random], bool]] = {
    "checkpoint: a bit flipped": partial(damage_checkpoint, flip_bit),
    "checkpoint: a file cut off": partial(damage_checkpoint, cut_off),
    "checkpoint: a file deleted": partial(damage_checkpoint, lambda file, _: file.unlink()),
    "metrics.jsonl cut off": tear_metrics,
    "record.json cut off": tear_record,
    "events.jsonl of the sweep cut off": tear_journal,
}


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


def wandb_online(port: int) -> dict[str, str]:
    """Environment in which W&B has a key and its server at a port of this machine."""
    return {"WANDB_MODE": "online", "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0" * 40}


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
        sweep, left, status = self.sweep(f"round-{number}"), faults, -1
        while status:
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
            status = launch.process.returncode
            self.statuses[status] += 1
            if left <= 0 or self.draw.random() < 0.5:  # otherwise it is launched again while the guard is still at it
                self._require_no_orphans(launch, number, sweep.config.grace_seconds)
            if status and not disturbs:
                self._trouble(number, f"the last, undisturbed launch ended with status {status}")
                break
        for sentence in differences(self.sweep("undisturbed"), sweep):
            self._trouble(number, sentence)

    def _launch(self, sweep: Sweep, environment: dict[str, str]) -> Launch:
        wandb = {"WANDB_MODE": "disabled"} | environment
        keys = [*self.overrides, f"--runs_dir={sweep.config.directory}", f"--wandb.mode={wandb['WANDB_MODE']}"]
        with (self.out / "sweeps.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(SWEEP), str(self.config), *keys],
                stdout=log,
                stderr=subprocess.STDOUT,
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
                    strike("SIGKILL of everything at once", launch, self.draw)
                    continue
                drawn = self.draw.choice(sorted(STRIKES))
                if strike(drawn, launch, self.draw):
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


def measured(run: Run) -> dict[str, Any]:
    """Return all that a run measured and left, without times and bands."""

    def lasting(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key not in TIMES | BANDS} for row in rows]

    checkpoints = newest_first(run.directory / "checkpoints")
    return {
        "record.json": lasting([record.flat()] if (record := complete_record(run.directory)) else []),
        "metrics.jsonl": lasting(read_rows(run.directory / METRICS)),
        "events.jsonl": lasting(read_rows(run.directory / "events.jsonl")),
        "the last checkpoint": read_manifest(checkpoints[0])["files"] if checkpoints else {},
    }


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
    """Disturb rounds until time is up; print what came of it and write soak.json."""
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        raise FileExistsError(f"{options.out} is not empty; give another directory by --out")
    with silent_server() as silent:
        connections = {
            "W&B's server refuses": wandb_online(9),  # the discard port, where nobody listens
            "W&B's server hangs up": wandb_online(silent),
            "W&B offline": {"WANDB_MODE": "offline"},
        }
        draw = random.Random(options.seed)
        soak = Soak(options.config, options.overrides, options.out, draw, options.pause, connections)
        seconds = soak.undisturbed()
        soak._say(f"the undisturbed sweep took {seconds:.1f} s")
        number = 0
        while number == 0 or time.monotonic() - soak.began < 60 * options.minutes:
            number += 1
            soak.round(number, options.faults)
    print(table(soak))
    troubles = [f"round {n}: {sentence}" for n, sentences in soak.troubles.items() for sentence in sentences]
    tallies = soak.tallies.items()
    figures = {
        "seed": options.seed,
        "minutes": (time.monotonic() - soak.began) / 60,
        "undisturbed_seconds": seconds,
        "rounds": number,
        "launches": soak.statuses.total(),
        "statuses": {str(status): count for status, count in sorted(soak.statuses.items())},
        "faults": {fault: {"times": t.count, "rounds": len(t.rounds), "seconds": t.seconds} for fault, t in tallies},
        "failures": troubles,
        "torch": version("torch"),
        "deepspeed": version("deepspeed"),
    }
    write_json(soak.out / "soak.json", figures)
    total = sum(tally.count for _, tally in tallies)
    print(f"{number} rounds, {figures['launches']} launches, {total} faults in {figures['minutes']:.1f} minutes")
    identical = "records, metrics, events and checkpoints of every round are those of the undisturbed sweep"
    print(*troubles or [identical], sep="\n")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
