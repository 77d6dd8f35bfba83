"""What can go wrong in the fitter, each with a message of one sentence."""

from configs.reader import UserError


class TableError(UserError):
    """A table that cannot be read; the message names file, row, column and value."""


class CurveError(UserError):
    """A loss curve that cannot be read or fitted; the message names the file and what to do."""


class FitError(UserError):
    """A law that cannot be fitted to a table; the message says what is missing."""


class MixingError(UserError):
    """Runs that no mixing law can be fitted to; the message says what is missing."""


class ArtifactError(UserError):
    """A law.json that cannot be read, or a place where none can be written; the message names it."""


class ForecastError(UserError):
    """A forecast that cannot be made; the message says which input is missing."""


class PlanError(UserError):
    """A plan that cannot be made; the message says what is missing."""
