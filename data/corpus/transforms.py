"""A user's own function from text to text, applied to every document before it is cleaned, split and tokenised."""

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable

from data.config import DataError

Transform = Callable[[str], str]


def load_transform(name: str) -> tuple[Transform, str]:
    """Find `module:function`, in the working directory or installed; return it and what identifies it.

    The identity is the name and a hash of the module's source: other code makes another corpus. What the module
    itself imports is not part of it. Raises `DataError` when there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
        source = inspect.getsource(module)
    except Exception as error:  # the module is the user's, and may fail in any way
        raise DataError(
            f"data.transform: '{module_name}' cannot be imported from {os.getcwd()}: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(f"data.transform: '{module_name}' has no function '{function_name}'")
    return function, f"{name}@{hashlib.sha256(source.encode()).hexdigest()}"


def applied(function: Transform, name: str, text: str) -> str:
    """Apply a transform to one text. Raises `DataError` when it fails, or returns something else than text."""
    try:
        result = function(text)
    except Exception as error:
        where, what = f"the document that begins {text[:60]!r}", f"{type(error).__name__}: {error}"
        raise DataError(f"data.transform: '{name}' failed on {where}: {what}") from error
    if not isinstance(result, str):
        raise DataError(f"data.transform: '{name}' returned {type(result).__name__}, not text")
    return result
