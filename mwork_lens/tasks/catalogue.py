"""The four tasks of the paper: their questions, and how answers are scored."""

import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import langcodes
import regex

from ..text import fold_case
from ..text.languages import UNSPACED_SCRIPTS
from .numbers import as_number, final_number
from .task import Answer, Hub, Question, Row, Task

_UNSPACED = "".join(rf"\p{{{script}}}" for script in sorted(UNSPACED_SCRIPTS))
_SEGMENTS = regex.compile(rf"(?=[{_UNSPACED}])\X|[^\s{_UNSPACED}]+")
_ARTICLES = {
    "en": "a an the",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "es": "un una unos unas el la los las",
    "fr": "un une des le la les l'",
}


def normalized(text: str, language: str, *, articles: bool = False) -> list[str]:
    """What stands between spaces, and every character of scripts without, but no punctuation and case.

    SQuAD's and MLQA's normalisation, with the mixed segmentation of MLQA's scorer (Lewis et al. 2020), and case as the
    language has it (see :func:`mwork_lens.text.fold_case`). Articles of the language stay only with ``articles``.
    Marks that are not seen (of direction, joiners) do not count.
    """
    plain = fold_case(unicodedata.normalize("NFKC", text), language)
    plain = regex.sub(r"[\p{P}\p{S}\u200b]", " ", unicodedata.normalize("NFKC", plain))
    words = _SEGMENTS.findall(regex.sub(r"\p{Cf}", "", plain))
    left_out = () if articles else _ARTICLES.get(langcodes.get(language).language or "", "").split()
    return [word for word in words if word not in left_out]


def answer_overlap(question: Question, answer: Answer) -> Mapping[str, float]:
    """Exact match, and F1 of the segments in common; the best over the references."""
    output = normalized(answer.output, question.language)
    expected = [normalized(reference, question.language) for reference in question.references]
    return {
        "F1": max(_f1(output, words) for words in expected),
        "exact match": max(float(output == words) for words in expected),
    }


def _f1(output: list[str], expected: list[str]) -> float:
    if not output or not expected:
        return float(output == expected)
    common = sum((Counter(output) & Counter(expected)).values())
    return 2 * common / (len(output) + len(expected))


def right_number(question: Question, answer: Answer) -> Mapping[str, float]:
    """Whether the number after ``####``, else the last one, is the right one."""
    expected = as_number(question.references[0], question.language)
    number = final_number(answer.output, question.language, cut=answer.cut)
    return {"accuracy": float(number is not None and number == expected)}


def right_choice(question: Question, answer: Answer) -> Mapping[str, float]:
    """Whether the likeliest option is the right one."""
    return {"accuracy": float(answer.output == question.references[0])}


def summary_overlap(question: Question, answer: Answer) -> Mapping[str, float]:
    """ROUGE (F measure) by the library ``rouge_score``, on characters where words are not separated."""
    by_reference = [_rouge(question.language).score(reference, answer.output) for reference in question.references]
    names = {"ROUGE-L": "rougeL", "ROUGE-1": "rouge1", "ROUGE-2": "rouge2"}
    return {name: max(float(scores[key].fmeasure) for scores in by_reference) for name, key in names.items()}


@cache
def _rouge(language: str) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError("Scoring summaries needs rouge-score: pip install 'mwork_lens[tasks]'.") from error
    # articles stay, as in ROUGE
    tokenizer = SimpleNamespace(tokenize=partial(normalized, language=language, articles=True))
    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=tokenizer)


PARQUET = "refs/convert/parquet"


def _xquad_question(row: Row, language: str, number: int) -> Question:
    return Question(
        id=str(row["id"]),
        language=language,
        fields={"context": row["context"].strip("\ufeff \n"), "question": row["question"].strip()},
        references=tuple(row["answers"]["text"]),
        document=str(row["paragraph"]),  # the nth in every language
    )


def _mgsm_question(row: Row, language: str, number: int) -> Question:
    right, answer = row.get("answer_number"), row.get("answer")
    right, worked = (row["answer"], "") if right is None else (right, answer if isinstance(answer, str) else "")
    name, fields = str(number), {"question": row["question"]}
    return Question(name, language, fields, (str(right),), document=name, worked=worked)


def _xcsqa_question(row: Row, language: str, number: int) -> Question:
    question = row["question"]
    labels, choices = question["choices"]["label"], tuple(question["choices"]["text"])
    right = choices[labels.index(row["answerKey"])]
    return Question(str(row["id"]), language, {"question": question["stem"]}, (right,), choices, str(row["id"]))


def _xlsum_question(row: Row, language: str, number: int) -> Question:
    return Question(str(row["id"]), language, {"text": row["text"]}, (row["summary"],), document=str(row["id"]))


def _each(template: str, languages: str) -> dict[str, str]:
    return {language: template.format(language) for language in languages.split()}


XLSUM_NAMES = {
    "en": "english", "zh": "chinese_simplified", "fr": "french", "es": "spanish", "ru": "russian", "vi": "vietnamese",
    "th": "thai", "ar": "arabic", "sw": "swahili", "id": "indonesian", "ja": "japanese", "ko": "korean",
    "pt": "portuguese", "hi": "hindi", "bn": "bengali", "tr": "turkish", "uk": "ukrainian", "ur": "urdu",
}  # fmt: skip

XQUAD = Task(
    name="xquad",
    title="XQuAD",
    hub=Hub("google/xquad", _each("xquad.{}", "en de es zh ru vi th ar el hi tr ro"), split="validation"),
    question=_xquad_question,
    paragraph="context",
    score=answer_overlap,
    metrics=("F1", "exact match"),
    stop=("\n",),
    max_new_tokens=64,
)
MGSM = Task(
    name="mgsm",
    title="MGSM",
    hub=Hub("juletxara/mgsm", _each("{}", "en de fr es zh ru th sw ja bn te"), revision=PARQUET),
    question=_mgsm_question,
    score=right_number,
    metrics=("accuracy",),
    columns=("question", "answer"),
    max_new_tokens=384,
)
XCSQA = Task(
    name="xcsqa",
    title="X-CSQA",
    hub=Hub(
        "INK-USC/xcsr",
        {**_each("X-CSQA-{}", "en de fr es zh ru vi ar sw it nl pl pt hi ur"), "ja": "X-CSQA-jap"},
        split="validation",  # the test split has no answers
        revision=PARQUET,
    ),
    question=_xcsqa_question,
    score=right_choice,
    metrics=("accuracy",),
)
XLSUM = Task(
    name="xlsum",
    title="XL-Sum",
    hub=Hub("csebuetnlp/xlsum", XLSUM_NAMES, revision=PARQUET),
    question=_xlsum_question,
    score=summary_overlap,
    metrics=("ROUGE-L", "ROUGE-1", "ROUGE-2"),
    parallel=False,
    stop=("\n",),
    cut="text",
    max_new_tokens=160,
)
TASKS: Mapping[str, Task] = {task.name: task for task in (XQUAD, MGSM, XCSQA, XLSUM)}
