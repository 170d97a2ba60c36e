"""What mwork_lens 0.1 wrote (format 1), as the tree of fields that :mod:`mwork_lens.store` reads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Cfg = Mapping[str, Any]
Names = Sequence[str]
Tree = dict[str, Any]

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
    "language_ratio": "counts:by_language chance:tensor vocabulary:tensor layers:tuple names:tuple languages:tuple "
    "documents settings",
    "lens_grid": "ids:tensor probabilities:tensor tokens:tuple decoded:numbered names:tuple vocabulary settings",
    "neuron_cards": "neurons:tuples firing_rate:tensor mean:tensor magnitude:tensor strongest:tensor contexts:tuples "
    "promoted:tensor suppressed:tensor tokens:numbered vocabulary languages:tuple settings",
    "latent_languages": "probability:tensor rank:tensor entropy:tensor languages:tuple prompts:tuple settings",
    "identifier_accuracy": "confusion:tensor languages:tuple names:labels settings:rest",
    "token_languages": "labels:tensor names:labels settings:rest",
    "neuron_delta": "space:space neurons:under old:under new:under origin",
    "tuned": "steps:Step held_out:pairs delta:delta settings",
    "tuning_checkpoint": "identity steps:taken measured:measured starting:under masters:masters optimiser:optimiser "
    "best:under",
    "enhancement_run": "run:run nats:by_domain metadata:facts",
    "enhancement": "original:original results:results read:read settings",
}
"""By kind: its fields, each with the rule that makes it; without one it is as it was."""


def upgraded_fields(kind: str, cfg: Cfg, names: Names) -> Tree:
    """The fields of a result, out of its settings and the names of its tensors."""
    rules = (field.partition(":") for field in _FIELDS[kind].split())
    return {field: _RULES[rule](cfg, names, field) if rule else cfg[field] for field, _, rule in rules}


def _node(tag: str, inner: Any) -> Tree:
    return {"$": tag, "of": inner}


def _tensor(*parts: str) -> Tree:
    return _node("tensor", "/".join(parts))


def _tuple(items: Iterable[Any]) -> Tree:
    return _node("tuple", list(items))


def _made(tag: str, kind: str, cfg: Cfg, names: Names = ()) -> Tree:
    return _node(tag, upgraded_fields(kind, cfg, names))


def _by(keys: Iterable[str], value: Callable[[str], Any]) -> Tree:
    return {key: value(key) for key in keys}


def _under(prefix: str, names: Names) -> Tree:
    rest = [name.removeprefix(f"{prefix}/") for name in names if name.startswith(f"{prefix}/")]
    return _by(rest, lambda name: _tensor(prefix, name))


def _by_site(pattern: str, names: Names) -> Tree:
    return {site: _tensor(name) for site in ("q", "k", "v", "mlp") if (name := pattern.format(site)) in names}


def _by_domain(names: Names, prefix: str = "") -> Tree:
    """The tensors named ``domain/language`` after the prefix; domains may have a slash, languages have none."""
    tree: Tree = {}
    for name in (name for name in names if name.startswith(prefix)):
        domain, _, language = name.removeprefix(prefix).rpartition("/")
        tree.setdefault(domain, {})[language] = _tensor(name)
    return tree


def _optimiser(names: Names) -> Tree:
    kinds = ("step", "exp_avg", "exp_avg_sq")
    return _by(_under("master", names), lambda w: {k: _tensor(k, w) for k in kinds if f"{k}/{w}" in names})


def _run_result(cfg: Cfg, names: Names, run: Cfg | None) -> Tree:
    name = run and f"{run['language']}_{run['arm']}_{run['documents']}_{run['rate']:g}_seed{run['seed']}"
    name = name or "original"
    nats = _by_domain(names, f"nats/{name}/")
    return _node("RunResult", {"run": run and _node("Run", run), "nats": nats, "metadata": cfg["facts"][name]})


def _read(cfg: Cfg, domain: str) -> Tree:
    documents = cfg["documents"][domain]
    tokens = _by(documents, lambda language: _tensor("tokens", domain, language))
    return _node("Passages", {"tokens": tokens, "documents": documents, "corpus": cfg["corpora"][domain]})


_RULES: Mapping[str, Callable[[Cfg, Names, str], Any]] = {
    "space": lambda c, n, f: _node("NeuronSpace", c[f]),
    "tensor": lambda c, n, f: _tensor(f),
    "tuple": lambda c, n, f: _tuple(c[f]),
    "tuples": lambda c, n, f: _tuple(map(_tuple, c[f])),
    "tuple_values": lambda c, n, f: _by(c[f], lambda key: _tuple(c[f][key])),
    "numbered": lambda c, n, f: _node("mapping", [[int(key), _tuple(value)] for key, value in c[f].items()]),
    "pairs": lambda c, n, f: _node("mapping", c[f]),
    "under": lambda c, n, f: _under(f, n) or None,
    "by_site": lambda c, n, f: _by_site("{}", n),
    "by_language": lambda c, n, f: _by(c["documents"], lambda language: _tensor(f, language)),
    "by_language_and_site": lambda c, n, f: _by(c["documents"], lambda lang: _by_site(f"{f}/{lang}/{{}}", n)),
    "values": lambda c, n, f: _by(c["tokens"], lambda language: _by_site(f"{{}}/{language}", n)),
    "streams": lambda c, n, f: _by(c["tokens"], lambda language: _tensor("stream", language)),
    "nats": lambda c, n, f: _by(c["rows"], lambda off: _by(c["documents"], lambda read: _tensor("nats", off, read))),
    "effects": lambda c, n, f: _made("EffectMatrix", "effect_matrix", c, n),
    "generations": lambda c, n, f: _made("Generations", "generations", c),
    "delta": lambda c, n, f: c["space"] and _made("NeuronDelta", "neuron_delta", c, n),
    "Evidence": lambda c, n, f: _tuple(_node("Evidence", row) for row in c[f]),
    "Generation": lambda c, n, f: _tuple(_node("Generation", {**r, "tokens": _tuple(r["tokens"])}) for r in c[f]),
    "Step": lambda c, n, f: _tuple(_node("Step", row) for row in c[f]),
    "labels": lambda c, n, f: _tuple([*(c.get("identified_over") or c["languages"]), "shared", "other"]),
    "rest": lambda c, n, f: {key: value for key, value in c.items() if key not in ("kind", "format", "versions")},
    "taken": lambda c, n, f: _RULES["Step"](c["progress"], n, f),
    "measured": lambda c, n, f: _node("mapping", c["progress"]["held_out"]),
    "masters": lambda c, n, f: _under("master", n),
    "optimiser": lambda c, n, f: _optimiser(n),
    "run": lambda c, n, f: c[f] and _node("Run", c[f]),
    "facts": lambda c, n, f: c["facts"],
    "by_domain": lambda c, n, f: _by_domain(n),
    "original": lambda c, n, f: _run_result(c, n, None),
    "results": lambda c, n, f: [_run_result(c, n, run) for run in c["runs"]],
    "read": lambda c, n, f: _by(c["documents"], lambda domain: _read(c, domain)),
}
