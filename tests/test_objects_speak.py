"""Results show themselves: a short repr, and HTML with a table, all text escaped, that fetches nothing."""

import copy

import pytest

import mwork_lens as mw

from .made_up import ratio
from .tiny import tiny, tokens

TEXTS = {"en": [tokens(9, 1), tokens(12, 2)], "fr": [tokens(11, 3), tokens(8, 4)]}
HOSTILE = "<script>x</script>"


@pytest.fixture(scope="module")
def results():
    model = copy.deepcopy(tiny("llama"))
    model.cfg.model_name = HOSTILE
    detection = mw.detect(model, TEXTS, progress=False)
    some = mw.NeuronSet.from_list(detection.space, [(0, "mlp", 3), (1, "q", 5)], language="fr", kind=HOSTILE)
    effects = mw.effect_matrix(model, {HOSTILE: some}, TEXTS, progress=False)
    tuned = mw.tune(model, some, TEXTS["fr"], steps=1, learning_rate=1e-2, progress=False)
    return {"detection": detection, "set": some, "tuned": tuned, "effects": effects, "ratio": ratio()}


@pytest.mark.parametrize("name", ["detection", "set", "tuned", "effects", "ratio"])
def test_results_show_themselves(results, name):
    found = results[name]
    assert max(map(len, repr(found).splitlines())) < 320
    html = found._repr_html_()
    assert "<table" in html
    assert "<script" not in html
    assert "http" not in html
    assert len(found.to_frame())


def test_a_title_of_the_callers_stands_above_the_line_of_model_and_settings(results):
    own = mw.plots.language_ratio(results["ratio"], title="Mine").layout.title
    usual = mw.plots.language_ratio(results["ratio"]).layout.title
    assert (own.text, own.subtitle.text) == ("Mine", usual.subtitle.text)
