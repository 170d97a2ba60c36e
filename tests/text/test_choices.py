"""A misspelt choice is one line that names it, the nearest choice first; nothing is left where results would be."""

import pytest

from mwork_lens.cli import main
from mwork_lens.text.choices import listed, require_choice


def test_the_nearest_choice_comes_first():
    assert listed(["zero", "mean", "language_mean", "scale"], "maen") == "mean, zero, language_mean, scale"
    assert listed(["de", "en", "zh"], "sw") == "de, en, zh"
    assert listed([]) == "none"
    with pytest.raises(ValueError, match=r"^mode='scael': it must be one of scale, zero\.$"):
        require_choice("mode", "scael", ["zero", "scale"])


TEXT = ("--corpus", "demo", "--model", "/nowhere/model")
"""So that what is misspelt must be found before the model is looked for."""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["detect", *TEXT, "--scope", "laier"], "scope='laier': it must be one of layer, model."),
        (["detect", *TEXT, "--formulation", "exakt"], "formulation='exakt': it must be one of exact, "),
        (["detect", *TEXT, "--dtype", "bfloat61"], "dtype='bfloat61': it must be one of bfloat16, "),
        (["detect", *TEXT, "--languages", "en,frn"], "'frn'"),
        (["ratio", *TEXT, "--by", "mas"], "by='mas': it must be one of mass, count."),
        (["ratio", *TEXT, "--identifier", "ligua"], "identifier='ligua': it must be one of lingua, "),
        (["effects", *TEXT, "--controls", "zh,fro"], "there is no 'fro'; the corpus has fr, "),
        (["effects", *TEXT, "--stages", "zhh"], "there is no 'zhh'; the corpus has zh, "),
        (["report", *TEXT, "--identifier", "scripts"], "identifier='scripts': it must be one of script, "),
        (["report", *TEXT, "--controls", "tha"], "there is no 'tha'; the corpus has th, "),
        (["tune", *TEXT, "--language", "rus"], "no 'rus'; it has ru, "),
        (["experiment", "understanding", *TEXT, "--arms", "specifc"], "arms='specifc': it must be one of specific, "),
        (["experiment", "knowledge", *TEXT, "--task", "mgms"], "task='mgms': it must be one of mgsm, "),
        (
            ["experiment", "enhancement", *TEXT, "--tune", "fr", "--arms", "matchd"],
            "arms='matchd': it must be one of m",
        ),
        (["experiment", "enhancement", *TEXT, "--tune", "fra"], "The corpus has no 'fra'; it has fr, "),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_misspelt_choice_is_found_before_the_work(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert words in error.splitlines()[-1]
    assert not (tmp_path / "out").exists()
