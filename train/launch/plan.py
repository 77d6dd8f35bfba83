"""What a sweep will cost, before it starts."""

import heapq
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from configs.cli import make_table
from configs.formatting import duration, short_count
from configs.metrics_rows import METRICS, read_rows
from configs.run_record import complete_record
from model.counts import count_parameters
from train.cost.gpus import GIB, USABLE, local_gpu_memory
from train.cost.memory import peak_memory
from train.launch.devices import Devices, Pool, Slot
from train.launch.events import read_events
from train.sweep.hparam_rules import Derived
from train.sweep.run import Run, Sweep

# Assumed until a run of the sweep has finished; every plan says so. The CPU's are of one core at 2,048 tokens per step.
_CPU_FLOPS_PER_CORE = 3e10
_GPU_FLOPS = 1.2e14  # 40 % of an A100's dense bf16 peak
_STEP_OVERHEAD = {"cpu": 0.015, "gpu": 0.030}  # seconds per optimizer step, whatever the model
_LAUNCH = 11.0  # seconds from launch to the first run
_HANDOVER = 1.0  # seconds from the hand-over of a run to its first step, and from its last to the next hand-over


@dataclass(frozen=True)
class Plan:
    """Times are in seconds, of each run from its beginning to its end."""

    sweep: Sweep
    devices: Devices
    seconds: Mapping[str, float]
    """Expected duration of each run on a warm worker."""
    basis: str
    """Where the expectation comes from."""
    launch: float = 0.0
    """Expected duration of a launch, for which the first run of each worker waits."""

    def order(self) -> list[Run]:
        """Return the runs in the order of launching: the longest first, lest one of them ends long after the rest.

        Where a rule may stop the sweep, the shortest go first.
        """
        return sorted(self.sweep.runs, key=lambda run: self.seconds[run.name], reverse=self.sweep.config.stop is None)

    def wall_seconds(self, remaining: Mapping[str, float]) -> float:
        """Return the time until all runs end, when run `name` still takes `remaining[name]` beside a launch."""
        waiting = [run for run in self.order() if remaining.get(run.name, 0) > 0]
        to_end = {run.name for run in waiting}
        most = self.sweep.config.runs_per_launch or math.inf
        pool = Pool(self.devices)
        workers: list[tuple[Slot, int]] = []
        running: list[tuple[float, int, int, str]] = []  # (end of a run, its worker, runs of that so far, its name)

        def is_ready(run: Run) -> bool:  # some branches begin sooner, when their trunk has come that far
            return run.config.branch is None or run.config.branch.run not in to_end

        now = 0.0
        while waiting or running:
            for run in filter(is_ready, list(waiting)):
                slot = pool.take(run)
                if slot is not None:
                    waiting.remove(run)
                    workers.append((slot, run.devices))
                    heapq.heappush(running, (now + self.launch + remaining[run.name], len(workers) - 1, 1, run.name))
            if not running:
                return math.inf
            now, index, runs, ended = heapq.heappop(running)
            to_end.discard(ended)
            slot, size = workers[index]
            follower = next((run for run in filter(is_ready, waiting) if run.devices == size), None)
            if follower is not None and runs < most:
                waiting.remove(follower)
                heapq.heappush(running, (now + remaining[follower.name], index, runs + 1, follower.name))
            else:
                pool.give_back(slot)
        return now


def make_plan(sweep: Sweep, devices: Devices) -> Plan:
    """Estimate the duration of every run, from finished runs of this sweep where there are any."""
    speeds = measured_speeds(sweep)
    launch, handover = measured_startup(sweep)
    if speeds:
        step = {run.name: _step_from_siblings(run, speeds) for run in sweep.runs}
        basis = f"the measured speed of {len(speeds)} finished run{'s' if len(speeds) > 1 else ''} of this sweep"
    else:
        rate = sweep.config.flops_per_second or (
            _GPU_FLOPS if devices.kind == "gpu" else _CPU_FLOPS_PER_CORE * devices.threads
        )
        overhead = _STEP_OVERHEAD[devices.kind]
        # The processes of a run on a CPU share its cores, and runs may share a GPU.
        step = {
            run.name: overhead
            + _flops_per_step(run) / rate * devices.runs_per_gpu / (run.devices if devices.kind == "gpu" else 1)
            for run in sweep.runs
        }
        given = "" if sweep.config.flops_per_second else "an assumed "
        per = "GPU" if devices.kind == "gpu" else "run"
        basis = f"{given}{rate:.1e} FLOP/s per {per} and {overhead * 1e3:.0f} ms per step until a run has finished"
    seconds = {run.name: handover + (run.config.steps - run.config.first_step) * step[run.name] for run in sweep.runs}
    basis += f", {launch:.0f} s for a launch and {handover:.1f} s between the runs of one"
    return Plan(sweep, devices, seconds, basis, launch)


