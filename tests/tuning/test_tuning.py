"""Tuning against dense AdamW in float64; nothing outside the selection moves; killed runs resume; deltas and export."""

import copy
import inspect
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import mwork_lens as mw
from mwork_lens.bench import tuning_cost
from mwork_lens.model import Site, Slices, add_site, remove_site
from mwork_lens.model.forward import batches
from mwork_lens.neurons.weights import selected_entries
from mwork_lens.text import as_corpus
from mwork_lens.tuning.masked import MaskedParameter, kept_weights, training
from mwork_lens.tuning.recipe import accumulate_gradient

from ..tiny import HOOKED, SMALL, spelled, tiny, tokens, words

TEXTS = [tokens(length, seed) for seed, length in enumerate((9, 14, 6, 11, 8, 12, 7))]
NEURONS = [
    (0, "mlp", 3),
    (0, "mlp", 19),
    (1, "mlp", 3),
    (0, "q", 31),
    (1, "q", 5),
    (1, "k", 9),
    (1, "v", 2),
    (0, "v", 15),
]
OPTIONS = {"learning_rate": 1e-2, "batch_size": 3, "progress": False}


def fresh(family="gemma3", dtype=torch.float64):
    return copy.deepcopy(tiny(family, dtype))


def some(model, neurons=NEURONS):
    return mw.NeuronSet.from_list(mw.NeuronSpace.of(model), neurons)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            as_corpus({"en": ["a b c"], "fr": ["d e f"]}),
            "texts must be a list .*not Corpus by language: give those of one",
        ),
        ({"a b": ["a b c"]}, "texts must be a list of documents, not dict by language"),
        ("a b c", "texts must be a list of documents, not str: put a single one in a list"),
        (tokens(5), "texts must be a list of documents, not Tensor"),
        (pd.DataFrame({"a": ["a b"]}), "texts must be a list of documents, not DataFrame"),
        (np.ones((2, 3), int), r"texts must be a list of documents, not an array of shape \(2, 3\)"),
        ((text for text in ["a b"]), "texts must be a list of documents, not generator"),
        (["a b c", None], "text 1 is a NoneType, not a string"),
        (["a b c", "a\0b"], "text 1 is not clean text: it holds a NUL character"),
        ([["a b c"]], "text 0 is a list, not a string"),
    ],
)
def test_what_is_not_a_list_of_texts_is_refused(texts, message):
    """A corpus would be trained on as the names of its languages, a string as its letters."""
    model, tune = spelled("llama"), inspect.unwrap(mw.tune)
    with pytest.raises(ValueError, match=message):
        tune(model, some(model), texts, progress=False)
    with pytest.raises(ValueError, match=f"held-out {message}"):
        tune(model, some(model), ["a b c"], held_out=texts, progress=False)


@pytest.mark.filterwarnings("ignore:.*entries changed")
@pytest.mark.parametrize("kind", [tuple, pd.Series, np.array])
def test_other_lists_of_texts_are_lists(kind):
    tune, texts = inspect.unwrap(mw.tune), ["a b c d", "d e f", "g h a"]
    given = {"steps": 1, "learning_rate": 1e-2, "progress": False}
    models = [spelled("llama") for _ in range(2)]
    first, second = (
        tune(model, some(model), some_texts, held_out=held_out, **given)
        for model, some_texts, held_out in zip(models, (texts, kind(texts)), (["a a b"], kind(["a a b"])), strict=True)
    )
    assert [step.loss for step in first.steps] == [step.loss for step in second.steps]


@pytest.mark.filterwarnings("ignore:The tokenizer does not know")  # capitals
def test_held_out_texts_that_are_trained_on_are_said():
    model = spelled("llama")
    with pytest.warns(UserWarning, match="1 of 2 held-out texts are among those to train on"):
        mw.tune(
            model,
            some(model),
            ["a b c", "d e"],
            held_out=["A b  c", "f g"],
            steps=1,
            learning_rate=1e-2,
            progress=False,
        )


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def selected(model, neurons, gate=False):
    """By parameter name, a mask of the entries that may change, written out by hand."""
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for layer, site, neuron in neurons:
        block = f"blocks.{layer}."
        if site == "mlp":
            masks[block + "mlp.W_in"][:, neuron] = masks[block + "mlp.W_out"][neuron] = True
            masks[block + "mlp.b_in"][neuron] = True
            if gate:
                masks[block + "mlp.W_gate"][:, neuron] = True
            continue
        head, index = divmod(neuron, model.cfg.d_head)
        letter = site.upper()
        stored = "_" if f"{block}attn._W_{letter}" in masks else ""
        masks[f"{block}attn.{stored}W_{letter}"][head, :, index] = True
        masks[f"{block}attn.{stored}b_{letter}"][head, index] = True
    return masks


