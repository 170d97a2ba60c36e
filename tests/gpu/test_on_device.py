"""Scores on a CUDA device: those of double precision, whatever the batch, without waiting, the same bits every time."""

import copy

import pytest
import torch

import mwork_lens as mw
from mwork_lens.detection import detect, importance
from mwork_lens.detection.detecting import BatchCounts
from mwork_lens.measures import Selection
from mwork_lens.measures.plnd import backend, exact
from mwork_lens.model.forward import Encoded, batches

from ..analyses import QUIET, corpus, identify, reader
from ..test_bridge import bridge
from ..tiny import FAMILIES as HOOKED
from ..tiny import tiny, tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing is measured on a GPU")
FAMILIES = [*HOOKED, "Gemma4"]
SIZES = {"en": (41, 7, 19), "fr": (33, 5)}
DOCUMENTS = {language: [tokens(n, n).clamp(min=3) for n in sizes] for language, sizes in SIZES.items()}  # ordinary ids


def model_of(family, dtype=torch.float64):
    return copy.deepcopy(tiny(family, dtype)) if family in HOOKED else bridge(family).to(dtype)


def on_device(family, dtype):
    return model_of(family, dtype).to("cuda")


def relative(ours, truth):
    """The largest error; scores below a ten-thousandth of the largest count as that."""
    return ((ours.double() - truth).abs() / truth.clamp(min=1e-4 * truth.max())).max().item()


def parts_and_seen(model, lengths):
    batch = next(batches(model, [tokens(length, length) for length in lengths], len(lengths)))
    parts, (_, cache) = exact()(model, 1), model.run_with_cache(batch.tokens)
    return parts, {name: cache[f"blocks.1.{name}"] for part in parts for name in part.reads}, batch


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_that_of_double_precision(family):
    model = on_device(family, torch.float32)
    in_double = model_of(family)
    for ids in DOCUMENTS["en"]:
        truth = importance(in_double, ids, verify=False)
        for site, ours in importance(model, ids, verify=False).items():
            assert relative(ours, truth[site]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_and_tensor_operations_agree(family, dtype, monkeypatch):
    """On the same activations of this device; where a window hides keys that float16 lost, both say so."""
    parts, seen, batch = parts_and_seen(on_device(family, dtype), (41, 7, 19))
    for part in parts:
        ours = part.score(seen, batch)
        with monkeypatch.context() as forcing:
            forcing.setenv(backend.VARIABLE, "plain")
            if dtype == torch.float16 and any(each.isnan().any() for each in ours.values()):
                with pytest.raises(ValueError, match="Which keys these are cannot be told"):
                    part.score(seen, batch)
            else:
                theirs = part.score(seen, batch)
                assert all(relative(ours[site], theirs[site].double()) < 1e-4 for site in ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_change_nothing_and_neither_does_a_second_run(family):
    model = on_device(family, torch.float32)
    one, many, again = (
        detect(model, DOCUMENTS, batch_size=size, verify=False, progress=False) for size in (1, None, None)
    )
    for language in DOCUMENTS:
        for site, counts in many.counts[language].items():
            assert torch.equal(many.mean_scores[language][site], again.mean_scores[language][site])
            torch.testing.assert_close(
                many.mean_scores[language][site], one.mean_scores[language][site], rtol=1e-4, atol=0
            )
            assert (counts - one.counts[language][site]).abs().sum() <= 2  # ties of rounding
    assert many.settings["backend"] == "triton"
    assert many.settings["batches"]["memory"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_waits_inside_a_layer(family):
    parts, seen, batch = parts_and_seen(on_device(family, torch.bfloat16), (41, 7, 19))
    for part in parts:
        part.score(seen, batch)  # which compiles, and measures rotation
    torch.cuda.set_sync_debug_mode("error")
    try:
        for part in parts:
            part.score(seen, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_batch_waits_once():
    model, counts = on_device("llama", torch.bfloat16), BatchCounts(Selection(top=0.2))
    plan = Encoded.of(model, DOCUMENTS).plan()
    [*counts.over(model, exact(), plan)]
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as waits:
            [*counts.over(model, exact(), plan)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ours = [wait for wait in waits if "mwork_lens" in wait.filename]
    assert len(ours) <= len(plan), [(wait.filename, wait.lineno) for wait in ours]


def test_other_analyses_run_in_bfloat16():
    model = copy.deepcopy(reader()).to("cuda").to(torch.bfloat16)
    texts = corpus()
    detection = mw.detect(model, texts, top=0.3, **QUIET)
    sets = {language: detection.specific(language, quorum=0.5) for language in ("fr", "ru")}
    means = mw.collect_means(model, texts, **QUIET)
    labels = mw.label_vocabulary(model, ["en", "fr", "ru"], identifier=identify)
    mw.effect_matrix(model, sets, texts, **QUIET)
    mw.language_ratio(model, texts, labels, **QUIET)
    mw.inspect(model, sets["fr"], texts, **QUIET)
    tuned = mw.tune(model, sets["fr"], texts["fr"], steps=2, learning_rate=1e-2, **QUIET)
    tuned.delta.revert(model)
    assert means is not None
