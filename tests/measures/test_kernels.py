"""The Triton kernels in Triton's interpreter: the same scores as tensor operations and loops, in few launches."""

import os
from dataclasses import replace

import pytest
import torch

from mwork_lens.detection import detect, importance
from mwork_lens.detection.detecting import BatchCounts
from mwork_lens.measures import Selection
from mwork_lens.measures.plnd import backend, exact
from mwork_lens.measures.plnd.attention import READS, Geometry
from mwork_lens.measures.plnd.qk_dense import exact_squares
from mwork_lens.model.budget import Budget, room
from mwork_lens.model.forward import Encoded, batches

from ..test_bridge import bridge
from ..tiny import FAMILIES, tiny, tokens
from .launches import counted

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton compiles on this machine")
LAUNCHES = 60
"""Operations for a layer and batch, for all four sites."""


@pytest.fixture
def triton(monkeypatch):
    monkeypatch.setenv(backend.VARIABLE, "triton")


def relative(ours, truth):
    """The largest error; scores below a ten-thousandth of the largest count as that."""
    return ((ours.double() - truth).abs() / truth.clamp(min=1e-4 * truth.max())).max().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_those_in_double_precision(family, triton):
    """Which equal ablation."""
    ours, truth = (
        importance(tiny(family, dtype), tokens(19), verify=False) for dtype in (torch.float32, torch.float64)
    )
    for site, scores in ours.items():
        assert relative(scores, truth[site]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "llama", "sinks"])
def test_half_precision_is_read_as_tensor_operations_read_it(family, dtype, monkeypatch):
    scores = []
    for name in ("triton", "plain"):
        monkeypatch.setenv(backend.VARIABLE, name)
        scores.append(importance(tiny(family, dtype), tokens(19), verify=False))
    ours, theirs = scores
    for site in ours:
        assert relative(ours[site], theirs[site].double()) < 1e-4


def scored(model, layer, batch, change=lambda seen: seen):
    """What hook points of a layer's attention show for a batch, and the kernels' squares."""
    from mwork_lens.measures.plnd.batched import pattern_squares

    _, cache = model.run_with_cache(batch.tokens)
    seen = change({name: cache[f"blocks.{layer}.{name}"] for name in READS})
    geometry = Geometry.of(model, layer)
    return geometry, seen, pattern_squares(geometry, seen, batch)


def truth_of(geometry, seen, batch, site):
    in_double = {name: value.double() for name, value in seen.items()}
    return torch.stack([exact_squares(each, site) for each in geometry.documents(in_double, batch)])


def batch_of(*lengths):
    ids = [tokens(length, seed) for seed, length in enumerate(lengths)]
    return next(batches(tiny("llama"), ids, len(ids)))


@pytest.mark.parametrize("family", ["gptj", "olmo2", "qwen3"])
def test_no_shape_needs_to_fill_tiles(family):
    """Three blocks of rows, two of neurons, padding, and positions that do not count."""
    model, batch = tiny(family, torch.float32, d_head=72), batch_of(37, 5)
    batch = replace(batch, content=batch.content & (torch.arange(37) % 7 > 0))
    geometry, seen, squares = scored(model, 1, batch)
    for site, ours in squares.items():
        assert relative(ours.sqrt(), truth_of(geometry, seen, batch, site).sqrt()) < 1e-5


@pytest.mark.parametrize("common", [3, 30, 100])
def test_what_keys_have_in_common_costs_no_digits(common):
    """In standard deviations, as a key bias gives it; the pattern stays that of the model."""
    model, batch = tiny("gpt2", torch.float32), batch_of(30, 11)

    def lifted(seen):
        keys = seen[READS[1]]
        return {**seen, READS[1]: keys + common * keys.std()}

    geometry, seen, squares = scored(model, 0, batch, lifted)
    for site, ours in squares.items():
        assert relative(ours.sqrt(), truth_of(geometry, seen, batch, site).sqrt()) < 1e-5


@pytest.mark.parametrize("loud", [8, 60])
@pytest.mark.parametrize("family", ["llama", "gemma2", "sinks"])
def test_rows_that_turn_around(family, loud):
    model, batch = tiny(family, torch.float32), batch_of(30, 11)

    def louder(seen):
        return {**seen, READS[0]: seen[READS[0]] * loud}

    geometry, seen, squares = scored(model, 0, batch, louder)
    for site, ours in squares.items():
        assert relative(ours.sqrt(), truth_of(geometry, seen, batch, site).sqrt()) < 1e-4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in which the interpreter computes
@pytest.mark.parametrize("family", ["llama", "gemma2", "sinks"])
def test_what_is_not_finite_gives_no_number(family):
    model, batch = tiny(family, torch.float32), batch_of(20, 3)

    def broken(seen):
        queries = seen[READS[0]].clone()
        queries[1, 7, 1, 2] = torch.inf
        return {**seen, READS[0]: queries}

    _, _, squares = scored(model, 0, batch, broken)
    width = model.cfg.d_head
    assert squares["q"][1, width + 2].isnan()
    assert squares["q"][0].isfinite().all()


