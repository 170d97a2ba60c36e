import json

import pandas as pd
import pytest
import torch

import mwork_lens as mw

from ..tiny import some_neurons, tiny

LINES = ["{0: {1, 3}, 1: set()}", "{0: {3}, 1: {5}}", "{0: {31}, 1: set()}", "{0: {0, 1, 2}, 1: {31}}", "{1: [4]}"]


@pytest.fixture
def released(tmp_path):
    def write(lines=LINES):
        (tmp_path / "fr.txt").write_text("\n".join(lines) + "\n")
        return tmp_path / "fr.txt"

    return write


def test_a_set_of_the_released_code(released):
    """Two query heads share a key head there, so key 1 is dimension 0 of what that code switches off."""
    french = mw.load_released(released(), tiny("llama"), language="fr")
    places = {(0, "mlp", 1), (0, "mlp", 3), (1, "mlp", 5), (0, "q", 31), (0, "k", 0), (0, "k", 1), (1, "k", 15)}
    found = french.to_frame()[["layer", "site", "neuron"]].itertuples(index=False, name=None)
    assert set(found) == places | {(1, "v", 2)}
    assert french.origin["language"] == "fr"
    assert mw.load_released(released(), french.space) == french


def test_what_numpy_2_prints_is_read(released):
    printed = ["{np.int64(0): {np.int64(1), numpy.int32(3)}, 1: set()}", *LINES[1:]]
    model = tiny("llama")
    assert mw.load_released(released(printed), model) == mw.load_released(released(), model)
    with pytest.raises(ValueError, match="line 1 is not a printed dict"):
        mw.load_released(released(["{0: {np.int64(__import__('os'))}}", *LINES[1:]]), model)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("__import__('os').system('true')", "line 2 is not a printed dict"),
        ("{0: {1, 'a'}}", "line 2 is not a printed dict"),
        ("{0: 3}", "line 2 is not a printed dict"),
        ("[1, 2]", "line 2 is not a printed dict"),
        ("{0: {[1]}}", "line 2 is not a printed dict"),
        ("{'a': set()}", "line 2 is not a printed dict"),
        ("{0: {20}}", r"no neuron \(0, 'mlp', 20\)"),
        ("{2: {0}}", r"no neuron \(2, 'mlp', 0\)"),
    ],
)
def test_a_file_of_another_form_is_refused_and_not_executed(released, line, message):
    with pytest.raises(ValueError, match=message):
        mw.load_released(released([LINES[0], line, *LINES[2:]]), tiny("llama"))


def test_a_file_with_other_lines_is_refused(released):
    with pytest.raises(ValueError, match="has 4 lines, not 5"):
        mw.load_released(released(LINES[:4]), tiny("llama"))


def test_the_sets_of_lape(tmp_path):
    indices = [[torch.tensor([0, 7]), torch.tensor([]).long()], [torch.tensor([1]), torch.tensor([19])]]
    torch.save(indices, tmp_path / "tiny.pth")
    sets = mw.load_lape(tmp_path / "tiny.pth", tiny("llama"), ["en", "zh"])
    assert {name: len(neurons) for name, neurons in sets.items()} == {"en": 2, "zh": 2}
    assert sets["zh"].masks["mlp"].nonzero().tolist() == [[0, 1], [1, 19]]
    assert sets["en"].origin["language"] == "en"
    with pytest.raises(ValueError, match="holds 2 languages; 3 are named: en, zh, fr"):
        mw.load_lape(tmp_path / "tiny.pth", tiny("llama"), ["en", "zh", "fr"])
    with pytest.raises(ValueError, match="model with 2 layers; tiny-llama has 5"):
        mw.load_lape(tmp_path / "tiny.pth", tiny("llama", n_layers=5), ["en", "zh"])


def test_a_pickle_that_would_run_something_is_refused(tmp_path, capsys):
    class Harm:
        def __reduce__(self):
            return (print, ("harm",))

    torch.save([Harm()], tmp_path / "harm.pth")
    with pytest.raises(ValueError, match="holds more than tensors and lists"):
        mw.load_lape(tmp_path / "harm.pth", tiny("llama"), ["en"])
    assert not capsys.readouterr().out


@pytest.mark.parametrize("content", [[1], {"en": [torch.tensor([0])]}, [[torch.tensor(3)]], 7, [["a"]]])
def test_other_forms_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is damaged, or holds more than"):
        mw.load_lape(tmp_path / "other.pth", tiny("llama"), ["en"])


