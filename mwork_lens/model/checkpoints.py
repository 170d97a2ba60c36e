"""A checkpoint as a transformers model and tokenizer: with every weight of its text part, and without foreign code."""

import contextlib
import copy
import io
import logging
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from .offloaded import is_held, place_of
from .weight_files import QUANTISED, check_files, folder_of, require_no_adapters

SHOWN = 3
"""So many weights are named in a message."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    words = f"there is no {error}" if isinstance(error, KeyError) and error.args else str(error)
    return (words.strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def lacks_memory(error: BaseException) -> bool:
    """Whether memory has run out, on a CPU (where torch raises a RuntimeError) or a GPU."""
    said = str(error).lower()
    words = ("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in said for word in words)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the deprecation notices, banners and bars that loading prints and the user can do nothing about."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    accelerate = logging.getLogger("accelerate")
    level = accelerate.level
    accelerate.setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        accelerate.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()


def read_model(place: str | Path, dtype: torch.dtype, parts: Mapping[str, str] | None = None, **options: Any) -> Any:
    """The causal language model at ``place``, a directory or hub name, in evaluation mode.

    ``parts`` says by name of a module where it is put; what is to be on disk stays in the files, and where these cannot
    be read a weight at a time, goes to a temporary place that is removed with the model. ``options`` go to
    ``from_pretrained``, e.g. ``gguf_file``.

    Raises:
        ValueError: for files that cannot be read, custom code, quantised weights, another kind of model, or text
            weights that are missing or of another shape.
    """
    config = None if options else read_config(place)
    with contextlib.ExitStack() as temporary:
        placing: dict[str, Any] = {}
        if parts is not None:
            folder = temporary.enter_context(tempfile.TemporaryDirectory(prefix="mwork-lens-"))
            placing = {"device_map": dict(parts), "offload_folder": folder}
        with _naming(place), quiet_transformers():
            kinds = {"dtype": dtype, "attn_implementation": "eager", "trust_remote_code": False}
            reports = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            loaded, report = _loader(config).from_pretrained(place, **kinds, **reports, **placing, **options)
        text = text_model(loaded)
        _require_weights(loaded, text, report, place)
        if not options and (folder := folder_of(place)):
            require_no_adapters(folder)
            check_files(folder)
        if parts is not None:
            weakref.finalize(text, temporary.pop_all().close)
    return text.eval()


def skeleton(config: Any, dtype: torch.dtype) -> Any:
    """The transformers model with this configuration, without any weight."""
    kind = _loader(config)
    make = getattr(kind, "from_config", None) or kind._from_config
    with torch.device("meta"), quiet_transformers():
        model = make(copy.deepcopy(config), dtype=dtype)
        model.tie_weights()
    return model


def read_config(place: str | Path) -> Any:
    """The transformers configuration at ``place``; a ValueError for custom code and for what is not a decoder."""
    from transformers import AutoConfig, PreTrainedConfig

    with _naming(place), quiet_transformers():
        raw, _ = PreTrainedConfig.get_config_dict(place)
        if not isinstance(raw, Mapping):
            raise ValueError("its config.json holds no settings by name")
    _refuse_custom_code(raw, place)
    if raw.get("quantization_config"):
        raise ValueError(f"{place}: {QUANTISED}")
    with _naming(place), quiet_transformers():
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    refuse_other_kinds(config, str(place))
    return config


LOGITS_APART = 0.01
"""Share of the largest logit by which a multimodal model and its text model may differ, in half precision too."""


def read_tokenizer(place: str | Path, **options: Any) -> Any:
    """The tokenizer at ``place``; a ValueError where none can be loaded without foreign code."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    except Exception as error:  # the library tokenizers raises no kind of its own
        if lacks_memory(error):
            raise
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"The tokenizer of {place} is custom code, which is never run here: load it with transformers and give "
                "it as tokenizer=."
            ) from error
        raise ValueError(
            f"{str(place)!r} has no tokenizer that can be loaded: {first_line(error)}. Give one as tokenizer=."
        ) from error


def own_tokenizer(tokenizer: Any, title: str) -> Any:
    """A caller's tokenizer, to be changed here; one that TransformerLens need not read again by its name.

    TransformerLens wants tokenizers to begin with the BOS, and to that end reads them anew with ``add_bos_token``.
    """
    from transformers import PreTrainedTokenizerBase

    if tokenizer is None:
        return None
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"tokenizer={tokenizer!r:.60} is not a tokenizer: give one that transformers has loaded.")
    tokenizer = copy.deepcopy(tokenizer)
    place, options = tokenizer.name_or_path, tokenizer.init_kwargs
    if place and tokenizer.bos_token is not None and not options.get("add_bos_token"):
        with contextlib.suppress(ValueError):
            again = read_tokenizer(place, add_bos_token=True)
            if again.get_vocab() == tokenizer.get_vocab():
                again.padding_side = tokenizer.padding_side
                tokenizer, options = again, again.init_kwargs
    options |= {"name_or_path": place or title, "add_bos_token": True}
    return tokenizer


@contextlib.contextmanager
def _naming(place: str | Path) -> Iterator[None]:
    """Errors of reading become one that names the place; those of memory stay what they are."""
    from safetensors import SafetensorError

    try:
        yield
    except Exception as error:  # damaged files make the libraries raise many kinds
        if lacks_memory(error):
            raise
        if isinstance(error, UnpicklingError):
            reason = "its weights are a pickle that holds more than tensors, of which nothing is run"
            raise ValueError(f"{place} cannot be loaded: {reason}.") from error
        damaged = f", {file}" if isinstance(error, SafetensorError) and (file := _damaged(Path(place))) else ""
        raise ValueError(f"{place}{damaged} cannot be loaded: {first_line(error)}.") from error


