"""What a neuron's contribution to a structure's output becomes in the residual stream, after a post-norm."""

from dataclasses import dataclass

from einops import einsum
from jaxtyping import Float
from torch import Tensor

from ..sites import HookedModel
from .conventions import norm_gain
from .measure import Activations, at_least_float32


@dataclass(frozen=True)
class PostNorm:
    """The RMS norm that a model applies to a structure's output before adding it to the residual stream."""

    name: str
    """Its module within the block, e.g. ``ln1_post``."""
    gain: Float[Tensor, " d_model"]

    @property
    def reads(self) -> tuple[str, ...]:
        """Hook points that give y / r and r for the output y, in the order of the forward pass."""
        return (f"{self.name}.hook_scale", f"{self.name}.hook_normalized")

    def seen(self, activations: Activations) -> tuple[Float[Tensor, "batch pos 1"], Float[Tensor, "batch pos d_model"]]:
        """r = sqrt(|y|²/D + eps) and y / r."""
        scale, normalized = (at_least_float32(activations[name]) for name in self.reads)
        return scale, normalized


def post_norm(model: HookedModel, layer: int, structure: str) -> PostNorm | None:
    """The norm after ``structure`` in one layer; None where its output is added as it is."""
    number = {"attention": 1, "feed_forward": 2}[structure]
    block = model.blocks[layer]  # pyright: ignore[reportAttributeAccessIssue]
    name = f"ln{number}_post" if hasattr(block, f"ln{number}_post") else f"ln{number}"
    if name.endswith("_post") or _norms_output_only(model):
        return PostNorm(name, norm_gain(model, getattr(block, name)))
    return None


def _norms_output_only(model: HookedModel) -> bool:
    """OLMo 2 and 3 norm a structure's output where others norm its input, under the same name."""
    wrapped = getattr(model, "original_model", None)
    name = getattr(model.cfg, "original_architecture", None) if wrapped is None else type(wrapped).__name__
    return name in ("Olmo2ForCausalLM", "Olmo3ForCausalLM")


def change_after_norm(
    squared: Float[Tensor, "batch pos neuron"],
    squared_gained: Float[Tensor, "batch pos neuron"],
    along: Float[Tensor, "batch pos neuron"],
    along_gained: Float[Tensor, "batch pos neuron"],
    scale: Float[Tensor, "batch pos 1"],
    normalized: Float[Tensor, "batch pos d_model"],
    gain: Float[Tensor, " d_model"],
) -> Float[Tensor, "batch pos neuron"]:
    """‖N(y) − N(y − w)‖² for each neuron's contribution w to y, without cancellation (PAPER-form of the post-norm).

    With r² = ‖y‖²/D + eps, r'² = r² + (‖w‖² − 2⟨y, w⟩)/D and e = 1/r − 1/r' = (r'² − r²) / (r r' (r + r')):
    e² ‖g∘y‖² + 2 (e / r') ⟨g∘y, g∘w⟩ + ‖g∘w‖² / r'².

    Args:
        squared: ‖w‖².
        squared_gained: ‖g∘w‖².
        along: ⟨y/r, w⟩.
        along_gained: ⟨g∘y/r, g∘w⟩.
        scale: r.
        normalized: y / r.
        gain: g.
    """
    d_model = normalized.shape[-1]
    difference = (squared - 2 * scale * along) / d_model  # r'² − r²
    new_scale = (scale.square() + difference).clamp(min=0).sqrt()
    e_r = difference / (new_scale * (scale + new_scale))  # e · r
    output = einsum((normalized * gain).square(), "batch pos d_model -> batch pos")[..., None]
    return e_r.square() * output + (2 * e_r * along_gained + squared_gained / new_scale) / new_scale