@pytest.mark.parametrize("share", [0.0, 0.4, 0.95])
def test_files_that_were_cut_short_are_refused(tmp_path, share):
    path = tmp_path / "cut.pth"
    torch.save([[torch.tensor([0])]], path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"cut\.pth is damaged"):
        mw.load_lape(path, tiny("llama"), ["en"])


@pytest.mark.parametrize(("number", "last"), [(7, "ja"), (6, "id"), (32, "ro")])
def test_released_masks_have_known_orders(tmp_path, number, last):
    torch.save([[torch.tensor([i % 20]), torch.tensor([])] for i in range(number)], tmp_path / "masks.pth")
    sets = mw.load_lape(tmp_path / "masks.pth", tiny("llama"))
    assert (len(sets), next(reversed(sets))) == (number, last)
    assert sets[last].masks["mlp"].nonzero().tolist() == [[0, (number - 1) % 20]]


def test_masks_of_another_number_of_languages_need_names(tmp_path):
    torch.save([[torch.tensor([0]), torch.tensor([])]] * 3, tmp_path / "masks.pth")
    with pytest.raises(ValueError, match="holds 3 languages, of no order that is known: give languages="):
        mw.load_lape(tmp_path / "masks.pth", tiny("llama"))


@pytest.fixture
def sets():
    some = {language: some_neurons(tiny("llama"), 0.2, seed) for seed, language in enumerate(("fr", "zh"))}
    some = {language: neurons.restrict(sites="mlp") for language, neurons in some.items()}
    return some | {"th": mw.NeuronSet.empty(some["fr"].space)}


def test_sets_travel_to_other_code_and_back(tmp_path, sets):
    space = sets["fr"].space
    mw.save_neurons(sets, tmp_path / "sets.json")
    mw.save_neurons(sets, tmp_path / "sets.pth")
    assert mw.load_neurons(tmp_path / "sets.json", space) == sets
    assert mw.load_lape(tmp_path / "sets.pth", space, list(sets)) == sets
    assert json.loads((tmp_path / "sets.json").read_text())["fr"] == sets["fr"].masks["mlp"].nonzero().tolist()
    content = torch.load(tmp_path / "sets.pth", weights_only=True)
    assert [[len(layer) for layer in language] for language in content][2] == [0, 0]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        mw.save_neurons(sets, tmp_path / "sets.json")
    mw.save_neurons({"zh": sets["zh"]}, tmp_path / "sets.json", overwrite=True)
    assert list(mw.load_neurons(tmp_path / "sets.json", tiny("llama"))) == ["zh"]


def test_what_a_file_has_no_place_for_is_refused(tmp_path, sets):
    for given, name, message in [
        ({"fr": some_neurons(tiny("llama"))}, "sets.json", r"'fr' has neurons of q, k, v.*restrict\(sites='mlp'\)"),
        ({}, "sets.json", "no set to write"),
        (sets, "sets.csv", r"must end in \.json or \.pth"),
    ]:
        with pytest.raises(ValueError, match=message):
            mw.save_neurons(given, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[[0, 1]]", "holds a list, not neurons by language"),
        ('{"fr": [[0, 1], [0]]}', r"'fr': \[0\] is not a pair"),
        ('{"fr": [[0, 1.5]]}', r"'fr': \[0, 1.5\] is not a pair"),
        ('{"fr": 7}', "'fr': 7 is not a pair"),
        ('{"fr": [[0, 20]]}', r"no neuron \(0, 'mlp', 20\)"),
    ],
)
def test_json_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / "sets.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        mw.load_neurons(tmp_path / "sets.json", tiny("llama"))


def test_a_set_comes_back_from_its_table(tmp_path):
    neurons = some_neurons(tiny("gemma3"))
    neurons.to_frame().to_csv(tmp_path / "set.csv", index=False)
    again = mw.NeuronSet.from_frame(neurons.space, pd.read_csv(tmp_path / "set.csv"), language="fr")
    assert again == neurons
    assert again.origin.language == "fr"
    with pytest.raises(ValueError, match="no column 'site'; its columns are layer, neuron"):
        mw.NeuronSet.from_frame(neurons.space, pd.DataFrame({"layer": [0], "neuron": [1]}))
    with pytest.raises(ValueError, match=r"1\.5 is not the number"):
        mw.NeuronSet.from_frame(neurons.space, pd.DataFrame({"layer": [0], "site": ["q"], "neuron": [1.5]}))
