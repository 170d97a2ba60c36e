"""Every public call that takes a model, with arguments that make it run."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import plotly.graph_objs._deprecations  # noqa: F401 (adds a filter of warnings when it is imported)
import torch

import mwork_lens as mw

from .. import analyses
from ..tiny import small_model
from . import QUIET

CHANGE = {"tune", "NeuronDelta.apply", "NeuronDelta.revert"}
"""What changes the model, as it says."""
Call = Callable[[], Any]


def taking_a_model() -> Iterator[str]:
    """Names of the public functions, classes and methods that take a model."""
    for name in mw.__all__:
        value = getattr(mw, name)
        members = inspect.getmembers(value, callable) if inspect.isclass(value) or inspect.ismodule(value) else []
        for each, function in [(name, value), *((f"{name}.{member}", function) for member, function in members)]:
            if "._" not in each and callable(function) and _takes_a_model(function):
                yield each


def _takes_a_model(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a type of callables, or written in C
        return False
    return function is mw.load_model or "HookedModel" in str(getattr(parameters.get("model"), "annotation", ""))


def _where_some_stand_out(call: Call) -> None:
    with suppress(ValueError):
        call()


class Lab:
    """A tiny model of a family that reads and writes three languages, and what calls need beside it."""

    def __init__(self, family: str, folder: Path) -> None:
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 0}
        self.theirs, self.folder = small_model(family, num_hidden_layers=3, **special), folder
        self.model = mw.load_model(self.theirs, tokenizer=analyses.named_tokenizer(), device="cpu")
        self.texts = analyses.corpus(1, 3)
        detection = mw.detect(self.model, analyses.corpus(), top=0.3, **QUIET)
        detection.save(folder / "detection")
        mw.importance(self.model, self.texts["en"][0])  # after which nothing is verified a second time
        mw.collect_firing(self.model, self.texts, **QUIET)  # after which gates are not tried a second time
        self.sets = {language: detection.specific(language, quorum=0.5) for language in ("fr", "ru")}
        self.means = mw.collect_means(self.model, self.texts, **QUIET)
        self.labels = mw.label_vocabulary(self.model, [*analyses.WORDS], identifier=analyses.identify)
        options = {"steps": 1, "learning_rate": 1e-2, **QUIET}
        self.delta = mw.tune(self.model, self.sets["fr"], self.texts["fr"], **options).delta
        self.delta.revert(self.model)
        for language in ("en", "fr"):
            lines = [f"{text} ?\t{i}" for i, text in enumerate(analyses.sentences(language, 3, 5))]
            (folder / f"mgsm_{language}.tsv").write_text("\n".join(lines) + "\n")
        (folder / "released").write_text("\n".join(["{0: {1, 2}, 1: {3}, 2: {0}}"] * 5))
        torch.save([[torch.tensor([i]) for i in range(3)]], folder / "lape.pth")
        (folder / "sets.json").write_text('{"fr": [[0, 1]]}')
        self._runs = 0

    def new_folder(self) -> Path:
        """One that does not exist."""
        self._runs += 1
        return self.folder / f"run-{self._runs}"

    def within(self, context: Callable[[], AbstractContextManager[Any]]) -> Call:
        """A call that reads in a context of ours."""

        def read() -> None:
            with context():
                mw.language_losses(self.model, self.texts)

        return read

    def calls(self) -> dict[str, Call]:
        """By public name."""
        return {**self._of_neurons(), **self._of_effects(), **self._of_lenses(), **self._of_text(), **self._of_files()}

    def _of_neurons(self) -> dict[str, Call]:
        model, texts = self.model, self.texts
        return {
            "NeuronSpace.of": lambda: mw.NeuronSpace.of(model, fingerprint=True),
            "Stages": lambda: mw.Stages(model),
            "attribution": lambda: mw.attribution(model, texts, **QUIET),
            "check_scores": lambda: mw.check_scores(model, layers=[0]),
            "collect_firing": lambda: mw.collect_firing(model, texts, **QUIET),
            "collect_means": lambda: mw.collect_means(model, texts, **QUIET),
            "collect_samples": lambda: mw.collect_samples(model, texts),
            "detect": lambda: mw.detect(model, texts, **QUIET),
            "importance": lambda: mw.importance(model, texts["en"][0]),
            "inspect": lambda: mw.inspect(
                model, [(0, "v", 3), (1, "q", 2)], texts, token_languages=self.labels, top_k=3, **QUIET
            ),
        }

    def _of_effects(self) -> dict[str, Call]:
        model, texts, sets, fr = self.model, self.texts, self.sets, self.sets["fr"]
        stages = mw.Stages(model, understanding=1, generation=1)
        sweep = mw.layer_sweep(model, sets, texts, **QUIET)
        return {
            "ContentPositions": self.within(lambda: mw.ContentPositions(model)),
            "LayerSweep.stages": partial(_where_some_stand_out, lambda: sweep.stages(model)),
            "NeuronDelta.applied": self.within(lambda: self.delta.applied(model)),
            "NeuronDelta.require_fits": lambda: self.delta.require_fits(model),
            "NeuronDelta.entries": lambda: self.delta.entries(model),
            "ablate": self.within(lambda: mw.ablate(model, fr, "mean", values=self.means, positions="content")),
            "edit_weights": self.within(lambda: mw.edit_weights(model, fr)),
            "effect_matrix": lambda: mw.effect_matrix(model, sets, texts, **QUIET),
            "folded_effects": lambda: mw.folded_effects(
                model, texts, lambda d: {"fr": d.active("fr", quorum=0.5)}, detection={"top": 0.3}, **QUIET
            ),
            "language_losses": lambda: mw.language_losses(model, texts),
            "layer_sweep": lambda: mw.layer_sweep(model, sets, texts, **QUIET),
            "sample_neurons": lambda: mw.sample_neurons(model, per_cell=2),
            "single_effects": lambda: mw.single_effects(model, fr, texts, **QUIET),
            "stage_grid": lambda: mw.stage_grid(model, sets, texts, stages, draws=1, **QUIET),
            "tuning_effects": lambda: mw.tuning_effects(model, {"fr": self.delta}, texts, **QUIET),
        }

    def _of_lenses(self) -> dict[str, Call]:
        model, texts, labels = self.model, self.texts, self.labels
        concepts = [{language: [words[i]] for language, words in analyses.WORDS.items()} for i in range(6)]
        probes = mw.translation_probes(concepts, source="fr", target="ru", shots=2)
        languages, options = [*analyses.WORDS], {"token_languages": labels, "top_k": 3}
        ratio = partial(mw.language_ratio, model, texts, new_tokens=2, directions=4, batch_size=2, **options, **QUIET)
        parts = [ratio(shard=(i, 2)) for i in range(2)]
        return {
            "LanguageRatio.merge": lambda: mw.LanguageRatio.merge(parts, model),
            "identifier_accuracy": lambda: mw.identifier_accuracy(model, texts, name=analyses.identify),
            "label_vocabulary": lambda: mw.label_vocabulary(model, languages, identifier=analyses.identify),
            "language_ratio": ratio,
            "latent_languages": lambda: mw.latent_languages(model, probes, **QUIET),
            "lens_grid": lambda: mw.lens_grid(model, "le chien", languages=languages, **options),
        }

    def _of_text(self) -> dict[str, Call]:
        model, prompts, fr = self.model, self.texts["en"][:2], self.sets["fr"]
        options = {"identify": analyses.identify, "max_new_tokens": 3, **QUIET}
        return {
            "fallback": lambda: mw.fallback(model, self.sets, {"en": prompts}, **options),
            "generate": lambda: mw.generate(model, prompts, max_new_tokens=3, temperature=1.0),
            "generations": lambda: mw.generations(model, {"off": fr}, {"en": prompts}, **options),
            "steer": lambda: mw.steer(model, self.sets, self.means, prompts, toward="fr", away="ru", **options),
        }

    def _of_files(self) -> dict[str, Call]:
        model, tokenizer = self.model, analyses.named_tokenizer()
        source = {"source": self.theirs, "tokenizer": tokenizer}
        given: dict[str, Any] = {"data": str(self.folder), "detection": str(self.folder / "detection"), "shown": False}
        options = mw.TaskOptions(
            **given, arms=("active",), max_new_tokens=2, quorum=0.5, limit=1, without=("0",), languages=("fr",)
        )

        def export_tuned() -> None:
            with self.delta.applied(model):
                mw.export_tuned(model, self.delta, self.new_folder(), **source)

        return {
            "export_edited": lambda: mw.export_edited(model, self.sets["fr"], self.new_folder(), **source),
            "export_tuned": export_tuned,
            "load_lape": lambda: mw.load_lape(self.folder / "lape.pth", model, ["fr"]),
            "load_model": lambda: mw.load_model(self.theirs, tokenizer=tokenizer, device="cpu"),
            "load_neurons": lambda: mw.load_neurons(self.folder / "sets.json", model),
            "load_released": lambda: mw.load_released(self.folder / "released", model),
            "run_task_experiment": partial(self._task, options),
        }

    def _task(self, options: mw.TaskOptions) -> None:
        mw.run_task_experiment(self.model, "reasoning", self.new_folder(), options)
