"""After success, an error in the middle and an interruption, model and process are as they were."""

import contextlib
import warnings

import pytest
import torch

import mwork_lens as mw
from mwork_lens.lens.vocabulary import TokenLanguages
from mwork_lens.report import pictures

from ..decoders import decoder_model
from ..tiny import small_model, some_neurons
from ..words import words
from . import ALL, QUIET, documents, rows, with_dropout
from .public_calls import CHANGE, Lab, taking_a_model
from .state import changes, state_of, state_of_process

STOPS = RuntimeError, KeyboardInterrupt
LABELS = TokenLanguages(torch.arange(50) % 3, ("en", "fr", "other"), {"identifier": "by hand"})


def calls(model, row):
    """By name: what a user calls."""
    texts, neurons = documents(row), some_neurons(model, 0.1)
    corpus, sets = {"en": texts[:2], "fr": texts[2:]}, {"fr": neurons}
    named = {"token_languages": LABELS, **QUIET}
    listed = neurons.to_frame()[["layer", "site", "neuron"]].head(3).itertuples(index=False, name=None)
    cards = [(layer, site, neuron) for layer, site, neuron in listed if site in ("q", "k")]
    return {
        "detect": lambda: mw.detect(model, corpus, **QUIET),
        "importance": lambda: mw.importance(model, texts[0]),
        "check_scores": lambda: mw.check_scores(model),
        "means": lambda: mw.collect_means(model, corpus, **QUIET),
        "attribution": lambda: mw.attribution(model, corpus, **QUIET),
        "firing": lambda: mw.collect_firing(model, corpus, **QUIET),
        "samples": lambda: mw.collect_samples(model, corpus),
        "effects": lambda: mw.effect_matrix(model, sets, corpus, **QUIET),
        "single": lambda: mw.single_effects(model, neurons, {"en": texts[:1]}, **QUIET),
        "losses": lambda: mw.language_losses(model, corpus),
        "generate": lambda: mw.generate(model, [ids[:9] for ids in texts], max_new_tokens=4),
        "ratio": lambda: mw.language_ratio(
            model, corpus, languages=["en"], top_k=3, new_tokens=2, directions=4, **named
        ),
        "inspect": lambda: mw.inspect(model, cards, corpus, top_k=3, **named),
        "edits": lambda: read_edited(model, neurons, texts[1]),
        "content": lambda: read_sparing(model, neurons, texts[1]),
    }


def read_edited(model, neurons, ids):
    with mw.edit_weights(model, neurons), mw.ablate(model, neurons, "scale", factor=2.0):
        return mw.language_losses(model, {"en": [ids]})


def read_sparing(model, neurons, ids):
    with mw.ablate(model, neurons, positions="content"):
        return mw.language_losses(model, {"en": [ids]})


@contextlib.contextmanager
def stopped(model, error, passes):
    """The model raises in its last block, after some passes."""
    left = [passes]

    def stop(*_):
        left[0] -= 1
        if left[0] < 0:
            raise error

    handle = model.blocks[1].register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def quiet():
    """Bridges say once that their key-value cache does not fill."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@rows()
def test_calls_leave_model_and_process_as_they_were(row, quiet):
    """In training mode, with some parameters frozen, and hooks and gradients of the user's."""
    model = decoder_model(with_dropout(row))
    model(documents(row)[0][None])  # TransformerLens hooks some of its own modules at the first pass
    model.train()
    model.blocks[0].eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    model.blocks[0].attn.register_forward_hook(lambda *_: None)
    before, of_process = state_of(model), state_of_process()
    for name, call in calls(model, row).items():
        for error, passes in ((None, 0), (RuntimeError, 0), (KeyboardInterrupt, 1)):
            with stopped(model, error, passes) if error else contextlib.nullcontext(), contextlib.suppress(*STOPS):
                call()
                assert error is None or passes, name
            assert not changes(before, state_of(model)), (name, error)
            assert not changes(of_process, state_of_process()), (name, error)


@pytest.fixture(scope="module", params=["Llama", "SmolLM3"] if ALL else ["Llama"])
def lab(request, tmp_path_factory):
    """A HookedTransformer with TransformerLens 3.9, a bridge with 4.3; with all decoders a bridge on both."""
    return Lab(request.param, tmp_path_factory.mktemp("lab"))


def test_every_public_call_that_takes_a_model_leaves_all_as_it_was(lab, quiet, monkeypatch):
    """After success, an error in the first pass and an interruption in the last."""
    monkeypatch.setattr(pictures, "_without_browser", ["no pictures here."])
    calls = lab.calls()
    assert {*calls, *CHANGE} == {*taking_a_model()}
    lab.model.train()
    lab.theirs.train()

    def everything():
        return {**state_of(lab.model), **{f"theirs {name}": each for name, each in state_of(lab.theirs).items()}}

    before, of_process = everything(), state_of_process()
    for name, call in calls.items():
        with counted(lab.model) as passes:
            call()
        for error, after in ((None, 0), (RuntimeError, 0), (KeyboardInterrupt, len(passes) - 1)):
            if error and passes:
                with pytest.raises(error), stopped(lab.model, error, after):
                    call()
            assert not changes(before, everything()), (name, error)
            assert not changes(of_process, state_of_process()), (name, error)


@contextlib.contextmanager
def counted(model):
    """One entry for each pass."""
    passes = []
    handle = model.blocks[1].register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["Llama", "SmolLM3"])
def test_a_callers_model_is_neither_cast_nor_changed_nor_changes_ours(kind):
    """It has hooks, gradients and training mode of its own, is trained later, and no ablation of ours reaches it."""
    theirs = small_model(
        kind, **({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} if kind == "SmolLM3" else {})
    )
    ids, tokenizer, seen = torch.arange(3, 9)[None], words(), []
    tokenizer.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
    with torch.no_grad():
        logits = theirs(ids).logits
    theirs.train()
    theirs(ids).logits.sum().backward()
    theirs.get_input_embeddings().register_forward_hook(lambda *_: seen.append(1))
    before, of_process = state_of(theirs), state_of_process()
    model = mw.load_model(theirs, tokenizer=tokenizer, dtype=torch.float64)
    neurons = some_neurons(model)
    with torch.no_grad():
        ours = model(ids)
    mw.effect_matrix(model, {"some": neurons}, {"en": [ids[0]]}, **QUIET)
    assert not seen
    assert not changes(before, state_of(theirs))
    assert not changes(of_process, state_of_process())
    with torch.no_grad(), mw.ablate(model, neurons), mw.edit_weights(model, neurons):
        assert torch.equal(theirs.eval()(ids).logits, logits)
    mw.tune(model, neurons, [ids[0]], steps=1, learning_rate=1e-2, **QUIET).delta.revert(model)
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, logits)
        for parameter in theirs.parameters():
            parameter.mul_(0)
        assert torch.equal(model(ids), ours)
