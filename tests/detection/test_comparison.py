import dataclasses

import pytest
import torch

import mwork_lens as mw

from ..tiny import tiny, tokens

DOCUMENTS = {
    "en": [tokens(length, seed) for seed, length in enumerate((9, 34, 21))],
    "fr": [tokens(length, seed + 50) for seed, length in enumerate((12, 7, 45))],
    "ru": [tokens(length, seed + 90) for seed, length in enumerate((30, 16))],
}


@pytest.fixture(scope="module")
def detection():
    return mw.detect(tiny("gemma3"), DOCUMENTS, progress=False)


def test_a_detection_agrees_with_itself_wholly(detection):
    frame = mw.agreement(detection, detection, top=0.3)
    assert len(frame) == 3 * 2 * 4
    assert (frame["top_overlap"] == 1).all()
    assert frame["spearman"].to_numpy() == pytest.approx(1)


def test_agreement_counts_common_members(detection):
    paper = mw.detect(tiny("gemma3"), DOCUMENTS, formulation="paper", scores="exact", progress=False)
    frame = mw.agreement(detection, paper, top=0.25).set_index(["language", "layer", "site"])
    ours, theirs = (d.mean_scores["fr"]["q"][1] for d in (detection, paper))
    common = set(ours.topk(8).indices.tolist()) & set(theirs.topk(8).indices.tolist())
    assert frame.loc[("fr", 1, "q"), "top_overlap"] == pytest.approx(len(common) / 8)
    # rotation and normalisation make the two differ on queries, and not on the feed-forward
    assert frame.xs("q", level="site")["spearman"].min() < 0.999
    with pytest.raises(ValueError, match=r"top=2\.0"):
        mw.agreement(detection, paper, top=2.0)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_agreement_is_not_a_number_where_a_site_has_no_scores(detection, value):
    scores = {**detection.mean_scores["fr"], "v": torch.full_like(detection.mean_scores["fr"]["v"], value)}
    unscored = dataclasses.replace(detection, mean_scores={**detection.mean_scores, "fr": scores})
    with pytest.warns(UserWarning, match=r"no scores, or all the same ones: v in layers 0, 1\.$"):
        frame = mw.agreement(detection, unscored)
    nothing = (frame["language"] == "fr") & (frame["site"] == "v")
    assert nothing.sum() == 2
    for column in ("spearman", "top_overlap"):
        assert frame[column].isna().tolist() == nothing.tolist()
    assert len(mw.plots.agreement(frame[frame["language"] == "fr"]).data) == 8


def test_overlap_follows_its_definitions(detection):
    frame = mw.overlap(detection, quorum=0.5).set_index(["structure", "language", "other"])
    assert len(frame) == 2 * 6
    fr, en = (detection.active(language, quorum=0.5).restrict(sites=["mlp"]) for language in ("fr", "en"))
    row = frame.loc[("feed_forward", "fr", "en")]
    assert row["common"] == len(fr & en)
    assert row["jaccard"] == pytest.approx(len(fr & en) / len(fr | en))
    assert row["share"] == pytest.approx(len(fr & en) / len(fr))
    assert row["overlap_coefficient"] == pytest.approx(len(fr & en) / min(len(fr), len(en)))
    sizes = zip(fr.masks["mlp"].sum(-1), en.masks["mlp"].sum(-1), strict=True)
    expected = sum(int(a) * int(b) / 20 for a, b in sizes) / len(fr)
    assert row["expected_share"] == pytest.approx(expected)


def test_chance_is_what_random_sets_share(detection):
    """The expected share is the mean over random placements of the same sizes."""
    row = mw.overlap(detection, quorum=0.5).set_index(["structure", "language", "other"]).loc[("attention", "fr", "en")]
    fr, en = (detection.active(language, quorum=0.5).restrict(sites=["q", "k", "v"]) for language in ("fr", "en"))
    generator, shares = torch.Generator().manual_seed(0), []
    for _ in range(400):
        moved = {s: m[:, torch.randperm(m.shape[1], generator=generator)] for s, m in en.masks.items()}
        shares.append(len(fr & mw.NeuronSet(en.space, moved)) / len(fr))
    assert torch.tensor(shares).mean().item() == pytest.approx(row["expected_share"], abs=0.02)


def test_figures_come_from_the_tables(detection):
    figure = mw.plots.overlap(mw.overlap({"a": detection, "b": detection}))
    assert len(figure.data) == 4
    assert len(mw.plots.agreement(mw.agreement(detection, detection)).data) == 8
    with pytest.raises(ValueError, match="'nothing'"):
        mw.plots.overlap(mw.overlap(detection), value="nothing")


def test_counts_by_layer_are_those_of_the_sets(detection):
    frame = mw.neuron_counts({"here": detection}, quorum=0.5)
    french = detection.specific("fr", quorum=0.5)
    ours = frame[frame["language"] == "fr"].pivot(index="layer", columns="site", values="neurons")
    assert ours[french.counts().columns].to_numpy().tolist() == french.counts().to_numpy().tolist()
    assert (frame["share"] == frame["neurons"] / frame["width"]).all()
    figure = mw.plots.neuron_counts(mw.neuron_counts({"a": detection, "b": detection}, kind="active"))
    assert len(figure.data) == 2 * 2 * (3 + 1)
    with pytest.raises(ValueError, match="no detection"):
        mw.neuron_counts({})


def test_figures_and_tables_name_the_model(detection):
    counts, common = mw.neuron_counts(detection), mw.overlap(detection)
    alike = mw.agreement(detection, detection)
    figures = mw.plots.neuron_counts(counts), mw.plots.overlap(common), mw.plots.agreement(alike)
    assert all(detection.space.model in figure.layout.title.subtitle.text for figure in figures)
    assert not any("nan" in text for row in figures[1].data[0].text for text in row)
