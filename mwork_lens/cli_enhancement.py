"""``mwork-lens experiment enhancement``: tune a language's neurons, beside controls."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli import (
    CorpusOption,
    DeviceOption,
    DtypeOption,
    LanguagesOption,
    ModelOption,
    QuorumOption,
    SentencesOption,
    TopOption,
    _corpus,
    _model,
    _numbers,
    _say_written,
    _tags,
    experiment,
)

TUNE = typer.Option("--tune", help="Languages to improve, with commas.")
DOCUMENTS = typer.Option("--documents", help="Passages to tune on, with commas.")
ARMS = typer.Option("--arms", help="Of random,matched,specific,all,english-text,other-neurons; all by default.")
SEEDS = typer.Option("--seeds", help="How many.")
PAPER_RATE = typer.Option("--paper-rate", help="At which every arm is tuned; 0 leaves it out.")
RATES = typer.Option("--rates", help="From which every arm's own is chosen, with commas; empty leaves it out.")
BATCH = typer.Option("--batch-size", help="Passages a step.")
MICRO = typer.Option("--micro-batch-size", help="Passages at a time; by default what 1024 tokens hold.")
EPOCHS = typer.Option("--epochs", help="Passes over the passages.")
LENGTH = typer.Option("--max-tokens", help="Longer passages are cut there.")
DETECTION = typer.Option("--detection-passages", help="Of each language, to find neurons on.")
DEVELOPMENT = typer.Option("--development-passages", help="Of each language, to choose rates on.")
EVALUATION = typer.Option("--evaluation-passages", help="Of each language, to measure on.")
XQUAD = typer.Option("--xquad", help="Also measure on XQuAD's contexts: its folder, or hub.")
MGSM = typer.Option("--mgsm", help="Also measure on MGSM's questions: its folder, or hub.")
PASSAGES = typer.Option("--domain-passages", help="Of each language, of these two.")
OUTPUT = typer.Option("--output", help="A new directory, or one to resume.")


@experiment.command("enhancement")
def experiment_enhancement(
    tune: Annotated[str, TUNE],
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    documents: Annotated[str, DOCUMENTS] = "400",
    arms: Annotated[str | None, ARMS] = None,
    seeds: Annotated[int, SEEDS] = 2,
    paper_rate: Annotated[float, PAPER_RATE] = 2e-6,
    rates: Annotated[str, RATES] = "1e-5,1e-4,1e-3",
    batch_size: Annotated[int, BATCH] = 32,
    micro_batch_size: Annotated[int | None, MICRO] = None,
    epochs: Annotated[int, EPOCHS] = 1,
    max_tokens: Annotated[int, LENGTH] = 512,
    detection_passages: Annotated[int, DETECTION] = 40,
    development_passages: Annotated[int, DEVELOPMENT] = 20,
    evaluation_passages: Annotated[int, EVALUATION] = 40,
    top: TopOption = 0.2,
    quorum: QuorumOption = 0.9,
    xquad: Annotated[str | None, XQUAD] = None,
    mgsm: Annotated[str | None, MGSM] = None,
    domain_passages: Annotated[int, PASSAGES] = 20,
    output: Annotated[Path, OUTPUT] = Path("mwork-lens-enhancement"),
) -> None:
    """Fig. 4 and the low-resource table: tune a language's neurons, beside random and matched ones, all parameters,
    its neurons on English text and another language's on its text.

    The same --output goes on with a run that was stopped. On two cores, with NTREX-128 and the demo model, the run
    that tells the arms apart needs many tuned models; smaller ones cut --arms, --rates and the numbers of passages:

    mwork-lens experiment enhancement --tune sw --corpus ntrex/ --sentences-per-passage 3 --documents 120
    --batch-size 8 --micro-batch-size 2 --xquad xquad/ --mgsm mgsm/ --output enhancement-sw
    """
    from .experiments.enhancement import Design, enhancement
    from .experiments.enhancement import design as choices
    from .experiments.enhancement.writing import write
    from .experiments.folder import ResultsFolder

    design = Design(
        languages=_tags(tune),
        documents=tuple(_numbers("--documents", documents)),
        arms=tuple(choices.ARMS) if arms is None else _tags(arms),
        seeds=tuple(range(seeds)),
        paper_rate=paper_rate or None,
        rates=_rates(rates),
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        epochs=epochs,
        max_tokens=max_tokens,
        detection=detection_passages,
        development=development_passages,
        evaluation=evaluation_passages,
        top=top,
        quorum=quorum,
    )
    text = _corpus(corpus, languages, sentences_per_passage, None)
    design.divide(text)
    others = _domains({"xquad": xquad, "mgsm": mgsm}, list(text), domain_passages)
    found = enhancement(_model(model, device, dtype), text, output, design, domains=others)
    folder = ResultsFolder(output, found.settings, True)
    write(folder, found)
    for domain in found.read:
        print(f"\n{domain}: change of loss, nats a token, at each arm's own rate or else the paper's\n")
        print(found.table(domain, rate="own" if design.rates else "paper").round(4).to_string(na_rep="–"))
    print("\n" + "\n".join(found.findings()))
    _say_written(folder.written)


def _rates(given: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _tags(given))
    except ValueError:
        raise ValueError(f"--rates {given}: give numbers with commas, e.g. 1e-4,1e-3.") from None


def _domains(sources: dict[str, str | None], languages: list[str], limit: int) -> dict[str, Any]:
    from .experiments.enhancement.domains import task_text

    return {
        name: task_text(name, None if source == "hub" else source, languages, limit=limit)
        for name, source in sources.items()
        if source is not None
    }
