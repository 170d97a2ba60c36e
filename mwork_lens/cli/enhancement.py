"""``mwork-lens experiment enhancement``: tune a language's neurons, beside controls."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from .options import CorpusOptions, ModelOptions, SelectionOptions, numbers, parts, say_written

ARMS = "Of random,matched,specific,all,english-text,other-neurons; all by default."
RATES = "From which every arm's own is chosen, with commas; empty leaves it out."


@dataclass(frozen=True)
class DesignOptions:
    """What is compared, and on how much text."""

    tune: Annotated[str, Option("--tune", help="Languages to improve, with commas.")]
    documents: Annotated[str, Option("--documents", help="Passages to tune on, with commas.")] = "400"
    arms: Annotated[str | None, Option("--arms", help=ARMS)] = None
    seeds: Annotated[int, Option("--seeds", help="How many.")] = 2
    paper_rate: Annotated[float, Option("--paper-rate", help="At which every arm is tuned; 0 leaves it out.")] = 2e-6
    rates: Annotated[str, Option("--rates", help=RATES)] = "1e-5,1e-4,1e-3"
    batch_size: Annotated[int, Option("--batch-size", help="Passages a step.")] = 32
    micro_batch_size: Annotated[
        int | None, Option("--micro-batch-size", help="Passages at a time; by default what 1024 tokens hold.")
    ] = None
    epochs: Annotated[int, Option("--epochs", help="Passes over the passages.")] = 1
    max_tokens: Annotated[int, Option("--max-tokens", help="Longer passages are cut there.")] = 512
    detection_passages: Annotated[int, Option("--detection-passages", help="Of each language, to find neurons on.")] = (
        40
    )
    development_passages: Annotated[
        int, Option("--development-passages", help="Of each language, to choose rates on.")
    ] = 20
    evaluation_passages: Annotated[int, Option("--evaluation-passages", help="Of each language, to measure on.")] = 40

    def design(self, selection: SelectionOptions) -> Any:
        """The design of the experiment, which refuses what makes no sense."""
        from ..experiments.enhancement.design import Design

        asked = {"languages": parts(self.tune), "documents": numbers("--documents", self.documents)}
        asked |= {} if self.arms is None else {"arms": parts(self.arms)}
        sizes = {name: getattr(self, f"{name}_passages") for name in ("detection", "development", "evaluation")}
        recipe = {name: getattr(self, name) for name in ("batch_size", "micro_batch_size", "epochs", "max_tokens")}
        rates = {"paper_rate": self.paper_rate or None, "rates": _rates(self.rates)}
        return Design(**asked, **sizes, **recipe, **rates, **asdict(selection), seeds=list(range(self.seeds)))


@dataclass(frozen=True)
class DomainOptions:
    """Other text to measure on."""

    xquad: Annotated[str | None, Option("--xquad", help="Also measure on XQuAD's contexts: its folder, or hub.")] = None
    mgsm: Annotated[str | None, Option("--mgsm", help="Also measure on MGSM's questions: its folder, or hub.")] = None
    domain_passages: Annotated[int, Option("--domain-passages", help="Of each language, of these two.")] = 20

    def load(self, languages: list[str]) -> dict[str, Any]:
        """The text of each that was asked for, by name."""
        from ..experiments.enhancement.domains import task_text

        return {
            name: task_text(name, None if source == "hub" else source, languages, limit=self.domain_passages)
            for name, source in {"xquad": self.xquad, "mgsm": self.mgsm}.items()
            if source is not None
        }


def enhancement(
    designed: DesignOptions,
    model: ModelOptions,
    text: CorpusOptions,
    selection: SelectionOptions,
    domains: DomainOptions,
    output: Annotated[Path, Option("--output", help="A new directory, or one to resume.")] = Path(
        "mwork-lens-enhancement"
    ),
) -> None:
    """Fig. 4 and the low-resource table: tune a language's neurons, beside random and matched ones, all parameters,
    its neurons on English text and another language's on its text.

    The same --output goes on with a run that was stopped. On two cores, with NTREX-128 and the demo model, the run
    that tells the arms apart needs many tuned models; smaller ones cut --arms, --rates and the numbers of passages:

    mwork-lens experiment enhancement --tune sw --corpus ntrex/ --sentences-per-passage 3 --documents 120
    --batch-size 8 --micro-batch-size 2 --xquad xquad/ --mgsm mgsm/ --output enhancement-sw
    """
    from ..experiments.enhancement.experiment import enhancement
    from ..experiments.enhancement.writing import shown, write
    from ..experiments.folder import ResultsFolder

    design = designed.design(selection)
    corpus = text.load()
    design.divide(corpus)
    others = domains.load(list(corpus))
    found = enhancement(model.load(), corpus, output, design, domains=others)
    folder = ResultsFolder(output, found.settings, True)
    write(folder, found)
    for domain in found.read:
        print(f"\n{domain}: change of loss, nats a token, at each arm's own rate or else the paper's\n")
        print(shown(found.table(domain, rate="own" if design.rates else "paper")).to_string())
    print("\n" + "\n".join(found.findings()))
    say_written(folder.written)


def _rates(given: str) -> list[float]:
    try:
        return [float(part) for part in parts(given) or ()]
    except ValueError:
        raise ValueError(f"--rates {given}: give numbers with commas, e.g. 1e-4,1e-3.") from None
