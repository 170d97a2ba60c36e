import contextlib
import copy
import itertools
import json
import math
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mwork_lens as mw
from mwork_lens.model import Encoded
from mwork_lens.neurons import NeuronSet, NeuronSpace, Origin
from mwork_lens.store import Result, storable
from mwork_lens.store.result import _hashes

from ..tiny import tiny, tokens

SPACE = NeuronSpace("made-up", 3, 8, 4, 2, 3, 5, "unprocessed")
FILES = {"cfg.json", "tensors.safetensors"}


@storable
@dataclass(frozen=True, eq=False)
class Part:
    name: str
    content: Any


@dataclass(frozen=True, eq=False)
class Box(Result, kind="box"):
    content: Any
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Undeclared:
    number: int = 1


def same(a, b):
    """Equal in type, value, order and dtype."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        bits = [x.flatten().view(torch.uint8) if x.numel() else x for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, Part):
        return a.name == b.name and same(a.content, b.content)
    if isinstance(a, Mapping):
        return len(a) == len(b) and all(
            same(k, m) and same(x, y) for (k, x), (m, y) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
]  # fmt: skip
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.builds(lambda shape, dtype: (torch.randn(shape) * 9).to(dtype), shapes, st.sampled_from(DTYPES))
arrays = st.builds(
    lambda shape, dtype: np.random.default_rng(0).integers(0, 9, shape).astype(dtype),
    shapes, st.sampled_from(["bool", "int8", "uint16", "int64", "float16", "float32", "float64"]),
)  # fmt: skip
texts = st.text(max_size=5) | st.sampled_from(["$", "of", "a/b", "../x", "../../etc", "ไทย", "\ud800", "tensor", ""])
keys = texts | st.integers() | st.none() | st.booleans() | st.tuples(st.integers(), texts)
atoms = (
    st.none() | st.booleans() | st.integers() | st.floats() | texts | tensors | arrays
    | st.sampled_from([torch.bfloat16, torch.int64, Path("~/a b/é"), range(2, 9, 3), frozenset({"a", "b"}), {1, 2}])
)  # fmt: skip
trees = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(texts, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(texts, inner, max_size=3).map(MappingProxyType)
        | st.builds(Part, texts, inner)
    ),
    max_leaves=12,
)


def saved(path, content, **settings):
    Box(content, settings).save(path, overwrite=True)
    return path


@settings(deadline=None, max_examples=150)
@given(trees)
def test_values_come_back_as_they_were(tmp_path_factory, content):
    path = saved(tmp_path_factory.getbasetemp() / "tree", content)
    assert same(Box.load(path).content, content)
    assert {entry.name for entry in path.iterdir()} == FILES
    json.loads((path / "cfg.json").read_bytes().decode(errors="surrogatepass"), parse_constant=pytest.fail)


def test_numbers_of_numpy_are_numbers(tmp_path):
    values = {
        "top": np.float32(0.2),
        "seed": np.int64(3),
        "on": np.bool_(True),
        "name": np.str_("a"),
        "x": np.float64("inf"),
    }
    loaded = Box.load(saved(tmp_path / "box", values)).content
    assert loaded == {"top": float(np.float32(0.2)), "seed": 3, "on": True, "name": "a", "x": math.inf}
    assert [type(value) for value in loaded.values()] == [float, int, bool, str, float]
    languages = np.array([["en", "fr"], ["ไทย", ""]])
    assert (Box.load(saved(tmp_path / "box", languages)).content == languages).all()


def test_arrays_that_share_memory_or_are_views(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    content = [base, base, base[1], base.T, base[:, ::2], base.numpy()[::-1], np.arange(3, dtype=">i4"), np.array(2.5)]
    loaded = Box.load(saved(tmp_path / "box", content)).content
    assert all(np.array_equal(a, b) for a, b in zip(loaded, content, strict=True))
    assert [type(a) for a in loaded] == [type(a) for a in content]


@pytest.mark.parametrize(
    "value", [Undeclared(), object(), len, 1j, b"bytes", np.array([b"text"]), np.array([object()])]
)
def test_what_has_no_stored_form_is_refused_before_writing(tmp_path, value):
    with pytest.raises(TypeError, match="content of this Box cannot be saved"):
        Box({"a": [value]}).save(tmp_path / "box")
    assert not list(tmp_path.iterdir())


def test_only_declared_classes_are_made(tmp_path):
    path = saved(tmp_path / "box", Part("a", 1))
    rehash(path, lambda cfg: cfg["fields"]["content"].update({"$": "Undeclared", "of": {"number": 2}}))
    with pytest.raises(ValueError, match=r"box does not hold a whole 'box': KeyError: 'Undeclared'"):
        Box.load(path)
    rehash(path, lambda cfg: cfg["fields"]["content"].update({"$": "dtype", "of": "load"}))
    with pytest.raises(ValueError, match="KeyError: 'load'"):
        Box.load(path)


def rehash(path, change):
    cfg = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
    change(cfg)
    cfg["sha256"] = _hashes(cfg, path / "tensors.safetensors")
    (path / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    content = {"a/b": torch.arange(3), "f": (1.5, float("nan")), "ไทย": Part("x", np.ones(2))}
    return saved(tmp_path_factory.mktemp("box") / "box", content, model="tiny")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_byte_that_changes_is_noticed_or_does_not_matter(box, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(box, path)
    file = path / data.draw(st.sampled_from(sorted(FILES)))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        loaded = Box.load(path)
    except (ValueError, FileNotFoundError) as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    assert same(loaded.content, Box.load(box).content)
    assert loaded.settings == {"model": "tiny"}


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_files_that_were_cut_short(box, tmp_path, name, share):
    path = tmp_path / "cut"
    shutil.copytree(box, path)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"cut/{name} is (damaged|not what was written)"):
        Box.load(path)


@pytest.mark.parametrize("hashes", [None, 3, {}, {"cfg": "0"}])
def test_a_header_without_its_hashes_is_what_was_changed(box, tmp_path, hashes):
    shutil.copytree(box, tmp_path / "b")
    cfg = {**header(box), "sha256": hashes}
    (tmp_path / "b" / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
    with pytest.raises(ValueError, match=r"b/cfg\.json is not what was written"):
        Box.load(tmp_path / "b")


def test_other_kinds_newer_formats_and_missing_files(box, tmp_path):
    path = tmp_path / "b"
    with pytest.raises(FileNotFoundError, match="b holds no saved result"):
        Box.load(path)
    shutil.copytree(box, path)
    with pytest.raises(ValueError, match="b holds a 'box', not a 'neuron_set'"):
        NeuronSet.load(path)
    rehash(path, lambda cfg: cfg.update(format=3))
    with pytest.raises(ValueError, match=r"newer mwork_lens \(format 3\)"):
        Box.load(path)
    rehash(path, lambda cfg: cfg.update(format=2))
    (path / "tensors.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b is not whole: tensors\.safetensors is missing"):
        Box.load(path)


def test_overwriting_replaces_one_result_and_nothing_else(tmp_path):
    path = saved(tmp_path / "box", torch.ones(2))
    with pytest.raises(FileExistsError, match="box exists already"):
        Box(1).save(path)
    Box(2).save(path, overwrite=True)
    assert Box.load(path).content == 2
    (path / "notes.txt").write_text("mine")
    for other in (path, tmp_path / "file", tmp_path):
        if not other.exists():
            other.write_text("text")
        with pytest.raises(FileExistsError, match="something other than one saved result"):
            Box(3).save(other, overwrite=True)
    assert Box.load(path).content == 2
    Box(4).save(tmp_path / "deep" / "er", overwrite=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"box", "file", "deep"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("step", ["save_file", "versions", "_hashes", "os.replace"])
def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch, step, overwrite):
    path, before = tmp_path / "box", {"box"} if overwrite else set()
    if overwrite:
        saved(path, "old")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mwork_lens.store.result.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Box(torch.ones(3)).save(path, overwrite=overwrite)
    monkeypatch.undo()
    assert {entry.name for entry in tmp_path.iterdir()} == before
    assert not overwrite or Box.load(path).content == "old"


@pytest.mark.parametrize(("steps", "content"), [(0, "old"), (1, "old"), (2, "old"), (3, "new")])
def test_a_process_killed_while_it_overwrites_leaves_a_result(tmp_path, monkeypatch, steps, content):
    """Killed before and between its two renames, or before the old result is removed; the next save tidies up."""
    path, number = saved(tmp_path / "box", "old"), itertools.count()

    def until_killed(function, *arguments, **options):
        if next(number) >= steps:
            raise KeyboardInterrupt  # in cleaning up as well
        function(*arguments, **options)

    monkeypatch.setattr(os, "replace", partial(until_killed, os.replace))
    monkeypatch.setattr(shutil, "rmtree", partial(until_killed, shutil.rmtree))
    with pytest.raises(KeyboardInterrupt):
        Box("new").save(path, overwrite=True)
    monkeypatch.undo()
    assert path.exists() == (steps != 2)
    with pytest.raises(FileExistsError, match=f"{'.box.previous' if steps == 2 else 'box'} exists already"):
        Box(3).save(path)
    with pytest.warns(UserWarning, match="killed save left") if steps == 2 else contextlib.nullcontext():
        assert Box.load(path).content == content
    Box(4).save(path, overwrite=True)
    assert Box.load(path).content == 4
    assert not list(tmp_path.glob(".box.previous"))


def test_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Box(1).save("~/box")
    assert Box.load("~/box").content == Box.load(tmp_path / "box").content == 1


def header(path):
    return json.loads((path / "cfg.json").read_text(encoding="utf-8"))


def test_header(box, tmp_path):
    cfg = header(box)
    assert list(cfg) == ["kind", "format", "versions", "sha256", "model", "documents", "fields"]
    assert (cfg["kind"], cfg["format"]) == ("box", 2)
    assert cfg["model"] == {"name": "tiny", "fingerprint": None}
    assert cfg["documents"] is None
    NeuronSet.empty(SPACE).save(tmp_path / "set")
    assert header(tmp_path / "set")["model"] == {"name": "made-up", "fingerprint": None}


def test_widths_may_be_listed_by_layer_but_not_differ(tmp_path):
    path = tmp_path / "set"
    (~NeuronSet.empty(SPACE)).save(path)
    assert header(path)["fields"]["space"]["of"]["widths"] == {"q": 12, "k": 6, "v": 6, "mlp": 5}
    rehash(path, lambda cfg: cfg["fields"]["space"]["of"]["widths"].update(mlp=[5, 5, 5]))
    assert NeuronSet.load(path) == ~NeuronSet.empty(SPACE)
    rehash(path, lambda cfg: cfg["fields"]["space"]["of"]["widths"].update(mlp=[5, 4, 5]))
    with pytest.raises(ValueError, match=r"set .*made-up has mlp neurons of widths \[5, 4, 5\]"):
        NeuronSet.load(path)


def test_sites_that_a_saved_set_lacks_are_empty(tmp_path):
    path = tmp_path / "set"
    NeuronSet.from_list(SPACE, [(1, "k", 5)]).save(path)
    rehash(path, lambda cfg: cfg["fields"]["masks"]["of"].pop("mlp"))
    assert NeuronSet.load(path) == NeuronSet.from_list(SPACE, [(1, "k", 5)])


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda value: pickle.loads(pickle.dumps(value))])
def test_sets_can_be_copied_and_sent_to_processes(again):
    french = NeuronSet.from_list(SPACE, [(0, "q", 1)], language="fr", against=["en"], top=0.2)
    for neurons in (french, french - ~french, french.restrict(layers=[0])):
        other = again(neurons)
        assert other == neurons
        assert dict(other.origin) == dict(neurons.origin)
        assert repr(other) == repr(neurons)
        assert isinstance(other.origin, Origin)


def test_history_of_set_algebra_is_saved_whole(tmp_path):
    french = NeuronSet.from_list(SPACE, [(0, "q", 1)], language="fr", kind="specific", quorum=0.9, of={"a": (1, 2)})
    both = (french & ~NeuronSet.empty(SPACE, kind="random")) - french
    both.save(tmp_path / "set")
    origin = NeuronSet.load(tmp_path / "set").origin
    assert dict(origin) == {"minus": ["(fr specific and not random)", "fr specific"]}
    assert origin.operands[1].quorum == 0.9
    assert origin.operands[0].operands[0] == french.origin
    assert (Origin() | dict(origin)) == origin


def test_headers_hold_the_hashes_of_documents(tmp_path):
    model, corpus = tiny("llama"), {"en": [tokens(5), tokens(7, 1)], "fr": [tokens(6, 2), tokens(4, 3)]}
    hashes = {language: list(names) for language, names in Encoded.of(model, corpus, 512).hashes.items()}
    mw.collect_means(model, corpus, progress=False).save(tmp_path / "means")
    assert header(tmp_path / "means")["documents"] == hashes

    def effects(detection):
        return {"en": detection.active("en")}

    mw.folded_effects(model, corpus, effects, folds=2, progress=False).save(tmp_path / "effects")
    matrix = mw.EffectMatrix.load(tmp_path / "effects")
    assert {language: sorted(names) for language, names in header(tmp_path / "effects")["documents"].items()} == {
        language: sorted(names) for language, names in hashes.items()
    }
    parts = [matrix.fold(number).select(languages=["fr"]).documents_of for number in (0, 1)]
    assert [list(part) for part in parts] == [["fr"], ["fr"]]
    assert sorted([*parts[0]["fr"], *parts[1]["fr"]]) == sorted(hashes["fr"])


def test_cutting_a_set_leaves_its_history():
    french = NeuronSet.from_list(SPACE, [(0, "q", 1), (1, "k", 2)], language="fr", quorum=0.9)
    both = french & ~NeuronSet.empty(SPACE)
    for cut in (mw.cut_to_size(both, 1), mw.cut_to_equal({"fr": both, "other": french})["fr"]):
        assert cut.origin.operands[0] == french.origin
        assert cut.origin.operands[0].quorum == 0.9


def test_whole_numbers_take_as_few_bytes_as_hold_them(tmp_path):
    numbers = {bound: torch.arange(bound - 255, bound + 1) for bound in (255, 2**15 - 1, 2**31 - 1, 2**62)}
    for bound, size in zip(numbers, (1, 2, 4, 8), strict=True):
        Box(numbers[bound]).save(tmp_path / str(size))
        loaded = Box.load(tmp_path / str(size)).content
        assert same(loaded, numbers[bound])
        header = 8 + int.from_bytes((tmp_path / str(size) / "tensors.safetensors").read_bytes()[:8], "little")
        assert (tmp_path / str(size) / "tensors.safetensors").stat().st_size - header == 256 * size
