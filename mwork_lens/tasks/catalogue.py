"""The four tasks of the paper."""

from collections.abc import Mapping

from .scoring import answer_overlap, right_choice, right_number, summary_overlap
from .task import Hub, Question, Row, Task

PARQUET = "refs/convert/parquet"


def _xquad_question(row: Row, language: str, number: int) -> Question:
    return Question(
        id=str(row["id"]),
        language=language,
        fields={"context": row["context"].strip("\ufeff \n"), "question": row["question"].strip()},
        references=tuple(row["answers"]["text"]),
        # the nth paragraph in every language; hub rows name none, and there the question stands for itself
        document=str(row.get("paragraph", row["id"])),
    )


def _mgsm_question(row: Row, language: str, number: int) -> Question:
    right = row.get("answer_number")
    right = row["answer"] if right is None else right
    return Question(str(number), language, {"question": row["question"]}, (str(right),), document=str(number))


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
    score=answer_overlap,
    metrics=("F1", "exact match"),
    stop=("\n",),
)
MGSM = Task(
    name="mgsm",
    title="MGSM",
    hub=Hub("juletxara/mgsm", _each("{}", "en de fr es zh ru th sw ja bn te"), revision=PARQUET),
    question=_mgsm_question,
    score=right_number,
    metrics=("accuracy",),
    columns=("question", "answer"),
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
)
TASKS: Mapping[str, Task] = {task.name: task for task in (XQUAD, MGSM, XCSQA, XLSUM)}
