"""How many documents of a length fit one batch, from the device's total memory: the same on every card of its kind."""

from collections import Counter
from dataclasses import dataclass, replace

import torch

from .architecture import HookedModel, device_of, key_value_heads

TOKENS = {"cpu": 1024, "cuda": 16384}
"""Of a batch at most, by device; other devices are taken for GPUs."""
SHARE = 0.25
"""Of a GPU's memory, for what a layer's scores need beside the model."""
CPU_MEMORY = 2.0**33
"""What is taken for a GPU's, of which a share is used, where a pass on a CPU holds all layers."""


def room(total: int, weights: int) -> float:
    """A GPU's bytes, or fewer, so that ``SHARE`` of them fit beside its weights."""
    return float(min(total, (total - weights) / SHARE))


@dataclass(frozen=True)
class Budget:
    """What a batch may hold."""

    tokens: int
    """With padding."""
    memory: int | None = None
    """Bytes; None where only tokens count."""
    by_token: int = 0
    """Bytes that a token takes in one layer."""
    by_pair: int = 0
    """Bytes that a pair of positions takes there, over all heads."""
    by_document: int = 0
    """Bytes that the scores of a document take, of all layers, and their sums."""

    @classmethod
    def of(cls, model: HookedModel) -> "Budget":
        """That of the device which the model is on; over several, of the one with the least room."""
        device = device_of(model)
        if device.type != "cuda":
            return cls(TOKENS.get(device.type, TOKENS["cuda"]))
        weights = Counter({device: 0})
        for parameter in model.parameters():
            weights[parameter.device] += parameter.nbytes
        cards = [(torch.cuda.get_device_properties(each), weights[each]) for each in weights if each.type == "cuda"]
        return cls._of_memory(model, min(room(card.total_memory, held) for card, held in cards))

    @classmethod
    def of_all_layers(cls, model: HookedModel) -> "Budget":
        """That of a pass which holds what every layer computes, until it has gone back through them."""
        whole, layers = cls.of(model), model.cfg.n_layers
        one = cls._of_memory(model, CPU_MEMORY) if whole.memory is None else whole
        return replace(one, tokens=whole.tokens, by_token=layers * one.by_token, by_pair=layers * one.by_pair)

    @classmethod
    def _of_memory(cls, model: HookedModel, memory: float) -> "Budget":
        cfg = model.cfg
        return cls.of_gpu(
            memory,
            n_layers=cfg.n_layers,
            d_model=cfg.d_model,
            heads=(cfg.n_heads, key_value_heads(cfg)),
            d_head=cfg.d_head,
            d_mlp=getattr(cfg, "d_mlp", None) or 0,
            normed_values=getattr(getattr(model.blocks[0], "attn", None), "v_norm", None) is not None,
        )

    @classmethod
    def of_gpu(
        cls,
        memory: float,
        *,
        n_layers: int,
        d_model: int,
        heads: tuple[int, int],
        d_head: int,
        d_mlp: int,
        normed_values: bool = False,
    ) -> "Budget":
        """That of a GPU with so many bytes, for a model of these sizes; heads of queries, and of keys and values."""
        both = sum(heads)
        numbers = 6 * both * d_head + 6 * d_mlp + 8 * d_model  # tables of queries and keys, hidden, stream
        by_pair = 24 * heads[0]
        if normed_values:  # products of the values that a group's heads mix, with and without the gain of a post-norm
            mixed = 2 * heads[0] * heads[0] // heads[1]
            numbers += (mixed + 5 * heads[0]) * d_head
            by_pair += 4 * mixed
        neurons = (both + heads[1]) * d_head + d_mlp
        scores = n_layers * (5 * neurons + 24 * max(d_mlp, heads[0] * d_head))  # a site at a time in doubles
        return cls(TOKENS["cuda"], int(SHARE * memory), 4 * numbers, by_pair, scores)

    def needed(self, documents: int, length: int) -> int:
        """Bytes that so many documents of so many tokens take."""
        return documents * (length * (self.by_token + length * self.by_pair) + self.by_document)

    def holds(self, documents: int, length: int) -> bool:
        """Whether these fit."""
        fits = self.memory is None or self.needed(documents, length) <= self.memory
        return documents * length <= self.tokens and fits
