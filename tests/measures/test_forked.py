"""Detection in a forked process, whose parent has detected: numba's and PyTorch's threads do not outlive a fork."""

import multiprocessing

import pytest
import torch

import mwork_lens as mw
from mwork_lens.measures.plnd.compiled import is_cpu_float32

from ..tiny import tiny, tokens

CORPUS = {"en": [tokens(9), tokens(7, 1)], "fr": [tokens(8, 2), tokens(11, 3)]}


def active(model):
    """On how many documents each neuron is among the top."""
    detection = mw.detect(model, CORPUS, top=0.3, progress=False)
    return [counts.tolist() for by_site in detection.counts.values() for counts in by_site.values()]


def forked(_):
    torch.randn(400, 400) @ torch.randn(400, 400)
    return is_cpu_float32(torch.zeros(1)), active(tiny("llama", torch.float32))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_detects_the_same():
    ours = active(tiny("llama", torch.float32))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        [(compiled, theirs)] = pool.map_async(forked, [0]).get(600)
    assert is_cpu_float32(torch.zeros(1))
    assert not compiled
    assert theirs == ours
