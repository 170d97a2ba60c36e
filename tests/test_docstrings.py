"""The examples in the docstrings of the main calls run, one after another, on the demo model."""

import doctest

import pytest
import torch

import mwork_lens as mw

CALLS = {
    "load_model": mw.load_model,
    "load_corpus": mw.load_corpus,
    "detect": mw.detect,
    "Detection.specific": mw.Detection.specific,
    "NeuronSet.hooks": mw.NeuronSet.hooks,
    "ablate": mw.ablate,
    "collect_firing": mw.collect_firing,
    "attribution": mw.attribution,
    "Firing.lape": mw.Firing.lape,
    "Firing.gate_values": mw.Firing.gate_values,
    "effect_matrix": mw.effect_matrix,
    "sample_neurons": mw.sample_neurons,
    "single_effects": mw.single_effects,
    "language_ratio": mw.language_ratio,
    "inspect": mw.inspect,
    "tune": mw.tune,
}
"""In the order in which one example needs the names of another."""


@pytest.fixture(scope="module")
def namespace():
    return {"mw": mw, "torch": torch}


@pytest.mark.demo
@pytest.mark.filterwarnings("ignore")  # so little text is warned of
@pytest.mark.parametrize("name", CALLS)
def test_the_example_of_a_docstring_runs(name, namespace, monkeypatch):
    found = doctest.DocTestFinder(recurse=False).find(CALLS[name], name, globs=namespace)
    [example] = [test for test in found if test.examples]
    example.globs = namespace  # a name that one example binds is there in the next
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    runner.run(example, out=report.append, clear_globs=False)
    assert not runner.failures, "".join(report)
