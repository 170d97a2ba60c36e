"""From the residual stream to logits, losses and top tokens: final norm and unembedding of any hidden states.

The vocabulary is taken a part at a time, so that logits over all of it are never held for many states.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from .architecture import (
    NOT_CAUSAL,
    HookedModel,
    at_least_float32,
    device_of,
    original,
    stream_hook,
    unembedding_of,
    wide_dtype,
    wrapped_model,
)
from .lm_head import Finish, before_unembedding
from .offloaded import place_of
from .state import settled

ROWS_AT_ONCE = 256
TOKENS_AT_ONCE = 32768
"""Hidden states and tokens of the vocabulary whose logits are held at a time."""
LOSS_TOKENS_AT_ONCE = 2048
"""The same for losses, which take more states at a time: a part's logits stay in the cache of a CPU."""
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 4e-3}
"""Of the largest logit, by which logits computed from the last stream may differ from the model's own."""
GROUP = 32
"""Tokens of which only the largest logit is looked at first: the top k lie in the k groups with the largest ones."""


def require_numbers(model: HookedModel, values: Tensor) -> Tensor:
    """Logits, or what was made of them; a ValueError where they are not numbers."""
    if not (values < torch.inf).all():  # nor NaN
        raise ValueError(
            f"The logits of {model.cfg.model_name} are not numbers: its weights hold NaN or infinite values, or "
            f"{values.dtype} overflows."
        )
    return values


def _require_no_hook(model: HookedModel) -> None:
    """A ValueError for hooks where logits of ours leave them out; those of libraries are part of the model."""
    wrapped = [each for each in (wrapped_model(model), original(model.unembed)) if each is not None]
    modules: dict[Any, None] = dict.fromkeys([model, *wrapped, *model.unembed.modules()])
    hooks = [hook for each in modules for hook in (*each._forward_hooks.values(), *each._forward_pre_hooks.values())]
    if any(getattr(each, "fwd_hooks", ()) for each in modules) or any(map(_is_of_a_caller, hooks)):
        raise ValueError(
            f"A hook is on the unembedding of {model.cfg.model_name}, or on the whole model: what it does to logits "
            "would be left out here. Remove it first (model.reset_hooks(), or its handle)."
        )


