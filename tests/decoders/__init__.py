"""Every decoder-only text architecture that TransformerLens loads, as tiny random models of transformers.

``DECODERS`` has at least one row for each; ``OTHERS`` names the registered architectures that are none, and why.
"""

from .a_to_gr import A_TO_GR
from .h_to_z import H_TO_Z
from .others import OTHERS
from .row import Decoder, decoder_model, document, reference_logits, transformers_model

DECODERS = (*A_TO_GR, *H_TO_Z)
