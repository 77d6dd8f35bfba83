"""Predict the loss of a model from a fitted law, with an interval and how far that is from what was measured.

Units: --params in parameters, --tokens in tokens, --flops in FLOPs; the loss is in nats per token.

    python scripts/predict.py runs/quickstart/law.json --params 7e9 --tokens 140e9
    python scripts/predict.py fits/table/law.json --params 7B --flops 5.9e21 --json

Numbers are written 7e9, 7B (k, M, B, T) or 7_000_000_000. Of --params, --tokens and --flops two give the third, with C
as the law was fitted to it: exact or 6ND. The interval is that of a new measurement: the uncertainty of the parameters
and the noise between runs. It does not know whether the law still holds out there.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.cli import Parser, parse_count, run_command
from configs.formatting import nats
from scaling.forecast.forecast import Forecast, forecast, task_score
from scaling.forecast.law_file import LawFile, read_law
from scaling.forecast.preregistration import register


def show(result: Forecast, law: LawFile) -> str:
    """The forecast in words."""
    far = "inside the fitted range"
    if result.extrapolation > 1:
        parts = [f"{k} by {v:.3g}x" for k, v in result.extrapolation_by.items() if v > 1]
        far = f"outside the fitted range: {', '.join(parts)}"
    given = ", ".join(f"{k} = {v:.4g}" for k, v in result.inputs.items())
    counted = "".join(f"\n{line}" for line in (law.compute.words, *result.cautions)) if "C" in result.inputs else ""
    kind = f"loss {{}} {law.data.loss_unit}" if law.fit.law != "task_sigmoid" else "score {}"
    interval = f"{100 * result.level:g} % interval {nats(result.low)} to {nats(result.high)}"
    return f"{given}\n{kind.format(nats(result.loss))}, {interval}\n{far}{counted}"


def run(args: argparse.Namespace) -> None:
    """Read the law, predict, print."""
    law = read_law(args.law)
    path = args.law if args.law.is_dir() else args.law.parent
    given = {"N": args.params, "D": args.tokens, "C": args.flops, "S": args.steps}
    given |= {"U": args.unique_tokens, "loss": args.loss}
    result = forecast(path, law, given, args.average)
    answer = {k: getattr(result, k) for k in ("loss", "low", "high", "level", "extrapolation")}
    answer |= {"extrapolation_by": result.extrapolation_by, "inputs": result.inputs}
    answer |= {"compute": law.compute.words, "cautions": list(result.cautions)}
    lines = [show(result, law)]
    if result.averaged:
        answer["averaged"] = result.averaged
        parts = [f"{k} {v['loss']:.4f} (weight {v['weight']:.2f})" for k, v in result.averaged["by_law"].items()]
        lines.append(f"average of {', '.join(parts)}; standard deviation between laws {result.averaged['between']:.4f}")
    if args.task:
        task = task_score(path, law, args.task, read_law(args.task), given)
        answer |= task
        lines.append(f"score {task['score']:.4f}, interval {task['score_low']:.4f} to {task['score_high']:.4f}")
    if args.register:
        answer["registered"] = str(register(path, law, result))
        lines.append(f"registered: {answer['registered']}")
    print(json.dumps(answer) if args.json else "\n".join(lines))


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("law", metavar="LAW.json", type=Path, help="a fitted law, or the directory that holds its law.json")
    add("--params", type=parse_count, metavar="N", help="parameters of the model, counted as in the fit")
    add("--tokens", type=parse_count, metavar="D", help="tokens that it is trained on")
    add("--flops", type=parse_count, metavar="C", help="training compute in FLOPs")
    add("--steps", type=parse_count, metavar="S", help="optimizer steps, for laws in S")
    add("--unique-tokens", type=parse_count, metavar="U", help="different tokens among D (default: all of them)")
    add("--loss", type=parse_count, metavar="L", help="loss in nats per token, for the law task_sigmoid")
    add("--average", action="store_true", help="average over all laws fitted, their spread in the interval")
    add("--task", metavar="LAW.json", type=Path, help="a fitted task_sigmoid: predict the score as well")
    add("--register", action="store_true", help="store the forecast beside the law; fit.py scores it later")
    add("--json", action="store_true", help="print one JSON object")
    return run_command(parser, run, words)


if __name__ == "__main__":
    sys.exit(main())
