"""End to end on real weights: Gemma 3 270M."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import mwork_lens as mw
from mwork_lens.experiments.report import run_demo
from mwork_lens.lens.lens_grid import LensGrid
from mwork_lens.model import all_logits, log_normalizer, source_directory, stream_states

from .demo_model import demo_model
from .oracle import sequential
from .tiny import HOOKED

pytestmark = pytest.mark.demo
KIND = "HookedTransformer" if HOOKED else "TransformerBridge"
NTREX = Path(os.environ.get("MWORK_LENS_TEST_DATA", "/nowhere")) / "ntrex"


@pytest.fixture(scope="module")
def model():
    return demo_model()


def test_logits_are_those_of_transformers(model):
    assert type(model).__name__ == KIND
    theirs = AutoModelForCausalLM.from_pretrained(source_directory("demo"), attn_implementation="eager").eval()
    ids = model.to_tokens("La capitale de la France est Paris. 北京是中国的首都。")
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-3, atol=1e-3)


def test_half_precision_is_hooked_too(model):
    half = mw.load_model("demo", device="cpu", dtype="bfloat16")
    assert type(half).__name__ == KIND
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    ids = model.to_tokens("La capitale de la France est Paris. 北京是中国的首都。")
    with torch.inference_mode():
        exact, found = model(ids)[0], half(ids)[0].float()
    assert (found - exact).square().mean().sqrt() < 0.05 * exact.std()


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


@pytest.mark.parametrize("text", ["La capitale de la Thaïlande est", "عاصمة فرنسا هي", "中国的首都是"])
def test_the_last_layer_of_the_lens_is_the_model(model, text):
    ids = model.to_tokens(text)[0]
    with torch.inference_mode():
        # over 262,144 tokens torch's own float32 log_softmax is off by up to 1e-4
        log_probabilities = model(ids[None])[0].double().log_softmax(-1)
        last = stream_states(model, ids)[-1]
        mine = all_logits(model, last) - log_normalizer(model, last)[:, None]
    torch.testing.assert_close(mine.double(), log_probabilities, rtol=0, atol=1e-4)
    grid = mw.lens_grid(model, text, languages=["en"], top_k=3, identifier="script")
    best = log_probabilities.topk(3)
    assert torch.equal(grid.ids[-1, :, 0], log_probabilities.argmax(-1))
    assert torch.equal(grid.ids[-1], best.indices)
    torch.testing.assert_close(grid.probabilities[-1].double(), best.values.exp(), rtol=0, atol=1e-5)


def test_a_grid_is_drawn_with_every_token_legible_and_kept(model, tmp_path):
    grid = mw.lens_grid(model, "<b>عاصمة</b>", languages=["en", "ar"], top_k=2, identifier="script")
    figure = mw.plots.lens_grid(grid)
    assert "gemma-3-270m" in figure.layout.title.subtitle.text
    assert not [text for row in figure.data[0].hovertext for text in row if "<b>" in text]
    grid.save(tmp_path / "grid")
    assert LensGrid.load(tmp_path / "grid").to_frame().equals(grid.to_frame())
    with pytest.raises(ValueError, match="top_k=262145"):
        mw.lens_grid(model, "a", languages=["en"], top_k=262145)
    with pytest.raises(ValueError, match="no token besides special ones"):
        mw.lens_grid(model, "", languages=["en"])


def test_the_story_of_the_demo(model, tmp_path):
    """A small run of the main job ends in sets that hit their own language, a table and a page."""
    corpus = mw.load_corpus("demo", languages=["en", "fr", "ru"], limit=26)
    result = run_demo(model, corpus, tmp_path / "out")
    frame = result.effects.to_frame()
    for language in ("fr", "ru"):
        assert frame.loc[language].idxmax() == language
        others = frame.loc[language].drop(language).mean()
        assert frame.loc[language, language] > 4 * others
    written = result.write()
    assert all(path.exists() for path in written)
    page = written[0].read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot") >= 2
    assert 'src="http' not in page
    assert mw.Detection.load(tmp_path / "out" / "detection").settings == result.run.detection.settings


@pytest.mark.skipif(not NTREX.is_dir(), reason="MWORK_LENS_TEST_DATA does not name a folder with ntrex")
def test_screened_sets_are_the_dense_sets_on_real_text(model, monkeypatch):
    """By default on a CPU all scores are exact; the screen is for other devices and forms of attention."""
    languages = ["fr", "zh"]
    corpus = mw.load_corpus(NTREX, languages=languages, sentences_per_passage=2, limit=20)
    documents = {language: corpus[language][:1] for language in languages}
    dense = mw.detect(model, documents, scores="exact", progress=False)
    by_default = mw.detect(model, documents, progress=False)
    monkeypatch.setattr("mwork_lens.measures.plnd.queries_keys.supports", lambda attention: False)
    screened = mw.detect(model, documents, progress=False)
    for language in languages:
        for site, counts in dense.counts[language].items():
            assert torch.equal(by_default.counts[language][site], counts)
            assert torch.equal(screened.counts[language][site], counts)
    assert by_default.screened["fr"]["q"].sum() == 0
    assert screened.screened["fr"]["q"].float().mean() > 0.5