def _is_of_a_caller(hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").split(".")[0] not in _LIBRARIES


_LIBRARIES = {"accelerate", "mwork_lens", "torch", "transformer_lens", "transformers"}


def final_norm(
    model: HookedModel, hidden: Float[Tensor, "row d_model"], normalize: bool = True
) -> Float[Tensor, "row d_unembed"]:
    """What the unembedding reads of these states; with ``normalize=False``, without the final norm."""
    states = hidden[None]
    for name, module in before_unembedding(model):
        if normalize or name != "ln_final":
            states = module(_beside(states, module))
    return _beside(states[0], model.unembed)


def _beside(states: Tensor, module: Any) -> Tensor:
    """Where the module computes, in a model that lies over several devices."""
    return states.to(place_of(module)) if any(True for _ in module.parameters()) else states


def logit_parts(
    model: HookedModel, normed: Float[Tensor, "row d_unembed"], *, biased: bool = True, at_once: int | None = None
) -> Iterator[tuple[int, Float[Tensor, "token row"]]]:
    """First token and logits of each part of the vocabulary, which :func:`finish_logits` finishes.

    Tall blocks of the unembedding times few states run faster this way round on a CPU.
    """
    _require_no_hook(model)
    size = at_once or TOKENS_AT_ONCE
    by_token, bias = unembedding_of(model)
    bias = bias if biased else None
    columns = normed.to(by_token.dtype).t().contiguous()
    for start in range(0, len(by_token), size):
        logits = by_token[start : start + size] @ columns
        yield start, logits if bias is None else logits.add_(bias[start : start + size, None])


def finish_logits(model: HookedModel, logits: Tensor) -> Tensor:
    """What the model does to products with its unembedding: a scale and a soft cap where it has them; order is kept."""
    return Finish.of(model)(logits)


def all_logits(
    model: HookedModel, hidden: Float[Tensor, "row d_model"], *, normalize: bool = True
) -> Float[Tensor, "row token"]:
    """Logits over the whole vocabulary, of few states."""
    parts = [logits for _, logits in logit_parts(model, final_norm(model, hidden, normalize))]
    return require_numbers(model, finish_logits(model, torch.cat(parts).t().to(hidden.device)))


def differentiable_logits(model: HookedModel, hidden: Float[Tensor, "row d_model"]) -> Float[Tensor, "row token"]:
    """Logits over the whole vocabulary in float32 at least, in one product, whose gradient is one product too."""
    _require_no_hook(model)
    logits = linear(final_norm(model, hidden), *unembedding_of(model))
    return finish_logits(model, at_least_float32(logits))


def top_tokens(
    model: HookedModel, hidden: Float[Tensor, "row d_model"], k: int, *, normalize: bool = True
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The ``k`` tokens that each hidden state decodes to, highest logit first, and these logits."""
    parts = [_top(model, final_norm(model, rows, normalize), k) for rows in hidden.split(ROWS_AT_ONCE)]
    values, ids = (torch.cat(part).to(hidden.device) for part in zip(*parts, strict=True))
    return require_numbers(model, finish_logits(model, values)), ids


def top_ids(model: HookedModel, normed: Float[Tensor, "row d_unembed"], k: int) -> Int[Tensor, "row k"]:
    """The ``k`` tokens most in line with some directions in the unembedding's input; its bias is left out."""
    return _top(model, normed, k, biased=False)[1]


def _top(
    model: HookedModel, normed: Float[Tensor, "row d_unembed"], k: int, *, biased: bool = True
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    best, ids = torch.empty(0), torch.empty(0)
    for start, logits in logit_parts(model, normed, biased=biased):
        values, tokens = _grouped_top(logits, k)
        if start:
            values, tokens = torch.cat([best, values]), torch.cat([ids, tokens + start])
            values, order = values.topk(min(k, len(values)), dim=0)
            tokens = tokens.gather(0, order)
        best, ids = values, tokens
    order = best.argsort(dim=0, descending=True, stable=True)
    return best.gather(0, order).t(), ids.gather(0, order).t()


def _grouped_top(
    logits: Float[Tensor, "token row"], k: int
) -> tuple[Float[Tensor, "some row"], Int[Tensor, "some row"]]:
    """Columnwise top k of one part of the vocabulary, unsorted, without looking at most of it twice."""
    whole = len(logits) // GROUP * GROUP
    if k >= whole // GROUP:
        return logits.topk(min(k, len(logits)), dim=0, sorted=False)
    groups = logits[:whole].unflatten(0, (-1, GROUP))
    groups_of_top = groups.amax(1).t().topk(k, dim=1, sorted=False).indices.t()  # [k, row]
    values = groups.gather(0, groups_of_top[:, None].expand(-1, GROUP, -1)).flatten(0, 1)
    within = torch.arange(GROUP, device=logits.device)[None, :, None]
    ids = (groups_of_top[:, None] * GROUP + within).flatten(0, 1)
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
    """Probability of each label: softmax over the vocabulary, summed over the tokens where ``members`` is 1, not 0."""
    dtype, finish, parts = wide_dtype(hidden.dtype), Finish.of(model), []
    for rows in hidden.split(ROWS_AT_ONCE):
        normed = final_norm(model, rows, normalize)
        largest = torch.full((len(rows),), -torch.inf, dtype=dtype, device=normed.device)
        masses, members = (
            torch.zeros(len(members), len(rows), dtype=dtype, device=normed.device),
            members.to(normed.device),
        )
        for start, logits in logit_parts(model, normed):
            weights, largest, shrink = _exponentials(finish(logits).to(dtype), largest)
            masses = masses * shrink + members[:, start : start + len(weights)] @ weights
        parts.append((masses / masses.sum(0)).t().to(hidden.device))
    return require_numbers(model, torch.cat(parts))


def _exponentials(
    logits: Float[Tensor, "token row"], before: Float[Tensor, " row"]
) -> tuple[Float[Tensor, "token row"], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """In place: exp(logit − largest), the largest logit so far, and the factor for sums over the parts before."""
    # finite also where a whole part of the vocabulary is masked
    largest = torch.maximum(before, logits.amax(0)).clamp(min=torch.finfo(before.dtype).min)
    return logits.sub_(largest).exp_(), largest, torch.exp(before - largest)


@torch.inference_mode()
def log_normalizer(
    model: HookedModel, hidden: Float[Tensor, "row d_model"], *, normalize: bool = True
) -> Float[Tensor, " row"]:
    """Log of the sum of all exponentiated logits: logit minus this is the token's log-probability."""
    finish, parts = Finish.of(model), []
    for rows in hidden.split(ROWS_AT_ONCE):
        logits = logit_parts(model, final_norm(model, rows, normalize))
        by_part = [at_least_float32(finish(part)).logsumexp(0) for _, part in logits]
        parts.append(torch.stack(by_part).logsumexp(0).to(hidden.device))
    return require_numbers(model, torch.cat(parts))


def token_losses(
    model: HookedModel, hidden: Float[Tensor, "token d_model"], targets: Int[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """−log p of each target in nats, from the residual stream at the position before it."""
    normed, finish = final_norm(model, hidden), Finish.of(model)
    tokens = model.unembed.W_U.shape[1]
    if len(targets) and int(targets.max()) >= tokens:
        raise ValueError(
            f"{model.cfg.model_name} has no logit for token {int(targets.max())}: its unembedding has {tokens} of "
            f"{model.cfg.d_vocab} tokens, so there is no loss."
        )
    targets = targets.to(normed.device)
    largest = torch.full_like(targets, -torch.inf, dtype=wide_dtype(normed.dtype))
    total, of_target = torch.zeros_like(largest), torch.zeros_like(largest)
    for start, logits in logit_parts(model, normed, at_once=LOSS_TOKENS_AT_ONCE):
        logits = finish(logits.to(largest.dtype))
        inside = ((targets >= start) & (targets < start + len(logits))).nonzero().flatten()
        of_target[inside] = logits[targets[inside] - start, inside]
        weights, largest, shrink = _exponentials(logits, largest)
        total = total * shrink + weights.sum(0)
    return require_numbers(model, (largest + total.log() - of_target).to(hidden.device))


_compared: WeakSet[HookedModel] = WeakSet()


@torch.no_grad()
def require_same_readout(model: HookedModel) -> None:
    """Refuse a model whose logits are not :func:`all_logits` of its last stream; once per model, on a few tokens."""
    if model in _compared:
        return
    last: list[Tensor] = []
    keep = (stream_hook(model.cfg.n_layers), lambda activation, hook=None: last.append(activation[0]))
    # two texts that begin alike
    ids = torch.tensor([[3, 4, 5, 6, 7, 8], [3, 4, 5, 9, 10, 11]], device=device_of(model)) % model.cfg.d_vocab
    wrapped = wrapped_model(model)
    with settled(model):
        with model.hooks(fwd_hooks=[keep]):
            # in a cache, layers that share a place there would get in each other's way
            both = wrapped(ids, use_cache=False) if hasattr(wrapped, "base_model") else (wrapped or model)(ids)
        own, other = getattr(both, "logits", both)
        if _largest_difference(other[:3], own[:3]) > _TOLERANCE[own.dtype]:
            raise ValueError(f"{model.cfg.model_name} {NOT_CAUSAL}")
        if not last:
            raise ValueError(
                f"{model.cfg.model_name} does not show its last layer's residual stream ({keep[0]} never runs)."
            )
        difference = _largest_difference(all_logits(model, last[0]), own)
    if not difference <= _TOLERANCE[own.dtype]:
        raise ValueError(
            f"The logits of {model.cfg.model_name} cannot be computed from its last layer: final norm, unembedding, "
            f"scale and soft cap, as modules and configuration say, give others (by {difference:.2g} of the largest). "
            f"{type(wrapped_model(model) or model).__name__} does something else there."
        )
    _compared.add(model)


def _largest_difference(ours: Tensor, own: Tensor) -> float:
    """Relative to the largest of ``own``; infinite where their shapes differ."""
    if ours.shape != own.shape:
        return torch.inf
    ours, own = ours.double(), own.double().to(ours.device)
    return float((ours - own).abs().max() / own.abs().max())
