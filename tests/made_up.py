"""Made-up results of known content, for tests of what is done with them."""

import torch

import mwork_lens as mw
from mwork_lens.detection import Detection
from mwork_lens.lens import TokenLanguages
from mwork_lens.neurons import NeuronSet, NeuronSpace

from .tiny import tiny, tokens

SPACE = NeuronSpace(
    model="made-up",
    n_layers=3,
    d_model=8,
    n_heads=4,
    n_key_value_heads=2,
    d_head=3,
    d_mlp=5,
    processing="unprocessed",
)
DETECTED_SPACE = NeuronSpace(
    model="made-up",
    n_layers=2,
    d_model=8,
    n_heads=4,
    n_key_value_heads=2,
    d_head=16,
    d_mlp=60,
    processing="unprocessed",
)
DOCUMENTS = 10
NAMES = ("en", "fr", "ru", "shared", "other")
LABELS = TokenLanguages(torch.arange(50) % 5, NAMES, {"identifier": "by hand"})
PROMPTS = {"en": [tokens(9, 1), tokens(14, 2), tokens(5, 3)], "fr": [tokens(7, 4), tokens(11, 5)]}


def neuron_set(neurons, space=SPACE, **origin):
    return NeuronSet.from_list(space, neurons, **origin)


def members(neurons):
    return {
        (layer, site, index) for site, mask in neurons.masks.items() for layer, index in torch.argwhere(mask).tolist()
    }


def made_up_detection(seed=0, languages=("en", "fr")):
    """Log-normal mean scores over six orders of magnitude; each language has its own active eighth."""
    generator = torch.Generator().manual_seed(seed)

    def scores(width):
        return (3 * torch.randn(DETECTED_SPACE.n_layers, width, generator=generator, dtype=torch.float64)).exp()

    def no(width):
        return torch.zeros(DETECTED_SPACE.n_layers, width, dtype=torch.int32)

    def counts(width, turn):
        return torch.where(torch.arange(width) % 8 == turn, DOCUMENTS, no(width))

    return Detection(
        space=DETECTED_SPACE,
        counts={lang: {s: counts(w, i) for s, w in DETECTED_SPACE.widths.items()} for i, lang in enumerate(languages)},
        mean_scores={lang: {s: scores(w) for s, w in DETECTED_SPACE.widths.items()} for lang in languages},
        screened={lang: {s: no(w) for s, w in DETECTED_SPACE.widths.items()} for lang in languages},
        documents=dict.fromkeys(languages, DOCUMENTS),
        settings={"top": 0.2, "formulation": "exact", "measure": "stream", "corpus": {"hash": "0"}},
    )


def ratio(family="gemma3", prompts=PROMPTS, **options):
    options = {"languages": ["en", "fr"], "token_languages": LABELS, "progress": False, "directions": 16, **options}
    return mw.language_ratio(tiny(family), prompts, **options)


DETECTION = made_up_detection()
FRENCH = DETECTION.specific("fr") - DETECTION.specific("fr").restrict(layers=[1], sites="v")
FRENCH = NeuronSet(DETECTED_SPACE, FRENCH.masks, DETECTION.specific("fr").origin)
