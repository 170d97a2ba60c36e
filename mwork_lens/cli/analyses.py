"""``mwork-lens experiment corpus | overlap | neuron-counts``: the text, and what detections have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from .options import (
    CorpusOptions,
    LimitOption,
    ModelOption,
    ModelOptions,
    OutputOption,
    PassagesOption,
    SelectionOptions,
    parts,
    saved_detection,
    say_written,
    unused,
)

if TYPE_CHECKING:
    from ..detection import Kind


def corpus(
    text: CorpusOptions,
    model: ModelOption = "demo",
    limit: LimitOption = None,
    vocabulary: Annotated[str | None, Option("--vocabulary", help="A folder of fr.txt, or a .jsonl.")] = None,
    output: OutputOption = None,
) -> None:
    """The appendix table: documents, tokens, distinct words by language, and coverage of a vocabulary."""
    from ..experiments.corpus import describe_corpus, read_vocabulary
    from ..experiments.folder import ResultsFolder
    from ..model import load_tokenizer

    described = text.load(limit)
    words = None if vocabulary is None else read_vocabulary(vocabulary, list(described))
    settings = {"corpus": described.describe(), "tokenizer": model, "vocabulary": vocabulary}
    folder = ResultsFolder.open(output or unused("corpus"), "corpus", settings)
    found = describe_corpus(described, tokenizer=load_tokenizer(model), vocabulary=words)
    folder.table("corpus", found)
    print(found.drop(columns=["low", "high"]).to_string(na_rep="–", float_format=lambda value: f"{value:.3f}"))
    say_written(folder.written)


@dataclass(frozen=True)
class DetectionsOptions:
    """Saved detections, or passages to make one on."""

    detection: Annotated[
        list[Path] | None, Option("--detection", help="A saved detection; repeat it to compare several.")
    ] = None
    passages: PassagesOption = 40

    def open(
        self, name: str, output: Path | None, model: ModelOptions, text: CorpusOptions, selection: SelectionOptions
    ) -> tuple[Any, Mapping[str, Any]]:
        """The results folder of an experiment, and the detections by name."""
        from ..experiments.detections import open_detections

        languages, joined = parts(text.languages), text.sentences_per_passage
        return open_detections(
            output or unused(name),
            name,
            [saved_detection(path) for path in self.detection or ()],
            model.load,
            text.corpus,
            {"languages": languages, "sentences_per_passage": joined, "limit": self.passages},
            {"quorum": selection.quorum, "top": selection.top},
        )


def overlap(
    model: ModelOptions,
    text: CorpusOptions,
    detections: DetectionsOptions,
    selection: SelectionOptions,
    output: OutputOption = None,
) -> None:
    """The overlap heat maps: active neurons that languages share, beside chance; several detections side by side."""
    from .. import plots
    from ..detection import comparison

    folder, found = detections.open("overlap", output, model, text, selection)
    compared = comparison.overlap(found, quorum=selection.quorum)
    folder.table("overlap", compared)
    folder.figure("overlap", plots.overlap(compared))
    means = compared.pivot_table(index=["detection", "structure"], values=["share", "expected_share"], sort=False)
    print(f"Share of a language's active neurons that another has too, mean over pairs\n\n{means.round(3)}")
    say_written(folder.written)


def neuron_counts(
    model: ModelOptions,
    text: CorpusOptions,
    detections: DetectionsOptions,
    selection: SelectionOptions,
    output: OutputOption = None,
) -> None:
    """The paper's Fig. 3: specific and active neurons by layer, attention against feed-forward, and their means."""
    from .. import plots
    from ..detection import comparison

    folder, found = detections.open("neuron-counts", output, model, text, selection)
    kinds: tuple[Kind, ...] = ("specific", "active")
    for kind in kinds:
        counted = comparison.neuron_counts(found, kind=kind, quorum=selection.quorum)
        folder.table(kind, counted)
        folder.figure(kind, plots.neuron_counts(counted, title=f"Language-{kind} neurons by layer"))
        by = ["detection", "structure"]
        totals = counted.pivot_table(index=by, values=["neurons", "width"], aggfunc="sum", sort=False)
        totals["share"] = totals["neurons"] / totals["width"]
        print(f"{kind}: share of all neurons, mean over languages\n\n{totals['share'].round(4).to_string()}\n")
    say_written(folder.written)
