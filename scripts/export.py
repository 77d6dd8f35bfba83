"""Export a run's weights: one fp32 safetensors file, and a model that Hugging Face transformers loads."""

import argparse
import sys
from pathlib import Path

from configs.reader import ConfigError
from data.config import DataError

LEFT_OUT = 1
"""Exit status when something could not be exported; what could is there."""
USER_ERROR = 2
"""Exit status when nothing could be exported; nothing was written."""

EPILOG = """\
writes:
  DIR/plain/model.safetensors   fp32 weights under the names of model.transformer.GPT, and the run's config.yaml
  DIR/                          config.json, model.safetensors and the tokenizer, for
                                transformers.AutoModelForCausalLM.from_pretrained("DIR")

example:
  python scripts/export.py runs/tiny --out exports/tiny
  python scripts/export.py runs/tiny --out exports/tiny-500 --step 500

The run may have any topology and precision; from 16-bit runs the fp32 master weights are taken.
Styles gpt2 and modern become GPT2LMHeadModel, and Qwen3ForCausalLM or, without QK-norm, LlamaForCausalLM.
exit status: 0 done; 1 no counterpart in transformers, or no tokenizer, and the rest is there; 2 nothing was written.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="export.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of a run, with config.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to make")
    parser.add_argument("--step", type=int, metavar="N", help="optimizer steps done (default: newest checkpoint)")
    options = parser.parse_args(arguments)
    # Importing torch takes seconds; a mistake in the command line is told at once.
    from train.checkpoint.checkpoint import CheckpointError
    from train.checkpoint.export import ExportError, export

    try:
        done = export(options.run_dir, options.out, options.step)
    except (ExportError, CheckpointError, ConfigError, DataError) as error:
        return _complain(str(error), USER_ERROR)
    except OSError as error:
        return _complain(str(error), USER_ERROR)
    named = f", {done.architecture}" if done.architecture else ""
    print(f"step {done.step}, {done.parameters:,} parameters in fp32{named} -> {options.out}")
    for sentence in done.left_out:
        _complain(sentence, LEFT_OUT)
    return LEFT_OUT if done.left_out else 0


def _complain(message: str, status: int) -> int:
    print(f"export.py: {message}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
