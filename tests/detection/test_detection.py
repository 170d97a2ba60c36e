import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mwork_lens as mw
from mwork_lens.measures.measure import LayerMeasure, root_mean

from ..made_up import made_up_detection
from ..oracle import sequential
from ..tiny import FAMILIES, tiny, tokens

DOCUMENTS = {
    "en": [tokens(length, seed) for seed, length in enumerate((9, 34, 6, 21))],
    "fr": [tokens(length, seed + 50) for seed, length in enumerate((12, 7, 45))],
}
QUIET = {"progress": False}


@pytest.mark.parametrize("options", [{"top": 0.2}, {"threshold": 0.05}])
@pytest.mark.parametrize("family", FAMILIES)
def test_screening_selects_what_the_exact_scores_select(family, options):
    model, documents = tiny(family), {"en": [tokens(9, 1), tokens(45, 2)]}
    screened = mw.detect(model, documents, **options, **QUIET)
    dense = mw.detect(model, documents, **options, scores="exact", **QUIET)
    for site, counts in dense.counts["en"].items():
        assert torch.equal(screened.counts["en"][site], counts)
        exact = screened.screened["en"][site] == 0
        means = screened.mean_scores["en"][site]
        torch.testing.assert_close(means[exact], dense.mean_scores["en"][site][exact])
        assert dense.screened["en"][site].sum() == 0
    assert family == "olmo2" or screened.screened["en"]["q"].sum() > 0


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "gpt2", "bloom"])
def test_single_precision_selects_what_the_exact_scores_select(family, compiled, monkeypatch):
    """By compiled loops, and by the screen; also of one token, whose pattern cannot change."""
    if not compiled:
        monkeypatch.setattr("mwork_lens.measures.plnd.queries_keys.supports", lambda attention: False)
    model = tiny(family, torch.float32)
    documents = {"en": [tokens(45, 2), tokens(30, 3)], "fr": [tokens(1), tokens(2)]}
    screened = mw.detect(model, documents, **QUIET)
    dense = mw.detect(model, documents, scores="exact", **QUIET)
    for site, counts in dense.counts["en"].items():
        assert torch.equal(screened.counts["en"][site], counts)
        for language in documents:
            assert screened.mean_scores[language][site].isfinite().all()
            assert dense.mean_scores[language][site].isfinite().all()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(4)), batch_size=st.integers(1, 4))
def test_order_and_batching_change_nothing(order, batch_size):
    model = tiny("gemma3")
    expected = mw.detect(model, {"en": DOCUMENTS["en"]}, batch_size=1, **QUIET)
    shuffled = {"en": [DOCUMENTS["en"][i] for i in order]}
    screened = mw.detect(model, shuffled, batch_size=batch_size, **QUIET)
    for site, counts in expected.counts["en"].items():
        assert torch.equal(screened.counts["en"][site], counts)
        torch.testing.assert_close(screened.mean_scores["en"][site], expected.mean_scores["en"][site])


def test_counts_are_the_top_of_each_document():
    model, document = tiny("llama"), DOCUMENTS["en"][0]
    scores = mw.importance(model, document)
    detection = mw.detect(model, {"en": [document]}, top=0.25, **QUIET)
    for site, values in scores.items():
        number = int(0.25 * values.shape[1])
        for layer in range(len(values)):
            best = set(values[layer].topk(number).indices.tolist())
            assert set(detection.counts["en"][site][layer].nonzero().flatten().tolist()) == best
        torch.testing.assert_close(detection.mean_scores["en"]["mlp"], scores["mlp"])


def test_special_tokens_are_not_scored_but_still_attended():
    """A document's score leaves out rows of special tokens, which deactivation reaches all the same."""

    class Tokenizer:
        all_special_ids = (7,)
        padding_side = "right"

    model, ids = tiny("gemma3"), tokens(12)
    ids[0], ids[5] = 7, 7
    model.tokenizer = Tokenizer()
    try:
        scores = mw.importance(model, ids)
    finally:
        model.tokenizer = None
    rows = ids != 7
    for site in ("q", "k", "v", "mlp"):
        truth = sequential(model, ids, 1, site, 3, rows=rows)
        assert scores[site][1, 3].item() == pytest.approx(truth, rel=1e-8)


def test_float32_keeps_small_scores():
    ids = tokens(24)
    for family in ("gemma3", "llama", "gpt2"):
        wide, narrow = mw.importance(tiny(family), ids), mw.importance(tiny(family, torch.float32), ids)
        for site, values in wide.items():
            assert narrow[site].dtype == torch.float32
            torch.testing.assert_close(narrow[site].double(), values, rtol=1e-3, atol=1e-9)


