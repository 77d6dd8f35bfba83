"""The learning rate as a pure function of the step."""

import math

from train.config import ScheduleConfig


def lr_multiplier(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0), as a multiple of the peak.

    Warmup rises linearly and reaches the peak at its last step. `cosine` (Loshchilov & Hutter 2017, 1608.03983) falls
    to `final` at the last step; `wsd` holds the peak and falls linearly to `final` over the cooldown.
    """
    warmup = schedule.warmup_length(steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "wsd":
        start = schedule.cooldown_start(steps)
        progress = (step + 1 - start) / (steps - start) if start < steps else 0.0
        return 1.0 - (1.0 - schedule.min_lr_ratio) * max(0.0, progress)
    progress = (step + 1 - warmup) / max(1, steps - warmup)
    return schedule.min_lr_ratio + (1.0 - schedule.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))
