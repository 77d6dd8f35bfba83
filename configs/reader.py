"""Read YAML into typed, frozen dataclasses and report every problem at once.

A configuration class lives beside its owner (`model/config.py`, `data/config.py`, ...) and is declared with
`@config`. This module knows none of them. It gives them:

- `extends: other.yaml` (relative to the file; mappings merge key by key, everything else replaces),
- `--a.b=c` overrides,
- names that keys had before read as those of today (`configs/renamed.py`),
- types and ranges checked strictly, unknown keys refused with the nearest valid one,
- a `problems()` method on any configuration class for combinations that cannot work, once every value is in range,
- YAML without its surprises: `1e-4` is a number and `1e3` a whole one, `no` is a word, a key given twice is an error.
"""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

import pydantic
import yaml

from configs import renamed
from configs.keys import Tree, dotted_keys, merge
from data.files import nearest_file

T = TypeVar("T")

Count = Annotated[int, pydantic.Field(ge=1)]
"""A whole number, at least 1."""
Whole = Annotated[int, pydantic.Field(ge=0)]
"""A whole number, not negative."""
Positive = Annotated[float, pydantic.Field(gt=0)]
"""A number above 0."""
NonNegative = Annotated[float, pydantic.Field(ge=0)]
"""A number, not negative."""
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
"""A number between 0 and 1, these included."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: where it stands, what it says and what would work."""

    source: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.key}: {self.message}" if self.key else f"{self.source}: {self.message}"


class UserError(ValueError):
    """What its reader can mend: the message is one sentence, which a command prints instead of a traceback."""


class ConfigError(UserError):
    """A configuration that cannot be used. `problems` holds all that was found."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Declare a configuration class: a frozen keyword-only dataclass that refuses unknown keys."""
    cls.__pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=True)  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


_EXACT = 2**53  # below it, a float tells neighbouring whole numbers apart


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (true/false only, `1e-4` a float, no sexagesimals) and no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own protocol)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.faults: list[str] = []
        """What is well-formed and cannot be used, each with its line."""


