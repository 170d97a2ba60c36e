"""The model: where its neurons live, how it is loaded, run and hooked, and what it says of itself."""

from .architecture import (
    HookedModel,
    Structure,
    at_least_float32,
    boundaries,
    device_of,
    dtype_of,
    end_ids,
    feed_forward_width,
    has_feed_forward,
    key_value_heads,
    special_ids,
    stream_hook,
    weight,
    wrapped_model,
)
from .checkpoints import read_model
from .comparing import HALF_TOLERANCE, logit_distance
from .conversion import bridge_on
from .fingerprint import (
    Fingerprint,
    ModelRecord,
    model_record,
    of_model,
    of_one_model,
    recorded_fingerprint,
    require_same_model,
    shown_model,
)
from .forward import MAX_TOKENS, Encoded, Plan, Running, TokenBatch, batches, encode, run_blocks, stream, stream_states
from .gguf import source_directory
from .hooks import ContentPositions, ForwardHook, Mode, hooked
from .loading import load_model, load_tokenizer
from .reducers import ExactSum, Reducer
from .sites import GATE, SITES, Site, Slices, add_site, remove_site
from .state import changed_by_user, settled, to_the_end
from .tally import Tally, pass_record, tallied
from .unembedding import (
    all_logits,
    differentiable_logits,
    label_masses,
    log_normalizer,
    require_same_readout,
    token_losses,
    top_tokens,
)
