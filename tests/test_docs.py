"""What the documentation names is there: files, folders, functions, tests, links and their anchors."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
MOST_WORDS = 1300
"""Words of a README that a person reads in five minutes."""

GENERATED = ("runs/", "RUNS_DIR/", "corpora/", "exports/", "fits/", "forecasts/", "plain/", ".venv/")
"""Where the commands write."""
USERS = ("books/", "../", "mytext.py", "learning_curve.py", "launch.py")
"""What the reader brings along, and DeepSpeed's launcher."""
SCRIPTS = (".py", ".sh", ".sbatch")

_FENCED = re.compile(r"^ *```.*?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^ {4}(?=\S)(.*)$", re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_MEMBER = re.compile(r"([\w./-]+)::(\w+)")
_PATH = re.compile(r"(?<![\w/.~$-])(?:[\w.*-]+/)+[\w.*-]*")
_SCRIPT = re.compile(r"(?<![\w/.*-])[\w-]+\.(?:py|sh|sbatch)\b")


def problems(document: Path, root: Path) -> list[str]:
    """Return what `document` names that is not in the repository at `root`, as sentences."""
    text = document.read_text(encoding="utf-8")
    code = list(_code(text))
    found = [_member(root, *member) for part in code for member in _MEMBER.findall(part)]
    rest = [_MEMBER.sub("", part) for part in code]
    found += [_path(root, path.rstrip(".")) for part in rest for path in _PATH.findall(part)]
    folders = [f for f in root.iterdir() if f.is_dir() and f.name[0] != "." and f"{f.name}/" not in GENERATED]
    names = {path.name for folder in folders for path in folder.rglob("*") if path.suffix in SCRIPTS}
    scripts = {name for part in rest for name in _SCRIPT.findall(part)}
    found += [f"no file is called {name}" for name in sorted(scripts - names - set(USERS))]
    found += [_link(document, target) for target in _LINK.findall(_FENCED.sub("", text))]
    return [problem for problem in found if problem]


def _code(text: str) -> Iterator[str]:
    """Yield every code block and code span."""
    yield from _FENCED.findall(text)
    text = _FENCED.sub("", text)
    yield from _INDENTED.findall(text)
    yield from _SPAN.findall(text)


def _path(root: Path, path: str) -> str:
    """`scripts/fit.py` must be there; a word such as `N/D` is no path. `docs/*.md` must match a file."""
    if path.startswith((*GENERATED, *USERS)):
        return ""
    is_file = re.search(r"\.[a-z]\w*$", path) is not None
    if not is_file and not (root / path.partition("/")[0]).is_dir():
        return ""
    return "" if any(root.glob(path.rstrip("/"))) else f"{path} does not exist"


def _member(root: Path, path: str, name: str) -> str:
    """`train/loop.py::train` is a function or class there; `train/parts::name` is short for a test."""
    file, defined = root / path, name
    if file.suffix != ".py":
        file, defined = root / "tests" / Path(path).with_name(f"test_{Path(path).name}.py"), f"test_{name}"
    if not file.is_file():
        return f"{path}::{name}: {file.relative_to(root)} does not exist"
    is_there = re.search(rf"^ *(?:def|class) {defined}\b", file.read_text(encoding="utf-8"), re.MULTILINE)
    return "" if is_there else f"{path}::{name}: {file.relative_to(root)} defines no {defined}"


def _link(document: Path, target: str) -> str:
    """A link leads to a file, and its anchor to a heading of it."""
    if re.match(r"\w+:", target):
        return ""
    path, _, anchor = target.partition("#")
    file = document.parent / path if path else document
    if not file.exists():
        return f"the link {target} leads nowhere"
    if anchor and anchor not in _anchors(file.read_text(encoding="utf-8")):
        return f"the link {target} names no heading of {file.name}"
    return ""


def _anchors(text: str) -> set[str]:
    """Return the anchors of all headings, formed as forges form them."""
    headings = re.findall(r"^#+ +(.+)$", _FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_everything_that_is_named_exists(name: str) -> None:
    assert problems(ROOT / name, ROOT) == []


def test_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


def test_index_leads_to_every_page() -> None:
    linked = set(_LINK.findall((ROOT / "docs/index.md").read_text(encoding="utf-8")))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - linked == {"index.md"}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with a script, a test and a page."""
    for name, text in {
        "scripts/fit.py": "def main():\n    pass\n",
        "tests/train/test_loop.py": "def test_it_ends():\n    pass\n",
        "docs/law.md": "# Keys of `law.json`\n\n```\n# no heading\n```\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_what_is_right_is_passed(small: Path) -> None:
    (small / "README.md").write_text(
        "`scripts/fit.py` `scripts/*.py` `scripts/` `fit.py` `scripts/fit.py::main` `train/loop::it_ends` `N/D` `1/2`\n"
        "`runs/x/law.json` `/shared/runs/y.json` `$HOME/a.py` [a](docs/law.md#keys-of-lawjson) [b](https://x.org/c.md)\n"
        "```bash\npython scripts/fit.py runs/tiny --out fits/tiny  # see scripts/fit.py.\n```\n",
        encoding="utf-8",
    )
    assert problems(small / "README.md", small) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("see `scripts/fti.py`", "scripts/fti.py does not exist"),
        ("see `scirpts/fit.py`", "scirpts/fit.py does not exist"),
        ("see `scripts/studies/`", "scripts/studies/ does not exist"),
        ("see `tests/test_*.py`", "tests/test_*.py does not exist"),
        ("call `mix.py RUNS_DIR`", "no file is called mix.py"),
        ("`python scripts/fti.py\nruns/x`", "scripts/fti.py does not exist"),
        ("```bash\npython scripts/fti.py --config=x\n```", "scripts/fti.py does not exist"),
        ("```yaml\nextends: configs/runs/tiny.yaml\n```", "configs/runs/tiny.yaml does not exist"),
        ("text:\n\n    python scripts/fti.py\n", "scripts/fti.py does not exist"),
        ("[law](docs/lwa.md)", "the link docs/lwa.md leads nowhere"),
        ("![law](docs/law.png)", "the link docs/law.png leads nowhere"),
        ("[law](docs/law.md#no-heading)", "the link docs/law.md#no-heading names no heading of law.md"),
        ("[here](#nothing)", "the link #nothing names no heading of README.md"),
        ("`scripts/fit.py::run`", "scripts/fit.py::run: scripts/fit.py defines no run"),
        ("`train/loop::it_stops`", "train/loop::it_stops: tests/train/test_loop.py defines no test_it_stops"),
        ("`train/lop::it_ends`", "train/lop::it_ends: tests/train/test_lop.py does not exist"),
    ],
)
def test_a_planted_fault_is_found(small: Path, line: str, said: str) -> None:
    (small / "README.md").write_text(line, encoding="utf-8")
    assert problems(small / "README.md", small) == [said]
