"""The change that deactivating a value neuron makes: one column of W_V, read by every query head of its group."""

from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from ...model import HookedModel, PostNorm, TokenBatch, at_least_float32, key_value_heads, post_norm, weight
from ..measure import Activations, LayerMeasure, SiteScores, root_mean
from .compiled import is_cpu_float32, sums_of_values, threads
from .post_norm import Contribution, Normed, change_after_norm

MIXED = "attn.hook_z"


@dataclass(frozen=True)
class _Output:
    """W_O by group: neuron (group, index) writes Σ over the query heads a of its group of z[a] W_O[a, index]."""

    w_o: Float[Tensor, "group head d_head d_model"]

    @classmethod
    def of(cls, model: HookedModel, layer: int) -> "_Output":
        groups = key_value_heads(model.cfg)
        w_o = at_least_float32(weight(model, layer, "attn.W_O").detach())
        return cls(rearrange(w_o, "(group head) d_head d_model -> group head d_head d_model", group=groups))

    def gram(self, gain: Float[Tensor, " d_model"] | None = None) -> Float[Tensor, "group pair d_head"]:
        """G_k[a, b] = W_O[a, k] · W_O[b, k] for pairs of heads of a group, with squared gains if given.

        A pair of two heads stands for both of its orders.
        """
        by_neuron = rearrange(self.w_o if gain is None else self.w_o * gain, "group a k d -> group k a d").contiguous()
        first, second = self.pairs
        both = torch.where(first == second, 1, 2)
        return rearrange(
            (by_neuron @ by_neuron.mT)[..., first, second] * both, "group k pair -> group pair k"
        ).contiguous()

    @property
    def pairs(self) -> Int[Tensor, "which pair"]:
        """Heads of a group, each with itself and those after it."""
        heads = self.w_o.shape[1]
        return torch.triu_indices(heads, heads, device=self.w_o.device)

    def products(
        self, mixed: Float[Tensor, "batch pos group head d_head"]
    ) -> Float[Tensor, "batch pos group pair d_head"]:
        """z[a] z[b] for pairs of heads."""
        first, second = self.pairs
        return mixed.index_select(-2, first) * mixed.index_select(-2, second)

    def mixed(self, seen: Activations, batch: TokenBatch) -> Float[Tensor, "batch pos group head d_head"]:
        z = at_least_float32(seen[MIXED]) * batch.content[..., None, None]
        return rearrange(z, "batch pos (group head) k -> batch pos group head k", group=len(self.w_o))


def structure_change(model: HookedModel, layer: int) -> LayerMeasure:
    """In attention's own output: norm² = Σ_t z_tᵀ G_k z_t with z_t the mixed values of the group's heads."""
    output = _Output.of(model, layer)
    gram = output.gram()

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        z = rearrange(output.mixed(seen, batch), "batch pos group head k -> batch group k head pos").contiguous()
        first, second = output.pairs
        moments = rearrange((z @ z.mT)[..., first, second], "batch group k pair -> batch group pair k")
        return {
            "v": root_mean(einsum(moments, gram, "batch group pair k, group pair k -> batch group k").flatten(1), batch)
        }

    return LayerMeasure((MIXED,), score)


def stream_change(model: HookedModel, layer: int) -> LayerMeasure:
    """In the residual stream: as :func:`structure_change`, and through the post-norm where the model has one."""
    norm = post_norm(model, layer, "attention")
    return structure_change(model, layer) if norm is None else _through(norm, model, layer)


def _through(norm: PostNorm, model: HookedModel, layer: int) -> LayerMeasure:
    output = _Output.of(model, layer)
    gram, gram_gained = output.gram(), output.gram(norm.gain)

    def squares(seen: Activations, batch: TokenBatch) -> Float[Tensor, "batch neuron"]:
        mixed, normed = output.mixed(seen, batch), Normed.of(norm, seen)
        along = linear(normed.directions, output.w_o.flatten(0, 2)).unflatten(-1, mixed.shape[2:])
        if is_cpu_float32(mixed):
            grams, per_d_model = (gram.numpy(), gram_gained.numpy()), np.float32(1 / norm.gain.numel())
            tensors = (mixed, batch.content, *along)
            by_document = zip(*(x.contiguous().numpy() for x in tensors), *normed.by_document, strict=True)
            with threads():
                sums = [
                    sums_of_values(*document, grams, (scale, size), per_d_model)
                    for *document, scale, size in by_document
                ]
            return torch.from_numpy(np.stack(sums)).flatten(1)
        products = output.products(mixed)
        added = Contribution(
            squared=_quadratic(products, gram),
            squared_gained=_quadratic(products, gram_gained),
            along=(along[0] * mixed).sum(-2).flatten(-2),
            along_gained=(along[1] * mixed).sum(-2).flatten(-2),
        )
        return change_after_norm(added, normed).sum(1)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        return {"v": root_mean(squares(seen, batch), batch)}

    return LayerMeasure((MIXED, *norm.reads), score)


def _quadratic(
    products: Float[Tensor, "batch pos group pair d_head"], gram: Float[Tensor, "group pair d_head"]
) -> Float[Tensor, "batch pos neuron"]:
    """z_tᵀ G_k z_t for each neuron k."""
    return (products * gram).sum(-2).flatten(-2)
