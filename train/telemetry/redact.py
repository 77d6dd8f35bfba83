"""Secrets do not leave the machine: what W&B and logs are told is rid of them first.

They belong into the environment, but may get into free text: a token in the address of a data set, or in an option of
the launcher.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

_HIDDEN = "[secret]"
_SECRET = re.compile(
    r"(?<=://)[^/@\s]+(?=@)"  # user and password of an address
    r"|(?<=[?&])[^=&\s]*(?:key|token|secret|signature|password)[^=&\s]*=[^&\s]+"  # of a query
    r"|\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA)[\w-]{12,}",  # by their usual beginnings
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a variable's value that can be a secret; a shorter one is part of too many words."""


def redact(value: Any) -> Any:
    """Return text, or a tree of mappings and sequences with text in it, without secrets.

    A secret is what looks like one, and the value of any environment variable whose name says so.
    """
    if isinstance(value, str):
        for name, secret in os.environ.items():
            if _SECRET_VARIABLE.search(name) and len(secret) >= _SHORTEST:
                value = value.replace(secret, _HIDDEN)
        return _SECRET.sub(_HIDDEN, value)
    if isinstance(value, Mapping):
        return {key: redact(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    return value
