"""The logit lens itself: final norm and unembedding of any hidden states, a part of the vocabulary at a time."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .forward import run_blocks
from .hooks import hooked
from .sites import HookedModel

ROWS_AT_ONCE = 256
TOKENS_AT_ONCE = 32768
"""Hidden states and tokens of the vocabulary whose logits are held at a time."""

GROUP = 32
"""Tokens of which only the largest logit is looked at first: the top k lie in the k groups with the largest ones."""


def stream_hook(layer: int) -> str:
    """Where the residual stream after ``layer`` blocks is: 0 is the embedding."""
    return f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"


@torch.inference_mode()
def stream_states(model: HookedModel, ids: Int[Tensor, " pos"]) -> list[Float[Tensor, "pos d_model"]]:
    """The residual stream of one text at the embedding and after every layer."""
    seen: list[Tensor] = []

    def keep(activation: Tensor, hook: Any = None) -> Tensor:
        seen.append(activation[0].clone())
        return activation

    with hooked(model, [(stream_hook(layer), keep) for layer in range(model.cfg.n_layers + 1)]):
        run_blocks(model, ids[None].to(model.unembed.W_U.device))  # pyright: ignore[reportAttributeAccessIssue]
    return seen


def final_norm(
    model: HookedModel, hidden: Float[Tensor, "row d_model"], normalize: bool = True
) -> Float[Tensor, "row d_model"]:
    """What the unembedding reads: these states after the final norm, or as they are with ``normalize=False``."""
    if not normalize:
        return hidden
    return model.ln_final(hidden[None])[0]  # pyright: ignore[reportAttributeAccessIssue]


def logit_parts(
    model: HookedModel, normed: Float[Tensor, "row d_model"], *, biased: bool = True
) -> Iterator[tuple[int, Float[Tensor, "token row"]]]:
    """First token and logits of each part of the vocabulary, before a soft cap.

    Tall blocks of the unembedding times few states run faster this way round on a CPU.
    """
    unembed = model.unembed  # pyright: ignore[reportAttributeAccessIssue]
    by_token, bias = unembed.W_U.t(), getattr(unembed, "b_U", None) if biased else None
    columns = normed.to(by_token.dtype).t().contiguous()
    for start in range(0, len(by_token), TOKENS_AT_ONCE):
        logits = by_token[start : start + TOKENS_AT_ONCE] @ columns
        yield start, logits if bias is None else logits.add_(bias[start : start + TOKENS_AT_ONCE, None])


def soft_cap(model: HookedModel, logits: Tensor) -> Tensor:
    """The model's cap on its logits (Gemma 2), where it has one; it keeps their order."""
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or -1.0
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def top_tokens(
    model: HookedModel, hidden: Float[Tensor, "row d_model"], k: int, *, normalize: bool = True
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The ``k`` tokens that each hidden state decodes to, highest logit first, and these logits (soft-capped)."""
    found = [_top(model, final_norm(model, rows, normalize), k) for rows in hidden.split(ROWS_AT_ONCE)]
    values, ids = (torch.cat(parts) for parts in zip(*found, strict=True))
    return soft_cap(model, values), ids


def top_ids(model: HookedModel, normed: Float[Tensor, "row d_model"], k: int) -> Int[Tensor, "row k"]:
    """The ``k`` tokens most in line with some directions in the unembedding's input; its bias is left out."""
    return _top(model, normed, k, biased=False)[1]


def _top(
    model: HookedModel, normed: Float[Tensor, "row d_model"], k: int, *, biased: bool = True
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    best, ids = [], []
    for start, logits in logit_parts(model, normed, biased=biased):
        values, tokens = _grouped_top(logits, k)
        best, ids = [*best, values], [*ids, tokens + start]
        if len(best) > 1:
            values, order = torch.cat(best).topk(min(k, sum(map(len, best))), dim=0)
            best, ids = [values], [torch.cat(ids).gather(0, order)]
    order = best[0].argsort(dim=0, descending=True, stable=True)
    return best[0].gather(0, order).t(), ids[0].gather(0, order).t()


def _grouped_top(
    logits: Float[Tensor, "token row"], k: int
) -> tuple[Float[Tensor, "some row"], Int[Tensor, "some row"]]:
    """Columnwise top k of one part of the vocabulary, in no order, exactly and without looking at most of it twice."""
    whole = len(logits) // GROUP * GROUP
    if k >= whole // GROUP:
        return logits.topk(min(k, len(logits)), dim=0, sorted=False)
    groups = logits[:whole].unflatten(0, (-1, GROUP))
    chosen = groups.amax(1).t().topk(k, dim=1, sorted=False).indices.t()  # [k, row]
    values = groups.gather(0, chosen[:, None].expand(-1, GROUP, -1)).flatten(0, 1)
    within = torch.arange(GROUP, device=logits.device)[None, :, None]
    ids = (chosen[:, None] * GROUP + within).flatten(0, 1)
    rest = torch.arange(whole, len(logits), device=logits.device)[:, None].expand(-1, logits.shape[1])
    values, ids = torch.cat([values, logits[whole:]]), torch.cat([ids, rest])
    values, order = values.t().topk(k, dim=1, sorted=False)
    return values.t(), ids.gather(0, order.t())


def label_masses(
    model: HookedModel,
    hidden: Float[Tensor, "row d_model"],
    members: Float[Tensor, "label token"],
    *,
    normalize: bool = True,
) -> Float[Tensor, "row label"]:
    """Probability of each label: softmax over the whole vocabulary, summed up over the label's tokens.

    Args:
        model: a hooked model.
        hidden: states of the residual stream.
        members: 1 where a token has a label, else 0.
        normalize: whether to apply the final norm.
    """
    found = [_masses(model, final_norm(model, rows, normalize), members) for rows in hidden.split(ROWS_AT_ONCE)]
    return torch.cat(found)


def _masses(
    model: HookedModel, normed: Float[Tensor, "row d_model"], members: Float[Tensor, "label token"]
) -> Float[Tensor, "row label"]:
    largest = torch.full((len(normed),), -torch.inf, dtype=_wide(normed), device=normed.device)
    masses = torch.zeros(len(members), len(normed), dtype=largest.dtype, device=normed.device)
    for start, logits in logit_parts(model, normed):
        logits = soft_cap(model, logits).to(largest.dtype)
        before, largest = largest, torch.maximum(largest, logits.amax(0))
        weights = logits.sub_(largest).exp_()
        masses = masses * torch.exp(before - largest) + members[:, start : start + len(weights)] @ weights
    return (masses / masses.sum(0)).t()


@torch.inference_mode()
def log_normalizer(
    model: HookedModel, hidden: Float[Tensor, "row d_model"], *, normalize: bool = True
) -> Float[Tensor, " row"]:
    """Log of the sum of all exponentiated logits: logit minus this is the token's log-probability."""
    parts = []
    for rows in hidden.split(ROWS_AT_ONCE):
        normed = final_norm(model, rows, normalize)
        by_part = [soft_cap(model, logits).to(_wide(normed)).logsumexp(0) for _, logits in logit_parts(model, normed)]
        parts.append(torch.stack(by_part).logsumexp(0))
    return torch.cat(parts)


def token_logits(
    model: HookedModel, hidden: Float[Tensor, "row d_model"], tokens: Int[Tensor, " token"], *, normalize: bool = True
) -> Float[Tensor, "row token"]:
    """Logits of some tokens only."""
    unembed = model.unembed  # pyright: ignore[reportAttributeAccessIssue]
    columns, bias = unembed.W_U[:, tokens], getattr(unembed, "b_U", None)
    logits = final_norm(model, hidden, normalize).to(columns.dtype) @ columns
    return soft_cap(model, logits if bias is None else logits + bias[tokens]).to(_wide(hidden))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
