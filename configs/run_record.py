"""`record.json` of a run: what training writes and everything else reads.

Sections in code; one flat object in the file, where every key keeps its name, because other people's scripts read it.
Losses are in nats per token unless a name says bits per byte, N counts parameters, D tokens, `flops` FLOPs. None is
what the version, or the program, that wrote a record did not know. What a law may be fitted to is a float: records of
other programs may hold fractions.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from configs.reader import ConfigError, Problem, build, config
from data.files import write_json

RECORD = "record.json"
SCHEMA = 2
READABLE = (1, 2)
"""Schemas that `read_record` understands; 1 has no `val_loss_stderr`."""


class RecordError(ConfigError):
    """A record that cannot be used; the message names file and key and says what is wrong."""


class OtherVersionError(RecordError):
    """A record of a schema that this version does not read, rather than a damaged one."""


@config
class RunIdentity:
    """Which run it is, and by what it was made."""

    name: str | None
    complete: bool
    """Whether the schedule has finished; the loss of another run is that of another schedule."""
    seed: int | None
    code: str | None
    """Commit, with `+changes` where files differed from it."""
    python: str | None
    torch: str | None
    deepspeed: str | None
    scaling_testbed: str | None
    corpus: str | None
    """Directories of the corpora, joined by `+`."""
    corpus_fingerprint: str | None
    tokenizer_sha256: str | None


@config
class RunSize:
    """The model."""

    N: float
    """All parameters."""
    N_non_embedding: float | None
    """Without embeddings and output projection."""
    N_head: float | None
    """Entries of the matrix that makes the logits."""
    n_layer: int | None
    d_model: int | None
    n_head: int | None
    d_ff: int | None
    vocab_size: int | None
    style: str | None
    tied: bool | None
    parametrization: str | None


@config
class RunTokens:
    """What was read. Of a mixture, `epochs` is that of the component repeated most, `unique_tokens` the sum."""

    D: float
    """Training tokens."""
    training_bytes: float | None
    """UTF-8 bytes of their text."""
    epochs: float | None
    """D / U, with U the training tokens of the corpus."""
    unique_tokens: float | None
    """min(D, U)."""
    entropy_rate: float | None
    """Nats per token below which no model can go; None for text."""
    validation_tokens: int | None
    validation_bytes_per_token: float | None


@config
class RunCompute:
    """What it cost, and where it ran."""

    flops: float | None
    """Exact: attention and head included, embedding look-up not; of a branch, its trunk's part included."""
    flops_spent: float | None
    """Of the steps that the run did itself."""
    flops_6nd: float | None
    seconds: float | None
    """Wall-clock time of the steps that count, over all resumes."""
    device: str | None
    world_size: int | None
    data_parallel: int | None
    pipeline_stages: int | None
    tensor_parallel: int | None
    zero_stage: int | None
    precision: str | None


@config
class RunRecipe:
    """How it was trained."""

    steps: int | None
    global_batch: int | None
    """Sequences per optimizer step."""
    micro_batch: int | None
    """Sequences per forward pass and device."""
    sequence_length: int | None
    lr: float | None
    """Peak of the base learning rate."""
    weight_decay: float | None
    schedule: str | None
    warmup_steps: int | None
    final_lr_fraction: float | None
    """Last learning rate over the peak."""
    branch_of: str | None
    """Run whose first steps this one shares."""
    branch_step: int | None


@config
class RunResult:
    """What came out."""

    val_loss: float
    """Mean over the fixed validation tokens; of a mixture, by its weights."""
    val_loss_stderr: float | None
    """Standard error of that mean over validation windows, nats per token; None for a single window."""
    bits_per_byte: float | None
    tainted: bool | None
    """Whether something altered the run; fits leave it out."""
    rollbacks: int | None
    skipped_tokens: int | None
    skipped_updates: int | None
    """Steps whose update was skipped because loss or gradient were not finite."""
    ended_in_spike: bool | None


@config
class ComponentResults:
    """The same of each component of a mixture, by name."""

    val_loss_by_component: Mapping[str, float]
    weight_by_component: Mapping[str, float] | None
    bits_per_byte_by_component: Mapping[str, float] | None
    epochs_by_component: Mapping[str, float] | None
    unique_tokens_by_component: Mapping[str, float] | None


@config
class RunRecord:
    """A run, from what it was to what came out."""

    identity: RunIdentity
    size: RunSize
    tokens: RunTokens
    compute: RunCompute
    recipe: RunRecipe
    result: RunResult
    components: ComponentResults | None
    """None where nothing was mixed: the file has none of these keys then."""
    others: Mapping[str, Any]
    """Keys that this version does not know, as they stand in the file; a table may take a column from one."""

    def flat(self) -> dict[str, Any]:
        """Return what stands in the file, by key."""
        sections = (getattr(self, name) for name in _KEYS)
        known = {key: value for section in sections if section is not None for key, value in vars(section).items()}
        return {"schema": SCHEMA, **known, **self.others}

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises ValueError for a number that is not finite."""
        write_json(path, self.flat())


_KEYS = {
    name: {key: NoneType in get_args(kind) for key, kind in get_type_hints((get_args(section) or [section])[0]).items()}
    for name, section in get_type_hints(RunRecord).items()
    if name != "others"
}
"""Keys of each section, and whether a record may lack them."""


def read_record(path: Path) -> RunRecord:
    """Read a record.json. Raises OSError when there is none, and as `parse_record`."""
    return parse_record(path.read_bytes(), str(path))


def parse_record(content: str | bytes, source: str) -> RunRecord:
    """Read the content of a record.json of this version or an earlier one; `source` names it in messages.

    Raises:
        OtherVersionError: when its schema is none of `READABLE`.
        RecordError: naming every key that is missing or of another type.
    """
    try:
        raw = json.loads(content, parse_constant=lambda word: None)  # NaN is no number
    except (ValueError, RecursionError) as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecordError([Problem(source, "", f"is not JSON: {message}")]) from None
    if not isinstance(raw, dict):
        raise RecordError([Problem(source, "", "is not a JSON object")])
    schema = raw.pop("schema", 1)
    if schema not in READABLE:
        message = f"{json.dumps(schema)} is that of another version of this project; this one reads 1 and 2"
        raise OtherVersionError([Problem(source, "schema", message)])
    tree: dict[str, Any] = {"components": None}
    for section, keys in _KEYS.items():
        if section != "components" or keys.keys() & raw.keys():
            tree[section] = {key: raw.pop(key, None) for key, may_lack in keys.items() if key in raw or may_lack}
    try:
        return build(RunRecord, {**tree, "others": raw}, source)
    except ConfigError as error:
        problems = [Problem(source, p.key.partition(".")[2], p.message) for p in error.problems]
        raise RecordError(problems) from None


def complete_record(directory: Path) -> RunRecord | None:
    """Return the record of a run that is complete; None where there is none, or a damaged one.

    Raises `OtherVersionError` for a record that another version wrote, lest the run be trained over it.
    """
    try:
        record = read_record(directory / RECORD)
    except OtherVersionError:
        raise
    except (OSError, RecordError):
        return None
    return record if record.identity.complete else None
