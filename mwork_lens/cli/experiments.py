"""``mwork-lens experiment NAME``: the paper's figures and tables, comparisons of detections, enhancement."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import mwork_lens as mw

from ..settings import (
    DETECTIONS,
    DetectionSettings,
    EffectsConfig,
    EnhancementConfig,
    PartOf,
    SavedSets,
    TaskOptions,
    numbers,
)
from .commands import RatioConfig, load_detection, measure_ratio, require_saved
from .options import Paths, Resumable, Run, write


def language_ratio(
    run: Annotated[Resumable, {"limit": 20}],
    config: Annotated[RatioConfig, "by", "new_tokens", "raw", "grid", "validate", {"every": 4}],
    part: PartOf,
) -> Paths:
    """The paper's Fig. 1 and 5: English and non-English tokens by layer, and each language, compared with chance.

    The same --output and options resume a run that was stopped.
    """
    return measure_ratio("language-ratio", run, config, part)


@dataclass(frozen=True)
class SweepConfig(SavedSets):
    """How many layers are switched off, and what is read."""

    passages: int | None = EffectsConfig.passages
    depths: Annotated[Sequence[int] | None, numbers(1)] = None
    """Numbers of layers to try, with commas."""


def layer_sweep(
    run: Resumable, selection: DetectionSettings, config: Annotated[SweepConfig, "neurons"], part: PartOf
) -> Paths:
    """The paper's appendix: N1 and N2 from each language's neurons off in the first, and in the last, n layers.

    With --detection the corpus must be development text (of a run with --held-out, what it has not read is taken);
    without it, detection runs on three quarters. The same --output and options resume a run that was stopped.
    """
    from ..experiments.effects import held_out_text
    from ..experiments.folder import ResultsFolder, load_or_run
    from ..experiments.sets import specific_sets

    require_saved(part, config)
    path = run.folder("layer-sweep")
    detection = load_detection(config)
    corpus = run.load_text()
    corpus = corpus if detection is None else held_out_text(corpus, detection)
    hooked, limit = run.load_model(), {"max_tokens": selection.max_tokens}
    asked = {**asdict(selection), **asdict(config), "corpus": corpus.describe()}
    saved = None if detection is None else {"space": asdict(detection.space), **detection.settings}
    record = {**mw.model.model_record(hooked), **asked, "detection": saved}
    folder = ResultsFolder.open(path, "layer-sweep", {**record, **part.record})
    if detection is None:
        train, corpus = corpus.split()
        detection = load_or_run(path / "detection", mw.Detection, mw.detect, hooked, train, top=selection.top, **limit)
    read = corpus if config.passages is None else corpus.limit(config.passages)
    own = specific_sets(detection, quorum=selection.quorum)
    sets = {language: neurons for language, neurons in own.items() if language in read and language != "en"}
    options = {"depths": config.depths, "shard": part.shard, **limit}
    sweep = load_or_run(path / "sweep", mw.LayerSweep, mw.layer_sweep, hooked, sets, read, **options)
    if part.shard:
        print(sweep)
        return [*folder.written, path / "sweep"]
    return [*folder.written, *write_sweep(path, sweep)]


def write_sweep(path: Path, sweep: Any) -> Paths:
    """Table and figure of a sweep, beside it; prints what it chooses."""
    print(sweep.finding())
    figures = {"sweep-figure": lambda: mw.plots.layer_sweep(sweep)}
    return [path / "sweep", *write(path, {}, {"sweep": sweep.to_frame()}, figures)]


def task_command(name: str, item: str) -> Callable[..., Paths]:
    """The command of one of the paper's tables on tasks, ``item``."""

    def command(
        run: Annotated[Resumable, "languages", "corpus", "sentences_per_passage", "limit"], options: TaskOptions
    ) -> Paths:
        from ..experiments.asked import asked_of
        from ..experiments.tasks import PAPER_VALUES, blocks, gaps, run_asked

        path, asked = run.folder(name), asked_of(name, options)
        result, folder = run_asked(run.load_model(), asked, path)
        for metric in dict.fromkeys([result.metrics[0], result.task.metrics[0]]):
            print(f"\n{result.task.title}: {metric} (rows: neurons off; columns: where)\n\n{blocks(result, metric)}")
        print("\n" + "\n".join([*gaps(result), PAPER_VALUES]))
        return folder.written

    command.__name__ = name
    command.__doc__ = f"{item}. The same --output resumes a run that was stopped."
    return command


@dataclass(frozen=True)
class VocabularyConfig:
    """Words that a corpus may hold."""

    vocabulary: str | None = None
    """A folder of fr.txt, or a .jsonl."""


