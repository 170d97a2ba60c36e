"""Results do not depend on modes of the model and the process, nor on what ran before."""

import contextlib
import warnings

import pytest
import torch

import mwork_lens as mw

from ..decoders import decoder_model, transformers_model
from ..tiny import some_neurons
from ..words import words
from . import QUIET, documents, rows, with_dropout


def results(model, row, neurons):
    """Numbers of every kind."""
    texts = documents(row)
    corpus = {"a": texts[:2], "b": texts[2:]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = mw.generate(model, [ids[:9] for ids in texts], max_new_tokens=4)
    detection = mw.detect(model, corpus, **QUIET)
    return [
        *(
            values
            for by_site in (*detection.mean_scores.values(), *detection.counts.values())
            for values in by_site.values()
        ),
        *mw.collect_means(model, corpus, **QUIET).values["a"].values(),
        *mw.importance(model, texts[1]).values(),
        mw.effect_matrix(model, {"some": neurons}, corpus, **QUIET).nats["some"]["a"],
        torch.tensor(mw.language_losses(model, corpus).nats_per_token.to_numpy()),
        *(torch.tensor(completion.tokens, dtype=torch.long) for completion in written),
    ]


def require_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@rows()
def test_training_mode_with_dropout_and_what_ran_before_change_nothing(row):
    evaluated, trained = decoder_model(row), decoder_model(with_dropout(row))
    neurons = some_neurons(evaluated)
    expected = results(evaluated, row, neurons)
    torch.manual_seed(7)
    require_same(results(trained.train(), row, neurons), expected)
    assert trained.training
    mw.importance(trained, documents(row)[0], verify=False)
    mw.check_scores(trained)
    require_same(results(trained, row, neurons), expected)


def named_words():
    tokenizer = words()
    tokenizer.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
    return tokenizer


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "without gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
}


@rows(("LlamaForCausalLM",))
def test_modes_of_the_process_change_nothing(row):
    theirs = transformers_model(row, torch.float32)

    def load():
        own = row.is_own  # TransformerLens' own models are bridges already
        return (
            decoder_model(row, torch.float32) if own else mw.load_model(theirs, tokenizer=named_words(), device="cpu")
        )

    model = load()
    neurons = some_neurons(model)
    expected = results(model, row, neurons)
    for mode in MODES.values():
        with mode():
            require_same(results(model, row, neurons), expected)
            loaded = model if row.is_own else load()
        require_same(results(loaded, row, neurons), expected)


@pytest.mark.parametrize("mode", MODES)
def test_tuning_does_not_depend_on_modes(mode):
    (row,) = rows(("LlamaForCausalLM",)).args[1][:1]
    models = [decoder_model(row, torch.float32) for _ in range(2)]
    neurons, options = some_neurons(models[0]), {"steps": 2, "learning_rate": 1e-2, **QUIET}
    expected = mw.tune(models[0], neurons, documents(row), **options)
    with MODES[mode]():
        tuned = mw.tune(models[1].train(), neurons, documents(row), **options)
    assert tuned.steps == expected.steps
    assert all(torch.equal(tuned.delta.new[name], values) for name, values in expected.delta.new.items())
