"""A transformers model as a HookedTransformer, or a raw bridge where TransformerLens cannot express it as one."""

import contextlib
import copy
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .architecture import HookedModel, device_of, original, rope_settings
from .blocks import require_attention
from .checkpoints import first_line, lacks_memory, own_tokenizer, quiet_transformers
from .comparing import Differs, Reference, context_of, require_same, require_same_far
from .offloaded import place_of
from .placement import Placement, take_back

logger = logging.getLogger("mwork_lens")

_LIBRARIES = {"torch", "einops", "transformers"}
"""In which an error comes up that is of the code that called them."""
_OF_A_DEVICE: Any = getattr(torch, "AcceleratorError", OSError)  # torch before 2.8 has none
_IN_MEMORY = "a model in memory"
"""Stands where TransformerLens would read an architecture, or code to run, from a name: no path, and no hub name."""


class NotConvertible(Exception):
    """Why a model cannot be a HookedTransformer."""


def hooked_or_bridge(
    theirs: Any, reference: Reference, tokenizer: Any, official: str | None, title: str, placement: Placement
) -> HookedModel:
    """A HookedTransformer, else a raw bridge, that computes what the reference says; ``theirs`` is used up.

    Parts that are placed one by one stay where they are, which only a bridge leaves them.

    Raises:
        ValueError: if neither can be made, or what was made computes something else.
    """
    try:
        transformer_lens()
        if placement.parts is not None and placement.split == 1:
            raise NotConvertible("a HookedTransformer has its parts where TransformerLens puts them")
        model = _converted(take_back(theirs), reference, tokenizer, official, placement)
        model.generation_config = theirs.generation_config  # which says what ends a text
        over = f" over {placement.split} devices" if placement.split > 1 else ""
        logger.info("Loaded %s as a HookedTransformer%s", title, over)
    except NotConvertible as reason:
        logger.warning("Loading %s as a raw TransformerBridge, because %s", title, str(reason))
        model = _compared_bridge(placement.put(theirs), reference, tokenizer, title, str(reason))
    model.cfg.model_name = title
    return model.eval()


@contextlib.contextmanager
def _cannot(words: str) -> Iterator[None]:
    """What TransformerLens cannot do, and what it computes otherwise, becomes NotConvertible."""
    try:
        yield
    except Exception as error:
        if not _is_unfit(error):
            raise
        raise NotConvertible(words.format(first_line(error))) from error


def _is_unfit(error: Exception) -> bool:
    """Whether TransformerLens has a model wrong, refuses it, or trips over what it lacks; not a fault of anything else.

    It trips in many ways: over an attribute, a shape, an assertion. What counts is that it does so in code of its own.
    """
    if isinstance(error, Differs):
        return True
    if lacks_memory(error) or isinstance(error, _OF_A_DEVICE):
        return False
    names = (frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__))
    return [name for name in names if name not in _LIBRARIES][-1] == "transformer_lens"


def _converted(theirs: Any, reference: Reference, tokenizer: Any, official: str | None, placement: Placement) -> Any:
    hooked, loading = transformer_lens()
    with _cannot("TransformerLens cannot convert it ({})"), quiet_transformers():
        cfg = _config(loading, theirs.config, official, device=placement.device, dtype=theirs.dtype)
        cfg.n_devices = placement.split
        if tokenizer is None:
            cfg.tokenizer_name = None
        read = _with_names(loading.get_pretrained_state_dict, get_official_model_name=str)
        weights = read(_IN_MEMORY, cfg, theirs, dtype=theirs.dtype)
        # Gemma's gains come in float32 whatever the dtype
        exact = {name: weight for name, weight in weights.items() if weight.dtype != theirs.dtype}
        weights = {name: weight.to(theirs.dtype) for name, weight in weights.items()}
        model = hooked(cfg, tokenizer, move_to_device=False)
        weights = model.fill_missing_keys(weights)
        _require_shapes(weights, model.state_dict())
        # at once: TransformerLens's own loop walks all modules for every single weight
        model.load_state_dict(weights, strict=False, assign=True)
        del weights
        put_by_layer(model)
    with _cannot("as a HookedTransformer {}"):
        require_same(model, reference, exact)
        require_same_far(model, theirs)
    unembedding = model.unembed.W_U
    if not unembedding.t().is_contiguous():  # HookedTransformer.unembed would copy it on every call
        unembedding.data = unembedding.data.t().contiguous().t()
    return model


