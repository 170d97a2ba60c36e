"""Parts of a model on several places: what is read from disk computes as what is in memory, and nothing is lost."""

import gc
import tempfile
from typing import Any

import pandas as pd
import pytest
import torch
import transformers

import mwork_lens as mw
from mwork_lens.model import Fingerprint, model_record, run_blocks, wrapped_model
from mwork_lens.model.checkpoints import skeleton
from mwork_lens.model.offloaded import is_offloaded, modules_of, present
from mwork_lens.model.placement import Placement, place_by_part

from ..analyses import QUIET, corpus, identify, named_tokenizer
from ..analyses import WORDS as LANGUAGES
from ..tiny import HOOKED, some_neurons

on_disk = pytest.mark.skipif(HOOKED, reason="TransformerLens runs layers from disk from 4.3 on")
SIZES = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 4},
    **{"num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 64},
}
SOME = {"": "cpu", "model.layers.1": "disk", "model.norm": "disk"}


def config(kind="Qwen3", **options):
    return getattr(transformers, f"{kind}Config")(**{**SIZES, "tie_word_embeddings": True, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("qwen"), "Qwen3")


def saved(folder, kind, **options):
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config(kind, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else torch.rand_like(parameter).add_(0.5))
    model.save_pretrained(folder)
    named_tokenizer().save_pretrained(folder)
    return folder


def everything(model):
    """What analyses give, as tables."""
    text, more, quiet = corpus(0, 2), corpus(1, 1), dict[str, Any](QUIET)
    detection = mw.detect(model, text, top=0.3, verify=False, **quiet)
    sets = {"fr": detection.specific("fr", quorum=0.5)}
    labels = mw.label_vocabulary(model, list(LANGUAGES), identifier=identify, identify_over=list(LANGUAGES))
    lens = {"token_languages": labels, **quiet}
    yield from (pd.DataFrame(scores.numpy()) for each in detection.mean_scores.values() for scores in each.values())
    yield mw.effect_matrix(model, sets, more, **quiet).to_frame()
    yield mw.language_ratio(model, more, directions=4, top_k=5, **lens).to_frame()
    yield mw.inspect(model, [(0, "mlp", 3), (1, "v", 5), (2, "mlp", 9)], more, contexts=1, top_k=4, **lens).to_frame()
    with mw.ablate(model, sets["fr"]):
        texts = mw.generate(model, ["le chien", "the dog"], max_new_tokens=4)
    yield pd.DataFrame([each.text for each in texts])


@on_disk
def test_from_disk_everything_is_as_from_memory(folder):
    here, there = mw.load_model(folder, device="cpu"), mw.load_model(folder, device_map={"": "disk"})
    assert there.cfg.device == "cpu"
    assert model_record(there) == model_record(here)
    for ours, theirs in zip(everything(there), everything(here), strict=True):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    own = [each for module in modules_of(there) if is_offloaded(module) for each in module.parameters(recurse=False)]
    assert own
    assert all(each.is_meta and each.dtype == torch.float32 for each in own)


@on_disk
def test_what_finds_no_room_goes_to_disk(folder):
    model, ids = mw.load_model(folder, device_map="auto", max_memory={"cpu": 24000}), torch.arange(1, 20)[None]
    held = [is_offloaded(module) for module in modules_of(wrapped_model(model)) if [*module.parameters(recurse=False)]]
    assert {*held} == {True, False}
    assert torch.equal(run_blocks(model, ids), run_blocks(mw.load_model(folder, device="cpu"), ids))


@on_disk
def test_half_precision_from_disk_is_widened_and_narrowed_again(tmp_path):
    where = saved(tmp_path, "Gemma2", sliding_window=8)
    here = mw.load_model(where, dtype="bfloat16", device="cpu")
    there = mw.load_model(where, dtype="bfloat16", device_map=SOME)
    ours, theirs = (mw.check_scores(model, layers=[1], progress=False) for model in (there, here))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert {each.dtype for each in there.parameters()} == {torch.bfloat16}
    ids = torch.arange(1, 20)[None]
    assert torch.equal(run_blocks(there, ids), run_blocks(here, ids))
    assert Fingerprint.of(there) == Fingerprint.of(here)


@on_disk
def test_weights_on_disk_are_not_changed(folder):
    model = mw.load_model(folder, device_map=SOME)
    some = some_neurons(model)
    before = Fingerprint.of(model)
    with pytest.raises(ValueError, match=r"lie on disk .* cannot be changed"), mw.edit_weights(model, some):
        pass
    with pytest.raises(ValueError, match=r"lie on disk .* cannot be tuned"):
        mw.tune(model, some, ["le chien rouge"], steps=1, progress=False)
    in_memory = mw.load_model(folder, device="cpu")
    delta = mw.tune(in_memory, some, ["le chien rouge"], steps=1, learning_rate=1e-3, progress=False).delta
    assert delta is not None
    with pytest.raises(ValueError, match=r"lie on disk .* cannot be changed"):
        delta.apply(model)
    assert Fingerprint.of(model) == before


@on_disk
def test_what_was_written_anew_is_removed_with_the_model(folder, tmp_path, monkeypatch):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs.config.save_pretrained(tmp_path / "bin")
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    named_tokenizer().save_pretrained(tmp_path / "bin")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = mw.load_model(tmp_path / "bin", device_map={"": "disk"})
    assert list(tmp_path.glob("mwork-lens-*/*"))
    with present(model):
        assert torch.equal(
            model.blocks[1].attn.q.original_component.weight, theirs.model.layers[1].self_attn.q_proj.weight
        )
    del model
    gc.collect()
    assert not list(tmp_path.glob("mwork-lens-*"))


def test_one_place_is_an_ordinary_device(folder):
    for device_map in ("auto", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}):
        model = mw.load_model(folder, device_map=device_map)
        assert type(model).__name__ == ("HookedTransformer" if HOOKED else "TransformerBridge")
        assert not any(map(is_offloaded, modules_of(model)))


