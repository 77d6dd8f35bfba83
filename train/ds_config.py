"""DeepSpeed's configuration: derived from ours, merged with the user's own ds.json, conflicts refused."""

import json
from pathlib import Path
from typing import Any

from configs.reader import ConfigError, Problem
from train.config import RunConfig

Tree = dict[str, Any]


def derive(run: RunConfig, data_parallel: int) -> Tree:
    """Return the DeepSpeed configuration that `run` implies on `data_parallel` replicas."""
    stage = run.zero_stage
    # In plain fp32 our own optimizer clips (train/optimizer.py); everywhere else DeepSpeed's wrapper does.
    clips_itself = run.precision == "fp32" and stage == 0
    tree: Tree = {
        "train_batch_size": run.train.global_batch,
        "train_micro_batch_size_per_gpu": run.train.micro_batch,
        "gradient_accumulation_steps": run.train.global_batch // (run.train.micro_batch * data_parallel),
        "gradient_clipping": 0.0 if clips_itself else run.optimizer.gradient_clipping,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": run.precision == "bf16"},
        "fp16": {"enabled": run.precision == "fp16"},
        "steps_per_print": 10**12,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU twice in every step
        "wandb": {"enabled": False},
    }
    if run.precision == "bf16" and stage == 1:
        # Accumulate in fp32: sums of many bf16 gradients lose their small terms.
        tree["data_types"] = {"grad_accum_dtype": "fp32"}
    return tree


def read_user_config(path: Path) -> Tree:
    """Read a user's ds.json. Raises `ConfigError`."""
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError([Problem(str(path), "", f"cannot be read as JSON: {error}")]) from None
    if not isinstance(tree, dict):
        raise ConfigError([Problem(str(path), "", "must hold a JSON object")])
    return tree


# Sections of a ds.json that this trainer owns whole: what the user would set there has a place in the run's YAML.
_OURS = {
    "optimizer": "set optimizer.* in the run's YAML instead",
    "scheduler": "set schedule.* in the run's YAML instead",
    "pipeline": "set parallel.pipeline_stages in the run's YAML instead",
}

_OUR_KEYS = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch / (train.micro_batch x data-parallel ranks)",
    "gradient_clipping": "optimizer.gradient_clipping",
    "zero_optimization.stage": "parallel.zero_stage",
    "bf16.enabled": "precision",
    "fp16.enabled": "precision",
}


def merge_user_config(run: RunConfig, derived: Tree, user: Tree, source: str) -> Tree:
    """Merge a user's ds.json under the derived configuration.

    `"auto"` stands for the derived value, as in Hugging Face's integration. The `wandb` block is dropped: this
    trainer owns the W&B run.

    Raises:
        ConfigError: for every key that says something else than the run's YAML.
    """
    expected = derived | {"gradient_clipping": run.optimizer.gradient_clipping}
    problems = [Problem(source, key, f"is not taken; {reason}") for key, reason in _OURS.items() if key in user]

    def merged(ours: Tree, theirs: Tree, wanted: Tree, prefix: str) -> Tree:
        result = dict(ours)
        for key, value in theirs.items():
            dotted = prefix + key
            if dotted in _OUR_KEYS and value != "auto" and value != wanted.get(key):
                owner = _OUR_KEYS[dotted]
                problems.append(
                    Problem(source, dotted, f"{value!r} conflicts with {wanted.get(key)!r} from the run's {owner}")
                )
            elif isinstance(value, dict) and key != "wandb":
                result[key] = merged(ours.get(key, {}), value, wanted.get(key, {}), f"{dotted}.")
            elif dotted not in _OUR_KEYS and key != "wandb" and value != "auto":
                result[key] = value
        return result

    tree = merged(derived, {k: v for k, v in user.items() if k not in _OURS}, expected, "")
    if problems:
        raise ConfigError(problems)
    return tree
