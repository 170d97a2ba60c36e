"""The report: measured piece by piece, shown by its notebook, one page that is inert and needs no network."""

import json
import random
import shutil
from html.parser import HTMLParser

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import mwork_lens as mw
from mwork_lens.cli import main
from mwork_lens.corpora import as_corpus
from mwork_lens.experiments.effects import Plan
from mwork_lens.experiments.report import ReportPlan, characteristic, measure
from mwork_lens.notebook import execute, render

from .tiny import tiny

HOSTILE = "<script>document.title='taken'</script>"
WORDS = {"en": ["the", HOSTILE, '"quoted"', "house"], "fr": ["le", "mais'on", "</style>", "l&amp;eau"], "ru": ["дом", "и"]}
PLAN = ReportPlan(Plan(quorum=0.6, top=0.3, seeds=(0,)), held_out=0.3, prompts=1, new_tokens=6, cards=2)


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
    measure(model, corpus, path, PLAN, progress=False)
    return path