def corpus(run: Annotated[Run, "device", "device_map", "max_memory", "dtype"], config: VocabularyConfig) -> Paths:
    """The appendix table: documents, tokens, distinct words by language, and coverage of a vocabulary."""
    from ..experiments.corpus import describe_corpus, read_vocabulary
    from ..experiments.folder import ResultsFolder

    path, described = run.folder("corpus"), run.load_text()
    words = None if config.vocabulary is None else read_vocabulary(config.vocabulary, list(described))
    settings = {"corpus": described.describe(), "tokenizer": run.model, "vocabulary": config.vocabulary}
    folder = ResultsFolder.open(path, "corpus", settings)
    table = describe_corpus(described, tokenizer=mw.model.load_tokenizer(run.model), vocabulary=words)
    folder.write({"corpus": table})
    print(table.drop(columns=["low", "high"]).to_string(na_rep="–", float_format=lambda value: f"{value:.3f}"))
    return folder.written


@dataclass(frozen=True)
class DetectionsConfig:
    """Saved detections, or passages to make one on."""

    detection: Annotated[list[Path] | None, DETECTIONS] = None
    """A saved detection; repeat it to compare several."""
    passages: int = TaskOptions.passages

    def open(self, name: str, run: Run, rule: DetectionSettings) -> tuple[Any, Any]:
        """The results folder of an experiment, and its detections by the name of their directory or model."""
        from ..experiments.folder import ResultsFolder, load_detections, load_or_run

        path, settings = run.folder(name), {"quorum": rule.quorum, "top": rule.top}
        if self.detection:
            detections = load_detections(self.detection)
            fingerprints = {key: asdict(each.space)["fingerprint"] for key, each in detections.items()}
            recorded = {key: {**each.settings, "fingerprint": fingerprints[key]} for key, each in detections.items()}
            return ResultsFolder.open(path, name, {"detections": recorded, **settings}), detections
        corpus = replace(run, limit=self.passages).load_text()
        if len(corpus) < 2:
            raise ValueError(f"At least two languages are needed to compare; {run.corpus} has {', '.join(corpus)}.")
        hooked = run.load_model()
        record = {**mw.model.model_record(hooked), "corpus": corpus.describe(), **settings}
        folder = ResultsFolder.open(path, name, record)
        place = folder.path / "detection"
        detection = load_or_run(place, mw.Detection, mw.detect, hooked, corpus, top=rule.top)
        folder.written.append(place)
        return folder, {detection.space.model: detection}


Unlimited = Annotated[Run, "limit"]
Rule = Annotated[DetectionSettings, "max_tokens"]


def overlap(run: Unlimited, config: DetectionsConfig, selection: Rule) -> Paths:
    """The overlap heat maps: active neurons that languages share, compared with chance; several detections together."""
    folder, detections = config.open("overlap", run, selection)
    table = mw.overlap(detections, quorum=selection.quorum)
    folder.write({"overlap": table}, {"overlap": mw.plots.overlap(table)})
    means = table.pivot_table(index=["detection", "structure"], values=["share", "expected_share"], sort=False)
    print(f"Share of a language's active neurons that another has too, mean over pairs\n\n{means.round(3)}")
    return folder.written


def neuron_counts(run: Unlimited, config: DetectionsConfig, selection: Rule) -> Paths:
    """The paper's Fig. 3: specific and active neurons by layer, attention against feed-forward, and their means."""
    folder, detections = config.open("neuron-counts", run, selection)
    for kind in ("specific", "active"):
        counts = mw.neuron_counts(detections, kind=kind, quorum=selection.quorum)
        folder.write({kind: counts}, {kind: mw.plots.neuron_counts(counts, title=f"Language-{kind} neurons by layer")})
        by = ["detection", "structure"]
        totals = counts.pivot_table(index=by, values=["neurons", "width"], aggfunc="sum", sort=False)
        totals["share"] = totals["neurons"] / totals["width"]
        print(f"{kind}: share of all neurons, mean over languages\n\n{totals['share'].round(4).to_string()}\n")
    return folder.written


def enhancement(
    config: EnhancementConfig, run: Annotated[Resumable, "limit", {"output": Path("mwork-lens-enhancement")}]
) -> Paths:
    """Fig. 4 and the low-resource table: tune a language's neurons, compared with random and matched ones, all
    parameters, its neurons on English text and another language's on its text.

    The same --output resumes a run that was stopped. On two cores, with NTREX-128 and the demo model, the run that
    distinguishes the arms needs many tuned models; smaller ones cut --arms, --rates and the numbers of passages:

    mwork-lens experiment enhancement --tune sw --corpus ntrex/ --sentences-per-passage 3 --documents 120
    --batch-size 8 --micro-batch-size 2 --xquad xquad/ --mgsm mgsm/ --output enhancement-sw
    """
    from ..experiments.enhancement import enhancement, formatted_table, task_texts, write
    from ..experiments.folder import ResultsFolder

    path, loaded = run.folder("enhancement"), run.load_text()
    config.divide(loaded)
    domains = task_texts(config, list(loaded))
    result = enhancement(run.load_model(), loaded, path, config, domains=domains)
    folder = ResultsFolder(path, result.settings)
    write(folder, result)
    for domain in result.read:
        print(f"\n{domain}: change of loss, nats per token, at each arm's own rate or else the paper's\n")
        print(formatted_table(result.table(domain, rate="own" if config.rates else "paper")).to_string())
    print("\n" + "\n".join(result.findings()))
    return folder.written
