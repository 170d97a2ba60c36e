"""What two detections, or two languages of one, have in common, compared with chance."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations, product
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from ..model import SITES, Structure
from ..text import check_arguments
from .detection import Detection, text_of


def agreement(a: Detection, b: Detection, *, top: float = 0.2) -> pd.DataFrame:
    """How alike two detections rank neurons, e.g. two formulations, on their mean scores.

    Args:
        a: a detection.
        b: another, of a model with the same sizes; only the languages, layers and sites of both are compared.
        top: the fraction of each layer and site whose members are compared.

    Returns:
        One row per language, layer and site: ``spearman`` (rank correlation of all neurons), ``top_overlap`` (share of
        the ⌊top · width⌋ highest of ``a`` that are among those of ``b``) and ``expected`` (that share by chance),
        ``passages`` and ``documents`` (of the detection that read fewer). The first two are NaN, with a warning, where
        either has no scores, or the same one for all neurons.

    Raises:
        ValueError: for models of other sizes, no language in common, or ``top`` outside (0, 1].
    """
    check_arguments(agreement, locals())
    from scipy.stats import spearmanr

    if not 0 < top <= 1:
        raise ValueError(f"top={top} is outside (0, 1].")
    a.space.require_compatible(b.space)
    languages = [language for language in a.languages if language in b.languages]
    if not languages:
        raise ValueError(f"No language in common: {', '.join(a.languages)} and {', '.join(b.languages)}.")
    sites = [site for site in a.space.widths if all(site in d.mean_scores[languages[0]] for d in (a, b))]
    rows, unscored = [], {}
    fewer = {name: min((text_of(d, name) for d in (a, b)), key=lambda text: text["passages"]) for name in languages}
    layers = [layer for layer in a.layers if layer in b.layers]
    for language, site, layer in product(languages, sites, layers):
        first, second = (detection.mean_scores[language][site][layer].double() for detection in (a, b))
        number = max(1, int(top * len(first) + 1e-9))
        common, spearman = float("nan"), float("nan")
        if all(scores.isfinite().all() and scores.min() < scores.max() for scores in (first, second)):
            common = torch.isin(first.topk(number).indices, second.topk(number).indices).double().mean().item()
            spearman = float(spearmanr(first, second).statistic)  # pyright: ignore
        else:
            unscored.setdefault(site, {})[layer] = None
        place = {"model": a.space.model, "language": language, "layer": layer, "site": site}
        alike = {"spearman": spearman, "top_overlap": common, "expected": number / len(first)}
        rows.append({**place, **alike, **fewer[language]})
    if unscored:
        where = "; ".join(f"{site} in layers {', '.join(map(str, of))}" for site, of in unscored.items())
        warnings.warn(f"Agreement is NaN where neurons have no scores, or all the same ones: {where}.", stacklevel=2)
    return pd.DataFrame(rows)


Kind = Literal["active", "specific"]


def neuron_counts(
    detections: Detection | Mapping[str, Detection],
    *,
    kind: Kind = "specific",
    quorum: float = 0.9,
    against: str | Sequence[str] = "others",
    against_quorum: float | None = None,
) -> pd.DataFrame:
    """How many neurons each language has in each layer and site (Zhao et al. 2024, Fig. 3).

    With ``scope="layer"`` every document makes the same number of neurons active in every layer, so only how far
    documents and languages agree shapes these counts; a detection with ``scope="model"`` has no such shape built in.
    Give both by name to see them side by side.

    Args:
        detections: one detection, or several by name.
        kind: ``"specific"`` or ``"active"`` neurons.
        quorum: share of a language's documents on which a neuron must be active.
        against: for specific ones, as in :meth:`Detection.specific`.
        against_quorum: likewise.

    Returns:
        One row per detection, language, scored layer and site: ``structure``, ``neurons``, ``width`` (neurons of the
        layer and site), ``share`` (of the width), ``passages`` and ``documents`` (of the language).

    Raises:
        ValueError: for no detection, or a kind that does not exist.
    """
    check_arguments(neuron_counts, locals())
    options = {"quorum": quorum} | ({} if kind == "active" else {"against": against, "against_quorum": against_quorum})
    return pd.DataFrame(
        {
            "detection": name,
            "model": detection.space.model,
            "language": language,
            "layer": layer,
            "site": site,
            "structure": SITES[site].structure,
            "neurons": number,
            "width": mask.shape[1],
            "share": number / mask.shape[1],
            **text_of(detection, language),
        }
        for name, detection in _by_name(detections).items()
        for language in detection.languages
        for site, mask in getattr(detection, kind)(language, **options).masks.items()
        for layer, number in enumerate(mask.sum(-1).tolist())
        if layer in detection.layers
    )


def overlap(
    detections: Detection | Mapping[str, Detection], *, quorum: float = 0.9, structure: Structure | None = None
) -> pd.DataFrame:
    """How much the active neurons of each two languages have in common.

    Active sets are compared, not specific ones: sets that are specific against all others are disjoint by
    construction.

    Args:
        detections: one detection, or several by name (e.g. a base and a chat model).
        quorum: share of a language's documents on which a neuron must be active.
        structure: only ``"attention"`` or ``"feed_forward"``; by default both, one row each.

    Returns:
        One row per detection, structure and ordered pair of languages: sizes, ``common``, ``jaccard`` (of the union),
        ``overlap_coefficient`` (of the smaller set), ``share`` (of the first language's set; directed),
        ``expected_share`` (that share if each layer and site held as many neurons of both, placed at random),
        ``passages`` and ``documents`` (of the first language).

    Raises:
        ValueError: for a structure that does not exist or a quorum outside (0, 1].
    """
    check_arguments(overlap, locals())
    structures = get_args(Structure) if structure is None else [structure]
    rows = []
    for name, detection in _by_name(detections).items():
        active = {language: detection.active(language, quorum=quorum).masks for language in detection.languages}
        texts = {language: text_of(detection, language) for language in detection.languages}
        for part in structures:
            sites = [site for site in detection.space.widths if SITES[site].structure == part]
            if not sites:
                raise ValueError(f"{name} has no neurons in {part!r}.")
            key = {"detection": name, "model": detection.space.model, "structure": part}
            rows += [{**key, **pair, **texts[pair["language"]]} for pair in _pairs(active, sites)]
    return pd.DataFrame(rows)


def _by_name(detections: Detection | Mapping[str, Detection]) -> dict[str, Detection]:
    by_name = {detections.space.model: detections} if isinstance(detections, Detection) else dict(detections)
    if not by_name:
        raise ValueError("There is no detection.")
    return by_name


def _pairs(active: Mapping[str, Mapping[str, Tensor]], sites: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What each two languages' neurons have in common, and would by chance."""
    common, by_chance, sizes = (torch.zeros(len(active), len(active), dtype=torch.float64) for _ in range(3))
    for site in sites:
        by_layer = torch.stack([masks[site] for masks in active.values()], 1)
        for layer in by_layer:
            common += layer.float() @ layer.float().T
        number = by_layer.sum(-1).double()
        by_chance += number.T @ number / by_layer.shape[-1]
        sizes += number.sum(0)
    both, chance, numbers = common.tolist(), by_chance.tolist(), sizes[0].tolist()
    for (i, a), (j, b) in permutations(enumerate(active), 2):
        yield _pair(a, b, int(numbers[i]), int(numbers[j]), int(both[i][j]), chance[i][j])


def _pair(language: str, other: str, size: int, other_size: int, common: int, by_chance: float) -> dict[str, Any]:
    def share(whole: int, part: float = common) -> float:
        return part / whole if whole else float("nan")

    counts = {"language": language, "other": other, "neurons": size, "other_neurons": other_size, "common": common}
    alike = {"jaccard": share(size + other_size - common), "overlap_coefficient": share(min(size, other_size))}
    return {**counts, **alike, "share": share(size), "expected_share": share(size, by_chance)}