def _damaged(folder: Path) -> str | None:
    """The name of the first file of weights that is not whole."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            safe_open(file, "pt")
        except SafetensorError:
            return file.name
    return None


def _refuse_custom_code(config: Mapping[str, Any], place: str | Path) -> None:
    """Where a configuration names code of its own and the library has no class of the architecture."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    code = config.get("auto_map")
    if not isinstance(code, Mapping):
        return
    models = [str(code[kind]).rsplit(".", 1)[-1] for kind in ("AutoModel", "AutoModelForCausalLM") if kind in code]
    named = dict.fromkeys([*(config.get("architectures") or ()), *models])
    if config.get("model_type") not in CONFIG_MAPPING or not all(hasattr(transformers, name) for name in named):
        raise ValueError(
            f"{place} is made of custom code ({', '.join(named) or config.get('model_type')}), which is never run "
            "here: if you trust it, load it with transformers yourself and give the model: "
            "mw.load_model(model, tokenizer=tokenizer)."
        )


def refuse_other_kinds(config: Any, title: str, kind: str = "") -> None:
    """A ValueError for what no causal language model can be made of; ``kind``: the class of a model in memory."""
    kind = kind or (config.architectures or [type(config).__name__])[0]
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{title} is an encoder-decoder ({kind}); only decoders, which read left to right, have a use here."
        )
    if (layers := getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)) is not None and layers < 1:
        raise ValueError(f"{title} cannot be loaded: its configuration says that it has {layers} layers.")
    if _loader(config, kind) is None:
        raise ValueError(
            f"{title} is not a causal language model that transformers can load for text ({kind}); give a decoder, "
            "such as Llama, Qwen or Gemma."
        )


def _loader(config: Any, kind: str = "") -> Any:
    """The class that reads a checkpoint, of this architecture; None where none gives a causal language model."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if config is None or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    text, name = config.get_text_config(decoder=True), kind or (config.architectures or [""])[0]
    has_text = text is not config and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING
    return getattr(transformers, name, None) if has_text else None


def text_model(model: Any) -> Any:
    """The text model of a multimodal one, made of its very modules; any other model itself."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = model.config.get_text_config(decoder=True)
    if config is model.config or type(model.config) is type(config):
        return model
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None or isinstance(model, kind):
        return model
    with torch.device("meta"), quiet_transformers():
        text = kind(config)
    decoder = next((module for module in model.modules() if type(module) is type(text.base_model)), None)
    if decoder is None or model.get_output_embeddings() is None:
        raise ValueError(
            f"{type(model).__name__} holds no {type(text.base_model).__name__}, which its text model would be."
        )
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(model.get_output_embeddings())
    text.generation_config = model.generation_config
    text.config._name_or_path, text.config.architectures = model.config._name_or_path, [kind.__name__]
    _warn_of_other_logits(model, text)
    return text


@torch.inference_mode()
def _warn_of_other_logits(model: nn.Module, text: nn.Module) -> None:
    """Of a multimodal model that leaves out what its text model does after the unembedding (a scale, a cap)."""
    ids = torch.arange(8, device=place_of(text))[None]
    theirs, ours = (each.eval()(input_ids=ids).logits.float() for each in (model, text))
    apart = float((theirs - ours).abs().max() / ours.abs().max())
    if apart > LOGITS_APART:
        warnings.warn(
            f"{type(model).__name__} gives other logits than its text model {type(text).__name__}, by {apart:.0%} of "
            "the largest: losses and probabilities are those of the text model.",
            stacklevel=6,
        )


def _require_weights(model: nn.Module, text: Any, report: Mapping[str, Any], place: str | Path) -> None:
    """Refuse text weights that the checkpoint does not have, which would be random; warn of those it has left over."""
    names = {id(value) for value in text.state_dict(keep_vars=True).values()}
    of_text = {name for name, value in model.state_dict(keep_vars=True).items() if id(value) in names}
    missing = sorted(name for name in report["missing_keys"] if name in of_text)
    misshapen = sorted(f"{name} {list(there)}, not {list(ours)}" for name, there, ours in report["mismatched_keys"])
    unexpected = sorted(report["unexpected_keys"])
    if missing or misshapen:
        faults = [("has no weights for", missing), ("has weights of another shape:", misshapen)]
        said = " and ".join(f"{words} {_listed(found)}" for words, found in faults if found)
        renamed = f" It has {_listed(unexpected)}, of which the model knows nothing." if unexpected else ""
        raise ValueError(
            f"{place} {said}.{renamed} The files are incomplete, or belong to another model or version of transformers."
        )
    if unexpected:
        warnings.warn(f"{place} has weights of which the model knows nothing: {_listed(unexpected)}.", stacklevel=6)
    ties = getattr(text.config, "tie_word_embeddings", False)
    ends = [each.weight for each in (text.get_input_embeddings(), text.get_output_embeddings())]
    if ties and ends[0] is not ends[1] and not any(map(is_held, ends)):
        warnings.warn(
            f"{place} holds an unembedding of its own although its configuration says that it is the embedding "
            "(tie_word_embeddings): what is stored is used.",
            stacklevel=6,
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
