"""Attribution: how much each neuron lowers, or raises, the loss of each language's texts, to first order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..measures.attribution import HEAD, BatchEffects, Statistic, attributed, require_differentiable
from ..model.architecture import HookedModel, dtype_of
from ..model.budget import Budget
from ..model.forward import MAX_TOKENS, Encoded, Plan, TokenBatch
from ..model.offloaded import require_in_memory
from ..model.reducers import ExactSum, Reducer
from ..model.shards import part_of
from ..model.sites import require_sites
from ..model.tally import pass_record, tallied
from ..neurons import NeuronSet, NeuronSpace
from ..store import Result
from ..text import Document, SeenDocuments, check_arguments
from ..text.choices import listed
from .checking import require_layers
from .firing.ranking import number_of
from .merging import languages_of, merged_record, ordered, sum_by_site


@dataclass(frozen=True)
class Attribution(Result, kind="attribution"):
    """What switching off each neuron, or head, does to each language's loss, to first order.

    -Σ_t a(t) · ∂NLL/∂a(t) for each document, over its predicted tokens, with a the activation at the site's hook point:
    above zero where the loss would rise. The derivative ranks neurons; it does not measure what a large change does.
    """

    space: NeuronSpace
    sums: Mapping[str, Mapping[str, ExactSum]]
    """By language and site (and ``head``): nats per predicted token, summed over documents, ``[layer, neuron]``."""
    documents: Mapping[str, int]
    """By language: documents that have a predicted token."""
    settings: Mapping[str, Any]
    """Everything that decided the result."""
    documents_of: Mapping[str, Sequence[str]]
    """By language: the hash of each document's token ids, in the order of the corpus."""
    seen: SeenDocuments | None = None
    """The documents, to be recognised wherever they are read again."""

    def _require_whole(self) -> None:
        sizes = {**self.space.widths, HEAD: self.space.n_heads}
        for language in self.documents:
            shapes = {site: tuple(each.high.shape) for site, each in self.sums[language].items()}
            if shapes != {site: (self.space.n_layers, width) for site, width in sizes.items()}:
                raise ValueError(f"Attribution of {language}: not of {self.space.described_sizes}.")

    @property
    def languages(self) -> list[str]:
        """The languages, in the order of the corpus."""
        return list(self.documents)

    @property
    def mean_effects(self) -> dict[str, dict[str, Float[Tensor, "layer _"]]]:
        """By language and site: mean over documents, in nats per predicted token, ``[layer, neuron]``."""
        return {tag: {site: self._mean(tag, site) for site in self.space.widths} for tag in self.documents}

    @property
    def head_effects(self) -> dict[str, Float[Tensor, "layer head"]]:
        """By language: the same of attention heads, all of a head's mixed values together."""
        return {language: self._mean(language, HEAD) for language in self.documents}

    def _mean(self, language: str, site: str) -> Float[Tensor, "layer _"]:
        return self.sums[language][site].value() / self.documents[language]

    @classmethod
    def merge(cls, parts: Iterable["Attribution"]) -> "Attribution":
        """One out of several, the same to the last bit in any order; see :meth:`Detection.merge`."""
        several = list(ordered({f"attribution {number}": part for number, part in enumerate(parts)}).values())
        of = {tag: [part for part in several if tag in part.documents] for tag in languages_of(several)}
        return cls(
            sums={tag: sum_by_site([part.sums[tag] for part in each]) for tag, each in of.items()},
            documents={tag: sum(part.documents[tag] for part in each) for tag, each in of.items()},
            **merged_record(several),
        )

    def specific(
        self, language: str, *, size: int | float = 0.01, sites: str | Iterable[str] | None = None
    ) -> NeuronSet:
        """The neurons that, off, raise this language's loss most above the mean of the others' rises, over all sites.

        Args:
            language: whose neurons.
            size: a number of neurons or, as a float up to 1.0, a share of those of ``sites``.
            sites: all, or some of ``q``, ``k``, ``v``, ``mlp``.

        Raises:
            ValueError: for a language that is not there or the only one, a part of a corpus, or a size that there is
                not.
        """
        check_arguments(Attribution.specific, locals())
        if "part" in self.settings:
            raise ValueError("This is a part of a corpus: merge all parts first (Attribution.merge).")
        if language not in self.documents or len(self.documents) < 2:
            known = listed(self.documents, language)
            raise ValueError(f"{language!r} is compared with other languages; there are {known}.")
        widths = self.space.widths
        among = [site for site in require_sites(widths if sites is None else sites) if site in widths]
        others = [tag for tag in self.documents if tag != language]
        beyond = {
            site: self._mean(language, site) - torch.stack([self._mean(tag, site) for tag in others]).mean(0)
            for site in among
        }
        flat = torch.cat([each.flatten() for each in beyond.values()])
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[flat.argsort(descending=True, stable=True)[: number_of(size, len(flat))]] = True
        parts = chosen.split([each.numel() for each in beyond.values()])
        masks = {site: part.view_as(beyond[site]) for site, part in zip(beyond, parts, strict=True)}
        rule = {"size": size, "sites": among, "statistic": self.settings["statistic"]}
        origin = {"language": language, "kind": "attribution", "corpus": self.settings["corpus"]["hash"], **rule}
        return NeuronSet(self.space, masks, {**origin, "seen": self.seen})

    def to_frame(self) -> pd.DataFrame:
        """One row per language, layer and site (and ``head``): sum and root mean square of the effects of neurons."""
        return pd.DataFrame(
            {
                "language": language,
                "layer": layer,
                "site": site,
                "documents": documents,
                "sum": float(row.sum()),
                "rms": float(row.square().mean().sqrt()),
            }
            for language, documents in self.documents.items()
            for site in self.sums[language]
            for layer, row in enumerate(self._mean(language, site))
        )

    def __repr__(self) -> str:
        documents = ", ".join(f"{language} {number:,}" for language, number in self.documents.items())
        return f"Attribution({self.space.shown}: {self.settings['statistic']}; documents {documents})"