def test_outputs_are_written_whole():
    model, batch = tiny("qwen3", torch.float32), batch_of(20, 3)
    first = scored(model, 0, batch)[-1]
    torch.use_deterministic_algorithms(True)  # which fills new memory with NaN
    try:
        again = scored(model, 0, batch)[-1]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[site], again[site]) for site in first)


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_numbers_may_lie_in_any_order(family, triton):
    """Of memory, as a view has them."""
    model, batch = tiny(family, torch.float32), batch_of(20, 3)
    parts, (_, cache) = exact()(model, 1), model.run_with_cache(batch.tokens)
    for part in parts:
        seen = {name: cache[f"blocks.1.{name}"] for name in part.reads}
        turned = {name: each.transpose(1, -1).contiguous().transpose(1, -1) for name, each in seen.items()}
        ours, theirs = part.score(seen, batch), part.score(turned, batch)
        assert all(relative(theirs[site], ours[site].double()) < 1e-5 for site in ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, "Gemma4"])
def test_a_layer_takes_few_operations_and_waits_for_none(family, dtype, triton, monkeypatch):
    """Whatever the number of documents and their lengths; what is done once per model does not count."""
    model = tiny(family, dtype) if family in FAMILIES else bridge(family).to(dtype)
    parts, counts = exact()(model, 1), []
    for lengths in ((9,), (21, 12, 17)):
        batch = batch_of(*lengths)
        _, cache = model.run_with_cache(batch.tokens)
        seen = {name: cache[f"blocks.1.{name}"] for part in parts for name in part.reads}
        for _ in range(2):  # the first time measures rotation
            with counted(monkeypatch) as (names, waits):
                for part in parts:
                    part.score(seen, batch)
        counts.append(names)
        assert not waits
    assert counts[0] == counts[1]
    assert 10 < counts[0].total() <= LAUNCHES, counts[0]


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_a_batch_is_read_in_one_transfer(scope, triton, monkeypatch):
    model, counts, waited = tiny("llama", torch.float32), BatchCounts(Selection(top=0.2), scope), []
    count = counts._counts

    def counting(finite):
        with counted(monkeypatch) as (_, waits):
            result = count(finite)
        waited.append(waits)
        return result

    monkeypatch.setattr(counts, "_counts", counting)
    plan = Encoded.of(model, {"en": [tokens(length) for length in (9, 7, 12)]}).plan(batch_size=2)
    assert len([*counts.over(model, exact(), plan)]) == 2
    assert waited == [{"cpu": 1}] * 2


def test_what_waits_is_counted(monkeypatch):
    """Of a program that does everything wrong."""
    values = torch.arange(3.0)
    with counted(monkeypatch) as (_, waits):
        values[values > 1].sum().item()
        copied = values.cpu()
        bool((copied.isnan()).any())
    assert waits["aten::index"] == waits["item"] == waits["cpu"] == 1
    assert not waits["__bool__"]


def test_a_gpu_fills_batches_by_its_memory():
    """Documents of any length; one always goes through."""
    budget = Budget(tokens=16384, memory=2**30, by_token=2**18, by_pair=2**10)
    assert [budget.holds(documents, 64) for documents in (51, 52)] == [True, False]
    assert [budget.holds(documents, 256) for documents in (8, 9)] == [True, False]
    short = replace(budget, by_document=2**27)
    assert [short.holds(documents, 1) for documents in (7, 8)] == [True, False]
    assert Budget(1024).holds(8, 128)
    assert not Budget(1024).holds(9, 128)


def test_batches_have_the_room_that_weights_leave():
    sizes = {"n_layers": 2, "d_model": 8, "heads": (2, 1), "d_head": 4, "d_mlp": 8}
    for weights, memory in ((0, 20e9), (40e9, 20e9), (70e9, 10e9)):
        assert Budget.of_gpu(room(int(80e9), int(weights)), **sizes).memory == memory


@pytest.mark.parametrize("name", ["triton", "plain"])
def test_a_detection_says_what_computed_its_scores(name, monkeypatch):
    monkeypatch.setenv(backend.VARIABLE, name)
    documents = {"en": [tokens(5)], "fr": [tokens(6, 1)]}
    detection = detect(tiny("llama", torch.float32), documents, verify=False, progress=False)
    assert detection.settings["backend"] == name


def test_compiled_loops_beside_a_gpu_are_refused(monkeypatch):
    monkeypatch.setenv(backend.VARIABLE, "compiled")
    with pytest.raises(ValueError, match="compiled loops need a model on a CPU, and this one is on meta"):
        backend.backend_of(torch.empty(1, device="meta"))


def test_programs_for_a_gpu_are_refused_elsewhere(triton):
    with pytest.raises(ValueError, match="its programs need a model on a GPU, and this one is on meta"):
        backend.backend_of(torch.empty(1, device="meta"))


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setenv(backend.VARIABLE, "cuda")
    with pytest.raises(ValueError, match=r"MWORK_LENS_BACKEND='cuda': it must be one of compiled, triton, plain"):
        importance(tiny("llama", torch.float32), tokens(5), verify=False)
