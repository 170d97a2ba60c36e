"""The change that deactivating a value neuron makes: one column of W_V, read by every query head of its group."""

from dataclasses import dataclass

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from ..batches import TokenBatch
from ..sites import HookedModel, weight
from .measure import Activations, LayerMeasure, SiteScores, at_least_float32, root_mean
from .norms import PostNorm, change_after_norm, post_norm

MIXED = "attn.hook_z"


@dataclass(frozen=True)
class _Output:
    """W_O by group: neuron (group, index) writes Σ over the query heads a of its group of z[a] W_O[a, index]."""

    w_o: Float[Tensor, "group head d_head d_model"]

    @classmethod
    def of(cls, model: HookedModel, layer: int) -> "_Output":
        groups = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
        w_o = at_least_float32(weight(model, layer, "attn.W_O").detach())
        return cls(rearrange(w_o, "(group head) d_head d_model -> group head d_head d_model", group=groups))

    def gram(self, gain: Float[Tensor, " d_model"] | None = None) -> Float[Tensor, "group head other d_head"]:
        """G[a, b] = W_O[a, k] · W_O[b, k] for the heads a, b of a group, with squared gains if given."""
        left = self.w_o if gain is None else self.w_o * gain.square()
        return einsum(left, self.w_o, "group a k d, group b k d -> group a b k")

    def mixed(self, seen: Activations, batch: TokenBatch) -> Float[Tensor, "batch pos group head d_head"]:
        z = at_least_float32(seen[MIXED]) * batch.content[..., None, None]
        return rearrange(z, "batch pos (group head) k -> batch pos group head k", group=len(self.w_o))


def structure_change(model: HookedModel, layer: int) -> LayerMeasure:
    """In attention's own output: norm² = Σ_t z_tᵀ G_k z_t with z_t the mixed values of the group's heads."""
    output = _Output.of(model, layer)
    gram = output.gram()

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        z = output.mixed(seen, batch)
        products = einsum(z, z, "batch pos g a k, batch pos g b k -> batch g a b k")
        squares = einsum(products, gram, "batch g a b k, g a b k -> batch g k")
        return {"v": root_mean(rearrange(squares, "batch g k -> batch (g k)"), batch)}

    return LayerMeasure((MIXED,), score)


def stream_change(model: HookedModel, layer: int) -> LayerMeasure:
    """In the residual stream: as :func:`structure_change`, and through the post-norm where the model has one."""
    norm = post_norm(model, layer, "attention")
    return structure_change(model, layer) if norm is None else _through(norm, model, layer)


def _through(norm: PostNorm, model: HookedModel, layer: int) -> LayerMeasure:
    output = _Output.of(model, layer)
    gram, gram_gained = output.gram(), output.gram(norm.gain)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        z = output.mixed(seen, batch)
        scale, normalized = norm.seen(seen)

        def quadratic(form: Tensor) -> Tensor:
            half = einsum(z, form, "batch pos g a k, g a b k -> batch pos g b k")
            return rearrange((half * z).sum(-2), "batch pos g k -> batch pos (g k)")

        def projected(direction: Tensor) -> Tensor:
            by_head = einsum(direction, output.w_o, "batch pos d, g a k d -> batch pos g a k")
            return rearrange((by_head * z).sum(-2), "batch pos g k -> batch pos (g k)")

        squares = change_after_norm(
            squared=quadratic(gram),
            squared_gained=quadratic(gram_gained),
            along=projected(normalized),
            along_gained=projected(normalized * norm.gain.square()),
            scale=scale,
            normalized=normalized,
            gain=norm.gain,
        )
        return {"v": root_mean(squares.sum(1), batch)}

    return LayerMeasure((MIXED, *norm.reads), score)
