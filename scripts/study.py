"""Run one of the studies beside the ladder itself, or list them.

    python scripts/study.py NAME ...
    python scripts/study.py NAME --help

Each is a command of its own, scripts/studies/NAME.py, whose first line says what question it answers:
"""

import ast
import runpy
import sys
from pathlib import Path

from configs.cli import Parser

STUDIES = {path.stem: path for path in sorted(Path(__file__).with_name("studies").glob("[a-z]*.py"))}


def main(arguments: list[str]) -> int:
    """Run the study that the first argument names with those after it; without one, list them all."""
    if arguments and arguments[0] in STUDIES:
        study = runpy.run_path(str(STUDIES[arguments[0]]), run_name=arguments[0])
        sys.argv[0] = f"study.py {arguments[0]}"
        return int(study["main"](arguments[1:]))
    docstrings = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in STUDIES.values())
    listed = [f"    {name:15s} {text.splitlines()[0]}" for name, text in zip(STUDIES, docstrings, strict=True)]
    parser = Parser("\n".join([__doc__, *listed]))
    parser.add_argument("study", metavar="NAME", choices=list(STUDIES), help="the study; what follows is for it")
    parser.parse_args(arguments or ["--help"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
