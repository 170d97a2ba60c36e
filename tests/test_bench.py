import mmap
import os
from functools import partial

import numpy as np
import pytest
import torch

import mwork_lens as mw
from mwork_lens.bench import METHODS, PEAK_RESET, benchmark, measured
from mwork_lens.measures.plnd.published import parallel

from .tiny import tiny, tokens


def test_a_benchmark_compares_every_method_at_every_length():
    corpus = {language: [tokens(30, seed)] for seed, language in enumerate(("en", "fr"))}
    costs = benchmark(tiny("gemma3"), corpus, lengths=[8, 16], parallel_up_to=8, repeats=1, progress=False)
    frame = costs.to_frame().set_index(["tokens", "method"])
    assert set(frame.loc[8].index) == set(METHODS)
    assert set(METHODS) - set(frame.loc[16].index) == {"paper's parallel form"}
    assert frame["as_dense"].notna().sum() == 5  # both of ours, and the paper's at the shorter length
    assert (frame["as_dense"].loc[8].loc[["ours (measure='structure')", "ours (change in the stream)"]] == 1).all()
    assert frame["as_dense"].loc[8].loc["paper's parallel form"] < 1
    drawn = mw.plots.benchmark(costs)
    assert {trace.name for trace in drawn.data} == set(METHODS)
    assert all(y >= 1 or y != y for trace in drawn.data if trace.xaxis == "x2" for y in trace.y)  # memory, or NaN
    forward = frame.xs("bare forward", level="method")["seconds"]
    torch.testing.assert_close(
        torch.tensor(frame["ratio"].to_numpy()),
        torch.tensor((frame["seconds"] / forward.reindex(frame.index, level="tokens")).to_numpy()),
    )


def test_bad_lengths_and_models_are_refused():
    with pytest.raises(ValueError, match="length 65 is above"):
        benchmark(tiny("llama"), {"en": [tokens(30)]}, lengths=[65], progress=False)
    with pytest.raises(ValueError, match="has 30 tokens, too few for a document of 40"):
        benchmark(tiny("llama"), {"en": [tokens(30)]}, lengths=[40], progress=False)
    with pytest.raises(ValueError, match="no soft cap"):
        parallel(tiny("gemma2"), 0)


@pytest.mark.skipif(not os.access(PEAK_RESET, os.W_OK), reason="only Linux counts the peak of a process's memory")
def test_the_peak_of_memory_is_that_of_each_run():
    def fill(megabytes, number, clock):
        clock.tick()
        # straight from the system: an allocator may have such memory left over
        np.frombuffer(mmap.mmap(-1, megabytes * 2**20), np.uint8)[::1024] = 1
        clock.tick()

    costs = measured({str(size): partial(fill, size) for size in (256, 64)}, torch.device("cpu"))
    for size, cost in costs.items():
        assert cost.megabytes - cost.megabytes_before == pytest.approx(int(size), abs=16)
