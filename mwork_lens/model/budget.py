"""How many documents of a length fit one batch, from the device's total memory: the same on every card of its kind."""

from dataclasses import dataclass

import torch

from .architecture import HookedModel, device_of, key_value_heads

TOKENS = {"cpu": 1024, "cuda": 16384}
"""Of a batch at most, by device; other devices are taken for GPUs."""
SHARE = 0.25
"""Of a GPU's memory, for what a layer's scores need beside the model."""


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
        """That of the device which the model is on."""
        cfg, device = model.cfg, device_of(model)
        tokens = TOKENS.get(device.type, TOKENS["cuda"])
        if device.type != "cuda":
            return cls(tokens)
        heads, d_mlp = cfg.n_heads + key_value_heads(cfg), getattr(cfg, "d_mlp", None) or 0
        numbers = 6 * heads * cfg.d_head + 6 * d_mlp + 8 * cfg.d_model  # tables of queries and keys, hidden, stream
        neurons = (heads + key_value_heads(cfg)) * cfg.d_head + d_mlp
        scores = cfg.n_layers * (5 * neurons + 24 * max(d_mlp, cfg.n_heads * cfg.d_head))  # a site at a time in doubles
        total = torch.cuda.get_device_properties(device).total_memory
        return cls(tokens, int(SHARE * total), 4 * numbers, 24 * cfg.n_heads, scores)

    def holds(self, documents: int, length: int) -> bool:
        """Whether so many documents of so many tokens fit."""
        tokens = documents * length
        needed = tokens * (self.by_token + length * self.by_pair) + documents * self.by_document
        return tokens <= self.tokens and (self.memory is None or needed <= self.memory)
