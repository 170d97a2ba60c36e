"""What each neuron's score is. A neuron is a column of W_Q, W_K or W_V, or a column of W_up with its row of W_down.

``q``: ``attn.hook_q``, heads × d_head neurons; deactivating one moves the attention pattern of its head, ‖P′ − P‖.
``k``: ``attn.hook_k``, key heads × d_head; one moves the patterns of all query heads of its group, ‖P′ − P‖.
``v``: ``attn.hook_v``, key heads × d_head; one changes what attention adds to the residual stream.
``mlp``: ``mlp.hook_post``, d_mlp; one changes what the feed-forward adds to the residual stream.

The closed forms contain what is special in an architecture: grouped heads, windows, biases (Llama, Mistral, Qwen 2);
norms of q and k, over all heads in OLMo 2, as ``q`` and ``k`` are taken before them (Qwen 3, Gemma 3); norms after the
structure, after which ``v`` and ``mlp`` are scored (``measure="structure"``: before), and soft caps (Gemma 2); parallel
blocks, partial rotation or that of neighbouring pairs (GPT-J, NeoX, Phi); ALiBi (BLOOM); sinks. ``mlp`` is the gated
product or, without a gate, the activation. Mixtures of experts and quantised weights are refused.
"""

from .measure import LayerMeasure, Measure, Receive, Selection, SiteMasks, SiteScores, score_hooks
from .plnd import FORMULATIONS, Where, exact, parallel
