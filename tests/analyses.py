"""Every analysis on tiny models, by public names alone: what snapshots, saved results and floats are made from."""

import copy
import random
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import mwork_lens as mw

from .tiny import tiny as tiny
from .tiny import tokens

_WORDS = {
    "en": "the dog cat sun red one two man sea day sky tea car boy old new",
    "fr": "le chien chat soleil rouge un deux homme mer jour ciel vie roi pain bon bleu",
    "ru": "дом кот пёс сын мир лес год нос сад рот час лёд мёд суп сон",
}
WORDS = {language: words.split() for language, words in _WORDS.items()}
QUIET = {"progress": False}


def identify(texts: Sequence[str]) -> list[str | None]:
    """The language of each text's first word."""
    of = {word: language for language, words in WORDS.items() for word in words}
    return [of.get(text.split()[0]) if text.split() else None for text in texts]


@cache
def tokenizer() -> Any:
    """A word a token: three special ones and those of the three languages, 50 in all."""
    words = ["<pad>", "<bos>", "<unk>", *(word for group in WORDS.values() for word in group)]
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>", "eos_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special)


def named_tokenizer() -> Any:
    """A copy that says what it is called, without which a model does not take it."""
    named = copy.deepcopy(tokenizer())
    named.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
    return named


@cache
def reader(family: str = "llama") -> Any:
    """A tiny model of five layers that reads and writes these words."""
    model = copy.deepcopy(tiny(family, n_layers=5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_tokenizer(named_tokenizer(), default_padding_side="left")
    model.cfg.d_vocab = 50
    return model


def sentences(language: str, number: int, seed: int, longest: int = 12) -> list[str]:
    """Random words of one language."""
    draw = random.Random(f"{language} {seed}")
    return [" ".join(draw.choices(WORDS[language], k=draw.randint(5, longest))) for _ in range(number)]


@cache
def corpus(seed: int = 0, documents: int = 7) -> Any:
    """Parallel text, two passages per document."""
    names = tuple(f"d{i // 2}" for i in range(2 * documents))
    texts = {language: tuple(sentences(language, 2 * documents, seed)) for language in WORDS}
    return mw.Corpus(texts, dict.fromkeys(WORDS, names), parallel=True)


def ids(seed: int = 0) -> dict[str, list[torch.Tensor]]:
    """Documents given as token ids, by language."""
    lengths = {"en": (9, 14, 6, 21), "fr": (7, 11, 30, 8), "ru": (12, 5, 17, 10)}
    return {
        language: [tokens(length, seed + 10 * i + j) for j, length in enumerate(found)]
        for i, (language, found) in enumerate(lengths.items())
    }


@cache
def detection() -> Any:
    """A detection of the reader's neurons."""
    return mw.detect(reader(), corpus(), top=0.3, **QUIET)


@cache
def sets() -> dict[str, Any]:
    """Each language's specific neurons."""
    return {language: detection().specific(language, quorum=0.5) for language in WORDS}


@cache
def means() -> Any:
    """Mean activations."""
    return mw.collect_means(reader(), corpus(), **QUIET)


@cache
def effects() -> Any:
    """All specific sets, and every control of the French one drawn twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = mw.with_controls(sets(), detection(), languages=["fr"], seeds=(0, 1))
    return mw.effect_matrix(reader(), rows, corpus(1), **QUIET)


@cache
def folded() -> Any:
    """Effects of two detections."""
    options = {"detection": {"top": 0.3}, **QUIET}
    return mw.folded_effects(reader(), corpus(), lambda d: {"fr": d.specific("fr", quorum=0.5)}, **options)


@cache
def sweep() -> Any:
    """The layer sweep of two languages."""
    return mw.layer_sweep(reader(), {name: sets()[name] for name in ("fr", "ru")}, corpus(1), **QUIET)


@cache
def grid() -> Any:
    """The stage grid of two languages."""
    stages = mw.Stages(reader(), understanding=1, generation=2)
    return mw.stage_grid(reader(), {name: sets()[name] for name in ("fr", "ru")}, corpus(1), stages, draws=2, **QUIET)


@cache
def labels() -> Any:
    """The language of every token, by its word."""
    return mw.label_vocabulary(reader(), list(WORDS), identifier=identify, identify_over=list(WORDS))


@cache
def ratio(**options: Any) -> Any:
    """Which language each layer speaks."""
    given = {"token_languages": labels(), "directions": 16, "top_k": 5, **QUIET, **options}
    return mw.language_ratio(reader(), corpus(1), **given)


@cache
def workflow() -> Any:
    """The claims about stages, with their evidence."""
    return mw.workflow(grid(), ratio())


@cache
def probes() -> Any:
    """Words to translate, and where each layer's answer lies."""
    concepts = [{language: [words[i]] for language, words in WORDS.items()} for i in range(10)]
    asked = mw.translation_probes(concepts, source="fr", target="ru", shots=2)
    with warnings.catch_warnings():  # what stands around the words is not known here
        warnings.filterwarnings("ignore", "The tokenizer does not know part of the text", UserWarning)
        return mw.latent_languages(reader(), asked, **QUIET)


@cache
def lens_grid() -> Any:
    """What one text decodes to."""
    return mw.lens_grid(reader(), "le chien rouge", languages=list(WORDS), token_languages=labels(), top_k=3)


@cache
def cards() -> Any:
    """Cards of a few neurons of every site."""
    some = [(0, "mlp", 3), (3, "mlp", 17), (4, "v", 5), (0, "q", 9), (1, "k", 2), (4, "mlp", 0)]
    return mw.inspect(reader(), some, corpus(1), token_languages=labels(), contexts=2, top_k=4, **QUIET)


@cache
def accuracy() -> Any:
    """How often a made-up identifier is right."""
    return mw.identifier_accuracy(reader(), corpus(), name=identify)


@cache
def generations() -> Any:
    """Completions untouched, with a set off and with one scaled."""
    what = {"off": sets()["fr"], "doubled": sets()["fr"].hooks("scale", factor=2.0)}
    prompts = {language: corpus(1)[language][:2] for language in ("en", "fr")}
    return mw.generations(reader(), what, prompts, identify=identify, max_new_tokens=6, **QUIET)


@cache
def steering() -> Any:
    """English prompts steered into French."""
    options = {"identify": identify, "max_new_tokens": 5, **QUIET}
    return mw.steer(reader(), sets(), means(), corpus(1)["en"][:2], toward="fr", away="en", **options)


def tune(model: Any, **options: Any) -> Any:
    """Tune a few neurons of a model, which is changed by it."""
    some = [(0, "mlp", 3), (3, "mlp", 17), (4, "v", 5), (0, "q", 9), (1, "k", 2)]
    chosen = mw.NeuronSet.from_list(mw.NeuronSpace.of(model), some, language="fr", kind="specific")
    given = {"learning_rate": 1e-2, "batch_size": 5, "epochs": 2, "held_out": corpus(1)["fr"], **QUIET, **options}
    return mw.tune(model, chosen, corpus()["fr"], **given)


@cache
def tuned() -> Any:
    """A few neurons tuned on French."""
    return tune(copy.deepcopy(reader()))


@cache
def tuning_effects() -> Any:
    """What that does to every language."""
    return mw.tuning_effects(reader(), {"fr": tuned().delta}, corpus(1), **QUIET)