@dataclass(frozen=True)
class AttributionSums(Reducer, kind="attribution_sums"):
    """What one language's documents add up to, by site (and ``head``)."""

    sums: dict[str, ExactSum]
    documents: Int[Tensor, ""]

    @classmethod
    def empty(cls, space: NeuronSpace, plan: Plan, language: str, made_with: str) -> "AttributionSums":
        """Of no documents."""
        sizes = {**space.widths, HEAD: space.n_heads}
        sums = {site: ExactSum.zeros(space.n_layers, width) for site, width in sizes.items()}
        return cls(**Reducer.start(plan, language, made_with), sums=sums, documents=torch.tensor(0))

    def update(self, batch: TokenBatch, observed: BatchEffects) -> None:
        """Add a batch; refused where :meth:`claim` or :meth:`ExactSum.add` refuses."""
        self.claim(batch)
        measured = observed.predicted > 0
        for site, effects in observed.effects.items():
            predicted = observed.predicted.to(effects.device)[measured]
            self.sums[site].add(ExactSum.of(effects[measured] / predicted[:, None, None]))
        self.documents.add_(measured.sum().cpu())


def attribution(
    model: HookedModel,
    corpus: Mapping[str, Sequence[Document]],
    *,
    statistic: Statistic = "signed",
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    shard: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Attribution:
    """First-order effect of every neuron and head on each language's loss, in one forward and one backward pass.

    The derivative of a text's summed loss in the factor of ``mode="scale"``, at 1, is minus its signed effect.

    Args:
        model: a hooked model; its weights stay as they are and take no gradient.
        corpus: documents by language; one in which no ordinary token follows another has no loss and does not count.
        statistic: ``"signed"``, the effect; or ``"absolute"``, Σ_t |a(t) · ∂NLL/∂a(t)|, to which effects of either
            sign add up.
        batch_size: documents at a time; None takes as many as memory holds the activations of all layers of.
        max_tokens: longer documents are cut there, with a warning.
        shard: as in :func:`detect`; :meth:`Attribution.merge` makes one of all parts.
        checkpoint: a folder in which a stopped call goes on, as in :func:`detect`.
        progress: whether to show a bar.

    Raises:
        ValueError: for a language of which no token has a loss, weights that are not finite or were made in inference
            mode, layers that are unlike the first, or a checkpoint of something else.

    Example:
        >>> attributed = mw.attribution(model, train, max_tokens=32, progress=False)
        >>> attributed.mean_effects["fr"]["mlp"].shape, attributed.head_effects["fr"].shape  # layer, neuron or head
        (torch.Size([18, 2048]), torch.Size([18, 4]))
    """
    check_arguments(attribution, locals())
    with torch.inference_mode(False):  # what is made in that mode cannot be differentiated
        space, encoded = NeuronSpace.of(model, fingerprint=True), Encoded.of(model, corpus, max_tokens)
        require_layers(model, None)
        require_differentiable(model)
        require_in_memory(model, "held for a backward pass")
        _require_losses(model, encoded)
        settings = {"statistic": statistic, "max_tokens": max_tokens, "dtype": str(dtype_of(model))}
        settings["corpus"] = encoded.corpus.describe()
        whole = replace(encoded, budget=Budget.of_all_layers(model)).plan(batch_size)
        sums = {language: AttributionSums.empty(space, whole, language, f"{space} {settings}") for language in encoded}
        plan, rows = whole, {language: range(number) for language, number in encoded.documents.items()}
        if shard is not None:
            plan, part = part_of(whole, shard)
            rows, settings = part["rows"], {**settings, "part": part}
        asked = {**asdict(space), "settings": settings, "batch_size": batch_size}
        with tallied(sums, checkpoint, lambda: pass_record("attribution", model, whole, asked)) as tally:
            description = "attributing" if progress else None
            for batch, effects in attributed(
                model, list(space.widths), tally.left(plan), statistic, progress=description
            ):
                tally.add(batch.language, batch, effects)
        identities = encoded.corpus.identities
        return Attribution(
            space=space,
            sums={tag: sums[tag].sums for tag in rows},
            documents={tag: int(sums[tag].documents) for tag in rows},
            settings=settings,
            documents_of={tag: tuple(encoded.hashes[tag][i] for i in rows[tag]) for tag in rows},
            seen=SeenDocuments.of({tag: [identities[tag][i] for i in rows[tag]] for tag in rows}),
        )


def _require_losses(model: HookedModel, encoded: Encoded) -> None:
    known = model.unembed.W_U.shape[1]
    for language, documents in encoded.items():
        if not any((~torch.isin(ids[1:], encoded.special)).any() for ids in documents):
            raise ValueError(f"No token of {language!r} has a loss: in no document an ordinary one follows another.")
        if (largest := max(int(ids.max()) for ids in documents)) >= known:
            raise ValueError(
                f"{model.cfg.model_name} has no logit for token {largest} of {language!r}: its unembedding has {known}."
            )