def dense_gradients(model, texts):
    model.zero_grad()
    count = sum(len(ids) - 1 for ids in texts)
    loss = sum(model(ids[None], return_type="loss") * (len(ids) - 1) for ids in texts) / count
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "gpt2", "neox", "bloom", "olmo2"])
def test_selected_gradients_are_the_dense_ones(family, monkeypatch):
    monkeypatch.setattr("mwork_lens.tuning.recipe.POSITIONS_AT_ONCE", 5)
    model = fresh(family)
    gate = model.cfg.gated_mlp
    parts = [MaskedParameter(entries) for entries in selected_entries(model, some(model), gate=gate)]
    with training(model, parts):
        for batch in batches(model, TEXTS, 2):
            accumulate_gradient(model, batch, sum(len(ids) - 1 for ids in TEXTS))
        assert all(p.grad is None for p in model.parameters())
    dense, masks = dense_gradients(model, TEXTS), selected(model, NEURONS, gate)
    assert sum(part.master.numel() for part in parts) == sum(int(mask.sum()) for mask in masks.values())
    for part in parts:
        name = next(n for n, p in model.named_parameters() if p is part.entries.parameter)
        torch.testing.assert_close(part.master.grad, part.entries.read(dense[name]), rtol=1e-6, atol=1e-12)
        assert part.master.grad.abs().max() > 0
        # and these are the entries written out by hand
        painted = torch.zeros_like(part.entries.parameter)
        part.entries.parameter.data, kept = painted, part.entries.parameter.data
        part.entries.write(torch.ones_like(part.master))
        assert torch.equal(painted.bool(), masks[name])
        part.entries.parameter.data = kept


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_one_step_is_dense_adamw_with_a_masked_update(weight_decay):
    model, dense = fresh(), fresh()
    # one step at full rate; a clip that bites is of the selected entries' norm
    mw.tune(model, some(model), TEXTS, **{**OPTIONS, "batch_size": 7}, weight_decay=weight_decay, clip=0.01)
    masks, gradients, before = selected(dense, NEURONS), dense_gradients(dense, TEXTS), weights(dense)
    norm = (
        torch.stack([gradients[name][mask].square().sum() for name, mask in masks.items() if mask.any()]).sum().sqrt()
    )
    for name, parameter in dense.named_parameters():
        parameter.grad = gradients[name] * masks[name] * min(1, 0.01 / norm)
    torch.optim.AdamW(dense.parameters(), lr=1e-2, weight_decay=weight_decay).step()
    for name, parameter in dense.named_parameters():
        expected = torch.where(masks[name], parameter, before[name])
        torch.testing.assert_close(dict(model.named_parameters())[name], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_everything_else_is_bit_identical(dtype, weight_decay, micro_batch_size):
    model = fresh(dtype=dtype)
    before, masks, state = weights(model), selected(model, NEURONS), model.state_dict().keys()
    required = [p.requires_grad for p in model.parameters()]
    options = {**OPTIONS, "weight_decay": weight_decay, "micro_batch_size": micro_batch_size, "epochs": 2}
    options |= {"held_out": TEXTS}
    tuned = mw.tune(model, some(model), TEXTS, **options)
    for name, values in weights(model).items():
        assert torch.equal(values[~masks[name]], before[name][~masks[name]])
        assert not masks[name].any() or not torch.equal(values[masks[name]], before[name][masks[name]])
    assert required == [p.requires_grad for p in model.parameters()]
    assert state == model.state_dict().keys()
    assert tuned.changed > 0.9
    assert len(tuned.steps) == 6
    assert all(step.learning_rate > 0 for step in tuned.steps)
    assert tuned.held_out[6] < tuned.held_out[0]
    # the optimiser saw float32 masters: their rounding is what is stored
    tuned.delta.revert(model)
    assert all(torch.equal(values, before[name]) for name, values in weights(model).items())


def test_accumulation_is_the_same_step():
    losses = []
    for micro in (1, 2, 7):
        model = fresh()
        losses.append(mw.tune(model, some(model), TEXTS, **OPTIONS, micro_batch_size=micro).to_frame()["loss"])
    for other in losses[1:]:
        assert other.tolist() == pytest.approx(losses[0].tolist(), rel=1e-9)


def test_backward_stops_below_the_lowest_selected_layer():
    model, seen = fresh(), []
    model.blocks[0].register_full_backward_hook(lambda *_: seen.append(0))
    with training(model, [MaskedParameter(e) for e in selected_entries(model, some(model, [(1, "mlp", 3)]))]):
        (batch,) = batches(model, TEXTS[:1])
        accumulate_gradient(model, batch, 8)
    assert not seen


def test_zero_biases_are_nobodys():
    model = fresh("llama")
    for name, parameter in model.named_parameters():
        if ".b_" in name or "._b_" in name:
            parameter.data.zero_()
    assert not any(".b_" in entries.name for entries in selected_entries(model, some(model)))


def test_all_parameters_are_dense_adamw_and_tied_embeddings_one():
    model, dense = fresh(), fresh()
    for m in (model, dense):
        m.embed.W_E.data = m.unembed.W_U.data.t() * 24**0.5
    mw.tune(model, "all", TEXTS, **{**OPTIONS, "batch_size": 7}, clip=1e9)
    gradients = dense_gradients(dense, TEXTS)
    gradients["unembed.W_U"] += gradients.pop("embed.W_E").t() * 24**0.5
    for name, parameter in dense.named_parameters():
        parameter.grad = gradients.get(name)
    torch.optim.AdamW(dense.parameters(), lr=1e-2, weight_decay=0).step()
    dense.embed.W_E.data = dense.unembed.W_U.data.t() * 24**0.5
    for name, values in weights(dense).items():
        torch.testing.assert_close(weights(model)[name], values, rtol=1e-5, atol=1e-9)


def test_packed_rows_hold_every_token_once():
    model = fresh()
    tuned = mw.tune(model, some(model), TEXTS, **OPTIONS, layout="packed", max_tokens=10)
    total = sum(map(len, TEXTS))
    assert sum(step.tokens for step in tuned.steps) == total - -(-total // 10)


def test_early_stopping_keeps_the_best():
    model = fresh()
    options = {**OPTIONS, "learning_rate": 0.2, "steps": 30, "held_out": [tokens(30, 99)]}
    tuned = mw.tune(model, some(model), TEXTS, **options, evaluate_every=1, patience=3)
    assert len(tuned.steps) < 30
    assert tuned.held_out[tuned.settings["kept_step"]] == min(tuned.held_out.values())
    loss = model(tokens(30, 99)[None], return_type="loss").item()
    assert loss == pytest.approx(min(tuned.held_out.values()), rel=1e-6)


class Killed(Exception):
    pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kill_at", [1, 4, 5])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, dtype, kill_at):
    options = {**OPTIONS, "epochs": 2, "held_out": TEXTS[:2], "evaluate_every": 2}

    def kill(step):
        if step.step == kill_at:
            raise Killed

    straight = fresh(dtype=dtype)
    expected = mw.tune(straight, some(straight), TEXTS, **options)
    killed = fresh(dtype=dtype)
    with pytest.raises(Killed):
        mw.tune(killed, some(killed), TEXTS, **options, checkpoint=tmp_path, checkpoint_every=2, callbacks=[kill])
    assert all(torch.equal(v, weights(tiny("gemma3", dtype))[n]) for n, v in weights(killed).items())
    for model in (killed, fresh(dtype=dtype)):
        tuned = mw.tune(model, some(model), TEXTS, **options, checkpoint=tmp_path, checkpoint_every=2)
        assert all(torch.equal(values, weights(straight)[name]) for name, values in weights(model).items())
        assert tuned.steps == expected.steps
        assert tuned.held_out == expected.held_out
        assert all(torch.equal(t, expected.delta.tensors()[n]) for n, t in tuned.delta.tensors().items())
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="recipe"):
        mw.tune(fresh(dtype=dtype), some(straight), TEXTS, **{**options, "epochs": 3}, checkpoint=tmp_path)
    other = fresh(dtype=dtype)
    other.blocks[0].mlp.W_in.data[0, 3] += 1
    with pytest.raises(ValueError, match=r"with other weights: tiny-gemma3 was .*, and tiny-gemma3 is"):
        mw.tune(other, some(other), TEXTS, **options, checkpoint=tmp_path)


def test_results_and_deltas_survive_saving(tmp_path):
    model, other = fresh(dtype=torch.bfloat16), fresh(dtype=torch.bfloat16)
    tuned = mw.tune(model, some(model), TEXTS, **OPTIONS, gate=True)
    tuned.save(tmp_path / "tuned")
    tuned.delta.save(tmp_path / "delta")
    loaded = mw.Tuned.load(tmp_path / "tuned")
    assert loaded.to_frame().equals(tuned.to_frame())
    assert loaded.changes.equals(tuned.changes)
    delta = mw.NeuronDelta.load(tmp_path / "delta")
    delta.apply(other)
    assert all(torch.equal(values, weights(model)[name]) for name, values in weights(other).items())
    with pytest.raises(ValueError, match="does not hold the delta's old values"):
        delta.apply(other)
    delta.revert(other)
    assert all(torch.equal(v, weights(tiny("gemma3", torch.bfloat16))[n]) for n, v in weights(other).items())


def test_effects_of_deltas_are_changes_of_loss_and_the_model_is_as_before():
    model, texts = fresh(), {"en": TEXTS[:3], "fr": TEXTS[3:]}
    french = mw.NeuronSet(mw.NeuronSpace.of(model), some(model).masks, {"language": "fr", "kind": "specific"})
    before, losses = weights(model), mw.language_losses(model, texts)
    tuned = mw.tune(model, french, texts["fr"], steps=4, **OPTIONS)
    change = (mw.language_losses(model, texts) - losses)["nats_per_token"]
    tuned.delta.revert(model)
    rows = {"mine": tuned.delta, "fr": [tuned.delta] * 2}
    with pytest.warns(UserWarning, match=r"documents tuning has seen 57 % in this language \(fr 4 of 4\)"):
        effects = mw.tuning_effects(model, rows, texts, progress=False)
    assert effects.documents_read["seen"].to_dict() == {"en": 0, "fr": 4}
    assert effects.documents_read["unknown"].sum() == 0
    assert "tuning has seen 57 %" in effects.finding("mine")
    assert len(tuned.delta) == len(NEURONS)
    assert all(effects.to_frame().loc[row].to_dict() == pytest.approx(change.to_dict()) for row in effects.rows)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert effects.finding("mine").startswith(f"mine tuned ({len(NEURONS)} neurons): the loss of fr changes by -")
    assert effects.languages == {"mine": "fr", "fr": "fr"}
    assert mw.plots.effect_matrix(effects).layout.title.text == "Change of loss when neurons are tuned"
    with pytest.raises(ValueError, match="name at least one delta"):
        mw.tuning_effects(model, {}, texts)


def test_older_deltas_do_not_say_what_they_were_tuned_on(monkeypatch):
    model = fresh()
    delta = mw.tune(model, some(model), TEXTS[3:], steps=1, **OPTIONS).delta
    delta.revert(model)
    older = replace(delta, seen=None)
    effects = mw.tuning_effects(model, {"fr": older}, {"fr": TEXTS[3:]}, progress=False)
    assert effects.documents_read.loc["fr", ["unknown", "seen"]].tolist() == [4, 0]
    assert delta.merge(older, collide="add").seen is None
    assert len(delta.merge(delta, collide="add").seen.texts[""]) == 4
    other = fresh(dtype=torch.float32)
    monkeypatch.setattr("mwork_lens.tuning.result.losses_with", None)  # the work
    with pytest.raises(ValueError, match="but the delta was made on"):
        mw.tuning_effects(other, {"fr": delta}, {"fr": TEXTS[:3]})


def test_deltas_of_two_languages_merge():
    start = fresh(dtype=torch.float32)
    sets = [some(start, NEURONS[:4]), some(start, NEURONS[3:])]
    deltas = []
    for neurons in sets:
        model = fresh(dtype=torch.float32)
        deltas.append(mw.tune(model, neurons, TEXTS, **OPTIONS).delta)
    a, b = deltas
    collisions = a.collisions(b)
    assert set(collisions["weight"]) == {"blocks.0.attn.W_Q", "blocks.0.attn.b_Q"}
    assert set(collisions["neuron"]) == {31}
    with pytest.raises(ValueError, match="2 neurons are changed by both, the first 31"):
        a.merge(b)
    rounded = {name: values.bfloat16() for name, values in b.old.items()}
    with pytest.raises(ValueError, match="made from other values"):
        a.merge(replace(b, old=rounded), collide="add")
    merged = a.merge(b, collide="add")
    merged.apply(start)
    for name in ("blocks.0.mlp.W_in", "blocks.1.mlp.W_out"):
        source = a if name in a.new else b
        where = torch.isin(merged.neurons[name], source.neurons[name])
        assert torch.equal(merged.new[name][where], source.new[name])
    name = "blocks.0.attn.W_Q"
    change = merged.new[name][merged.neurons[name] == 31] - a.old[name][a.neurons[name] == 31]
    parts = [(d.new[name] - d.old[name])[d.neurons[name] == 31] for d in deltas]
    torch.testing.assert_close(change, parts[0] + parts[1], rtol=1e-4, atol=1e-6)
    merged.revert(start)
    assert all(torch.equal(v, weights(tiny("gemma3", torch.float32))[n]) for n, v in weights(start).items())


def test_neurons_of_an_added_site_are_tuned_and_put_back():
    rows = (Slices("attn.W_O", "head index 1"),)
    add_site(Site("z", "attention", "attn.hook_z", "query", silencing=rows, tuning=rows, writes=True))
    try:
        model = fresh()
        before = weights(model)
        tuned = mw.tune(model, some(model, [(0, "z", 3), (1, "z", 31)]), TEXTS, **OPTIONS)
        assert (len(tuned.delta), list(tuned.delta.neurons)) == (2, ["blocks.0.attn.W_O", "blocks.1.attn.W_O"])
        tuned.delta.revert(model)
        assert all(torch.equal(values, before[name]) for name, values in weights(model).items())
    finally:
        remove_site("z")


def test_nothing_changed_is_said():
    model = fresh(dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="Nearly nothing changed.*tune in float32"):
        mw.tune(model, some(model), TEXTS, progress=False)


def test_bad_input_is_refused_and_divergence_stops(tmp_path):
    model = fresh(dtype=torch.float32)
    with pytest.raises(ValueError, match="holds no neurons"):
        mw.tune(model, some(model, []), TEXTS, progress=False)
    with pytest.raises(ValueError, match="no texts"):
        mw.tune(model, some(model), [], progress=False)
    with pytest.raises(ValueError, match=r"text 1 .* too short"):
        mw.tune(model, some(model), [TEXTS[0], torch.tensor([3])], progress=False)
    with pytest.raises(ValueError, match="held-out documents are too short"):
        mw.tune(model, some(model), TEXTS, held_out=[torch.tensor([3])], progress=False)
    with pytest.raises(ValueError, match="do not fit"):
        mw.tune(model, some(fresh("olmo2")), TEXTS, progress=False)
    with pytest.raises(ValueError, match=r"learning_rate=-1\.0"):
        mw.tune(model, some(model), TEXTS, learning_rate=-1.0, progress=False)
    gpt2 = fresh("gpt2")
    with pytest.raises(ValueError, match=r"blocks.1.mlp.W_gate"):
        mw.tune(gpt2, some(gpt2, [(1, "mlp", 0)]), TEXTS, gate=True, progress=False)
    before = weights(model)

    def break_it(step):
        if step.step == 2:
            model.blocks[0].mlp.W_gate.data[0, 0] = torch.nan

    with pytest.raises(
        ValueError, match=r"stopped at step 3 of 5, on text .*not finite.*from before tuning.*checkpoint"
    ):
        mw.tune(
            model, some(model), TEXTS, **{**OPTIONS, "batch_size": 2, "steps": 5}, checkpoint=tmp_path,
            checkpoint_every=1, callbacks=[break_it],
        )  # fmt: skip
    assert (tmp_path / "step-000001").is_dir()
    for options in ({"checkpoint": tmp_path / "new"}, {"held_out": TEXTS[:1]}):
        with pytest.raises(ValueError, match=r"stopped at step 1 of 3, on (text|the held-out).*before tuning\.$"):
            mw.tune(model, some(model), TEXTS, **OPTIONS, **options)
    model.blocks[0].mlp.W_gate.data[0, 0] = before["blocks.0.mlp.W_gate"][0, 0]
    assert all(torch.equal(values, before[name]) for name, values in weights(model).items())


def test_quantised_weights_and_other_models_deltas_are_refused():
    model = fresh(dtype=torch.float32)
    delta = mw.tune(model, some(model), TEXTS, **OPTIONS).delta
    with pytest.raises(ValueError, match="do not fit"):
        delta.apply(fresh("olmo2", torch.float32))
    with pytest.raises(ValueError, match=r"No site has the weight 'mlp.W_new'"):
        replace(delta, neurons={"blocks.0.mlp.W_new": torch.tensor([0])}).apply(model)
    with pytest.raises(ValueError, match=r"is torch.float64, but the delta was made on torch.float32"):
        delta.apply(fresh())
    before = weights(model)
    model.blocks[1].mlp.W_out.data[3, 0] += 1
    with pytest.raises(ValueError, match="new values: 1 of 24 entries differ"):
        delta.revert(model)
    assert sum(not torch.equal(values, before[name]) for name, values in weights(model).items()) == 1
    quantised = fresh(dtype=torch.float32)
    quantised.blocks[0].mlp.W_in = torch.nn.Parameter(torch.ones(24, 20, dtype=torch.int8), requires_grad=False)
    for neurons in (some(model), "all"):
        with pytest.raises(ValueError, match=r"blocks.0.mlp.W_in .*int8: quantised weights cannot be"):
            mw.tune(quantised, neurons, TEXTS, **OPTIONS)


def test_all_weights_can_be_kept():
    model = fresh(dtype=torch.bfloat16)
    before = weights(model)
    with kept_weights(model):
        mw.tune(model, "all", TEXTS, **OPTIONS)
        assert not any(torch.equal(before[n], v) for n, v in weights(model).items() if n.endswith("W_in"))
    assert all(torch.equal(values, before[name]) for name, values in weights(model).items())


def test_what_tuning_costs_is_measured_and_the_model_put_back():
    model = fresh(dtype=torch.float32)
    before = weights(model)
    cost = tuning_cost(model, TEXTS[0], fraction=0.05)
    assert all(torch.equal(values, before[name]) for name, values in weights(model).items())
    frame = cost.to_frame()
    assert (frame["seconds_a_step"] > 0).all()
    trained = frame["trained_entries"].tolist()
    assert trained[0] < 0.1 * trained[1]
    # two float32 moments an entry, and a step count a tensor
    assert frame["optimiser_megabytes"].tolist() == pytest.approx([8 * n / 2**20 for n in trained], rel=0.05)
    assert cost.ratios().loc["all parameters, same loop", "trained"] == pytest.approx(trained[0] / trained[1])
    with pytest.raises(ValueError, match="holds no neurons"):
        tuning_cost(model, TEXTS[0], fraction=0.0)


HF = {
    "Llama": {"num_key_value_heads": 2},
    "Qwen2": {"num_key_value_heads": 2},
    "GPTNeoX": {"rotary_pct": 1.0, "num_key_value_heads": 4},
    "Gemma3": {"num_key_value_heads": 2, "head_dim": 4},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64},
}


