"""A data set of the Hugging Face hub, or a local directory of the same form."""

import os
from itertools import islice
from typing import Any

from data.config import DataConfig, DataError
from data.corpus.rows import load_rows, reason_of, slug, text_column
from data.corpus.source import Position, Source, Texts


def open_source(config: DataConfig) -> Source:
    """Find a data set; its commit is settled when its texts are first read."""
    assert config.dataset is not None  # DataConfig.problems
    dataset = config.dataset
    identity = {key: getattr(config, key) for key in ("dataset", "subset", "revision", "split", "text_field")}
    details: dict[str, Any] = {}

    def texts(position: Position | None = None) -> Texts:
        revision = config.revision
        if not os.path.isdir(dataset):
            # A preparation that goes on reads the commit that it began with.
            revision = details["commit"] = details.get("commit") or _commit(dataset, revision)
        where = f"data set '{dataset}'"
        chosen = {"name": config.subset, "split": config.split, "revision": revision}
        rows = load_rows(where, dataset, **chosen, streaming=config.streaming)
        before = position["rows"] if position else 0
        if position and position["state"] is not None:
            rows.load_state_dict(position["state"])  # skips files that have been read without downloading them
            return Texts(text_column(rows, config.text_field, where), before, rows.state_dict)
        texts = islice(text_column(rows, config.text_field, where), before, None)
        return Texts(texts, before, rows.state_dict if config.streaming else lambda: None)

    return Source(f"hub-{slug(dataset)}", identity, details, texts, config.max_bytes)


def _commit(dataset: str, revision: str | None) -> str | None:
    """Return the commit that a branch, a tag or nothing stands for now."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:  # then the library reads its cache
        return revision
    try:
        return str(HfApi().dataset_info(dataset, revision=revision, timeout=30).sha)
    except Exception as error:
        at = f" at revision '{revision}'" if revision else ""
        raise DataError(f"data.dataset: '{dataset}'{at} cannot be read from the hub: {reason_of(error)}") from error
