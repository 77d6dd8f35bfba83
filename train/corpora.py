"""The corpora of a sweep, prepared once and checked against its runs before the first of them starts."""

from configs.reader import ConfigError, Problem
from data.batches import open_corpus, repetition, validation_windows
from data.prepare import prepare
from train.sweep import Run


def prepare_corpora(runs: tuple[Run, ...]) -> list[str]:
    """Prepare every corpus that the runs read; return a remark on each run that reads its corpus more than once.

    Raises:
        DataError: when text, a tokenizer or a prepared corpus cannot be used.
        ConfigError: with every run whose model or windows do not fit its corpus.
    """
    corpora = {data: open_corpus(prepare(data)) for data in dict.fromkeys(run.config.data for run in runs)}
    problems, remarks = [], []
    for run in runs:
        config, corpus = run.config, corpora[run.config.data]
        length = config.train.sequence_length
        if corpus.vocab_size > config.model.vocab_size:
            message = f"{config.model.vocab_size} is less than the corpus's {corpus.vocab_size}"
            message += f"; nearest is {corpus.vocab_size}"
            problems.append(Problem(f"run {run.name}", "model.vocab_size", message))
        validation_windows(corpus, length, config.evaluate.tokens)
        repeated = repetition(corpus, length, config.tokens)
        if repeated.epochs > 1:
            remarks.append(
                f"{run.name}: reads its {repeated.unique_tokens:,} training tokens {repeated.epochs:.3g} times"
            )
    if problems:
        raise ConfigError(problems)
    return remarks
