"""Two models under one name, one after the other: no run of the first goes on with the second."""

import copy
import random

import pytest
import torch

import mwork_lens as mw
from mwork_lens.experiments.effects import run_effects
from mwork_lens.experiments.enhancement import enhancement
from mwork_lens.experiments.report import measure
from mwork_lens.experiments.tasks import TaskOptions, run_task_experiment
from mwork_lens.model import Fingerprint
from mwork_lens.settings import EffectsConfig, EnhancementConfig, ReportConfig
from mwork_lens.text import as_corpus

from ..tiny import spelled

QUICK = {"documents": (2,), "arms": ("specific",), "seeds": (0,), "rates": (1e-3,), "paper_rate": None}
PARTS = {"detection": 2, "development": 1, "evaluation": 2}


@pytest.fixture(scope="module")
def texts():
    draw, letters = random.Random(0), {"en": "abcd", "zh": "efgh"}
    return as_corpus({tag: [" ".join(draw.choices(of, k=7)) for _ in range(8)] for tag, of in letters.items()})


@pytest.fixture(scope="module")
def models():
    """Of one name: the first, one with other weights, and the first in another dtype."""
    first = spelled("llama", n_layers=3)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.blocks[1].attn.W_O.data += 0.01
    return first, second, copy.deepcopy(first).to(torch.float32)


def run(name, model, texts, folder):
    """Begin a run in a folder, or go on with it."""
    rule = {"top": 0.3, "quorum": 0.5}
    if name == "effects":
        run_effects(model, texts, folder, EffectsConfig(**rule), progress=False)
    elif name == "enhancement":
        enhancement(
            model, texts, folder, EnhancementConfig(languages=("zh",), **QUICK, **PARTS, **rule), progress=False
        )
    elif name == "tune":
        neurons = mw.NeuronSet.from_list(mw.neurons.NeuronSpace.of(model), [(0, "mlp", 3)])
        mw.tune(model, neurons, texts["zh"], learning_rate=1e-3, checkpoint=folder, progress=False).delta.revert(model)
    elif name == "report":
        measure(model, texts, folder, ReportConfig(**rule, identifier="script"), progress=False)
    else:
        (folder.parent / "mgsm_zh.tsv").write_text("e f ?\t1\nf g ?\t2\n")
        mw.detect(model, texts, progress=False).save(folder.parent / "found", overwrite=True)
        options = {"data": str(folder.parent), "detection": folder.parent / "found", "max_new_tokens": 3, **rule}
        run_task_experiment(model, "reasoning", folder, TaskOptions(**options, arms=("specific",), shown=False))


@pytest.mark.filterwarnings("ignore:Nearly nothing changed", "ignore:The tokenizer does not know part")
@pytest.mark.parametrize("name", ["effects", "tasks", "tune", "enhancement"])
def test_another_model_of_the_name_is_refused_with_both_fingerprints(name, models, texts, tmp_path):
    first, second, narrow = models
    run(name, first, texts, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for other, reason in ((second, "with other weights"), (narrow, "in another dtype")):
        both = f"{reason}.*{Fingerprint.of(first)}.*{Fingerprint.of(other)}"
        with pytest.raises(ValueError, match=both):
            run(name, other, texts, tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    run(name, first, texts, tmp_path / "run")
