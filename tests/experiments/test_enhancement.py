"""The enhancement experiment end to end on a tiny model: disjoint documents, resumption, arms, matrices."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch

import mwork_lens as mw
from mwork_lens.experiments.enhancement import enhancement, formatted_table
from mwork_lens.plots import enhancement_by_documents, enhancement_by_language, enhancement_matrix
from mwork_lens.settings import TUNED_ARMS, EnhancementConfig
from mwork_lens.tuning import Enhancement, RunResult
from mwork_lens.tuning.enhancement import Run

from ..tiny import tiny

LANGUAGES = ("en", "sw", "th")


def text(languages=LANGUAGES, documents=16):
    """Two passages per document; each language has token ids of its own."""
    generator = torch.Generator().manual_seed(0)
    texts, names = {}, {}
    for i, language in enumerate(languages):
        low = 1 + 16 * i
        texts[language] = tuple(torch.randint(low, low + 16, (8,), generator=generator) for _ in range(2 * documents))
        names[language] = tuple(f"d{j // 2}" for j in range(2 * documents))
    return mw.Corpus(texts, names, parallel=True)


FEW = ("other-neurons", "own-as-few")
CONFIG = EnhancementConfig(
    languages=("sw",), documents=(8,), seeds=(0, 1), rates=(1e-3, 1e-2), batch_size=4,
    detection=6, development=4, evaluation=6, top=0.3, quorum=0.5,
)  # fmt: skip


def test_parts_share_no_document():
    corpus = text()
    parts = CONFIG.divide(corpus)
    assert {name: len(part["sw"]) for name, part in parts.items()} == {
        "detection": 6, "development": 4, "evaluation": 6, "tuning": 8,
    }  # fmt: skip
    documents = [set(part.documents["sw"]) for part in parts.values()]
    assert len(set.union(*documents)) == sum(map(len, documents))
    assert all(part.documents["sw"] == part.documents["en"] for part in parts.values())
    with pytest.raises(ValueError, match="has no 'vi'"):
        EnhancementConfig(languages=("vi",)).divide(corpus)
    for bad in ({"arms": ("own",)}, {"documents": (4, 4)}, {"rates": (-1.0,)}, {"development": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            EnhancementConfig(languages=("sw",), **bad)
    with pytest.raises(ValueError, match="part of the corpus is called 'development'"):
        enhancement(tiny("llama"), text(), "run", CONFIG, domains={"development": text(("sw", "en"), 5)})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("enhancement") / "run"
    model = copy.deepcopy(tiny("llama", torch.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = enhancement(model, text(), folder, CONFIG, domains={"other": text(("sw", "en"), 5)}, progress=False)
    kept = tiny("llama", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept.parameters(), strict=True))
    return folder, result


def test_a_trial_that_diverged_and_a_run_without_trials_are_kept(tmp_path, found):
    run = Run("sw", "specific", 8, 1e3, 0)
    RunResult(run, {}, {"diverged": "after step 1"}).save(tmp_path / "trial")
    assert RunResult.load(tmp_path / "trial").metadata == {"diverged": "after step 1"}
    _, result = found
    own = {"sw": dict.fromkeys(result.settings["own_rates"]["sw"])}
    replace(result, settings={**result.settings, "own_rates": own, "trials": []}).save(tmp_path / "whole")
    assert Enhancement.load(tmp_path / "whole").settings["own_rates"] == own


def test_every_arm_is_tuned_and_measured(found):
    _, result = found
    runs = result.runs()
    assert set(runs["arm"]) == set(TUNED_ARMS)
    # own and paper's rate, two seeds
    assert len(runs) == len(TUNED_ARMS) * 4
    assert (runs["steps"] == 2).all()
    sizes = runs.groupby("arm")["neurons"].unique().map(list).to_dict()
    own, fewer = sizes["specific"], sizes["other-neurons"]
    assert len(own) == len(fewer) == 1
    assert {arm for arm, size in sizes.items() if size == own} >= set(TUNED_ARMS) - {*FEW, "all"}
    assert {arm for arm, size in sizes.items() if size == fewer} >= set(FEW)
    trials = result.rates()
    chosen = trials[trials["chosen"]].set_index("arm")["development_loss"]
    assert (trials.groupby("arm")["development_loss"].min() == chosen.reindex(sorted(TUNED_ARMS))).all()


def test_matrices_are_changes_of_loss(found):
    _, result = found
    matrix = result.matrix()
    assert matrix.rows == [f"sw {arm}" for arm in TUNED_ARMS]
    tuned = [o for o in result.results if o.run.arm == "specific" and o.run.documents == 8 and o.run.rate != 2e-6]
    before = result.original.nats["held-out"]["sw"].sum()
    rises = [(o.nats["held-out"]["sw"].sum() - before) / result.read["held-out"].tokens["sw"].sum() for o in tuned]
    assert matrix.to_frame().loc["sw specific", "sw"] == pytest.approx(float(sum(rises)) / 2)
    beyond = result.matrix(against="random").to_frame()
    expected = matrix.to_frame().loc["sw specific"] - matrix.to_frame().loc["sw random"]
    assert beyond.loc["sw specific"].tolist() == pytest.approx(expected.tolist())
    assert list(result.matrix("other", rate="paper").to_frame().columns) == ["sw", "en"]
    assert len(result.changes) == 2 * len(TUNED_ARMS) * (3 + 2)
    table = result.table()
    assert list(table.index) == matrix.rows
    assert table.index[table["neurons"].isna()].tolist() == ["sw all"]
    assert formatted_table(table).loc["sw all", "neurons"] == "–"
    assert table["role"].tolist() == ["control", "control", "own", "reference", "control", "control", "own"]
    assert (table[["passages", "documents"]] == (6, 4)).all(axis=None)
    own, paper = result.findings()
    assert "Its own neurons beside all parameters, a reference, not a control of this size (" in own
    assert "As few of its own neurons beside other-neurons (" in own
    # of two rates each is an edge
    assert all(f"{arm} ({rate:g})" in own for arm, rate in result.settings["own_rates"]["sw"].items())
    assert "may be better" not in paper
    for wrong in ({"domain": "news"}, {"documents": 5}, {"against": "best"}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            result.matrix(**wrong)


def test_what_was_read_before_the_evaluation_is_counted(found):
    """The other domain's Swahili is the first of the corpus' English documents."""
    _, result = found
    held_out, other = (result.matrix(domain).documents_read for domain in ("held-out", "other"))
    assert held_out["unseen"].to_list() == held_out["documents"].to_list() == [4, 4, 4]
    read = [
        name for part, each in CONFIG.divide(text()).items() if part != "evaluation" for name in each.documents["en"]
    ]
    assert other.loc["sw", "seen_in_another_language"] == len({f"d{i}" for i in range(5)} & set(read)) > 0
    assert other.loc["en", "unseen"] == 5


def test_a_killed_experiment_goes_on_to_the_same_result(found, tmp_path):
    folder, result = found
    missing = folder / "runs" / "sw_specific_8_2e-06_seed1"
    kept = RunResult.load(missing).nats
    missing.rename(tmp_path / "gone")
    model = copy.deepcopy(tiny("llama", torch.float32))
    options = {"domains": {"other": text(("sw", "en"), 5)}, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = enhancement(model, text(), folder, CONFIG, **options)
        assert again.changes.equals(result.changes)
        for domain, by_language in RunResult.load(missing).nats.items():
            assert all(torch.equal(nats, kept[domain][read]) for read, nats in by_language.items())
        with pytest.raises(ValueError, match=r"design.batch_size = 4, not 2"):
            enhancement(model, text(), folder, EnhancementConfig(**{**vars(CONFIG), "batch_size": 2}), **options)
    again.save(tmp_path / "result")
    assert Enhancement.load(tmp_path / "result").changes.equals(result.changes)


def test_figures_show_every_arm(found):
    _, result = found
    assert "all: a reference, not a control" in enhancement_matrix(result).layout.title.subtitle.text
    assert len(enhancement_matrix(result).data[0].y) == len(TUNED_ARMS)
    assert len(enhancement_by_documents(result).data) == len(TUNED_ARMS)
    assert len(enhancement_by_language(result, rate="paper").data) == 2 * len(TUNED_ARMS)
    for figure, wrong in (
        (enhancement_by_documents, {"domain": "nowhere"}),
        (enhancement_by_language, {"documents": 3}),
    ):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            figure(result, **wrong)
