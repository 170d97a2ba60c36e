"""The whole story in one run: whose neurons are whose, and what switching them off does to every language."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .. import plots
from ..detection import Detection, detect, matched_control, neuron_counts, random_control
from ..effects import EffectMatrix, effect_matrix
from ..lens import LanguageRatio, language_ratio
from ..model import MAX_TOKENS, HookedModel
from ..neurons import NeuronSet
from ..report import Section, write_page
from ..store import versions
from ..text import Corpus

logger = logging.getLogger("mwork_lens")

PROMPTS, EVERY = 5, 10
"""Held-out passages of each language that the language ratio reads, at every tenth token from the end."""


@dataclass(frozen=True)
class Demo:
    """What one run of the demo found."""

    detection: Detection
    sets: Mapping[str, NeuronSet]
    """Each language's specific neurons."""
    controls: Mapping[str, NeuronSet]
    """A score-matched and a uniformly random control for one language."""
    effects: EffectMatrix
    held_out: Corpus
    quorum: float
    """Share of a language's documents on which its neurons are active."""
    ratio: LanguageRatio | None
    """Which language each layer speaks, on a few held-out passages; None where no identifier knows the languages."""

    def table(self) -> pd.DataFrame:
        """The effect matrix with the size of each set and how selective it is."""
        frame = self.effects.to_frame()
        selectivity = self.effects.selectivity()
        both = {**self.sets, **self.controls}
        frame["own − others"] = selectivity["difference"]
        frame["own : others"] = selectivity["ratio"]
        frame["neurons"] = [len(both[name]) for name in frame.index]
        return frame

    def findings(self) -> list[str]:
        """Two sentences on what the run shows, from its own numbers."""
        frame, selectivity = self.effects.to_frame(), self.effects.selectivity()
        own = [name for name in self.sets if len(self.sets[name])]
        most = [name for name in own if frame.loc[name].idxmax() == name]
        fourfold = [name for name in own if _times(selectivity.loc[name]) >= 4]
        matched, random = self.controls
        language = str(self.effects.languages[matched])
        rises = [
            f"{name} by {selectivity.loc[name, 'own']:.2f} against {selectivity.loc[name, 'others']:.2f}"
            for name in (language, matched, random)
        ]
        selective = _times(selectivity.loc[language]) > max(_times(selectivity.loc[c]) for c in self.controls)
        return [
            f"Switching off a language's own neurons ({_range([len(self.sets[name]) for name in own])} of "
            f"{self.detection.space.total:,}) raises that language's loss the most for {len(most)} of {len(self.sets)} "
            f"languages ({', '.join(most) or 'none'}), and by at least four times the mean of the other languages' for "
            f"{len(fourfold)} ({', '.join(fourfold) or 'none'}).",
            f"Rise of {language}'s loss against the others' mean, in nats a token: {'; '.join(rises)}. So "
            f"{language}'s own neurons are {'more' if selective else 'not more'} selective for {language} than as many "
            "with equal scores or at random.",
        ]

    def write(self, folder: Path) -> list[Path]:
        """Save the results and the page; returns what was written."""
        self.detection.save(folder / "detection")
        for name, neurons in {**self.sets, **self.controls}.items():
            neurons.save(folder / "neurons" / name.replace(" ", "-"))
        self.effects.save(folder / "effects")
        if self.ratio is not None:
            self.ratio.save(folder / "ratio")
        self.table().to_csv(folder / "effects.csv")
        page = write_page(folder / "report.html", f"Language neurons of {self.detection.space.model}", self._sections())
        return [page, folder / "effects.csv", folder / "effects", folder / "detection", folder / "neurons"]

    def _sections(self) -> list[Section]:
        settings = {
            "detection": self.detection.settings,
            "effects": self.effects.settings,
            "versions": versions(),
        }
        limits = [
            "Rise of next-token loss on held-out passages, in nats a token; the intervals in the figure's hover are "
            "95 % by bootstrap over documents. A ratio is left out where the others' rise is not clearly above zero.",
            "This shows which neurons one language's text needs more than another's, on this model and this text. It "
            "does not show what the neurons compute, nor that a task fails; on a corpus that is not parallel it would "
            "mix topic with language.",
        ]
        selectivity = self.effects.selectivity().drop(columns="language").round(3)
        return [
            *self._language_ratio(),
            Section("What switching neurons off does", self.findings(), plots.effect_matrix(self.effects)),
            Section("The numbers", ["Off (rows) by read (columns), nats a token."], self.table().round(3)),
            Section("Selectivity, with intervals", (), selectivity),
            Section("Where the neurons are", (), plots.neuron_counts(self._counts())),
            Section("How to read this", limits),
            Section("Settings", (), settings),
        ]

    def _counts(self) -> pd.DataFrame:
        return neuron_counts(self.detection, quorum=self.quorum)

    def _language_ratio(self) -> list[Section]:
        if self.ratio is None:
            return []
        known = "en" in self.ratio.languages and set(self.ratio.counts) - {"en"}
        text = [
            "Hidden states after each layer, decoded through the unembedding: the language of the ten most likely "
            "tokens at every tenth position. Dotted: what random directions of that layer decode to. Only the "
            "distance from its dotted line says anything about the model.",
            *([self.ratio.finding("en")] if known else []),
        ]
        return [Section("Which language each layer speaks", text, plots.language_ratio(self.ratio))]


def run_demo(
    model: HookedModel,
    corpus: Corpus,
    *,
    held_out: float = 0.2,
    top: float = 0.2,
    quorum: float = 0.9,
    seed: int = 0,
) -> Demo:
    """Detect on one part of the corpus, switch off and measure on the held-out part.

    Raises:
        ValueError: for a single language, or if no language has specific neurons.
    """
    if len(corpus) < 2:
        raise ValueError(f"One language ({', '.join(corpus)}) has nothing to be compared with: give at least two.")
    train, rest = corpus.split(held_out, seed=seed)
    ratio = _ratio(model, rest.limit(PROMPTS))
    detection = detect(model, train, top=top)
    sets = {language: detection.specific(language, quorum=quorum) for language in corpus}
    found = [language for language in corpus if len(sets[language])]
    if not found:
        raise ValueError(f"No language has specific neurons at top={top}, quorum={quorum}: lower the quorum.")
    # English is the pivot that the others are compared with: show the controls of another language if there is one
    chosen = next((language for language in found if language != "en"), found[0])
    controls = {
        f"matched {chosen}": matched_control(sets[chosen], detection, seed=seed),
        f"random {chosen}": random_control(sets[chosen], seed=seed),
    }
    effects = effect_matrix(model, {**sets, **controls}, rest)
    return Demo(detection, sets, controls, effects, rest, quorum, ratio)


def _ratio(model: HookedModel, prompts: Corpus) -> LanguageRatio | None:
    try:
        return language_ratio(model, prompts, positions=slice(None, None, -EVERY), max_tokens=MAX_TOKENS)
    except (ValueError, ImportError) as error:
        logger.warning("Without the languages of each layer: %s", error)
        return None


def _times(row: pd.Series) -> float:
    """Own rise over the mean rise of the others, infinite where these do not rise."""
    own, others = row[["own", "others"]].astype(float).tolist()
    return own / others if others > 0 else math.inf if own > 0 else 0.0


def _range(numbers: list[int]) -> str:
    low, high = int(np.min(numbers)), int(np.max(numbers))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