def transformers_model(kind):
    import transformers

    options = HF[kind] if kind == "GPT2" else {**SMALL, **HF[kind]}
    config = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")(
        **{**options, "vocab_size": 60}
    )
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("kind", HF)
def test_an_exported_model_is_the_tuned_one(kind, tmp_path):
    """HookedTransformers and raw bridges, fused and separate projections, biases, tied embeddings."""
    original, tokenizer = transformers_model(kind), words()
    kept = {name: values.clone() for name, values in original.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mw.load_model(transformers_model(kind), tokenizer=tokenizer, device="cpu")
        assert (type(model).__name__ == "HookedTransformer") == (HOOKED and kind != "Gemma3")
        neurons = some(model, [(0, "mlp", 3), (1, "mlp", 9), (0, "q", 5), (1, "k", 7), (1, "v", 2)])
        tuned = mw.tune(model, neurons, [text % 11 for text in TEXTS], **OPTIONS)
        path = mw.export_tuned(model, tuned.delta, tmp_path / "out", source=original, tokenizer=tokenizer)
        assert all(torch.equal(values, kept[name]) for name, values in original.state_dict().items())
        exported = type(original).from_pretrained(path, attn_implementation="eager")
        ids = TEXTS[1][None] % 11
        torch.testing.assert_close(exported(ids).logits, model(ids), rtol=1e-4, atol=1e-5)
        mw.NeuronDelta.load(path / "delta").revert(model)
        with pytest.raises(ValueError, match="logits differ"):
            mw.export_tuned(model, tuned.delta, tmp_path / "no", source=original, tokenizer=tokenizer)
        with pytest.raises(ValueError, match="does not hold the delta's old values"):
            mw.export_tuned(model, tuned.delta, tmp_path / "no", source=exported, tokenizer=tokenizer)
    assert not (tmp_path / "no").exists()


def test_held_out_losses_of_every_language_are_reported_before_and_after(tmp_path):
    """Equal to those of the model before and after by themselves; steps' losses, of different texts, are no trend."""
    model, other = fresh(), [tokens(9, 70), tokens(12, 71)]
    whole = {"": TEXTS[:2], "en": other}
    before = {name: mw.language_losses(model, {"x": texts})["nats_per_token"].item() for name, texts in whole.items()}
    neurons = mw.NeuronSet(some(model).space, some(model).masks, {"language": "sw"})
    options = {**OPTIONS, "epochs": 3, "held_out": TEXTS[:2], "others": {"en": other}, "evaluate_every": 1}
    tuned = mw.tune(model, neurons, TEXTS, **options, patience=1, checkpoint=tmp_path / "run")
    after = {name: mw.language_losses(model, {"x": texts})["nats_per_token"].item() for name, texts in whole.items()}
    losses = tuned.losses
    assert list(losses.index) == ["sw", "en"]
    assert losses["texts"].tolist() == [2, 2]
    assert losses["before"].tolist() == pytest.approx(list(before.values()), rel=1e-6)
    assert losses["after"].tolist() == pytest.approx(list(after.values()), rel=1e-6)
    first, last = tuned.to_frame().iloc[0], tuned.to_frame().query("step == @tuned.settings['kept_step']").iloc[0]
    assert [first["step"], first["held_out"], first["held_out en"]] == pytest.approx([0, *before.values()], rel=1e-6)
    assert last["held_out en"] == pytest.approx(after["en"], rel=1e-6)
    shown = f"held-out loss sw {before['']:.3f} to {after['']:.3f} on 2 texts, en {before['en']:.3f} to"
    assert shown in tuned.summary()
    assert "held-out loss was not measured" in mw.tune(fresh(), some(fresh()), TEXTS, **OPTIONS).summary()
    steps, *curves = mw.plots.tuning(tuned).data
    assert (steps.mode, steps.name) == ("markers", "each step's own texts")
    assert [curve.name for curve in curves] == ["sw, held out", "en, held out"]
    tuned.save(tmp_path / "tuned")
    assert mw.Tuned.load(tmp_path / "tuned").losses.equals(losses)
    for name, documents in (("sw", other), ("en", [])):
        with pytest.raises(ValueError, match=f"others has '{name}'"):
            mw.tune(fresh(), neurons, TEXTS, **OPTIONS, others={name: documents})
