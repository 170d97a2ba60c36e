from copy import deepcopy
from dataclasses import fields
from functools import partial
from multiprocessing import get_context

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mwork_lens as mw
from mwork_lens.detection.activations import ActivationSums, layer_sums
from mwork_lens.detection.detecting import BatchCounts, DetectionCounts
from mwork_lens.detection.merging import mean_scores
from mwork_lens.effects.losses import PassageLosses
from mwork_lens.lens.decoding import Lens
from mwork_lens.lens.directions import Draws, Reading
from mwork_lens.measures import Selection, exact
from mwork_lens.model import Encoded, stream
from mwork_lens.neurons import NeuronSpace

from ..made_up import LABELS
from ..tiny import tiny, tokens

MODEL = tiny("gemma3", torch.float32)
CORPUS = {
    "en": [tokens(length, seed) for seed, length in enumerate((5, 3, 9, 7, 2, 4))],
    "fr": [tokens(length, seed + 50) for seed, length in enumerate((6, 8, 3, 3, 5))],
}
SPACE, PLAN = NeuronSpace.of(MODEL), Encoded.of(MODEL, CORPUS).plan(2)


def detect_by_layer(batches, counts):
    for batch, layers in BatchCounts(Selection(top=0.3), screen=True).over(MODEL, exact(), batches):
        counts[batch.language].update(batch, layers)


def detect_over_model(batches, counts):
    for batch, layers in BatchCounts(Selection(top=0.3), "model").over(MODEL, exact(), batches):
        counts[batch.language].update(batch, layers)


def activations(batches, sums):
    for batch, of_batch in layer_sums(MODEL, SPACE, batches):
        sums[batch.language].update(batch, of_batch)


def losses(batches, reducers):
    for batch, states in stream(MODEL, batches):
        reducers["all"].update(MODEL, batch, states)


def decoded(batches, reducers):
    for batch, states in stream(MODEL, batches):
        of_prompts = LENS(states[:, 0]).double()
        reducers["all"].update(batch, [(of_prompts, DRAWS.sums(batch, 0, states[batch.content]))])


LENS = Lens(MODEL, LABELS, (2,), 3, "count", normalize=True)
MASKS = {language: [torch.ones(len(ids), dtype=torch.bool) for ids in texts] for language, texts in CORPUS.items()}
DRAWS = Draws(PLAN, MASKS, 1, 3, 0)
RUNS = {
    detect_by_layer: DetectionCounts,
    detect_over_model: DetectionCounts,
    activations: ActivationSums,
    losses: PassageLosses,
    decoded: Reading,
}
every_run = pytest.mark.parametrize("run", RUNS)


def new(run):
    if run is losses:
        return {"all": PassageLosses.empty(PLAN)}
    if run is decoded:
        return {"all": Reading.empty(PLAN, DRAWS, len(LABELS.names), MODEL.cfg.d_model)}
    return {language: RUNS[run].empty(SPACE, PLAN, language) for language in CORPUS}


def same(a, b) -> bool:
    """Whether two values hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[name]) for name, value in a.items())
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    return a == b


@pytest.fixture(scope="module")
def in_order():
    """By run: what the plan's batches add up to, one after another."""
    reducers = {run: new(run) for run in RUNS}
    for run, by_language in reducers.items():
        run(PLAN, by_language)
    return reducers


@every_run
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_any_deal_of_the_batches_and_any_order_of_merging_gives_the_same_bits(in_order, run, data):
    numbers = data.draw(st.permutations(range(len(PLAN))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(PLAN)), max_size=3)))
    ends = [*cuts, len(PLAN)]
    parts = []
    for start, end in zip([0, *cuts], ends, strict=True):
        parts.append(new(run))
        run(map(PLAN.batch, numbers[start:end]), parts[-1])
    while len(parts) > 1:  # a random tree
        other = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        into = data.draw(st.integers(0, len(parts) - 1))
        for language, reducer in parts[into].items():
            reducer.merge(other[language])
    assert same(parts[0], in_order[run])
    for language, reducer in parts[0].items():
        assert reducer.batches.tolist() == [language in (name, "all") for name, _ in PLAN.groups]


def go_on(folder, threads):
    """Load half-finished reducers, take the batches that are not in them, and save the whole."""
    torch.set_num_threads(threads)
    for run, kind in RUNS.items():
        reducers = {name: kind.load(folder / run.__name__ / name) for name in new(run)}
        taken = sum(reducer.batches for reducer in reducers.values())
        run(map(PLAN.batch, (taken == 0).nonzero().flatten().tolist()), reducers)
        for language, reducer in reducers.items():
            reducer.save(folder / run.__name__ / f"{language} whole")


def test_a_reducer_saved_half_way_goes_on_in_another_process_to_the_same_bits(in_order, tmp_path):
    for run in RUNS:
        reducers = new(run)
        run(map(PLAN.batch, [3, 0, 5]), reducers)
        for language, reducer in reducers.items():
            reducer.save(tmp_path / run.__name__ / language)
    process = get_context("spawn").Process(target=go_on, args=(tmp_path, torch.get_num_threads()))
    process.start()
    process.join()
    assert process.exitcode == 0
    for run, kind in RUNS.items():
        for language, whole in in_order[run].items():
            assert same(kind.load(tmp_path / run.__name__ / f"{language} whole"), whole)


@every_run
def test_a_batch_that_is_in_is_refused(in_order, run):
    with pytest.raises(ValueError, match="would count twice"):
        run([PLAN.batch(1)], in_order[run])


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_a_detection_is_what_its_reducers_hold(in_order, scope):
    detection = mw.detect(MODEL, CORPUS, top=0.3, scope=scope, batch_size=2, progress=False)
    for language, counts in in_order[detect_by_layer if scope == "layer" else detect_over_model].items():
        assert same(dict(detection.counts[language]), counts.counts)
        assert same(dict(detection.screened[language]), counts.screened)
        assert same(dict(detection.sums[language]), counts.sums)
        means = mean_scores(counts.sums, len(CORPUS[language]), detection.layers, torch.float32)
        assert same(dict(detection.mean_scores[language]), means)


def test_means_are_exact(in_order):
    """The mean score is that of math.fsum over each document's own score, whatever the batch."""
    detection = mw.detect(MODEL, CORPUS, scores="exact", batch_size=1, progress=False)
    for language, documents in CORPUS.items():
        scores = [mw.importance(MODEL, document) for document in documents]
        for site, means in detection.mean_scores[language].items():
            exactly = torch.stack([score[site].double() for score in scores]).mean(0).float()
            torch.testing.assert_close(means, exactly, rtol=1.2e-7, atol=0)


BROKEN = [("embed.W_E", torch.nan), ("mlp.W_in", torch.inf), ("mlp.W_out", 6e4)]


@pytest.mark.parametrize(("weight", "value"), BROKEN)
@pytest.mark.parametrize("run", [mw.detect, partial(mw.detect, scope="model"), mw.collect_means])
def test_broken_weights_are_one_error_that_names_the_model_and_its_stream(run, weight, value):
    model = deepcopy(tiny("llama", torch.float16))
    (model if "embed" in weight else model.blocks[1]).get_parameter(weight).data.fill_(value)
    with pytest.raises(ValueError, match=r"^The residual stream of tiny-llama is not finite: .*float16 overflows"):
        run(model, CORPUS, progress=False)
