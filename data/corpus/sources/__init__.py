"""Where does text come from? Each source is one module here, named as `data.source` names it.

Imports `data.corpus.source`, `data.corpus.rows` and what lies below them.
"""

from dataclasses import replace
from importlib import import_module

from data.config import DataConfig
from data.corpus.source import Source
from data.corpus.transforms import applied, load_transform


def open_source(config: DataConfig) -> Source:
    """Find the configured source without reading its texts: the module here of that name has its own `open_source`.

    Raises `DataError` when a file or data set is missing, empty or of an unknown format.
    """
    source: Source = import_module(f"data.corpus.sources.{config.source}").open_source(config)
    if config.transform is None:
        return source
    name = config.transform
    function, identity = load_transform(name)
    return replace(
        source,
        identity=source.identity | {"transform": identity},
        texts=lambda position=None: source.texts(position).map(lambda text: applied(function, name, text)),
    )
