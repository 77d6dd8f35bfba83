"""The house: which room may import which, that every file has one, and that installation and code hash see them all."""

import ast
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("configs", "data", "evaluation", "model", "scaling", "scripts", "train")

ROOMS = """
scripts
train.__main__  train.launch  train.run  train.sweep  train.loop
train.checkpoint  train.telemetry  train.engine  train.supervision  train.stability  train.cost  train.distributed
train.config  train.exit_codes  train
evaluation
scaling  scaling.report  scaling.study  scaling.design  scaling.validation  scaling.forecast  scaling.fit
scaling.studies  scaling.tables  scaling.laws  scaling.errors
data.loading  data.corpus  data.config  data.hashing  data
model
configs
data.files
""".split()  # noqa: SIM905 (a picture of the house)
"""From the top of the house to its ground. A room, or a file at the root of a package, imports what comes after it."""

WHOLE = ("scripts", "evaluation", "model", "configs")
"""Packages that are one room; of the others, the bare name stands for `__init__.py` alone."""

FORBIDDEN = {"scaling": ("train", "evaluation", "torch", "deepspeed"), "scripts.fit": ("torch",)}
"""What a package must not import although it lies below."""

TAKE_SECTIONS = ("checkpoint", "cost", "engine", "stability", "supervision", "telemetry")
"""Rooms of `train` that are given the sections they read, or a small value made of them, never a whole run."""


def room_of(module: str) -> str | None:
    """The room of a module, None where it has none."""
    if module in ROOMS:
        return module
    name = module
    while name := name.rpartition(".")[0]:
        if name in ROOMS:
            return name if "." in name or name in WHOLE else None
    return None


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of everything in the packages below `root`."""
    paths = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Every module that a file imports, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else str(node.module)


def faults(root: Path) -> list[str]:
    """What is wrong with the house below `root`, a sentence each."""
    found = []
    known = modules(root)
    for module, path in known.items():
        here = room_of(module)
        if here is None:
            found.append(f"{module} is in no room")
            continue
        for target in imports(path, known):
            package = target.partition(".")[0]
            for owner, banned in FORBIDDEN.items():
                if (module + ".").startswith(owner + ".") and package in banned:
                    found.append(f"{module} imports {target}, which {owner} must not")
            there = room_of(target) if package in PACKAGES else None
            if there is not None and there != here and ROOMS.index(there) < ROOMS.index(here):
                found.append(f"{module} imports {target}, upwards")
    return found


def test_every_file_has_a_room_and_imports_point_down() -> None:
    assert not faults(ROOT)
    assert len(modules(ROOT)) > 150  # the walk has seen the tree


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("train/engine/x.py", "from train.checkpoint.manifest import newest_first", "upwards"),
        ("train/engine/x.py", "def f():\n    import train.loop", "upwards"),
        ("data/corpus/x.py", "from data.loading import batches", "upwards"),
        ("scaling/tables/x.py", "from scaling.fit.estimate import fit", "upwards"),
        ("scaling/fit/x.py", "import torch", "must not"),
        ("scaling/fit/x.py", "from evaluation.ngram import score", "must not"),
        ("train/cellar/x.py", "", "in no room"),
        ("train/x.py", "", "in no room"),
        ("scaling/x.py", "", "in no room"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, file: str, text: str, fault: str) -> None:
    (tmp_path / "data/loading").mkdir(parents=True)
    (tmp_path / "data/loading/batches.py").touch()
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert any(fault in sentence for sentence in faults(tmp_path))


def names_the_whole_run(path: Path) -> bool:
    """Whether a file imports `RunConfig`, annotates something with it, or reaches it by way of its module."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = (getattr(node, key, None) for node in nodes for key in ("id", "attr", "name", "value"))
    return any(isinstance(name, str) and name.strip() == "RunConfig" for name in names)


def test_a_room_is_given_what_it_reads(tmp_path: Path) -> None:
    files = [path for room in TAKE_SECTIONS for path in (ROOT / "train" / room).glob("*.py")]
    assert not [path for path in files if names_the_whole_run(path)]
    for fault in (
        "from train.config import RunConfig",
        "def f(run: 'RunConfig'): ...",
        "def f(x: config.RunConfig): ...",
    ):
        (tmp_path / "x.py").write_text(fault)
        assert names_the_whole_run(tmp_path / "x.py")


def packages_installed(pyproject: Path) -> set[str]:
    """Packages that setuptools finds by the patterns of a pyproject.toml, in the folders beside it."""
    from setuptools import find_packages

    settings = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["setuptools"]
    return set(find_packages(str(pyproject.parent), include=settings["packages"]["find"]["include"]))


def folders_of_code(root: Path) -> set[str]:
    """Dotted names of all folders with code."""
    return {".".join(path.parent.relative_to(root).parts) for path in modules(root).values()}


def test_every_folder_is_installed() -> None:
    wanted = {name for name in folders_of_code(ROOT) if not name.startswith("scripts")}
    assert packages_installed(ROOT / "pyproject.toml") == wanted
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    for package, patterns in settings["setuptools"]["package-data"].items():
        for pattern in patterns if package != "*" else ():
            assert list((ROOT / package.replace(".", "/")).glob(pattern)), f"{package}: nothing matches {pattern}"
    assert {*settings["mypy"]["packages"]} == set(PACKAGES)
    assert {*settings["ruff"]["lint"]["isort"]["known-first-party"]} == {*PACKAGES, "tests"}


def test_a_folder_that_is_not_installed_is_found(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.setuptools]\npackages.find.include = ["data"]\n')
    for folder in ("data", "data/loading"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    assert folders_of_code(tmp_path) - packages_installed(tmp_path / "pyproject.toml") == {"data.loading"}


def test_every_package_tells_type_checkers_that_it_is_typed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "py.typed" in settings["package-data"]["*"]
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES if package != "scripts")


def test_no_class_name_means_two_things() -> None:
    owners: dict[str, list[str]] = {}
    for module, path in modules(ROOT).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name, []).append(module)
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}


def test_every_room_says_what_it_is_for() -> None:
    for module, path in modules(ROOT).items():
        if path.name == "__init__.py":
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            assert "?" in text, f"{module}: its docstring asks no question"
            assert "mport" in text, f"{module}: its docstring does not say what it imports"


def test_the_code_hash_that_ranks_agree_on_covers_every_room(tmp_path: Path) -> None:
    from train.distributed.consistency import code_hash

    for folder in ("configs", "data/corpus", "model", "train/engine", "train/checkpoint"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "same.py").write_text(folder)
    before = code_hash(tmp_path)
    assert code_hash(tmp_path) == before
    (tmp_path / "train/engine/same.py").write_text("changed")
    changed = code_hash(tmp_path)
    assert changed != before
    # Two rooms may hold one name: files that change places are seen.
    (tmp_path / "train/engine/same.py").write_text("train/checkpoint")
    (tmp_path / "train/checkpoint/same.py").write_text("train/engine")
    assert code_hash(tmp_path) not in (before, changed)
    (tmp_path / "data/corpus/same.py").unlink()
    assert code_hash(tmp_path) != before
