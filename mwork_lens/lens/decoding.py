"""The logit lens: hidden states decoded into tokens, and the tokens' languages counted."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..model import HookedModel, device_of, dtype_of, label_masses, model_record, settled, top_tokens
from ..model.architecture import wide_dtype
from ..neurons import weight_processing
from .vocabulary import TokenLanguages

By = Literal["count", "mass"]


@dataclass(frozen=True)
class Lens:
    """How hidden states become labels."""

    model: HookedModel
    labels: TokenLanguages
    layers: tuple[int, ...]
    top_k: int
    by: By
    normalize: bool

    def __call__(self, hidden: Float[Tensor, "row d_model"]) -> Float[Tensor, "row label"]:
        """Decoded tokens of each state under each label, or probability by label."""
        number = len(self.labels.names)
        labels = self.labels.labels.to(hidden.device)
        if self.by == "mass":
            members = torch.nn.functional.one_hot(labels, number).t().to(wide_dtype(hidden.dtype))
            return label_masses(self.model, hidden, members, normalize=self.normalize)
        _, ids = top_tokens(self.model, hidden, self.top_k, normalize=self.normalize)
        counts = torch.zeros(len(hidden), number, dtype=torch.float32, device=hidden.device)
        return counts.scatter_add_(1, labels[ids], torch.ones_like(ids, dtype=counts.dtype))

    def settings(self) -> dict[str, Any]:
        """What decides the labels."""
        of_model = {"n_layers": self.model.cfg.n_layers, "processing": weight_processing(self.model)}
        decoding = {"top_k": self.top_k if self.by == "count" else None, "by": self.by, "normalize": self.normalize}
        return {**model_record(self.model), **of_model, **decoding, **self.labels.settings}

    def chance(
        self, directions: Iterable[Float[Tensor, "direction d_model"]]
    ) -> Float[Tensor, "layer direction label"]:
        """What random directions of each layer decode to."""
        with settled(self.model), torch.inference_mode():
            device, dtype = device_of(self.model), dtype_of(self.model)
            rows = (of_layer.to(device, dtype) for of_layer in directions)
            return torch.stack([self(each).double().cpu() for each in rows])
