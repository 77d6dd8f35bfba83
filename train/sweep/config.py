"""What a sweep is: one YAML file, read into one `SweepConfig`, decides the runs of a ladder and where they run."""

from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from configs.keys import flat_items, flatten, nest
from configs.reader import Count, NonNegative, Positive, Whole, config
from train.config import name_problems
from train.sweep.hparam_rules import LrRule, RulesConfig


@config
class StopRule:
    """When enough is known of the forecast for one model: runs that it does not need are not started.

    The law of Chinchilla is fitted whenever a run has finished, cheap runs going first (scaling/design/stopping.py).
    """

    params: Positive
    """Parameters N of the model to forecast, all of them counted."""
    tokens: Positive
    """Its training tokens D."""
    width: Positive = 0.02
    """Width of the 90 % interval of its expected loss, as a fraction of the loss, at which the sweep ends."""


@config
class SweepConfig:
    """A ladder of runs and what they are run on."""

    name: str
    """Name of the sweep and of its group in W&B: letters, digits, '.', '_' and '-'."""
    base: str
    """The run file that every run starts from; relative to the file that names it."""
    run: dict[str, Any] = field(default_factory=dict)
    """Keys of a run, laid over `base` for every run."""
    axes: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted key of a run -> its values; every combination becomes a run. Null undoes those of the file it extends.

    Beside the keys of a run, `tokens_per_parameter` (train.tokens = that times N, embeddings counted), `flops`
    (train.tokens = that over the exact FLOPs per token; an IsoFLOP profile), `lr_multiple` (times the learning rate
    that a rule or the file gives: a scan at each size) and `devices_per_run` can vary.
    """
    grids: list[dict[str, list[Any]]] = field(default_factory=list)
    """Further factorials, each like `axes`."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Further runs, each given by its keys; the same keys as in `axes`, and `name`."""
    trunk: bool = False
    """Train the runs that differ in their budget alone as one trunk with branches (train/sweep/trunk.py), each with the
    losses it would have by itself; needs `schedule.kind: wsd` and `schedule.warmup_steps`."""
    stop: StopRule | None = None
    """When to end before all runs are done; null: never."""
    lr: LrRule | None = None
    """Learning rate by width; an `optimizer.lr` in `axes`, in `points` or on the command line wins."""
    rules: RulesConfig = RulesConfig()
    """Published rules by size, for the learning rate and others; see docs/transfer.md."""
    runs_dir: str | None = None
    """Where the runs go, one directory each; null: runs/NAME."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """What to run on; `auto`: the GPUs of this machine, or its CPU where there are none, or the GPUs of `hostfile`."""
    hostfile: str | None = None
    """Machines to run on, a line `host slots=N` each, as DeepSpeed takes it, with N GPUs, or with `device: cpu` N
    processes; null: this machine. See docs/multinode.md."""
    remote: Literal["ssh", "slurm"] = "ssh"
    """How runs are started on the machines of `hostfile`: `ssh`, by the deepspeed launcher through pdsh, or `slurm`, by
    srun inside the allocation that the sweep itself runs in."""
    devices_per_run: Count = 1
    """GPUs a run trains on; on a CPU, processes."""
    threads_per_run: Count | None = None
    """CPU cores a run is given, shared by its processes; null: one for each. Not used on GPUs."""
    runs_per_gpu: Count = 1
    """Runs that share a GPU, each in a process of its own, for models too small to fill one. Their kernels take turns;
    where NVIDIA's MPS daemon runs, they overlap."""
    parallel_runs: Count | None = None
    """Runs at a time at most, to spare memory; null: as many as the devices hold."""
    runs_per_launch: Count | None = None
    """Runs that one launch trains, one after another in the same processes, at most; null: as many as there are."""
    launcher_args: list[str] = field(default_factory=list)
    """More arguments for the `deepspeed` launcher, such as [--ssh_port, "2222"]; with `remote: slurm`, for srun."""
    retries: Whole = 0
    """Times that a run is launched again after it failed; a mistake in its input or a divergence is not retried."""
    grace_seconds: NonNegative = 60.0
    """Time that runs are given to end after Ctrl-C or SIGTERM, before they are killed."""
    flops_per_second: Positive | None = None
    """Training FLOP/s of one device, for the time estimate while no run of this sweep has finished."""
    price_per_device_hour: NonNegative | None = None
    """Price of one device for one hour, in any currency, for the cost estimate."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every value that cannot work."""
        yield from name_problems(self.name)
        if self.remote == "slurm" and self.hostfile is None:
            yield "remote", "slurm needs a hostfile with the machines of the allocation; docs/multinode.md shows how"
        if "slurm" in self.launcher_args:
            yield "launcher_args", "the launcher cannot place several runs by Slurm; nearest is 'remote: slurm'"
        for section, tree in (("run", self.run), *((f"points.{i}", point) for i, point in enumerate(self.points))):
            keys = [key for key, _ in flat_items(tree)]
            for key in sorted({key for key in keys if keys.count(key) > 1}):
                yield f"{section}.{key}", "is given twice, dotted and nested"
        if self.lr is not None and "optimizer.lr" in flatten(nest(self.run)):
            yield "run.optimizer.lr", "is given beside the rule `lr`; leave one out (lr: null)"
        if self.lr is not None and self.rules.lr is not None:
            yield "rules.lr", "is given beside the rule `lr`; leave one out"

    @property
    def directory(self) -> Path:
        """Where the runs go."""
        return Path(self.runs_dir) if self.runs_dir is not None else Path("runs") / self.name
