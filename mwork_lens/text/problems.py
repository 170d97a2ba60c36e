"""What makes results on a corpus doubtful: few passages, unequal numbers, repeats, copies, unusual scripts."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import regex

from .documents import Document, identity
from .languages import expected_scripts, main_script

FEW_PASSAGES = 20
COPIED = 0.1
"""Share of a language's passages that also stand in another language, from which this is said."""

_MISREAD = regex.compile("\ufffd|Ã[\u0080-\u00bf]|â€[™œ\u009d“”]")
"""What UTF-8 that was read as Latin-1 or Windows-1252 looks like, and what no encoding could read."""


def problems(corpus: Mapping[str, Sequence[Document]], *, languages: bool) -> Iterator[str]:
    """What a user should know of a corpus, whose keys are languages or something else."""
    counts = {language: len(texts) for language, texts in corpus.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{language} {n}" for language, n in counts.items())
        yield f"The languages have unequal numbers of passages: {listed}."
    fewest = min(counts, key=lambda language: counts[language])
    if counts[fewest] < FEW_PASSAGES:
        yield f"{fewest!r} has only {counts[fewest]} passages; sets found on fewer than {FEW_PASSAGES} are unstable."
    yield from repeats(corpus)
    for language, texts in corpus.items():
        if damaged := sum(isinstance(text, str) and bool(_MISREAD.search(text)) for text in texts):
            yield (
                f"{damaged} passages of {language!r} hold characters such as \ufffd, Ã© or â€™: at some time they were "
                "read in another encoding than they were written in."
            )
    for language, texts in corpus.items() if languages else ():
        script = main_script(" ".join(text for text in texts[:200] if isinstance(text, str)))
        if script and language != "und" and script not in expected_scripts(language):
            usual = "/".join(sorted(expected_scripts(language)))
            yield f"The text of {language!r} is mostly in {script}, not in {usual}."


def repeats(corpus: Mapping[str, Sequence[Document]]) -> Iterator[str]:
    """Passages that count several times, and languages that are copies of others."""
    texts = {
        language: [identity(text) for text in passages if isinstance(text, str)]
        for language, passages in corpus.items()
    }
    distinct = {language: set(passages) for language, passages in texts.items()}
    for language, passages in texts.items():
        if repeated := len(passages) - len(distinct[language]):
            yield f"{repeated} of {len(passages)} passages of {language!r} repeat earlier ones: each counts again."
    for one, other in itertools.combinations(texts, 2):
        common = distinct[one] & distinct[other]
        if common and len(common) >= COPIED * min(len(distinct[one]), len(distinct[other])):
            yield (
                f"{len(common)} passages are the same in {one!r} and {other!r}: of languages that are copies of each "
                "other nothing can be told apart."
            )
