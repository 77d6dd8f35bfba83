#!/usr/bin/env python
"""Predict the loss of a model from a fitted law, with an interval and how far that is from what was measured.

Units: --params in parameters, --tokens in tokens, --flops in FLOPs; the loss is in nats per token.

    python scripts/predict.py runs/quickstart/law.json --params 7e9 --tokens 140e9
    python scripts/predict.py fits/table/law.json --params 7e9 --flops 5.9e21 --json

Of --params, --tokens and --flops two are enough (C = 6ND). The interval is that of a new measurement: the
uncertainty of the parameters and the noise between runs. It does not know whether the law still holds out there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from scaling.artifact import ArtifactError, read_law
from scaling.forecast import Forecast, ForecastError, forecast


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("law", metavar="LAW.json", type=Path)
    add("--params", type=float, metavar="N", help="parameters of the model, counted as in the fit")
    add("--tokens", type=float, metavar="D", help="tokens that it is trained on")
    add("--flops", type=float, metavar="C", help="training compute in FLOPs")
    add("--steps", type=float, metavar="S", help="optimizer steps, for laws in S")
    add("--unique-tokens", type=float, metavar="U", help="different tokens among D (default: all of them)")
    add("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def show(result: Forecast) -> str:
    """The forecast in words."""
    far = "inside the fitted range"
    if result.extrapolation > 1:
        parts = [f"{k} by {v:.3g}x" for k, v in result.extrapolation_by.items() if v > 1]
        far = f"outside the fitted range: {', '.join(parts)}"
    given = ", ".join(f"{k} = {v:.4g}" for k, v in result.inputs.items())
    return (
        f"{given}\n"
        f"loss {result.loss:.4f} nats per token, {100 * result.level:g} % interval "
        f"{result.low:.4f} to {result.high:.4f}\n{far}"
    )


def main() -> int:
    """Entry point: 0, or 1 after one sentence on what was wrong."""
    args = arguments()
    given = {"N": args.params, "D": args.tokens, "C": args.flops, "S": args.steps, "U": args.unique_tokens}
    try:
        law = read_law(args.law)
        result = forecast(args.law, law, given)
    except (ArtifactError, ForecastError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 1
    if args.json:
        keys = ("loss", "low", "high", "level", "extrapolation", "extrapolation_by", "inputs")
        print(json.dumps({k: getattr(result, k) for k in keys}))
    else:
        print(show(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
