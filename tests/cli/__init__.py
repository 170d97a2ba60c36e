"""The command line, run in this process."""

import random

import pytest
from tokenizers.pre_tokenizers import WhitespaceSplit

from mwork_lens.cli import main

from ..tiny import small_model, words


def run(capsys, *arguments):
    """Exit code and what stands on standard error."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code, capsys.readouterr().err.strip()


def write_model_and_text(folder, **options):
    """A tiny model as a directory, and text of two languages with words of their own."""
    model, tokenizer = small_model(**options), words()
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "text").mkdir()
    for language, letters in (("en", "abcd"), ("sw", "efgh")):
        draw = random.Random(0)
        lines = [" ".join(draw.choices(letters, k=9)) for _ in range(24)]
        (folder / "text" / f"{language}.txt").write_text("\n".join(lines))
    return folder / "model", folder / "text"