def _flops_per_step(run: Run) -> int:
    return run.config.tokens_per_step * run.config.flops_per_token


def measured_speeds(sweep: Sweep) -> list[tuple[float, float]]:
    """Return (FLOPs per step and device, seconds per step) of the finished runs, by FLOPs."""
    speeds = []
    for run in sweep.runs:
        if complete_record(run.directory) is None:
            continue
        rows = read_rows(run.directory / METRICS)
        rates = [rate for row in rows if (rate := row.get("tokens_per_second"))]
        if rates:
            work = _flops_per_step(run) / run.devices
            speeds.append((work, run.config.tokens_per_step / statistics.median(rates)))
    return sorted(speeds)


def measured_startup(sweep: Sweep) -> tuple[float, float]:
    """Return the seconds of a launch, and those of a run on a warm worker beside its training.

    Measured by the finished runs where there are any of a kind.
    """
    events = {(event["run"], event["event"]): event for event in read_events(sweep.config.directory)}
    beside: dict[bool, list[float]] = {True: [], False: []}
    for run in sweep.runs:
        record, complete = complete_record(run.directory), events.get((run.name, "complete"))
        if record is None or complete is None or record.compute.seconds is None or record.recipe.branch_of:
            continue
        warm = events.get((run.name, "started"), {}).get("warm", False)
        beside[warm].append(max(0.0, complete["seconds"] - record.compute.seconds))
    handover = statistics.median(beside[True]) if beside[True] else _HANDOVER
    launch = max(0.0, statistics.median(beside[False]) - handover) if beside[False] else _LAUNCH
    return launch, handover


def _step_from_siblings(run: Run, speeds: list[tuple[float, float]]) -> float:
    """Interpolate seconds per step in the logarithm of the work.

    Below the smallest sibling a step takes as long as its step, which is mostly overhead; above the largest, time
    grows with the work.
    """
    work = _flops_per_step(run) / run.devices
    if work <= speeds[0][0]:
        return speeds[0][1]
    if work >= speeds[-1][0]:
        return speeds[-1][1] * work / speeds[-1][0]
    upper = next(i for i, (known, _) in enumerate(speeds) if known >= work)
    (w0, t0), (w1, t1) = speeds[upper - 1], speeds[upper]
    share = math.log(work / w0) / math.log(w1 / w0)
    return math.exp((1 - share) * math.log(t0) + share * math.log(t1))


# ---------------------------------------------------------------------------------------- presentation


def plan_table(plan: Plan, states: Mapping[str, str]) -> Table:
    """Return the table of all runs; `states` says of each run how far it is."""
    count = len(plan.sweep.runs)
    title = f"{plan.sweep.config.name}: {count} run{'s' if count != 1 else ''} on {plan.devices}"
    columns = ["N", "non-emb.", "head", "D", "D/N", "batch", "lr", "steps", "FLOPs", "6ND", "devices", "time", "state"]
    on_gpus = plan.devices.kind == "gpu"
    table = make_table(title, "run", *(f"#{column}" for column in columns), *(["#GiB/GPU"] if on_gpus else []))
    for run in plan.sweep.runs:
        config, counts = run.config, count_parameters(run.config.model)
        memory = [f"{peak_memory(config.step_plan, run.data_parallel) / GIB:.1f}"] if on_gpus else []
        table.add_row(
            run.name,
            short_count(counts.total),
            short_count(counts.non_embedding),
            short_count(counts.readout_matrix),
            short_count(config.tokens),
            f"{config.tokens / counts.total:.3g}",
            f"{config.train.micro_batch_size}×{run.config.train.micro_batches(run.data_parallel)}×{run.data_parallel}",
            f"{config.optimizer.lr:.3g}",
            f"{config.steps:,}",
            f"{config.flops:.2e}",
            f"{6 * counts.total * config.tokens:.2e}",
            str(run.devices),
            duration(plan.seconds[run.name]),
            states[run.name],
            *memory,
        )
    return table


