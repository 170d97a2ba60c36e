"""Identifying languages in a forked process: lingua's threads do not outlive a fork."""

import multiprocessing

import pytest

from mwork_lens.text import identifier

WORDS = ["the dog", "le chien", "1990"] * 5


def forked(_):
    return identifier("lingua", ["en", "fr"])(WORDS), identify(WORDS)


def identify(texts):
    return identifier("lingua", ["en", "fr"])(texts)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_identifies_the_same():
    ours = identify(WORDS)
    assert ours[:3] == ["en", "fr", None]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map_async(forked, [0]).get(600) == [(ours, ours)]
