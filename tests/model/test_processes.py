"""Two processes of torchrun make the bits of one; how work is dealt out. Kills are in ``benchmarks/processes.py``."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mwork_lens as mw
from mwork_lens.experiments.folder import load_or_run
from mwork_lens.model.dealing import dealt
from mwork_lens.model.tally import SECONDS
from mwork_lens.store import digest, processes
from mwork_lens.tasks.run import Condition, run_task

from ..made_up import LABELS
from ..tasks.test_run import TASK, prompt
from ..tiny import some_neurons, spelled, tokens

CORPUS = {
    tag: [3 + tokens(2 + (7 * i + j) % 9, i * 99 + j) % 8 for j in range(6)] for i, tag in enumerate(("en", "fr"))
}
OPTIONS = {"batch_size": 2, "progress": False}
MADE = {"detect": mw.Detection, "stream": mw.Detection, "effects": mw.EffectMatrix, "ratio": mw.LanguageRatio}
PROMPTS = {tag: [prompt(3 + i % 4, i, tag, str(i)) for i in range(20)] for tag in CORPUS}


def make(place: Path) -> dict[str, str]:
    """Results at a place, and their digests."""
    model = spelled("gemma3")
    sets = {"fr": some_neurons(model), "control": [some_neurons(model, 0.2, seed) for seed in (1, 2)]}
    stream = mw.load_corpus(CORPUS, streaming=True, window=4)
    reading = {"languages": ["en", "fr"], "token_languages": LABELS, "directions": 2, **OPTIONS}
    made = {
        "detect": load_or_run(place / "detect", MADE["detect"], mw.detect, model, CORPUS, **OPTIONS),
        "stream": load_or_run(place / "stream", MADE["stream"], mw.detect, model, stream, **OPTIONS),
        "effects": load_or_run(place / "effects", MADE["effects"], mw.effect_matrix, model, sets, CORPUS, **OPTIONS),
        "ratio": load_or_run(place / "ratio", MADE["ratio"], mw.language_ratio, model, CORPUS, **reading),
    }
    neurons, spoken = some_neurons(model), {"en": ["a b c", "d e"]}
    rows = run_task(model, TASK, PROMPTS, conditions(neurons), place / "rows.jsonl", max_new_tokens=3, progress=False)
    options = {"identify": lambda texts: [None] * len(texts), "max_new_tokens": 2, "progress": False}
    made |= {"cards": mw.inspect(model, neurons, CORPUS, token_languages=LABELS, contexts=2, top_k=3, **OPTIONS)}
    histograms = mw.HistogramOptions(bins=4)
    made |= {"firing": mw.collect_firing(model, CORPUS, document_means=True, histograms=histograms, **OPTIONS)}
    made |= {"attribution": mw.attribution(model, CORPUS, **OPTIONS)}
    made |= {"generations": mw.generations(model, {"off": neurons, "on": []}, spoken, **options)}
    return {"rows": digest(rows), **{name: digest(result) for name, result in made.items()}}


def conditions(neurons: mw.NeuronSet) -> list[Condition]:
    """Nothing off, and these."""
    return [
        Condition("original", "", None, None, ("en", "fr")),
        Condition("specific", "", "fr", neurons, ("fr", "en")),
    ]


def one_of_two(place: Path) -> None:
    """What each of the two does; the first tells what all have found."""
    found = {
        "digests": make(place / "made"),
        "number": processes.number(),
        "bar": not processes.hidden(True),
        "says": processes.is_first_to_say("this"),
        "in children": sorted(processes.children_environment().keys() & {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"}),
        "path of the first": processes.from_first(lambda: f"path of {processes.number()}"),
    }
    everything = processes.gathered(found)
    if processes.is_first():
        (place / "found.json").write_text(json.dumps(everything))


def test_two_processes_make_the_bits_of_one(tmp_path):
    pytest.importorskip("transformer_lens.HookedTransformer", reason="TransformerLens 4 has no HookedTransformer")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), SECONDS: "0"}
    subprocess.run([*command, "-m", __name__, tmp_path], check=True, timeout=300, env=environment, capture_output=True)
    one, two = json.loads((tmp_path / "found.json").read_text())
    assert one["digests"] == two["digests"] == make(tmp_path / "alone")
    assert sorted(entry.name for entry in (tmp_path / "made").iterdir()) == sorted([*MADE, "rows.jsonl"])
    assert (tmp_path / "made" / "rows.jsonl").read_text() == (tmp_path / "alone" / "rows.jsonl").read_text()
    assert (one["number"], two["number"]) == (0, 1)
    assert (one["bar"], two["bar"]) == (True, False)
    assert {one["says"], two["says"]} == {True, False}
    assert one["path of the first"] == two["path of the first"] == "path of 0"
    assert one["in children"] == two["in children"] == []


@given(st.lists(st.integers(1, 1000), max_size=30), st.integers(1, 5), st.integers(0, 9))
def test_all_is_dealt_out_once_and_evenly(costs, of, first):
    shares = dealt(costs, of, first)
    assert sorted(chain(*shares)) == list(range(len(costs)))
    loads = [sum(costs[place] for place in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs, default=0)
    assert len(costs) != 1 or loads[first % of]


def test_without_torchrun_there_is_one_process(monkeypatch):
    assert (processes.count(), processes.number(), processes.is_first()) == (1, 0, True)
    assert processes.gathered("all") == ["all"]
    assert processes.children_environment() == dict(os.environ)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert (processes.count(), processes.is_first()) == (2, False)
    with processes.alone():
        assert (processes.count(), processes.is_first()) == (1, True)


def test_after_a_restart_nothing_counts_that_was_said_before(monkeypatch):
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # pyright: ignore
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **place}.items():
        monkeypatch.setenv(name, value)
    for attempt in "01":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        processes._meeting.cache_clear()
        assert [processes.is_first_to_say("this") for _ in range(2)] == [True, False]
    processes._meeting.cache_clear()


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]))
