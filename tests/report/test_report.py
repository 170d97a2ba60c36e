"""The report: measured piece by piece, shown by its notebook, one page that is inert and needs no network."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace

import nbformat
import plotly.graph_objects as go
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import mwork_lens as mw
from mwork_lens.cli import main
from mwork_lens.experiments.report import measure
from mwork_lens.experiments.sets import most_specific
from mwork_lens.report import execute, execution, pictures, render, write_figures
from mwork_lens.report.page import Html, Section, write_page
from mwork_lens.settings import ReportConfig
from mwork_lens.store import digest
from mwork_lens.text import as_corpus

from ..tiny import tiny

HOSTILE = "<script>document.title='taken'</script>"
WORDS = {
    "en": ["the", HOSTILE, '"quoted"', "house"],
    "fr": ["le", "mais'on", "</style>", "l&amp;eau"],
    "ru": ["дом", "и", "<img/src=x/onerror=document.title='taken'>"],
}
CONFIG = ReportConfig(quorum=0.6, top=0.3, passages=5, held_out=0.3, prompts=1, new_tokens=6, cards=2)

pytestmark = [
    pytest.mark.filterwarnings("ignore:The control"),
    pytest.mark.filterwarnings("ignore:.*matched neurons are specific"),
]


@pytest.fixture(scope="module")
def model():
    """Five layers that read and write words, some of which are markup."""
    model = tiny("llama", n_layers=5, seed=3)
    words = ["<pad>", "<bos>", "<unk>", *(word for some in WORDS.values() for word in some)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>", "eos_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
    model.set_tokenizer(fast, default_padding_side="left")
    model.cfg.d_vocab = 50
    model.unembed.b_U.data[len(words) :] = -1e9
    return model


@pytest.fixture(scope="module")
def corpus():
    def passage(language, i):
        return " ".join(random.Random(i).choices(WORDS[language], k=14))

    return as_corpus({language: [passage(language, i) for i in range(22)] for language in WORDS})


@pytest.fixture(scope="module")
def folder(model, corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "run"
    measure(model, corpus, path, CONFIG, progress=False)
    return path


def test_a_report_is_measured_once_and_resumed(model, corpus, folder):
    assert json.loads((folder / "missing.json").read_text()) == {}
    detection = mw.Detection.load(folder / "detection")
    assert detection.documents == dict.fromkeys(WORDS, 15)
    effects = mw.EffectMatrix.load(folder / "effects")
    assert {"en", "fr", "ru", "matched for fr"} <= set(effects.rows)
    held_out = corpus.split(CONFIG.held_out)[1]
    assert not set(held_out["fr"]) & set(corpus.split(CONFIG.held_out)[0]["fr"])
    sets = {"fr": detection.specific("fr", quorum=0.6)}
    again = mw.effect_matrix(model, sets, held_out.limit(5), progress=False)
    assert effects.to_frame().loc["fr"].tolist() == pytest.approx(again.to_frame().loc["fr"].tolist())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    shutil.rmtree(folder / "cards" / "fr")
    measure(model, corpus, folder, CONFIG, progress=False)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert {path for path in before if before[path] != after[path]} == {folder / "cards" / "fr" / "tensors.safetensors"}
    with pytest.raises(ValueError, match=r"held_out = 0\.3, not 0\.4"):
        measure(model, corpus, folder, replace(CONFIG, held_out=0.4), progress=False)


def test_a_saved_detection_and_an_identifier_that_does_not_know_the_languages(model, corpus, tmp_path):
    two = corpus.select({language: range(22) for language in ("en", "fr")})
    config = replace(CONFIG, identifier="script", stages=["fr"])
    detection = mw.detect(model, two.split(0.3)[0], top=0.3, progress=False)
    measure(model, two, tmp_path / "run", config, detection=detection, progress=False)
    effects = mw.EffectMatrix.load(tmp_path / "run" / "effects")
    assert (effects.documents_read["unseen"] == 5).all()
    assert digest(mw.Detection.load(tmp_path / "run" / "detection")) == digest(detection)
    with pytest.raises(ValueError, match="There is a detection of 'fr' but no text; there is en, ru"):
        measure(model, corpus.select({"en": [0], "ru": [0]}), tmp_path / "x", CONFIG, detection=detection)
    missing = json.loads((tmp_path / "run" / "missing.json").read_text())
    assert "both written in Latn" in missing["language-ratio"]
    assert not (tmp_path / "run" / "language-ratio").exists()
    written = mw.Generations.load(tmp_path / "run" / "generations").to_frame()
    assert written["identified"].isna().all()


def test_what_would_fail_late_is_refused_before_the_work(model, corpus, tmp_path):
    for change, message in [
        ({"identifier": "langid"}, "identifier='langid': it must be one of"),
        ({"controls": ["th"]}, "controls: there is no 'th'; the corpus has"),
    ]:
        with pytest.raises(ValueError, match=message):
            measure(model, corpus, tmp_path / "run", replace(CONFIG, **change), progress=False)
    assert not (tmp_path / "run").exists()


def test_most_specific_neurons_are_furthest_above_every_other_language(folder):
    detection = mw.Detection.load(folder / "detection")
    neurons = mw.NeuronSet.load(folder / "neurons" / "ru")
    chosen = most_specific(detection, neurons, "ru", 2)
    scores = detection.mean_scores
    factors = {
        (layer, site, i): scores["ru"][site][layer, i] / max(scores[tag][site][layer, i] for tag in ("en", "fr"))
        for layer, site, i in neurons.to_frame()[["layer", "site", "neuron"]].itertuples(index=False)
        if site in ("v", "mlp")
    }
    best = sorted(factors, key=lambda place: factors[place], reverse=True)[:2]
    assert set(chosen.to_frame()[["layer", "site", "neuron"]].itertuples(index=False, name=None)) == set(best)


def test_without_the_extra_there_is_one_error_and_no_work(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "papermill", None)
    with pytest.raises(SystemExit) as stopped:
        main(["report", "--output", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "extra 'report' (papermill missing): pip install 'mwork_lens[report]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_notebook_becomes_sections_and_what_it_prints_is_escaped(tmp_path):
    outputs = [
        new_output("stream", name="stdout", text=HOSTILE),
        new_output("stream", name="stderr", text="a progress bar"),
        new_output("execute_result", data={"text/plain": HOSTILE}),
        new_output("error", ename="ValueError", evalue=HOSTILE),
        new_output("display_data", data={"text/plain": "a table", "text/html": "<table><tr><td>1</td></tr></table>"}),
    ]
    code = new_code_cell("secret = 1", outputs=outputs)
    text = "Before.\n\n## Part & one\n\n```\n# no heading\n```\n### Below\n\n## Part two"
    cells = [new_markdown_cell("# A story\n\nIt *begins*."), new_markdown_cell(text), code]
    nbformat.write(new_notebook(cells=cells), tmp_path / "story.ipynb")
    page = render(tmp_path / "story.ipynb", tmp_path / "story.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") :]
    assert "<h1>A story</h1>" in body
    assert "It <em>begins</em>" in body.split("<nav")[0]
    assert '<li><a href="#part-0">Part &amp; one</a></li><li><a href="#part-1">Part two</a></li></ol>' in body
    assert "# no heading" in body
    assert body.count("&lt;script&gt;document.title=") == 3
    assert "<script" not in body
    assert "<td>1</td>" in body
    assert "secret" not in page
    assert "progress bar" not in page


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium that keeps its console and the requests of its pages."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def opened(browser, path):
    """What a page asked for beyond itself, and what stands in the console."""
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(path.as_uri())
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    urls = [each["request"]["url"] for each in asked if each["documentURL"] == path.as_uri()]
    return [u for u in urls if u != path.as_uri() and not u.startswith(("data:", "blob:"))], browser.get_log("browser")


def test_the_browser_sees_what_a_bad_page_would_do(browser, tmp_path):
    bad = Html("<script>console.error('seen')</script><img src='http://127.0.0.1:9/x.png'>")
    page = write_page(tmp_path / "bad.html", "Bad", [Section("Bad", (), bad)])
    requests, console = opened(browser, page)
    assert requests == ["http://127.0.0.1:9/x.png"]
    said = " ".join(entry["message"] for entry in console)
    assert "seen" in said
    assert "violates the following Content Security Policy" in said


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_report_in_a_browser(browser, folder):
    notebook = execute(None, folder / "report.ipynb", {"folder": str(folder)}, progress=False)
    page = render(notebook, folder / "report.html")
    requests, console = opened(browser, page)
    assert not requests
    assert not console
    assert browser.title == "Languages inside a model"
    assert HOSTILE in browser.execute_script("return document.body.innerText")
    assert browser.execute_script("return document.querySelectorAll('body img, body iframe, body link').length") == 0
    figures = browser.execute_script(DRAWN)
    assert len(figures) == 9
    for figure in figures:
        assert figure["width"] > 500, figure
        assert figure["title"], figure
        assert all(figure["ticks"]), figure
    assert sum(len(figure["ticks"]) for figure in figures) > 20
    links = browser.find_elements("css selector", "nav a")
    assert len(links) == 10
    for link in links:
        browser.execute_script("scrollTo(0, 0)")
        link.click()
        heading = browser.find_element("css selector", "h2:target")
        assert heading.text == link.text
        assert -1 < browser.execute_script("return arguments[0].getBoundingClientRect().top", heading) < 1000


DRAWN = """
return [...document.querySelectorAll('.js-plotly-plot')].map(plot => {
  const shown = Object.keys(plot._fullLayout).filter(name => /^[xy]axis\\d*$/.test(name))
    .filter(name => plot._fullLayout[name].visible && plot._fullLayout[name].showticklabels);
  const ticks = shown.map(name => plot.querySelectorAll(`.${name[0]}${name.slice(5)}tick text`).length);
  return {title: plot.querySelector('.gtitle')?.textContent, width: plot.querySelector('svg').clientWidth, ticks};
});
"""


CELLS = new_notebook(cells=[new_code_cell("folder = '.'", metadata={"tags": ["parameters"]}), new_code_cell("1 + 1")])


@pytest.fixture
def notebook(tmp_path):
    path = tmp_path / "a{b}.ipynb"
    nbformat.write(CELLS, path)
    return path


def test_notebooks_run_in_this_interpreter_in_folders_of_any_name(tmp_path, monkeypatch, notebook):
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    kernel = {"argv": ["/nowhere/python", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    (tmp_path / "run{a}").mkdir()
    notebook.write_text(notebook.read_text().replace("1 + 1", "import sys; print(sys.executable, folder)"))
    shown = execute(notebook, tmp_path / "run{a}" / "out.ipynb", {"folder": "x{y}"}, progress=False)
    assert nbformat.read(shown, as_version=4).cells[-1].outputs[0].text == f"{sys.executable} x{{y}}\n"
    assert [path.name for path in shown.parent.iterdir()] == ["out.ipynb"]


@pytest.fixture
def processes(tmp_path):
    """Numbers of processes that a test has started (they write them to a file) and that are still there."""

    def running():
        started = (tmp_path / "started").read_text().split()
        assert started
        return [pid for pid in started if is_running(int(pid))]

    return running


def is_running(pid):
    try:
        return psutil.Process(pid).status() != "zombie"
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def limits(tmp_path):
    """Longer and longer ones, in seconds, until one sufficed to begin: a busy machine needs more."""

    def until_begun(*seconds):
        for limit in seconds:
            yield limit
            if (tmp_path / "started").exists():
                return

    return until_begun


STARTED = "import os, subprocess; print(os.getpid(), file=open({path!r}, 'a')); "
DETACHED = "subprocess.Popen(['sh', '-c', 'echo $$ >> {path}; exec sleep 1000'], start_new_session=True); "


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (DETACHED + "import time; time.sleep(1000)", r"a cell did not end within \d+ seconds"),
        ("undefined", r"cell \[\d\] raised NameError: name 'undefined'"),
        (
            DETACHED + "import time; time.sleep(0.2); os.write(2, b'no memory'); os._exit(1)",
            r"its process ended within a cell \(the last .*: no memory\)",
        ),
    ],
)
def test_a_cell_that_fails_has_a_limit_and_leaves_no_process(tmp_path, notebook, processes, limits, cell, message):
    content = nbformat.read(notebook, as_version=4)
    content.cells[1].source = (STARTED + cell).format(path=str(tmp_path / "started"))
    nbformat.write(content, notebook)
    for limit in limits(1, 10, 100) if "1000" in cell else [100]:
        with pytest.raises(ValueError, match=r"a\{b\}\.ipynb: .*What ran before is in .*out\.ipynb") as error:
            execute(notebook, tmp_path / "out.ipynb", {}, timeout=limit, progress=False)
    assert re.search(message, str(error.value))
    assert nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].source == content.cells[1].source
    assert not processes()


@pytest.fixture
def kernel_that(tmp_path, monkeypatch):
    """Makes kernels do something else than start."""

    def starts(action):
        code = f"import sys\nif 'ipykernel_launcher' in sys.orig_argv:\n    import time; {STARTED}{action}\n"
        (tmp_path / "sitecustomize.py").write_text(code.format(path=str(tmp_path / "started")))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    return starts


IGNORES = "import signal; [signal.signal(each, signal.SIG_IGN) for each in (2, 15)]; "


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("os._exit(3)", "died"),
        ("os.write(2, b'a\\nNo kernel here\\n'); os._exit(1)", "died .*: No kernel here"),
        (IGNORES + "time.sleep(1000)", r"didn't respond in \d+ seconds"),
    ],
)
def test_a_kernel_that_does_not_start_has_a_limit_and_leaves_no_process(
    tmp_path, notebook, monkeypatch, processes, limits, kernel_that, action, message
):
    kernel_that(action)
    for limit in limits(2, 10, 100) if "1000" in action else [100]:
        monkeypatch.setattr(execution, "SECONDS_TO_START", limit)
        with pytest.raises(ValueError, match=rf"a\{{b\}}\.ipynb: its process did not start: Kernel {message}"):
            execute(notebook, tmp_path / "out.ipynb", {}, progress=False)
    assert not (tmp_path / "out.ipynb").exists()
    assert not processes()


def test_ctrl_c_while_a_kernel_starts_leaves_no_process(tmp_path, notebook, processes, kernel_that):
    kernel_that("os.kill(os.getppid(), 2); time.sleep(1000)")
    code = "import sys; from mwork_lens.report import execute; execute(*sys.argv[1:], {}, progress=False)"
    ended = subprocess.run(
        [sys.executable, "-c", code, notebook, tmp_path / "out.ipynb"], capture_output=True, text=True
    )
    assert ended.stderr.endswith("KeyboardInterrupt\n")
    assert ended.stderr.count("Traceback") == 1
    assert not (tmp_path / "out.ipynb").exists()
    assert not processes()


@pytest.mark.parametrize("content", ["hello", '{"a": 1}', "[]", '{"nbformat": 99, "cells": []}', b'{"\xe9": 1}'])
def test_what_is_no_notebook_is_refused_before_the_work(tmp_path, capsys, content):
    path = tmp_path / "mine.ipynb"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as end:
        main(["report", "--model", "nowhere/x", "--notebook", str(path), "--output", str(tmp_path / "out")])
    assert end.value.code == 2
    assert f"{path} is not a notebook: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def browser_that(tmp_path, monkeypatch):
    """Makes browsers do something else than draw."""

    def runs(way):
        browser = tmp_path / "chromium"
        browser.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/started\n{way}\n".format(path=tmp_path / "started"))
        browser.chmod(0o755)
        monkeypatch.setenv("BROWSER_PATH", str(browser))
        monkeypatch.setattr(pictures, "_without_browser", [])

    return runs


LEAVES = "setsid sh -c 'echo $$ >> {path}; exec sleep 1000'"


@pytest.mark.parametrize("way", ["exec sleep 1000", f"{LEAVES}; sleep 1000", f"{LEAVES} &\nsleep 0.2", "exit 1"])
def test_a_browser_that_does_not_draw_has_a_limit_and_leaves_nothing(
    tmp_path, monkeypatch, caplog, browser_that, processes, limits, way
):
    monkeypatch.setattr(pictures, "SECONDS_PER_FIGURE", 0.1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    caplog.set_level("INFO", "mwork_lens")
    names = [tmp_path / "a", tmp_path / "b.c"]
    for limit in limits(4.0, 20.0, 100.0):
        browser_that(way)
        monkeypatch.setattr(pictures, "SECONDS", limit)
        for _ in range(2):  # the second time it is not tried
            assert write_figures(dict.fromkeys(names, go.Figure())) == [tmp_path / "a.html", tmp_path / "b.c.html"]
    assert "No a.png, b.c.png" in caplog.text
    assert not processes()
    assert not any((tmp_path / "temporary").iterdir())


def test_ctrl_c_while_a_browser_draws_leaves_no_process(tmp_path, browser_that, processes):
    browser_that(f"trap '' INT TERM; kill -INT {os.getpid()}; sleep 1000")
    with pytest.raises(KeyboardInterrupt):
        write_figures({tmp_path / "a": go.Figure()})
    assert (tmp_path / "a.html").is_file()
    assert not processes()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_figures_are_drawn_where_there_is_a_browser(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_without_browser", [])
    assert write_figures({tmp_path / "a": go.Figure()}) == [tmp_path / "a.html", tmp_path / "a.png"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
