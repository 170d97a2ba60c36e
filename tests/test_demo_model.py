"""End to end on real weights: Gemma 3 270M."""

import os
from pathlib import Path

import pytest
import torch
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM

import mwork_lens as mw
from mwork_lens.demo import run_demo
from mwork_lens.models import _demo_directory

from .oracle import sequential

pytestmark = pytest.mark.demo
NTREX = Path(os.environ.get("MWORK_LENS_TEST_DATA", "/nowhere")) / "ntrex"


@pytest.fixture(scope="module")
def model():
    return mw.load_model("demo", device="cpu")


def test_logits_are_those_of_transformers(model):
    assert isinstance(model, HookedTransformer)
    theirs = AutoModelForCausalLM.from_pretrained(_demo_directory(), attn_implementation="eager").eval()
    ids = model.to_tokens("La capitale de la France est Paris. 北京是中国的首都。")
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-3, atol=1e-3)


def test_scores_equal_ablation(model):
    ids = model.to_tokens("Bonjour le monde, il fait beau.")[0]
    scores = mw.importance(model, ids)
    rows = ids != model.tokenizer.bos_token_id
    for site in ("q", "k", "v", "mlp"):
        for layer in (0, 8, 17):
            values = scores[site][layer]
            order = values.argsort(descending=True)
            for neuron in (order[0].item(), order[len(order) // 3].item(), order[len(order) // 2].item()):
                truth = sequential(model, ids, layer, site, neuron, rows=rows)
                # one float32 ablation against a closed form: the ablation's own rounding is the limit
                assert values[neuron].item() == pytest.approx(truth, rel=2e-3, abs=2e-6)


def test_detection_does_not_unembed(model):
    called = []
    handle = model.unembed.register_forward_hook(lambda *_: called.append(1))
    try:
        mw.importance(model, "Bonjour le monde")
    finally:
        handle.remove()
    assert not called


def test_generation_under_ablation_and_back(model):
    prompt = "La capitale de la France est"
    options = {"max_new_tokens": 5, "do_sample": False, "verbose": False}
    before = model(prompt)
    space = mw.NeuronSpace.of(model)
    some = mw.NeuronSet.from_list(space, [(layer, "mlp", k) for layer in range(9) for k in range(0, 2048, 4)])
    plain = model.generate(prompt, **options)
    with mw.ablate(model, some):
        cached = model.generate(prompt, use_past_kv_cache=True, **options)
        assert cached == model.generate(prompt, use_past_kv_cache=False, **options)
    assert cached != plain
    assert torch.equal(model(prompt), before)


def test_the_story_of_the_demo(model, tmp_path):
    """A small run of the main job ends in sets that hit their own language, a table and a page."""
    corpus = mw.load_corpus("demo", languages=["en", "fr", "ru"], limit=26)
    result = run_demo(model, corpus)
    frame = result.effects.to_frame()
    for language in ("fr", "ru"):
        assert frame.loc[language].idxmax() == language
        others = frame.loc[language].drop(language).mean()
        assert frame.loc[language, language] > 4 * others
    written = result.write(tmp_path / "out")
    assert all(path.exists() for path in written)
    page = written[0].read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot") >= 2
    assert 'src="http' not in page
    assert mw.Detection.load(tmp_path / "out" / "detection").settings == result.detection.settings


@pytest.mark.skipif(not NTREX.is_dir(), reason="MWORK_LENS_TEST_DATA does not name a folder with ntrex")
def test_screened_sets_are_the_dense_sets_on_real_text(model):
    languages = ["fr", "zh"]
    corpus = mw.load_corpus(NTREX, languages=languages, sentences_per_passage=2, limit=20)
    documents = {language: corpus[language][:1] for language in languages}
    screened = mw.detect(model, documents, progress=False)
    dense = mw.detect(model, documents, scores="exact", progress=False)
    for language in languages:
        for site, counts in dense.counts[language].items():
            assert torch.equal(screened.counts[language][site], counts)
    assert screened.screened["fr"]["q"].float().mean() > 0.5