for _tag, _pattern, _first in (
    ("bool", r"true|false|True|False", "tfTF"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Tree:
    tree: Tree = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        where = f"line {key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            loader.faults.append(f"{where}: the key {key!r} is not a word; quote it")
        elif key in tree:
            loader.faults.append(f"{where}: the key '{key}' is given twice")
        tree[str(key)] = loader.construct_object(value_node, deep=True)
    return tree


def _plain(loader: Any, node: Any) -> str:
    return str(loader.construct_scalar(node)).replace("_", "")


def _float(loader: _Loader, node: yaml.ScalarNode) -> float | int:
    value = float(_plain(loader, node).replace(".inf", "inf").replace(".nan", "nan"))
    if not math.isfinite(value):
        loader.faults.append(f"line {node.start_mark.line + 1}: {node.value} is not a finite number")
    # Integer keys refuse floats, float keys take integers: 1e3 must suit both.
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(_plain(loader, node)))
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def parse_yaml(text: str, source: str = "yaml") -> Any:
    """Parse one YAML document; raise `ConfigError` naming `source` and the lines when it cannot be used."""
    try:
        loader = _Loader(text)
        tree = loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([Problem(source, "", " ".join(str(error).split()))]) from None
    if loader.faults:
        raise ConfigError([Problem(source, "", fault) for fault in loader.faults])
    return tree


def dump_yaml(tree: Any) -> str:
    """Write a configuration or plain tree as YAML that `parse_yaml` reads back to the same values."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        tree = dataclasses.asdict(tree)
    return yaml.dump(json.loads(json.dumps(tree)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def as_tree(built: Any) -> Tree:
    """Return a configuration as the plain tree that its YAML file holds."""
    return dict(parse_yaml(dump_yaml(built)))


class _Dumper(yaml.SafeDumper):
    """Floats always with a dot and words that look like numbers always quoted."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def read_tree(path: Path, tell: bool = True, seen: tuple[Path, ...] = ()) -> tuple[Tree, dict[str, str]]:
    """Read `path`, which the files `seen` extend, and all that it extends itself.

    `tell` says on stderr which names in it are old. Returns the merged tree, in today's names, and, for every dotted
    key, the file that set it last.
    """
    source = str(path)
    try:
        here = path.resolve()
        text = path.read_text(encoding="utf-8")
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a name with a zero byte, not UTF-8
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        hint = "" if path.is_dir() else nearest_file(path, cutoff=0.75)
        raise ConfigError([Problem(source, "", f"cannot be read: {reason}{hint}")]) from None
    if here in seen:
        raise ConfigError([Problem(str(seen[-1]), "extends", f"'{path}' leads back to itself")])
    tree = parse_yaml(text, source)
    if not isinstance(tree, dict):
        raise ConfigError([Problem(source, "", "holds no keys; expected a mapping such as 'seed: 0'")])
    parents = tree.pop("extends", [])
    if isinstance(parents, str):
        parents = [parents]
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise ConfigError([Problem(source, "extends", "must be a file name or a list of file names")])
    tree = _today(tree, source, tell)
    merged: Tree = {}
    origin: dict[str, str] = {}
    for parent in parents:
        base, base_origin = read_tree(path.parent / parent, tell, (*seen, here))
        merged = merge(merged, base)
        origin |= base_origin
    return merge(merged, tree), origin | dict.fromkeys(dotted_keys(tree), source)


def _today(tree: Tree, source: str, tell: bool = True) -> Tree:
    """Return a tree in today's names. Raises `ConfigError` where old ones cannot be understood."""
    found = renamed.current(tree)
    if found.problems:
        raise ConfigError([Problem(source, key, message) for key, message in found.problems])
    if tell:
        renamed.tell(source, found.remarks)
    return found.tree


def parse_overrides(arguments: list[str]) -> Tree:
    """Turn `--a.b=c` arguments into a tree in today's names; `c` is read as YAML, so `[1, 2]` and `1e-4` work.

    Raises `ConfigError` for an argument of another form.
    """
    tree: Tree = {}
    problems = []
    for argument in arguments:
        match = re.fullmatch(r"--([A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*)=(.*)", argument, re.DOTALL)
        if match is None:
            message = "is not understood; overrides look like --train.steps=100"
            problems.append(Problem("command line", argument, message))
            continue
        try:
            node: Any = parse_yaml(match[2], f"command line: {argument}")
        except ConfigError as error:
            problems += error.problems
            continue
        for key in reversed(match[1].split(".")):
            node = {key.replace("-", "_"): node}
        tree = merge(tree, node)
    if problems:
        raise ConfigError(problems)
    return _today(tree, "command line")


def load(
    cls: type[T],
    path: Path | str,
    overrides: list[str] | None = None,
    expand: Callable[[Tree], Tree] | None = None,
    tell: bool = True,
) -> T:
    """Read a YAML file into `cls`.

    Args:
        cls: a class declared with `@config`.
        path: the YAML file.
        overrides: `--a.b=c` arguments; they win over the file.
        expand: fills in defaults that depend on other keys (a named model size, say). It receives the merged
            tree before validation and may raise `ConfigError`.
        tell: say on stderr which names in the file are old.

    Raises `ConfigError` with every problem found.
    """
    tree, origin = read_tree(Path(path), tell)
    given = parse_overrides(overrides or [])
    origin |= dict.fromkeys(dotted_keys(given), "command line")
    return build(cls, merge(tree, given), str(path), origin, expand)


def build(
    cls: type[T],
    tree: Tree,
    source: str,
    origin: Mapping[str, str] | None = None,
    expand: Callable[[Tree], Tree] | None = None,
) -> T:
    """Validate a tree into `cls` or raise `ConfigError`; `origin` names the file that set each dotted key."""

    def problem(key: str, message: str) -> Problem:
        parts = key.split(".")
        files = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
        return Problem(next((origin[f] for f in files if origin and f in origin), source), key, message)

    if expand is not None:
        try:
            tree = expand(tree)
        except ConfigError as error:
            raise ConfigError([problem(p.key, p.message) for p in error.problems]) from None
    try:
        text = json.dumps(tree, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError([Problem(source, "", f"holds a value that no key takes: {error}")]) from None
    try:
        built: T = _adapter(cls).validate_json(text)  # type: ignore[arg-type]  # mypy: a class is not Hashable
    except pydantic.ValidationError as error:
        details = error.errors(include_url=False, include_context=True)
        found = [problem(_key(d["loc"]), _explain(cls, d)) for d in details]
        raise ConfigError(sorted(set(found), key=lambda p: p.key)) from None
    found = [problem(key, message) for key, message in check(built)]
    if found:
        raise ConfigError(found)
    return built


@cache
def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(cls)


def check(built: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, message) for every impossible combination in a built configuration."""
    if not dataclasses.is_dataclass(built):
        return
    for field in dataclasses.fields(built):
        yield from check(getattr(built, field.name), f"{prefix}{field.name}.")
    for key, message in getattr(built, "problems", lambda: ())():
        yield prefix + key, message


def _key(location: tuple[Any, ...]) -> str:
    # pydantic appends the name of the union member it tried; ours are words, not keys.
    words = [str(part) for part in location]
    return ".".join(word for word in words if re.fullmatch(r"[A-Za-z_]\w*|\d+", word))


_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
"""What pydantic calls a number out of its range: what it must be, and the name of the limit."""
_EXPECTED = {
    **dict.fromkeys(("int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "dataclass_type"), "a mapping"),
    **{"float_type": "a number", "string_type": "text", "bool_type": "true or false"},
}
"""What pydantic calls a value of another type: what it must be."""


def _explain(cls: type, detail: Any) -> str:
    """Say in one sentence what is wrong with one value and what would be right."""
    kind, location, value = detail["type"], detail["loc"], detail["input"]
    shown = json.dumps(value) if not isinstance(value, dict) else "a mapping"
    if kind == "unexpected_keyword_argument":
        owner = _owner(cls, location[:-1])
        names = [f.name for f in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
        return "unknown key; " + (f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(names)}")
    if kind == "literal_error":
        words = [a or b for a, b in re.findall(r"'([^']*)'|(-?\d+)", detail["ctx"]["expected"])]
        if isinstance(value, int | float) and all(re.fullmatch(r"-?\d+", word) for word in words):
            nearest = min(words, key=lambda word: abs(int(word) - value))
        else:
            nearest = f"'{(difflib.get_close_matches(str(value), words, n=1, cutoff=0.3) or words)[0]}'"
        return f"{shown} is not one of {', '.join(words)}; nearest is {nearest}"
    if kind in _LIMITS:
        relation, limit = _LIMITS[kind]
        return f"{shown} must be {relation} {detail['ctx'][limit]:g}"
    if kind in ("missing_argument", "missing"):
        return "is required and missing"
    expected = _EXPECTED.get(kind)
    return f"{shown} is not {expected}" if expected else f"{shown}: {detail['msg']}"


def _owner(cls: Any, location: tuple[Any, ...]) -> Any:
    """Return the configuration class found by following `location` from `cls`."""
    for part in location:
        if dataclasses.is_dataclass(cls):
            cls = get_type_hints(cls).get(str(part))
        elif get_origin(cls) in (list, tuple, dict):
            cls = get_args(cls)[-1 if get_origin(cls) is dict else 0]
        # Optional[X]: follow X
        members = [a for a in get_args(cls) if dataclasses.is_dataclass(a)]
        if get_origin(cls) not in (list, tuple, dict, Literal) and members:
            cls = members[0]
    return cls
