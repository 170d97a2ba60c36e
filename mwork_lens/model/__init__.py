"""The model: where its neurons live, how it is loaded, run and hooked, and what it says of itself."""

from .architecture import Rotary, at_least_float32, attention_scale, norm_eps, norm_gain
from .checkpoints import source_directory
from .forward import MAX_TOKENS, Encoded, Plan, Progress, Running, TokenBatch, batches, encode, run_blocks, stream
from .hooks import ContentPositions, ForwardHook, Mode, Positions, change_of, hooked, mask_hooks
from .loading import HALF_TOLERANCE, bridge_on, load_model, load_tokenizer, logit_distance
from .reducers import ExactSum, Reducer
from .sites import GATE, SITES, HookedModel, Slices, Structure, require_sites, special_ids, weight
from .unembedding import (
    ROWS_AT_ONCE,
    final_norm,
    label_masses,
    log_normalizer,
    logit_parts,
    soft_cap,
    stream_hook,
    stream_states,
    top_ids,
    top_tokens,
)
