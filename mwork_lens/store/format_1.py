"""What mwork_lens 0.1 wrote (format 1), as the fields of results."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .tree import made

_FIELDS = {
    "neuron_set": "space:space masks:by_site origin",
    "detection": "space:space counts:by_language_and_site mean_scores:by_language_and_site "
    "screened:by_language_and_site documents settings",
    "activations": "space:space values:values streams:streams tokens statistic settings",
    "effect_matrix": "nats:nats tokens:by_language utf8_bytes:by_language documents folds languages settings unit",
    "layer_sweep": "effects:effects",
    "stage_grid": "effects:effects",
    "workflow": "evidence:Evidence layers:tuple_values settings",
    "generations": "rows:Generation settings",
    "steering": "generations:generations norms stream_norm toward away layer",
    "language_ratio": "counts:by_language chance vocabulary layers names languages documents settings",
    "lens_grid": "ids probabilities tokens decoded:numbered names vocabulary settings",
    "neuron_cards": "neurons firing_rate mean magnitude strongest contexts promoted suppressed tokens:numbered "
    "vocabulary languages settings",
    "latent_languages": "probability rank entropy languages prompts settings",
    "identifier_accuracy": "confusion languages names:labels settings:rest",
    "token_languages": "labels names:labels settings:rest",
    "neuron_delta": "space:space neurons:under old:under new:under origin",
    "tuned": "steps:Step held_out:pairs delta:delta settings",
    "tuning_checkpoint": "identity steps:taken measured:measured starting:under masters:masters optimiser:optimiser "
    "best:under",
    "enhancement_run": "run:run nats:by_domain metadata:facts",
    "enhancement": "original:original results:results read:read settings",
}
"""By kind: its fields, each with the rule that makes it where it is not simply there."""


def upgraded_fields(kind: str, cfg: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of a result, out of its settings and tensors."""
    rules = (field.partition(":") for field in _FIELDS[kind].split())
    return {field: _RULES[rule](cfg, tensors, field) for field, _, rule in rules}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _by_site(pattern: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {site: tensors[name] for site in ("q", "k", "v", "mlp") if (name := pattern.format(site)) in tensors}


def _by_domain(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """By domain and language; domains may have a slash, languages have none."""
    tree: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        domain, _, language = name.rpartition("/")
        tree.setdefault(domain, {})[language] = tensor
    return tree


def _run_result(cfg: dict[str, Any], tensors: dict[str, Tensor], run: dict[str, Any] | None) -> Any:
    name = f"{run['language']}_{run['arm']}_{run['documents']}_{run['rate']:g}_seed{run['seed']}" if run else "original"
    nats = _by_domain(_under(f"nats/{name}/", tensors))
    return made("RunResult", {"run": run and made("Run", run), "nats": nats, "metadata": cfg["facts"][name]})


def _passages(cfg: dict[str, Any], tensors: dict[str, Tensor], domain: str) -> Any:
    documents = cfg["documents"][domain]
    tokens = {language: tensors[f"tokens/{domain}/{language}"] for language in documents}
    return made("Passages", {"tokens": tokens, "documents": documents, "corpus": cfg["corpora"][domain]})


_RULES: Mapping[str, Callable[[dict[str, Any], dict[str, Tensor], str], Any]] = {
    "space": lambda c, t, f: made("NeuronSpace", c[f]),
    "": lambda c, t, f: t[f] if f in t else _tuples(c[f]),
    "tuple_values": lambda c, t, f: {key: tuple(value) for key, value in c[f].items()},
    "numbered": lambda c, t, f: {int(key): tuple(value) for key, value in c[f].items()},
    "pairs": lambda c, t, f: dict(c[f]),
    "under": lambda c, t, f: _under(f"{f}/", t) or None,
    "by_site": lambda c, t, f: _by_site("{}", t),
    "by_language": lambda c, t, f: {language: t[f"{f}/{language}"] for language in c["documents"]},
    "by_language_and_site": lambda c, t, f: {lang: _by_site(f"{f}/{lang}/{{}}", t) for lang in c["documents"]},
    "values": lambda c, t, f: {language: _by_site(f"{{}}/{language}", t) for language in c["tokens"]},
    "streams": lambda c, t, f: {language: t[f"stream/{language}"] for language in c["tokens"]},
    "nats": lambda c, t, f: {off: {read: t[f"nats/{off}/{read}"] for read in c["documents"]} for off in c["rows"]},
    "effects": lambda c, t, f: made("EffectMatrix", upgraded_fields("effect_matrix", c, t)),
    "generations": lambda c, t, f: made("Generations", upgraded_fields("generations", c, t)),
    "delta": lambda c, t, f: c["space"] and made("NeuronDelta", upgraded_fields("neuron_delta", c, t)),
    "Evidence": lambda c, t, f: tuple(made("Evidence", row) for row in c[f]),
    "Generation": lambda c, t, f: tuple(made("Generation", {**r, "tokens": tuple(r["tokens"])}) for r in c[f]),
    "Step": lambda c, t, f: tuple(made("Step", row) for row in c[f]),
    "labels": lambda c, t, f: (*(c.get("identified_over") or c["languages"]), "shared", "other"),
    "rest": lambda c, t, f: {key: value for key, value in c.items() if key not in ("kind", "format", "versions")},
    "taken": lambda c, t, f: _RULES["Step"](c["progress"], t, f),
    "measured": lambda c, t, f: dict(c["progress"]["held_out"]),
    "masters": lambda c, t, f: _under("master/", t),
    "optimiser": lambda c, t, f: {
        w: {s: t[n] for s in ("step", "exp_avg", "exp_avg_sq") if (n := f"{s}/{w}") in t} for w in _under("master/", t)
    },
    "run": lambda c, t, f: c[f] and made("Run", c[f]),
    "facts": lambda c, t, f: c["facts"],
    "by_domain": lambda c, t, f: _by_domain(t),
    "original": lambda c, t, f: _run_result(c, t, None),
    "results": lambda c, t, f: [_run_result(c, t, run) for run in c["runs"]],
    "read": lambda c, t, f: {domain: _passages(c, t, domain) for domain in c["documents"]},
}
