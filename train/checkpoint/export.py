"""One directory with the weights of a run, for plain torch and for Hugging Face `transformers`.

    OUT/plain/model.safetensors   fp32 weights under the names of `model.transformer.GPT`
    OUT/plain/config.yaml         the run's configuration; its `model:` section builds that `GPT`
    OUT/model.safetensors         the same weights for transformers, with config.json
    OUT/tokenizer.json            the corpus's tokenizer, with tokenizer_config.json

The plain file has a directory of its own because many loaders take every `*.safetensors` beside `config.json`.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from configs.reader import UserError, dump_yaml
from configs.run_record import RECORD, RecordError, read_record
from data.config import DataConfig, DataError
from data.corpus.prepare import prepare
from data.corpus.shards import TOKENIZER, TokenizerEntry, read_manifest
from data.files import replace_directory, sha256, write_json
from data.loading.mixture import open_mixture
from model.config import ModelConfig
from model.huggingface import NoCounterpart, architecture, huggingface_config, huggingface_weights
from model.parameters import parameter_table
from train.checkpoint.manifest import CheckpointError, damage, newest_first, step_of
from train.checkpoint.state_files import Weights, read_weights
from train.config import load_stored


class ExportError(UserError):
    """Nothing can be exported from, or to, where the user said."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    step: int
    """Optimizer steps that the weights have seen."""
    parameters: int
    """Numbers in the plain file."""
    architecture: str | None
    """Class of `transformers` that reads the directory; None when there is none."""
    left_out: tuple[str, ...]
    """One sentence for each part that could not be written, and why."""


def export(run_dir: Path, out: Path, step: int | None = None) -> Exported:
    """Write the weights of a checkpoint in `run_dir` to the new directory `out`, which appears whole or not at all.

    Args:
        run_dir: a run of any topology and precision, finished or not.
        out: a directory that does not exist, or is empty.
        step: optimizer steps done at the checkpoint; None takes the newest that verifies, and names others on stderr.

    Raises:
        ExportError: when there is no such run, or `out` is in use.
        ConfigError: when the run's `config.yaml` cannot be read.
        CheckpointError: when there is no such checkpoint, or its content cannot be used.
    """
    if not (run_dir / "config.yaml").is_file():
        raise ExportError(f"{run_dir}: is not the directory of a run; it has no config.yaml")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"{out}: exists already; delete it or choose another --out")
    run = load_stored(run_dir / "config.yaml")
    folder, done = _find(run_dir / "checkpoints", step)
    try:
        weights = read_weights(folder, parameter_table(run.model))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(str(error)) from None

    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by an export that died
    try:
        provenance = {"format": "pt", "run": run.name, "step": str(done)}
        plain = partial / "plain"
        plain.mkdir(parents=True)
        (plain / "config.yaml").write_text(dump_yaml(run), encoding="utf-8")
        save_file(weights, plain / "model.safetensors", provenance)
        target, tokenizer, left_out = None, None, []
        try:
            tokenizer = _write_tokenizer(_corpus(run.data, run_dir), run.model.context_length, partial)
        except (DataError, FileNotFoundError) as error:
            left_out.append(f"no tokenizer was written: {error}")
        try:
            target = _write_huggingface(run.model, weights, tokenizer, provenance, partial)
        except NoCounterpart as error:
            left_out.append(f"only plain/ can be loaded: {error}")
        for path in partial.rglob("*.safetensors"):  # which the library makes for their owner alone
            shutil.copymode(plain / "config.yaml", path)
        replace_directory(partial, out)
    except SafetensorError as error:
        raise ExportError(f"{out}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(done, sum(weight.numel() for weight in weights.values()), target, tuple(left_out))


def _write_huggingface(
    model: ModelConfig, weights: Weights, tokenizer: TokenizerEntry | None, provenance: dict[str, str], out: Path
) -> str:
    """Write what transformers reads; return the class that reads it. Raises `NoCounterpart`."""
    name = architecture(model).name
    save_file(huggingface_weights(model, weights), out / "model.safetensors", provenance)
    write_json(out / "config.json", huggingface_config(model, tokenizer.end_of_text_id if tokenizer else None))
    return name


def _find(folder: Path, step: int | None) -> tuple[Path, int]:
    """Return the checkpoint to export, verified, and its step."""
    there: dict[int, Path] = {}
    for path in newest_first(folder):
        there.setdefault(step_of(path), path)
    if not there:
        raise CheckpointError(
            f"{folder}: there are no checkpoints; train with --checkpoint.interval=STEPS to have some"
        )
    if step is not None and step not in there:
        steps = ", ".join(str(s) for s in sorted(there))
        raise CheckpointError(f"{folder}: there is no checkpoint of step {step}; there are those of {steps}")
    for done, path in there.items() if step is None else [(step, there[step])]:
        fault = damage(path)
        if fault is None:
            return path, done
        print(f"{path}: damaged ({fault})", file=sys.stderr, flush=True)
    raise CheckpointError(f"{folder}: no checkpoint {'' if step is None else f'of step {step} '}is intact")


def _write_tokenizer(corpus: Path, context_length: int, out: Path) -> TokenizerEntry:
    """Copy the tokenizer of a prepared corpus, with the settings that `AutoTokenizer` needs."""
    entry = read_manifest(corpus).tokenizer
    if sha256(corpus / TOKENIZER) != entry.sha256:
        raise DataError(f"'{corpus / TOKENIZER}' is damaged; delete '{corpus}' and prepare it again")
    shutil.copyfile(corpus / TOKENIZER, out / TOKENIZER)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({"bos_token": entry.end_of_text, "eos_token": entry.end_of_text} if entry.end_of_text else {}),
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    write_json(out / "tokenizer_config.json", settings)
    return entry


def _corpus(data: DataConfig, run_dir: Path) -> Path:
    """Find the corpus that the run in `run_dir` was trained on; of a mixture, one with its tokenizer."""
    if data.mixture:
        return open_mixture(data).components[0].corpus.directory
    if data.prepared:
        return Path(data.prepared)
    try:
        name = read_record(run_dir / RECORD).identity.corpus
    except FileNotFoundError:
        return prepare(data)  # not finished yet, so training would do the same
    except RecordError as error:
        raise DataError(str(error)) from None
    if name is None:
        raise DataError(f"{run_dir / RECORD}: corpus: is missing")
    return Path(data.directory) / name