def test_a_part_is_taken_apart_where_something_of_it_is_elsewhere():
    parts = place_by_part(skeleton(config(), torch.float32), {"": "cpu", "model.layers.1.mlp": "disk"})
    layers = [f"model.layers.{layer}" for layer in (0, 2)]
    inner = [name for name in parts if name.startswith("model.layers.1.")]
    assert {name for name, place in parts.items() if place == "disk"} == {"model.layers.1.mlp"}
    assert {*layers, "model.embed_tokens", "model.norm", "lm_head"} <= parts.keys() - {"", "model", "model.layers"}
    assert "model.layers.1.self_attn" in inner


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": {"": "cpu", "model.layers.7": "disk"}}, "names 'model.layers.7', which .* does not have"),
        ({"device_map": {"": "cpu", "lm_head": "disk"}}, "which are one weight: give both the same place"),
        ({"device_map": {"model": "cpu"}, "untied": True}, "gives lm_head.weight of .* no place"),
        ({"device_map": {"": "cuda:97"}}, "There is no device cuda:97 here"),
        ({"device_map": {"": "meta"}}, "'meta' holds no numbers"),
        ({"device_map": "auto", "device": "cpu"}, "give one of them"),
        ({"max_memory": {"cpu": "1GB"}}, "give that too"),
        ({"device_map": {"": "cpu"}, "max_memory": {"cpu": "1GB"}}, "no use beside a device_map"),
        ({"device_map": "auto", "max_memory": {"cpu": "lots"}}, "max_memory={'cpu': 'lots'} cannot be kept"),
    ],
)
def test_refused_before_anything_is_read(folder, tmp_path, options, message):
    config(tie_word_embeddings=not options.pop("untied", False)).save_pretrained(tmp_path)  # without weights
    with pytest.raises(ValueError, match=message):
        mw.load_model(tmp_path, **options)


def test_what_transformer_lens_does_not_run_is_refused(folder):
    theirs = config()
    if HOOKED:
        with pytest.raises(ValueError, match="would lie on disk, which this TransformerLens does not run"):
            Placement.of(theirs, torch.float32, "tiny", {"": "disk"}, None)
    with pytest.raises(ValueError, match="is in memory"):
        mw.load_model(transformers.AutoModelForCausalLM.from_config(theirs), device_map="auto")