def plan_summary(plan: Plan, states: Mapping[str, str]) -> list[str]:
    """Return the totals, the time and the cost, one a line."""
    runs, config = plan.sweep.runs, plan.sweep.config
    left = {run.name: plan.seconds[run.name] for run in runs if states[run.name] not in ("complete", "not needed")}
    flops = sum(run.config.flops_spent for run in runs)
    share = plan.devices.runs_per_gpu
    device_hours = sum(plan.seconds[run.name] * run.devices for run in runs) / share / 3600
    lines = [
        "N: all parameters; non-emb.: without embeddings and head; head: the matrix that makes the logits, tied or not",
        "D: tokens; batch: sequences, micro × accumulation × data parallel; 6ND: FLOPs by that rule",
        f"total      {short_count(sum(run.config.tokens_spent for run in runs))} tokens, {flops:.3g} FLOPs, "
        f"{device_hours:.3g} device-hours",
    ]
    if config.trunk:
        branches = sum(run.config.branch is not None for run in runs)
        apart = sum(run.config.flops for run in runs)
        lines.append(
            f"trunk      {flops / apart:.1%} of the {apart:.3g} FLOPs of independent runs: "
            f"{branches} of {len(runs)} branch off"
        )
    if config.lr is not None:
        rule = config.lr
        lines.append(f"lr         {rule.reference:g} × (d_model / {rule.d_model})^{rule.power:g}, or as stated")
    lines += _rule_lines(runs)
    if plan.devices.kind == "gpu":
        lines.append(_memory_line(plan))
    done = f" ({len(runs) - len(left)} of {len(runs)} complete)" if len(left) < len(runs) else ""
    lines.append(f"time       about {duration(plan.wall_seconds(left))}{done}, from {plan.basis}")
    if config.price_per_device_hour is not None:
        price = config.price_per_device_hour
        hours_left = sum(plan.seconds[run.name] * run.devices for run in runs if run.name in left) / share / 3600
        lines.append(
            f"cost       {_money(device_hours * price)} in all, {_money(hours_left * price)} still to spend, "
            f"at {price:g} per device-hour"
        )
    return lines


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.2g}"


def _rule_lines(runs: Sequence[Run]) -> list[str]:
    """Say of each value that follows from a rule what it came to, from which formula, and where that is from."""
    given: dict[str, list[Derived]] = {}
    for run in runs:
        for value in run.derived:
            given.setdefault(value.key, []).append(value)
    lines = []
    for key, values in given.items():
        numbers = [value.value for value in values]
        low, high = f"{min(numbers):.4g}", f"{max(numbers):.4g}"
        lines.append(
            f"rule       {key} = {values[0].formula}: {low if low == high else f'{low} to {high}'} ({values[0].source})"
        )
        far = max(values, key=lambda value: value.beyond)
        if far.beyond:
            lines.append(f"warning    {key} is a guess where the rule was not fitted: {far.outside}")
    return lines


def _memory_line(plan: Plan) -> str:
    """Say how much memory a GPU needs, and which runs need more than this machine's GPUs have.

    A run among several that share a GPU is counted with others as large as itself.
    """
    share = plan.devices.runs_per_gpu
    peaks = {run.name: share * peak_memory(run.config.step_plan, run.data_parallel) for run in plan.sweep.runs}
    largest = max(peaks, key=lambda name: peaks[name])
    of = largest if share == 1 else f"{share} of {largest}"
    line = f"memory     up to {peaks[largest] / GIB:.1f} GiB on a GPU ({of}); scripts/plan_cluster.py says of what"
    have = None if plan.devices.hostfile is not None else local_gpu_memory()
    if have is None or peaks[largest] <= USABLE * have:
        return line
    way_out = "lower train.micro_batch_size" + (" or runs_per_gpu" if share > 1 else "")
    too_large = ", ".join(name for name, peak in peaks.items() if peak > USABLE * have)
    return f"{line}\nwarning    GPUs of {have / GIB:.0f} GiB are too small for {too_large}: {way_out}"
