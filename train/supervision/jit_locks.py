"""Locks that a killed compilation of a C++ extension left behind: whoever needs the extension next waits for ever."""

import os
import sys
from pathlib import Path

import psutil
from torch.utils.cpp_extension import get_default_build_root


def clear_stale_locks(root: Path | None = None) -> list[Path]:
    """Remove the locks below `root` that no live process of this machine holds open, and return them.

    torch keeps a lock open while it compiles. On a `root` that several machines share, those of another machine
    cannot be seen; TORCH_EXTENSIONS_DIR gives each a directory of its own.

    Args:
        root: where extensions are built; torch's own place by default.
    """
    root = root or Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    locks = [path for path in (*root.glob("*/lock"), *root.glob("*/*/lock")) if path.is_file()]
    if not locks:
        return []
    held = _open_files()
    stale = [path for path in locks if str(path.resolve()) not in held]
    for path in stale:
        path.unlink(missing_ok=True)
        print(f"removed {path}, which a compilation that was killed had left", file=sys.stderr, flush=True)
    return stale


def _open_files() -> set[str]:
    """Return the paths of all files that processes of this machine have open, as far as they can be seen."""
    return {file.path for process in psutil.process_iter(["open_files"]) for file in process.info["open_files"] or ()}
