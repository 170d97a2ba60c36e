"""What a model's own generation settings ask for is done or said."""

import warnings

import pytest
import torch

import mwork_lens as mw

from ..tiny import small_model, words
from .test_end_tokens import in_memory, on_a_bridge

LOADS = pytest.mark.parametrize("load", [in_memory, on_a_bridge])


def theirs(**settings):
    model = small_model(vocab_size=11)
    for name, value in {"eos_token_id": None, **settings}.items():
        setattr(model.generation_config, name, value)
    return model


def written(model, new=5):
    return mw.generate(model, [torch.tensor([3, 9, 4, 7])], max_new_tokens=new)[0]


@LOADS
def test_stop_strings_of_the_model_end_a_text(load):
    free = written(load(theirs(), None))
    last = free.text.split()[-1]
    (first,) = [place for place, word in enumerate(free.text.split()) if word == last][:1]
    stopped = written(load(theirs(stop_strings=last), None))
    assert (stopped.stopped, len(stopped.tokens)) == ("stop", first + 1)
    assert last not in stopped.text


@LOADS
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"repetition_penalty": 1.05}, "repetition_penalty=1.05"),
        ({"suppress_tokens": [5], "forced_bos_token_id": 0}, "forced_bos_token_id=0, suppress_tokens=\\[5\\]"),
        ({"num_beams": 4, "min_new_tokens": 1}, "num_beams=4, min_new_tokens=1"),
    ],
)
def test_settings_that_are_not_applied_are_said_once(load, settings, named):
    model, plain = load(theirs(**settings), None), load(theirs(), None)
    with pytest.warns(UserWarning, match=f"generation settings of .* ask for {named}, which is not applied"):
        assert written(model) == written(plain)
    written(model)


def test_settings_that_change_no_likeliest_token_are_not_said():
    settings = {"repetition_penalty": 1.0, "num_beams": 1, "suppress_tokens": [], "min_length": 0}
    settings |= {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 20, "use_cache": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        written(mw.load_model(theirs(**settings), tokenizer=words(), device="cpu"))


def test_end_tokens_may_be_a_tensor():
    first = written(in_memory(theirs(), None), 1).tokens[0]
    assert written(in_memory(theirs(eos_token_id=torch.tensor([0, first])), None)).stopped == "end"
