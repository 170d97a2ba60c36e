"""The small form of a report: detect, ablate, measure each language's loss, and write one page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .. import plots
from ..detection import matched_control, neuron_counts, random_control
from ..effects import EffectMatrix, effect_matrix
from ..lens import LanguageRatio
from ..model import HookedModel
from ..neurons import NeuronSet
from ..report import Section, write_page
from ..settings import ReportConfig
from ..store import versions
from ..text import Corpus
from .report import Measurement, most_raised, ratio_finding, size_range

LIMITS = [
    "Rise of next-token loss on held-out passages, in nats per token; the intervals in the figure's hover are 95 % by "
    "bootstrap over documents. A ratio is left out where the others' rise is not clearly above zero.",
    "This shows which neurons one language's text needs more than another's, on this model and this text. It does not "
    "show what the neurons compute, nor that a task fails; on a corpus that is not parallel it would mix topic with "
    "language.",
]
RATIO = (
    "Hidden states after each layer, decoded through the unembedding: the language of the ten most likely tokens at "
    "every tenth position. Dotted: what random directions of that layer decode to. Only the distance from its dotted "
    "line says anything about the model."
)


@dataclass(frozen=True)
class Demo:
    """What one run of the demo measured."""

    run: Measurement
    sets: Mapping[str, NeuronSet]
    """Each language's specific neurons, then a score-matched and a uniformly random control for one language."""
    effects: EffectMatrix
    ratio: LanguageRatio | None
    """Which language each layer speaks, on a few held-out passages; None where no identifier has the languages."""

    def table(self) -> pd.DataFrame:
        """The effect matrix with the size of each set and how selective it is."""
        selectivity = self.effects.selectivity()
        more = {"own − others": selectivity["difference"], "own : others": selectivity["ratio"]}
        return self.effects.to_frame().assign(**more, neurons=[len(self.sets[row]) for row in self.effects.rows])

    def findings(self) -> list[str]:
        """Two sentences on what the run shows, from its own numbers."""
        selectivity, own, languages = self.effects.selectivity(), self.run.sets, self.run.detection.languages
        language, controls = self.run.config.controls[0], [row for row in self.sets if row not in languages]
        times = {row: _times(selectivity.loc[row]) for row in (*own, *controls)}
        fourfold = [row for row in own if times[row] >= 4]
        rises = [
            f"{row} by {selectivity.loc[row, 'own']:.2f} against {selectivity.loc[row, 'others']:.2f}"
            for row in (language, *controls)
        ]
        selective = times[language] > max(times[row] for row in controls)
        return [
            f"Switching off a language's own neurons ({size_range([len(neurons) for neurons in own.values()])} of "
            f"{self.run.detection.space.total:,}) raises that language's loss the most for "
            f"{most_raised(self.effects, list(own), len(languages))}, and by at least four times the mean of the other "
            f"languages' for {len(fourfold)} ({', '.join(fourfold) or 'none'}).",
            f"Rise of {language}'s loss against the others' mean, in nats per token: {'; '.join(rises)}. So "
            f"{language}'s own neurons are {'more' if selective else 'not more'} selective for {language} than as many "
            "with equal scores or at random.",
        ]

    def write(self) -> list[Path]:
        """Write the table and the page; returns what the folder holds."""
        detection, effects, path = self.run.detection, self.effects, self.run.folder.path
        self.table().to_csv(path / "effects.csv")
        counts = plots.neuron_counts(neuron_counts(detection, quorum=self.run.config.quorum))
        selectivity = effects.selectivity().drop(columns="language").round(3)
        settings = {"detection": detection.settings, "effects": effects.settings, "versions": versions()}
        sections = [
            Section("What switching neurons off does", self.findings(), plots.effect_matrix(effects)),
            Section("The numbers", ["Off (rows) by read (columns), nats per token."], self.table().round(3)),
            Section("Selectivity, with intervals", (), selectivity),
            Section("Where the neurons are", (), counts),
            Section("How to read this", LIMITS),
            Section("Settings", (), settings),
        ]
        if self.ratio:
            spoken = [RATIO, *ratio_finding(self.ratio)]
            sections.insert(0, Section("Which language each layer speaks", spoken, plots.language_ratio(self.ratio)))
        page = write_page(path / "report.html", f"Language neurons of {detection.space.model}", sections)
        return [page, *(path / name for name in ("effects.csv", "effects", "detection", "neurons"))]


def run_demo(model: HookedModel, corpus: Corpus, path: Path, config: ReportConfig | None = None) -> Demo:
    """Detect on one part of the corpus (by default four fifths), switch off and measure on the held-out part.

    Raises:
        FileExistsError: for a directory with other things in it.
        ValueError: for a single language, or if no language has specific neurons.
    """
    run = Measurement.begin("demo", model, corpus, path, config or ReportConfig(held_out=0.2), True)
    language, detection = run.config.controls[0], run.detection
    sets = {each: detection.specific(each, quorum=run.config.quorum) for each in detection.languages}
    sets[f"matched {language}"] = matched_control(sets[language], detection, seed=run.config.seed)
    sets[f"random {language}"] = random_control(sets[language], seed=run.config.seed)
    for name, neurons in sets.items():
        run.piece(f"neurons/{name.replace(' ', '-')}", NeuronSet, lambda neurons=neurons: neurons)
    ratio = run.ratio("ratio")
    effects = run.piece("effects", EffectMatrix, effect_matrix, model, sets, run.held_out, **run.reading)
    return Demo(run, sets, effects, ratio)


def _times(row: pd.Series) -> float:
    """Own rise over the mean rise of the others, infinite where these do not rise."""
    own, others = row[["own", "others"]].astype(float).tolist()
    return own / others if others > 0 else math.inf if own > 0 else 0.0
