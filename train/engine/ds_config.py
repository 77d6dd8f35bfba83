"""DeepSpeed's configuration: derived from ours, merged with the user's own ds.json, conflicts refused."""

import difflib
import json
from pathlib import Path
from typing import Any

from configs.reader import ConfigError, Problem
from train.config import StepPlan
from train.distributed.topology import uses_gpu

Tree = dict[str, Any]


def derive(plan: StepPlan, data_parallel: int) -> Tree:
    """Return the DeepSpeed configuration that a step implies on `data_parallel` replicas."""
    stage = plan.zero_stage
    # In plain fp32 our own optimizer clips (train/engine/optimizer.py); everywhere else DeepSpeed's wrapper does.
    clips_itself = plan.precision == "fp32" and stage == 0
    # DeepSpeed would round what has been summed in fp32 to bf16 between replicas.
    sums = plan.train.gradient_dtype if plan.precision == "bf16" else plan.precision
    tree: Tree = {
        "train_batch_size": plan.train.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.train.micro_batch_size,
        "gradient_accumulation_steps": plan.train.micro_batches(data_parallel),
        "gradient_clipping": 0.0 if clips_itself else plan.optimizer.gradient_clipping,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": plan.precision == "bf16"},
        "fp16": {"enabled": plan.precision == "fp16"},
        "communication_data_type": sums,
        "steps_per_print": 10**12,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU twice in every step
        "wandb": {"enabled": False},
    }
    if plan.precision == "bf16":
        tree["data_types"] = {"grad_accum_dtype": plan.train.gradient_dtype}
    if plan.parallel.offload_optimizer:
        tree["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": uses_gpu()}
        # DeepSpeed's own Adam for CPUs needs a compiler on every machine; PyTorch's is fused too.
        tree["zero_force_ds_cpu_optimizer"] = False
    if plan.parallel.tensor_parallel > 1:
        tree["tensor_parallel"] = _tensor_parallel(plan)
        del tree["train_batch_size"]  # DeepSpeed would expect a share for every process, those of one replica too
    return tree


def _tensor_parallel(plan: StepPlan) -> Tree:
    """Say how AutoTP cuts the blocks; embeddings, norms and the output projection stay whole on each device."""
    column = {"partition_type": "column", "partition_dim": 0}
    cuts = [
        # q, k and v lie one after the other, as do SwiGLU's gate and value: each of them is cut.
        column | {"patterns": [r".*attention\.qkv\.weight$"], "shape": [3, -1]},
        column | {"patterns": [r".*mlp\.up\.weight$"], "shape": [2 if plan.model.mlp == "swiglu" else 1, -1]},
        {"partition_type": "row", "patterns": [r".*attention\.out\.weight$", r".*mlp\.down\.weight$"]},
        # Whole, but applied to this device's heads alone: the gradients of all are summed.
        {"partition_type": "skip", "patterns": [r".*[qk]_norm\.weight$"], "grad_allreduce": True},
    ]
    return {
        "autotp_size": plan.parallel.tensor_parallel,
        "partition_config": {"use_default_specs": False, "layer_specs": cuts},
    }


def read_user_config(path: Path) -> Tree:
    """Read a user's ds.json. Raises `ConfigError`."""
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError([Problem(str(path), "", f"cannot be read as JSON: {error}")]) from None
    if not isinstance(tree, dict):
        raise ConfigError([Problem(str(path), "", "must hold a JSON object")])
    return tree


# What a ds.json would decide behind the run's back: all of it has a place in the run's YAML, or would not be right.
_MASTER = "master weights and optimizer states are fp32 in every precision"
_REFUSED = {
    "optimizer": "set optimizer.* in the run's YAML instead",
    "scheduler": "set schedule.* in the run's YAML instead",
    "pipeline": "set parallel.pipeline_stages in the run's YAML instead",
    "tensor_parallel": "set parallel.tensor_parallel in the run's YAML instead",
    "activation_checkpointing": "DeepSpeed's engine ignores it; set train.activation_checkpointing in the run's YAML",
    "compile": "set train.compile in the run's YAML instead",
    "data_types": "set train.gradient_dtype in the run's YAML instead",
    "torch_autocast": "set precision in the run's YAML instead",
    "sequence_parallel_size": "sequences stay whole here; nearest is parallel.tensor_parallel in the run's YAML",
    "data_parallel_size": "it follows from the processes launched and parallel.* in the run's YAML",
    "expert_parallel": "the model has no experts",
    "data_efficiency": "batches depend on the run's seed and step alone",
    "gradient_allreduce_op": "gradients are means over the global batch",
    "bf16.bf16_master_weights_and_grads": _MASTER,
    "bf16.bf16_optimizer_states": _MASTER,
    "fp16.fp16_master_weights_and_grads": _MASTER,
    "zero_optimization.offload_param": "nearest is parallel.offload_optimizer in the run's YAML",
    "zero_force_ds_cpu_optimizer": "PyTorch's fused AdamW also serves parallel.offload_optimizer",
}

_OUR_KEYS = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size / (train.micro_batch_size x data-parallel ranks)",
    "gradient_clipping": "optimizer.gradient_clipping",
    "communication_data_type": "precision and train.gradient_dtype",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.offload_optimizer.device": "parallel.offload_optimizer",
    "bf16.enabled": "precision",
    "fp16.enabled": "precision",
}


def merge_user_config(plan: StepPlan, derived: Tree, user: Tree, source: str) -> Tree:
    """Merge a user's ds.json under the derived configuration.

    `"auto"` stands for the derived value, as in Hugging Face's integration. The `wandb` block is dropped: this
    trainer owns the W&B run. Raises `ConfigError` for every key that says something else than the run's YAML.
    """
    # What a user would write, where `derived` holds something else.
    expected = derived | {
        "gradient_clipping": plan.optimizer.gradient_clipping,
        "train_batch_size": plan.train.global_batch_size,
        "zero_optimization": {"offload_optimizer": {"device": "none"}} | derived["zero_optimization"],
    }
    problems = []
    # DeepSpeed ignores keys that it does not know. These are not all of its keys, so only a likely slip is refused.
    known = {*_REFUSED, *_OUR_KEYS, *derived}

    def merged(ours: Tree, theirs: Tree, wanted: Tree, prefix: str) -> Tree:
        result = dict(ours)
        for key, value in theirs.items():
            dotted = prefix + key
            siblings = {name.removeprefix(prefix).partition(".")[0] for name in known if name.startswith(prefix)}
            near = difflib.get_close_matches(key, siblings - {key}, n=1, cutoff=0.75)
            if key not in siblings and near and abs(len(near[0]) - len(key)) <= 2:
                problems.append(Problem(source, dotted, f"unknown key; did you mean '{prefix}{near[0]}'?"))
            elif dotted in _REFUSED:
                problems.append(Problem(source, dotted, f"is not taken; {_REFUSED[dotted]}"))
            elif dotted in _OUR_KEYS and value != "auto" and value != wanted.get(key):
                message = f"{value!r} conflicts with {wanted.get(key)!r} from the run's {_OUR_KEYS[dotted]}"
                problems.append(Problem(source, dotted, message))
            elif isinstance(value, dict) and key != "wandb":
                result[key] = merged(ours.get(key, {}), value, wanted.get(key, {}), f"{dotted}.")
            elif dotted not in _OUR_KEYS and key != "wandb" and value != "auto":
                result[key] = value
        return result

    tree = merged(derived, user, expected, "")
    if problems:
        raise ConfigError(problems)
    return tree
