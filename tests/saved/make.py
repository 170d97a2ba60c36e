"""Write every kind of result, and folders of experiments that can be resumed: ``python -m tests.saved.make``.

What is here was written by version 0.1; made anew, it is no longer a test of reading old results.
"""

import contextlib
import copy
import json
import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
import transformers

import mwork_lens as mw
from mwork_lens.cli import main
from mwork_lens.experiments.enhancement import enhancement
from mwork_lens.settings import EnhancementConfig

from .. import analyses
from .kinds import FOLDER, KINDS, facts

TASK_OPTIONS = {
    "data": "questions",
    "detection": "detection",
    "max_new_tokens": 3,
    "quorum": 0.5,
    "limit": 2,
    "arms": ("random", "specific"),
    "shown": False,
}
"""Of the folder ``tasks``."""
SHARED = ["--model", "model", "--corpus", "text", "--top", "0.3", "--quorum", "0.5"]
COMMANDS = {
    "effects": ["effects", *SHARED, "--folds", "2", "--controls", "fr", "--stages", "fr,ru"],
    "enhancement-run": [
        *["experiment", "enhancement", *SHARED, "--tune", "fr", "--documents", "6", "--arms", "specific,random"],
        *["--seeds", "1", "--paper-rate", "0", "--rates", "1e-3,1e-2", "--batch-size", "3"],
        *["--detection-passages", "8", "--development-passages", "4", "--evaluation-passages", "6"],
    ],
}
"""Folders that a command resumes, run in the folder above them."""
ANALYSES = {
    "detection": "detection",
    "activations": "means",
    "effect_matrix": "effects",
    "folded_effects": "folded",
    "tuning_effects": "tuning_effects",
    "layer_sweep": "sweep",
    "stage_grid": "grid",
    "workflow": "workflow",
    "language_ratio": "ratio",
    "lens_grid": "lens_grid",
    "latent_languages": "probes",
    "identifier_accuracy": "accuracy",
    "neuron_cards": "cards",
    "generations": "generations",
    "steering": "steering",
    "tuned": "tuned",
}
"""Kinds of results, and the functions of ``tests/analyses.py`` that make them."""


def no_picture(*_: Any, **__: Any) -> None:
    """In place of a browser."""
    raise RuntimeError("no pictures here")


def results() -> dict[str, Any]:
    """One of each kind."""
    found = {kind: getattr(analyses, name)() for kind, name in ANALYSES.items()}
    design = EnhancementConfig(
        languages=("fr",), documents=(6,), arms=("specific", "random"), seeds=(0, 1), rates=(1e-2,), paper_rate=None,
        batch_size=3, detection=8, development=4, evaluation=6, top=0.3, quorum=0.5,
    )  # fmt: skip
    with temporary("enhancement-pieces") as folder:
        tuned = enhancement(analyses.reader(), analyses.corpus(2, 16), folder, design, progress=False)
    return {**found, "neuron_set": analyses.sets()["fr"], "neuron_delta": found["tuned"].delta, "enhancement": tuned}


@contextlib.contextmanager
def temporary(name: str) -> Any:
    """A folder that is gone afterwards."""
    shutil.rmtree(name, ignore_errors=True)
    yield Path(name)
    shutil.rmtree(name, ignore_errors=True)


def write_model() -> None:
    """A small transformers model, and text and questions in three languages."""
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained("model")
    analyses.tokenizer().save_pretrained("model")
    Path("text").mkdir()
    Path("questions").mkdir()
    for language in analyses.WORDS:
        Path(f"text/{language}.txt").write_text("\n".join(analyses.sentences(language, 24, 5)) + "\n", encoding="utf-8")
    for name, language in (("en", "en"), ("fr", "fr")):
        draw = random.Random(language)
        lines = [f"{' '.join(draw.choices(analyses.WORDS[language], k=3))} ?\t{i}" for i in range(3)]
        Path(f"questions/mgsm_{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write() -> None:
    """Everything, in place of what is there."""
    os.chdir(FOLDER)
    go.Figure.write_image = no_picture  # pyright: ignore[reportAttributeAccessIssue]
    for path in FOLDER.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    expected = {}
    for kind, result in results().items():
        result.save(kind)
        expected[kind] = facts(kind, result)
    assert expected.keys() == KINDS.keys()
    write_model()
    for name, arguments in COMMANDS.items():
        with contextlib.suppress(SystemExit):
            main([*arguments, "--output", name])
    mw.run_task_experiment(analyses.reader(), "reasoning", "tasks", mw.TaskOptions(**TASK_OPTIONS))
    expected["checkpoint"] = facts("tuned", analyses.tune(copy.deepcopy(analyses.reader()), checkpoint="checkpoint"))
    os.environ["MWORK_LENS_CACHE"] = "cache"
    labels = mw.label_vocabulary(analyses.reader(), ["en", "ru"], identifier="script")
    expected["token_languages"] = labels.of(range(50))
    prune(FOLDER)
    Path("expected.json").write_text(json.dumps(expected, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def prune(folder: Path) -> None:
    """Of the experiments' folders leave out pages, and tables as JSON."""
    for name in (*COMMANDS, "tasks"):
        for path in (folder / name).iterdir():
            if path.is_file() and path.suffix not in (".csv", ".jsonl") and path.name != "settings.json":
                path.unlink()


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write()
