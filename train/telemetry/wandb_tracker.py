"""Weights & Biases, kept off the critical path.

Everything W&B does happens on one background thread fed by a queue, so that a dead server, a slow network or a
missing package cannot stop or slow training. `metrics.jsonl` holds the same rows in any case.
"""

import os
import queue
import secrets
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.files import write_text
from train.config import WandbConfig
from train.telemetry.redact import redact

_START_SECONDS = 30
_FINISH_SECONDS = 20
_END = object()
_ALERT = "alert"


class Tracker:
    """Sends rows to one W&B run; does nothing when disabled."""

    def __init__(self, config: WandbConfig, name: str, run_dir: Path, settings: dict[str, Any]) -> None:
        """Start the thread.

        Args:
            config: where to send.
            name: the run's name in W&B.
            run_dir: where offline files go (`run_dir/wandb`) and the run's W&B id is kept.
            settings: the full configuration, shown in W&B without secrets.
        """
        self._rows: queue.Queue[Any] = queue.Queue(maxsize=10_000)
        self._thread: threading.Thread | None = None
        if config.mode == "disabled":
            return
        arguments = {
            "project": config.project,
            "entity": config.entity,
            "group": config.group,
            "id": stable_id(run_dir),
            "name": name,
            "dir": str(run_dir),
            "config": redact(settings),
            "resume": "allow",
            "mode": _mode(config.mode),
        }
        self._thread = threading.Thread(target=self._work, args=(arguments,), name="wandb", daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Queue a row; dropped when W&B is 10,000 rows behind."""
        if self._thread is not None:
            try:
                self._rows.put_nowait(row)
            except queue.Full:
                self._thread = None

    def alert(self, title: str, text: str) -> None:
        """Queue an alert, which W&B sends as the user has set it up: by e-mail or Slack."""
        self.log({_ALERT: (title, text)})

    def finish(self, summary: dict[str, Any]) -> None:
        """Send the summary and wait a little for W&B to take what is queued."""
        if self._thread is not None:
            with suppress(queue.Full):
                self._rows.put_nowait((_END, summary))
                self._thread.join(timeout=_START_SECONDS + _FINISH_SECONDS)

    def _work(self, arguments: dict[str, Any]) -> None:
        try:
            run = _start(arguments)
            while True:
                row = self._rows.get()
                if isinstance(row, tuple) and row[0] is _END:
                    run.summary.update(row[1])
                    run.finish()
                    return
                if _ALERT in row:
                    run.alert(*row[_ALERT])
                else:
                    run.log(dict(row))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            print(f"W&B is off for this run ({reason}); metrics.jsonl is complete", file=sys.stderr)


def stable_id(run_dir: Path) -> str:
    """Return the W&B id of the run in `run_dir`, drawn once and kept there, so that a resumed run is the same one."""
    path = run_dir / "wandb-id.txt"
    if not path.exists():
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text().strip()


def _mode(mode: str) -> str:
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    has_key = "WANDB_API_KEY" in os.environ or (netrc.exists() and "wandb" in netrc.read_text(errors="ignore"))
    return "online" if has_key else "offline"


def _start(arguments: dict[str, Any]) -> Any:
    """Start the W&B run, offline when the server does not answer; tokens are the x-axis."""
    import wandb

    # Metadata would carry the command line, where a careless user may have put a secret. The run before in this process
    # may still be waiting for a dead server.
    settings = wandb.Settings(
        x_disable_meta=True, init_timeout=_START_SECONDS, silent=True, console="off", reinit="create_new"
    )
    try:
        run = wandb.init(**arguments, settings=settings)
    except Exception as error:
        if arguments["mode"] != "online":
            raise
        print(f"W&B does not answer ({error}); logging offline, upload later with `wandb sync`", file=sys.stderr)
        wandb.teardown()  # the failed attempt still holds the run's id in W&B's own process
        run = wandb.init(**arguments | {"mode": "offline"}, settings=settings)
    run.define_metric("tokens")
    run.define_metric("*", step_metric="tokens")
    return run
