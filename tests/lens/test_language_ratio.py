from dataclasses import replace

import pytest
import torch

import mwork_lens as mw

from ..made_up import PROMPTS, ratio


def test_shares_add_up_and_what_is_not_reported_is_other():
    frame = ratio(prompts={tag: texts * 3 for tag, texts in PROMPTS.items()}).to_frame()
    assert list(frame["language"].unique()) == ["en", "fr", "shared", "other"]
    for column in ("share", "chance", "vocabulary"):
        assert frame.groupby(["prompt_language", "layer"])[column].sum().to_numpy() == pytest.approx(1)
    assert frame.groupby(["prompt_language", "layer"])["lift"].sum().to_numpy() == pytest.approx(0)
    assert (frame["low"] <= frame["share"] + 1e-12).all()
    assert (frame["share"] <= frame["high"] + 1e-12).all()
    other = frame[frame["language"] == "other"]
    assert other["vocabulary"].to_numpy() == pytest.approx(0.4)


def test_groups_and_two_rows_keep_every_count():
    found = ratio()
    two = found.two_way("en")
    assert two.languages == ("en", "non-en")
    for label, counts in found.counts.items():
        # ru was identified over, so it is non-English even though it is not reported
        assert torch.equal(two.counts[label][..., 1], counts[..., 1] + counts[..., 2])
        assert torch.equal(two.counts[label].sum(-1), counts.sum(-1))
    with pytest.raises(ValueError, match="'th'"):
        found.grouped({"mine": ["th"]})
    with pytest.raises(ValueError, match="not be called shared or other"):
        found.grouped({"other": ["en"]})


def test_the_verdict_rests_on_the_lift():
    """A planted lens: French prompts that decode to English at every position and layer, and noise that does not."""
    found = ratio(prompts={"fr": PROMPTS["fr"] * 5}, top_k=1)
    planted = torch.zeros_like(found.counts["fr"])
    planted[..., 0] = 1.0
    chance = torch.zeros_like(found.chance)
    chance[..., 2] = 1.0
    english = replace(found, counts={"fr": planted}, chance=chance)
    table = english.verdict("en", layers=[1])
    assert table.loc["mean", "verdict"] == "above chance"
    assert table.loc["fr", "lift"] == pytest.approx(1)
    noise = replace(found, counts={"fr": planted}, chance=planted[0][:, None].expand(-1, 16, -1).contiguous())
    assert noise.verdict("en", layers=[1]).loc["mean", "verdict"] == "at chance"
    with pytest.raises(ValueError, match="directions=0"):
        ratio(directions=0).verdict("en", layers=[1])


def test_few_documents_give_no_verdict():
    found = ratio(layers=[1])
    table = found.verdict("en", layers=[1])
    assert set(table["verdict"]) == {"not measurable"}
    assert table[["low", "high"]].isna().all(axis=None)
    assert "not measurable on 2 documents" in found.finding("en")
    again = ratio(prompts={"fr": PROMPTS["fr"] * 5}, layers=[1]).verdict("en", layers=[1])
    assert "not measurable" not in set(again["verdict"])


def test_saved_and_loaded(tmp_path):
    found = ratio(directions=0)
    found.save(tmp_path / "ratio")
    again = mw.LanguageRatio.load(tmp_path / "ratio")
    assert again.to_frame().equals(found.to_frame())
    assert again.to_frame()["chance"].isna().all()
    assert "LanguageRatio(tiny-gemma3" in repr(again)


@pytest.mark.parametrize("value", ["share", "lift"])
def test_figures_name_model_prompts_and_identifier_and_draw_chance(value):
    found = ratio(prompts={"en": PROMPTS["en"], "fr": PROMPTS["fr"]})
    lines, heat = mw.plots.language_ratio(found), mw.plots.language_heatmap(found, value=value)
    for figure in (lines, heat):
        assert "tiny-gemma3" in figure.layout.title.subtitle.text
        assert "by hand" in figure.layout.title.subtitle.text
        assert {"prompts in en", "prompts in fr"} <= {note.text for note in figure.layout.annotations}
    dotted = [trace for trace in lines.data if trace.line.dash == "dot"]
    frame = found.to_frame()
    for trace, language in zip(dotted, ["en", "fr"] * 2, strict=True):
        assert list(trace.y) == frame[frame["language"] == language]["chance"].tolist()[:3]
    assert len(heat.data) == (3 if value == "share" else 2)
    with pytest.raises(ValueError, match="directions=0"):
        mw.plots.language_heatmap(ratio(directions=0), value="lift")