def test_sets_follow_their_definitions():
    detection = mw.detect(tiny("llama"), {**DOCUMENTS, "zh": [tokens(10, 90), tokens(9, 91)]}, **QUIET)
    counts, number = detection.counts, detection.documents
    active = {lang: counts[lang]["mlp"] >= 0.5 * number[lang] for lang in number}
    assert torch.equal(detection.active("fr", quorum=0.5).masks["mlp"], active["fr"])
    expected = {
        "others": active["fr"] & ~active["en"] & ~active["zh"],
        "shared": active["fr"] & ~(active["en"] & active["fr"] & active["zh"]),
        "en": active["fr"] & ~active["en"],
    }
    for against, mask in expected.items():
        specific = detection.specific("fr", against=against, quorum=0.5)
        assert torch.equal(specific.masks["mlp"], mask)
    assert detection.specific("fr", against="shared").origin["against_kind"] == "shared"
    stricter = detection.specific("fr", quorum=0.5, against_quorum=0.25)
    assert len(stricter - detection.specific("fr", quorum=0.5)) == 0
    assert stricter.origin["against_quorum"] == 0.25


def test_saved_detection_is_the_same(tmp_path):
    detection = mw.detect(tiny("llama"), DOCUMENTS, **QUIET)
    detection.save(tmp_path / "run")
    loaded = mw.Detection.load(tmp_path / "run")
    assert loaded.settings == detection.settings
    assert loaded.documents == detection.documents
    for language in DOCUMENTS:
        assert loaded.specific(language) == detection.specific(language)
        for site, values in detection.mean_scores[language].items():
            assert torch.equal(loaded.mean_scores[language][site], values)
    with pytest.raises(FileExistsError, match="run"):
        detection.save(tmp_path / "run")


def test_a_measure_of_ones_own():
    """How often a feed-forward neuron fires, as a measure in five lines."""

    def firing(model, layer):
        def score(seen, batch):
            on = (seen["mlp.hook_post"] > 0) & batch.content[..., None]
            return {"mlp": root_mean(on.double().sum(1), batch)}

        return [LayerMeasure(("mlp.hook_post",), score)]

    detection = mw.detect(tiny("gpt2"), DOCUMENTS, formulation=firing, top=0.1, **QUIET)
    assert detection.counts["en"]["mlp"].sum() == 2 * 2 * len(DOCUMENTS["en"])
    assert detection.counts["en"]["q"].sum() == 0
    assert detection.settings["formulation"] == "firing"
    with pytest.raises(ValueError, match="no score of mlp in layer 0"):
        mw.importance(tiny("gpt2"), tokens(9), formulation=lambda model, layer: firing(model, layer) if layer else [])


@pytest.mark.parametrize("family", ["gemma3", "gptj"])
def test_over_the_model_scores_compare_as_shares_of_the_stream(family):
    """One document: the top of all layers' scores, each over the rms of the stream that its structure adds to."""
    model, document = tiny(family), tokens(23)
    names = {"v": "hook_resid_pre", "mlp": "hook_resid_mid" if family == "gemma3" else "hook_resid_pre"}
    _, cache = model.run_with_cache(document)
    detection = mw.detect(model, {"en": [document]}, scope="model", top=0.3, **QUIET)
    for site, scores in mw.importance(model, document).items():
        if site in names:
            streams = torch.stack([cache[f"blocks.{layer}.{names[site]}"] for layer in range(2)])
            scores = scores / streams.square().mean((1, 2, 3)).sqrt()[:, None]
        active = torch.zeros_like(scores, dtype=torch.bool)
        active.view(-1)[scores.flatten().topk(int(0.3 * scores.numel())).indices] = True
        assert torch.equal(detection.counts["en"][site].bool(), active)
    assert detection.settings["scope"] == detection.active("en").origin["scope"] == "model"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0.0}, "top=0.0"),
        ({"top": 1.5}, "top=1.5"),
        ({"threshold": -1.0}, "threshold=-1.0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"formulation": "none"}, "'none'"),
        ({"max_tokens": 1}, "max_tokens=1"),
        ({"scope": "model", "threshold": 0.1}, "threshold=0.1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mw.detect(tiny("llama"), DOCUMENTS, **options, **QUIET)


def test_bad_questions_are_named():
    detection = mw.detect(tiny("llama"), DOCUMENTS, **QUIET)
    with pytest.raises(ValueError, match="'th'"):
        detection.specific("th")
    with pytest.raises(ValueError, match=r"quorum=0\.0"):
        detection.active("fr", quorum=0.0)
    with pytest.raises(ValueError, match="other than 'fr'"):
        detection.specific("fr", against="fr")


def test_nothing_is_specific_to_the_only_language():
    alone = made_up_detection(languages=("en",))
    for against in ("others", "shared"):
        with pytest.raises(ValueError, match=r"'en' is the only language that was detected.* use active\('en'\)"):
            alone.specific("en", against=against)
    assert len(alone.active("en"))
