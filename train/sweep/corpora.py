"""The corpora of a sweep, prepared once and checked against its runs before the first of them starts."""

from configs.reader import ConfigError, Problem
from data.loading.batches import validation_windows
from data.loading.mixture import open_mixture, repetitions
from train.sweep.run import Run


def prepare_corpora(runs: tuple[Run, ...]) -> list[str]:
    """Prepare every corpus that the runs read; return a remark on each run that reads its corpus more than once.

    Raises:
        DataError: when text, a tokenizer or a prepared corpus cannot be used.
        ConfigError: with every run whose model or windows do not fit its corpus.
    """
    mixtures = {data: open_mixture(data) for data in dict.fromkeys(run.config.data for run in runs)}
    problems, remarks = [], []
    for run in runs:
        config, mixture = run.config, mixtures[run.config.data]
        length = config.train.sequence_length
        if mixture.vocab_size > config.model.vocab_size:
            message = f"{config.model.vocab_size} is less than the corpus's {mixture.vocab_size}"
            message += f"; nearest is {mixture.vocab_size}"
            problems.append(Problem(f"run {run.name}", "model.vocab_size", message))
        for component in mixture.components:
            validation_windows(component.corpus, length, config.eval.tokens)
        for name, repeated in repetitions(mixture, length, config.tokens).items():
            if repeated.epochs > 1:
                of = f" of {name}" if config.data.mixture else ""
                remarks.append(
                    f"{run.name}: reads its {repeated.unique_tokens:,} training tokens{of} {repeated.epochs:.3g} times"
                )
    if problems:
        raise ConfigError(problems)
    return remarks
