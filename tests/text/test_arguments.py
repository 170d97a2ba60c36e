import inspect
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Annotated

import numpy as np
import pandas as pd
import pytest
import torch

import mwork_lens as mw
from mwork_lens import public
from mwork_lens.settings import Checked, EffectsConfig, TaskOptions
from mwork_lens.text import check_arguments

from ..made_up import made_up_detection
from ..tiny import tiny

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("top", value) for value in ("0.2", None, True, NAN, INF, [0.2], b"1", 1j)),
        *(("top", value) for value in (torch.tensor(0.2), Fraction(1, 5), Decimal("0.2"), np.array([0.2]))),
        *(("max_tokens", value) for value in (None, True, "9", 9.0, NAN, torch.tensor(9), 10**30)),
        *(("layers", value) for value in (1, "12", ["1"], [1.0], [True], b"1", np.array(1), (i for i in [1]))),
        *(("verify", value) for value in (None, 1, "no")),
        *(("scope", value) for value in (None, 1, "Layer", "", ["layer"])),
        ("formulation", None),
    ],
)
def test_what_an_annotation_does_not_have_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}=.*: it must be "):
        check_arguments(mw.detect, {name: value})


def test_what_annotations_have_passes():
    numbers = {"top": np.float32(0.2), "max_tokens": np.int64(9), "threshold": 1, "batch_size": None}
    others = {"layers": np.array([0, 1]), "scope": "model", "verify": np.bool_(True), "formulation": print}
    check_arguments(mw.detect, {**numbers, **others, "model": tiny("llama"), "corpus": "looked at elsewhere"})
    check_arguments(mw.with_controls, {"sets": {}, "languages": pd.Series(["en"]), "seeds": (i for i in [1])})
    check_arguments(mw.language_ratio, {"languages": {"en": 1}, "positions": slice(1)})


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (mw.effect_matrix, {"sets": [1]}, "a dict from strings to NeuronSet or lists of NeuronSet"),
        (mw.generations, {"interventions": {"a": [1]}}, "a dict from strings"),
        (mw.tune, {"neurons": "some"}, "a NeuronSet or 'all'"),
        (mw.tune, {"callbacks": None}, "a list of functions"),
        (mw.random_control, {"neurons": made_up_detection()}, "neurons=.* must be a NeuronSet"),
        (mw.generate, {"stop": "x"}, "stop='x': it must be a list of strings"),
        (mw.language_ratio, {"positions": 1.0}, "a slice or a list of whole numbers or None"),
        (mw.tune, {"seed": -1}, "seed=-1: it must be at least 0"),
        (mw.with_controls, {"seeds": [0, -1]}, "at least 0"),
    ],
)
def test_the_message_says_what_is_expected(function, arguments, words):
    with pytest.raises(ValueError, match=words):
        check_arguments(function, arguments)


def test_long_values_are_not_written_out():
    with pytest.raises(ValueError, match=r"^top=<list>: it must be a number\.$"):
        check_arguments(mw.detect, {"top": [0.2] * 1000})


def test_every_public_function_checks_its_arguments():
    functions = {name: inspect.unwrap(value) for name, value in vars(public).items() if inspect.isfunction(value)}
    unchecked = [name for name, each in functions.items() if "check_arguments" not in each.__code__.co_names]
    assert len(functions) > 40
    assert not unchecked


@pytest.mark.parametrize(
    "call",
    [
        lambda corpus: corpus.split("0.2"),
        lambda corpus: corpus.split(seed=None),
        lambda corpus: corpus.folds(2.0),
        lambda corpus: corpus.limit("3"),
        lambda corpus: corpus.divide({"a": 1.5}),
        lambda corpus: corpus.select("en"),
        lambda _: made_up_detection().specific("en", quorum=True),
        lambda _: made_up_detection().active(["en"]),
        lambda _: TaskOptions(seed=None),  # pyright: ignore[reportArgumentType] the fault that is tested
        lambda _: EffectsConfig(top="0.2"),  # pyright: ignore[reportArgumentType] the fault that is tested
    ],
)
def test_methods_and_settings_check_theirs(unchecked, call):
    with pytest.raises(ValueError, match="it must be a"):
        call(mw.text.as_corpus({"en": ["a", "b"]}))


@pytest.mark.parametrize("rows", [{"en": [999]}, {"en": [-1]}, {"xx": [0]}])
def test_passages_that_are_not_there(rows):
    with pytest.raises(ValueError, match="There is no passage"):
        mw.load_corpus("demo", languages=["en"]).select(rows)


def test_settings_are_checked_by_field(unchecked):
    @dataclass
    class Settings(Checked):
        share: float
        names: Annotated[list[str], "note"]
        or_none: int | None = None

    Settings(0.5, ["a"])
    with pytest.raises(ValueError, match="names='a': it must be a list of strings"):
        Settings(0.5, "a")  # pyright: ignore[reportArgumentType] the fault that is tested