def put_by_layer(model: Any) -> None:
    """Put every layer of a HookedTransformer where its forward pass sends the stream; its own method puts layers where
    most memory is free, which may be elsewhere."""
    from transformer_lens.utilities.multi_gpu import get_device_for_block_index

    if model.cfg.n_devices == 1:
        model.move_model_modules_to_device()
        return
    for layer, block in enumerate(model.blocks):
        block.to(get_device_for_block_index(layer, model.cfg))
    for name, part in model.named_children():
        if name != "blocks":
            at_end = name in ("ln_final", "unembed")
            part.to(get_device_for_block_index(len(model.blocks) - 1 if at_end else 0, model.cfg))


def _require_shapes(weights: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """NotConvertible for weights that have no room, as TransformerLens presumes some widths."""
    for name, weight in weights.items():
        if name in places and places[name].shape != weight.shape:
            shapes = [*weight.shape], [*places[name].shape]
            raise NotConvertible(f"TransformerLens cannot convert it ({name} is {shapes[0]}, it presumes {shapes[1]})")


def transformer_lens() -> tuple[Any, Any]:
    """HookedTransformer, and the module that knows the official models; NotConvertible where it has neither."""
    try:
        from transformer_lens import HookedTransformer, loading_from_pretrained
    except ImportError as error:
        raise NotConvertible(
            "this TransformerLens has no HookedTransformer; the extra 'mwork_lens[hooked]' installs one that does"
        ) from error
    return HookedTransformer, loading_from_pretrained


def _with_names(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """The function with these names in place of its module's: nothing global changes, and nothing is fetched."""
    code, defaults, closure = function.__code__, function.__defaults__, function.__closure__
    changed = FunctionType(code, {**function.__globals__, **names}, function.__name__, defaults, closure)
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed


def _config(loading: Any, config: Any, official: str | None, **options: Any) -> Any:
    """TransformerLens's configuration of a model with this one of transformers, whatever the model is called.

    TransformerLens knows some architectures by official name only: then that of the official model of these sizes.
    """
    config, context = copy.deepcopy(config), context_of(config)
    # where configurations of GPT-2 and Phi had them, and TransformerLens looks for them
    partial = rope_settings(config)[0].get("partial_rotary_factor")
    for name, value in {"n_ctx": context, "partial_rotary_factor": partial}.items():
        if value is not None and not hasattr(config, name):
            setattr(config, name, value)
    known = SimpleNamespace(from_pretrained=lambda *_, **__: config)
    convert = _with_names(loading.convert_hf_model_config, AutoConfig=known, get_official_model_name=str)
    read = _with_names(
        loading.get_pretrained_model_config, convert_hf_model_config=convert, get_official_model_name=str
    )
    try:
        cfg = read(_IN_MEMORY, hf_cfg=config.to_dict(), **options)
    except NotImplementedError:  # an architecture that it does not know, or by official name only
        name = _official_name(loading, convert, config, official)
        if name is None:
            raise
        cfg = read(name, hf_cfg=config.to_dict(), **options)
    cfg.original_architecture, cfg.trust_remote_code = config.architectures[0], False
    cfg.n_ctx = context or cfg.n_ctx
    return cfg


def _official_name(loading: Any, convert: Callable[..., Any], config: Any, name: str | None) -> str | None:
    """The official TransformerLens name whose sizes ``config`` has; None for an architecture that has none."""
    architecture = config.architectures[0]
    kinds = (architecture, architecture.replace("ForCausalLM", "ForConditionalGeneration"))
    official = [name] if name else [each for each in loading.OFFICIAL_MODEL_NAMES if not each.startswith(OWN_WEIGHTS)]
    candidates: dict[str, Mapping[str, Any]] = {}
    for each in official:
        with contextlib.suppress(NotImplementedError, AttributeError):  # those known by their configuration
            candidates[each] = convert(each)
    candidates = {each: cfg for each, cfg in candidates.items() if cfg["original_architecture"] in kinds}
    converted = loading.get_pretrained_state_dict.__code__.co_consts  # all architectures whose weights it converts
    if not candidates or architecture not in converted:
        return None
    heads = config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = heads, getattr(config, "num_key_value_heads", heads), d_head
    sizes = (config.num_hidden_layers, config.hidden_size, *attention, config.intermediate_size, config.vocab_size)
    for each, c in candidates.items():
        attention = c["n_heads"], c.get("n_key_value_heads") or c["n_heads"], c["d_head"]
        if (c["n_layers"], c["d_model"], *attention, c["d_mlp"], c["d_vocab"]) == sizes:
            return each
    raise NotConvertible(f"no official TransformerLens model among {len(candidates)} has its sizes")


OWN_WEIGHTS = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
"""Official models whose weights only HookedTransformer reads."""


def _compared_bridge(theirs: Any, reference: Reference, tokenizer: Any, title: str, reason: str) -> HookedModel:
    try:
        model = bridge_on(theirs, tokenizer)
    except Exception as error:
        if not _is_unfit(error):
            raise
        raise ValueError(
            f"{title} cannot be hooked: {reason}, and TransformerBridge does not take it "
            f"({first_line(error).split('. ')[0]})."
        ) from error
    model.cfg.model_name = title
    require_attention(model)
    try:
        require_same(model, reference)
    except Exception as error:
        if not _is_unfit(error):
            raise
        fault = str(error) if isinstance(error, Differs) else f"it does not run in {theirs.dtype} ({first_line(error)})"
        raise ValueError(
            f"{title} is not loaded, because this version of TransformerLens has it wrong: as a TransformerBridge "
            f"{fault}; and {reason}. Another version may be right, that of 'mwork_lens[hooked]' or a later one, or "
            "another dtype."
        ) from error
    return model


def bridge_on(theirs: Any, tokenizer: Any = None) -> HookedModel:
    """A raw bridge around a transformers model, which is taken apart by this."""
    from transformer_lens.model_bridge import TransformerBridge

    name_architecture(theirs)
    context, device = context_of(theirs.config.get_text_config()), place_of(theirs)
    if tokenizer is not None and not tokenizer.init_kwargs.get("name_or_path"):
        tokenizer = own_tokenizer(tokenizer, type(theirs).__name__)
    with quiet_transformers():
        bridge: Any = TransformerBridge.boot_transformers(
            _IN_MEMORY, hf_model=theirs, tokenizer=tokenizer or _no_tokenizer(), device=device, dtype=theirs.dtype
        )
    if tokenizer is None:
        bridge.tokenizer = None
    bridge.cfg.n_ctx = context or bridge.cfg.n_ctx
    complete_bridge(bridge)
    return bridge.eval()


def complete_bridge(bridge: Any) -> None:
    """Let the usual hook points of a bridge run, and its masks be causal, in families where they are not."""
    _name_feed_forward(bridge)
    bridge.cfg.device = str(device_of(bridge))  # which is not known of an embedding on disk
    for block in getattr(bridge, "blocks", ()):
        module, attention = original(block), getattr(block, "attn", None)
        if _tuple_of_list not in module._forward_hooks.values():
            module.register_forward_hook(_tuple_of_list)
            if attention is not None:
                attention.register_forward_pre_hook(_causal_mask, with_kwargs=True)


def _tuple_of_list(module: Any, args: Any, output: Any) -> tuple[Any, ...] | None:
    """What a block returns; a bridge does not look into the lists of GPT-1."""
    return tuple(output) if isinstance(output, list) else None


def _causal_mask(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """A mask of padding only, as GPT-1 gives one, made causal too: a bridge takes it for the whole mask."""
    mask: Any = kwargs.get("attention_mask")
    states: Any = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-2] != 1 or states.shape[1] == 1:
        return None
    queries, keys = states.shape[1], mask.shape[-1]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril(keys - queries)
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return args, {**kwargs, "attention_mask": mask.masked_fill(~seen, hidden)}


def _name_feed_forward(bridge: Any) -> None:
    """Give the feed-forward of a bridge's blocks its usual name too, where it has another, as in dense Granite 4."""
    aliases: dict[str, str] = {}
    for layer, block in enumerate(getattr(bridge, "blocks", ())):
        name = getattr(block, "scaled_mlp_submodule", None)
        if name in (None, "mlp") or hasattr(block, "mlp"):
            continue
        object.__setattr__(block, "mlp", getattr(block, name))  # not a second submodule: each weight has one name
        prefix = f"blocks.{layer}."
        hooks = [hook.removeprefix(prefix + name) for hook in bridge.hook_dict if hook.startswith(f"{prefix}{name}.")]
        aliases |= {f"{prefix}mlp{hook}": f"{prefix}{name}{hook}" for hook in hooks}
    if aliases:
        bridge.hook_aliases = {**bridge.hook_aliases, **aliases}


def name_architecture(theirs: Any) -> None:
    """Make the configuration say which class the model is of, which one made in memory does not."""
    import transformers

    name, said = type(theirs).__name__, theirs.config.architectures
    theirs.config.architectures = [name] if hasattr(transformers, name) or not said else said


def _no_tokenizer() -> Any:
    """One of a single word, without which a bridge looks for one on the hub."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    special = {"unk_token": "<unk>", "eos_token": "<unk>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")), **special)
