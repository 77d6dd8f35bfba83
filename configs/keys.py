"""Nested mappings of a configuration, and the same with dotted keys."""

from collections.abc import Iterator, Mapping
from typing import Any

Tree = dict[str, Any]


def merge(base: Tree, over: Mapping[str, Any]) -> Tree:
    """Merge two trees: mappings key by key, everything else replaced by `over`."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = merge(merged[key], value)
        merged[key] = value
    return merged


def flat_items(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything in a tree that is not itself a mapping."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys, each behind `prefix`."""
    return dict(flat_items(tree, prefix))


def dotted_keys(tree: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys of a tree, those of its inner mappings included."""
    parts = (key.split(".") for key in flatten(tree))
    return {".".join(key[:end]) for key in parts for end in range(1, len(key) + 1)}


def nest(tree: Mapping[str, Any]) -> Tree:
    """Undo dotted keys."""
    nested: Tree = {}
    for key, value in tree.items():
        node = nest(value) if isinstance(value, dict) else value
        for part in reversed(key.split(".")):
            node = {part: node}
        nested = merge(nested, node)
    return nested
