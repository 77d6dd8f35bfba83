"""What can go wrong in the fitter, each a ValueError whose message is one sentence for a person."""

from __future__ import annotations


class TableError(ValueError):
    """A table that cannot be read; the message names file, row, column and value."""


class CurveError(ValueError):
    """A loss curve that cannot be read or fitted; the message names the file and what to do."""


class FitError(ValueError):
    """A law that cannot be fitted to a table; the message says what is missing."""


class MixingError(ValueError):
    """Runs that no mixing law can be fitted to; the message says what is missing."""


class ArtifactError(ValueError):
    """A law.json that cannot be read, or a place where none can be written; the message names it."""


class ForecastError(ValueError):
    """A forecast that cannot be made; the message says which input is missing."""


class PlanError(ValueError):
    """A plan that cannot be made; the message says what is missing."""
