import pytest
import torch

import mwork_lens as mw
from mwork_lens.lens.lens_grid import LensGrid

from ..analyses import WORDS, lens_grid, reader
from ..tiny import residual


def test_every_cell_is_what_the_layer_decodes_to(tmp_path):
    model, grid = reader(), lens_grid()
    ids = model.to_tokens("le chien rouge")[0]
    assert list(grid.tokens) == ["<bos>", "le", "chien", "rouge"]
    for layer in range(model.cfg.n_layers + 1):
        probabilities = model.unembed(model.ln_final(residual(model, ids, layer)[None]))[0].softmax(-1)
        best = probabilities.topk(3)
        assert torch.equal(grid.ids[layer], best.indices)
        torch.testing.assert_close(grid.probabilities[layer], best.values)
    frame = grid.to_frame()
    assert len(frame) == grid.ids.numel()
    for language, words in WORDS.items():
        assert set(frame[frame["decoded"].isin(words)]["language"]) <= {language}
    grid.save(tmp_path / "grid")
    assert LensGrid.load(tmp_path / "grid").to_frame().equals(frame)


def test_more_tokens_than_the_vocabulary_has_are_refused():
    with pytest.raises(ValueError, match="top_k=51 is outside 1 to 50"):
        mw.lens_grid(reader(), "le", languages=["fr"], top_k=51)
