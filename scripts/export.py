"""Export a run's weights: one fp32 safetensors file, and a model that Hugging Face transformers loads.

    python scripts/export.py runs/tiny --out exports/tiny
    python scripts/export.py runs/tiny --out exports/tiny-500 --step 500

writes:
  DIR/plain/model.safetensors   fp32 weights under the names of model.transformer.GPT, and the run's config.yaml
  DIR/                          config.json, model.safetensors and the tokenizer, for
                                transformers.AutoModelForCausalLM.from_pretrained("DIR")

The run may have any topology and precision; from 16-bit runs the fp32 master weights are taken.
Styles gpt2 and modern become GPT2LMHeadModel, and Qwen3ForCausalLM or, without QK-norm, LlamaForCausalLM.
"""

import argparse
import sys
from pathlib import Path

from configs.cli import Parser, run_command
from train.checkpoint.manifest import CheckpointError

LEFT_OUT = 1
"""Exit status when something could not be exported; what could is there."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__, {str(LEFT_OUT): "no counterpart in transformers, or no tokenizer, and the rest is there"})
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of a run, with config.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to make")
    parser.add_argument("--step", type=int, metavar="N", help="optimizer steps done (default: newest checkpoint)")
    return run_command(parser, run, arguments, (CheckpointError,))


def run(options: argparse.Namespace) -> int:
    """Export, and say what was and what could not be."""
    # Importing torch takes seconds; a mistake in the command line is told at once.
    from train.checkpoint.export import export

    done = export(options.run_dir, options.out, options.step)
    named = f", {done.architecture}" if done.architecture else ""
    print(f"step {done.step}, {done.parameters:,} parameters in fp32{named} -> {options.out}")
    for sentence in done.left_out:
        print(f"export.py: {sentence}", file=sys.stderr, flush=True)
    return LEFT_OUT if done.left_out else 0


if __name__ == "__main__":
    sys.exit(main())
