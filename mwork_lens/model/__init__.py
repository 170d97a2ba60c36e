"""The model: where its neurons live, how it is loaded, run and hooked, and what it says of itself."""

from .architecture import (
    HookedModel,
    PostNorm,
    Rotary,
    Structure,
    at_least_float32,
    attention_scale,
    device_of,
    dtype_of,
    has_feed_forward,
    key_value_heads,
    norm_eps,
    norm_gain,
    original,
    post_norm,
    special_ids,
    stream_before,
    stream_hook,
    weight,
    wide_dtype,
    wrapped_model,
)
from .forward import (
    MAX_TOKENS,
    Encoded,
    Plan,
    Progress,
    Running,
    TokenBatch,
    batches,
    encode,
    run_blocks,
    stream,
    stream_states,
)
from .hooks import ContentPositions, ForwardHook, Mode, Positions, change_of, hooked, mask_hooks
from .loading import HALF_TOLERANCE, bridge_on, load_model, load_tokenizer, logit_distance, source_directory
from .reducers import ExactSum, Reducer
from .sites import GATE, SITES, Site, Slices, add_site, remove_site, require_sites
from .unembedding import (
    ROWS_AT_ONCE,
    all_logits,
    differentiable_logits,
    final_norm,
    label_masses,
    log_normalizer,
    token_losses,
    top_ids,
    top_tokens,
)
