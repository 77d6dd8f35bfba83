"""Run one of the studies beside the ladder itself: `python scripts/study.py NAME ...`, or NAME --help.

Each is a command of its own, scripts/studies/NAME.py, whose first line says what question it answers.
"""

import ast
import runpy
import sys
from pathlib import Path

STUDIES = {path.stem: path for path in sorted(Path(__file__).with_name("studies").glob("[a-z]*.py"))}


def main(arguments: list[str]) -> int:
    """Run the study that the first argument names with those after it; without one, list them all."""
    if arguments and arguments[0] in STUDIES:
        path = STUDIES[arguments[0]]
        sys.argv = [str(path), *arguments[1:]]
        runpy.run_path(str(path), run_name="__main__")
        return 0
    asked = not arguments or arguments[0] in ("-h", "--help")
    if not asked:
        print(f"study.py: there is no study '{arguments[0]}'; choose one of {', '.join(STUDIES)}", file=sys.stderr)
        return 2
    print("usage: study.py NAME ...\n\nThe studies; NAME --help explains each:")
    for name, path in STUDIES.items():
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
        print(f"  {name:15s} {first}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
