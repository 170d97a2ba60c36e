"""Models with random weights in the shapes of real ones, a few layers of them: ours, and transformers' own."""

from dataclasses import dataclass

import torch
import transformers


@dataclass(frozen=True)
class Shape:
    """A model's sizes."""

    name: str
    heads: int
    groups: int
    d_head: int
    d_model: int
    d_mlp: int
    layers: int
    """Of the whole model, to which times by layer are extrapolated."""


SHAPES = (Shape("8B", 32, 8, 128, 4096, 14336, 32), Shape("270M", 4, 1, 256, 640, 2048, 18))
VOCABULARY, CONTEXT = 1000, 4096


def hooked(shape: Shape, layers: int, dtype: torch.dtype, device: str):
    """A HookedTransformer."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=layers,
        d_model=shape.d_model,
        n_heads=shape.heads,
        n_key_value_heads=shape.groups,
        d_head=shape.d_head,
        d_mlp=shape.d_mlp,
        d_vocab=VOCABULARY,
        n_ctx=CONTEXT,
        act_fn="silu",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=shape.d_head,
        rotary_adjacent_pairs=False,
        final_rms=True,
        gated_mlp=True,
        dtype=dtype,
        device=device,
        model_name=f"random-{shape.name}",
        seed=0,
    )
    return HookedTransformer(cfg).eval()


def of_transformers(shape: Shape, layers: int, dtype: torch.dtype, device: str):
    """The same in transformers, with sdpa."""
    config = transformers.LlamaConfig(
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        head_dim=shape.d_head,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        return transformers.LlamaModel(config).to(dtype).eval()
