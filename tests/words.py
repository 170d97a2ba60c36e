"""A tokenizer of a few letters, made in memory."""

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel


def words():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<unk>", *"abcdefgh"])}
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>", "eos_token": "<pad>"}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
