import numpy as np
import pandas as pd
import pytest

import mwork_lens as mw
from mwork_lens.plots.similarity import Tree, tree_of
from mwork_lens.text.choices import named

from ..benchmarks.coverage import DISTRIBUTIONS, Null
from ..detection.test_many_languages import detection
from ..made_up import made_up_detection

CODES = [*map("x{:02}".format, range(26))]


def distances(names, families):
    """0.1 within a family, 0.9 between two."""
    apart = np.not_equal.outer(families, families)
    return pd.DataFrame(np.where(apart, 0.9, 0.1) * ~np.eye(len(names), dtype=bool), index=names, columns=names)


def test_families_stand_together_and_the_tree_joins_them_first():
    names, families = ["a", "b", "c", "d", "e"], [0, 1, 0, 1, 0]
    tree = Tree.of(distances(names, families))
    order = [families[names.index(name)] for name in tree.languages]
    assert order in ([0, 0, 0, 1, 1], [1, 1, 0, 0, 0])
    assert sorted(tree.heights.max(1)) == pytest.approx([0.1, 0.1, 0.1, 0.9])
    leaves = {
        x
        for places, of in zip(tree.places, tree.heights, strict=True)
        for x, y in zip(places, of, strict=True)
        if y == 0
    }
    assert leaves == set(range(5))


def test_languages_stay_as_they_are_unless_they_are_many_or_it_is_asked():
    few, many = (distances([f"l{i}" for i in range(n)], list(range(n))) for n in (24, 25))
    assert [tree_of(few, None), tree_of(many, "given")] == [None, None]
    assert all([tree_of(few, "similarity"), tree_of(many, None)])


def test_what_is_not_a_number_is_far():
    table = distances(["a", "b", "c"], [0, 0, 1])
    table.loc["c", :] = table.loc[:, "c"] = np.nan
    assert Tree.of(table).heights.max() == 1


@pytest.fixture(scope="module")
def effects():
    null = Null(6, DISTRIBUTIONS["normal"], np.random.default_rng(0))
    return null.matrix({"control": "de", "fr": "fr", "de": "de", "en": "en"})


def test_an_ordered_matrix_holds_the_same_numbers(effects):
    figure = mw.plots.effect_matrix(effects, order="similarity")
    shown = pd.DataFrame(figure.data[0].z, index=figure.data[0].y, columns=figure.data[0].x)
    frame = effects.to_frame()
    pd.testing.assert_frame_equal(
        shown.loc[frame.index, frame.columns], frame, check_names=False, check_index_type=False, check_column_type=False
    )


def test_a_large_table_has_every_label_and_no_numbers_in_its_cells():
    of = made_up_detection(languages=CODES)
    figure = mw.plots.overlap(mw.overlap(of))
    heat, trees = [t for t in figure.data if t.type == "heatmap"], [t for t in figure.data if t.type == "scatter"]
    assert [len(heat), len(trees)] == [2, 1]
    assert all(trace.text is None for trace in heat)
    assert sorted(heat[0].x) == CODES
    assert list(heat[0].x) == list(heat[0].y) == list(heat[1].x)
    assert figure.layout.xaxis.dtick == 1
    assert list(figure.layout.xaxis3.domain) == [0, 1]
    assert figure.layout.yaxis.domain[1] < figure.layout.yaxis3.domain[0]
    assert "order" in figure.layout.title.subtitle.text
    small = mw.plots.overlap(mw.overlap(detection()))
    assert [trace.text is None for trace in small.data] == [False, False]


def test_long_lists_become_numbers():
    assert named(["en", "fr"], "languages") == "en, fr"
    assert named(CODES, "languages") == "26 languages"
    counts = mw.neuron_counts(made_up_detection(languages=CODES))
    assert "languages: 26 in all" in mw.plots.neuron_counts(counts).layout.title.subtitle.text
