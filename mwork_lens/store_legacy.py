"""What mwork_lens 0.1 wrote (format 1), as the tree of fields that :mod:`mwork_lens.store` reads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Cfg = Mapping[str, Any]
Names = Sequence[str]
_HEADER = ("kind", "format", "versions")
_SITES = ("q", "k", "v", "mlp")


def upgraded_fields(kind: str, cfg: Cfg, names: Names) -> dict[str, Any]:
    """The fields of a result, out of its settings and the names of its tensors."""
    return _UPGRADES[kind](cfg, names)


def _node(tag: str, inner: Any) -> dict[str, Any]:
    return {"$": tag, "of": inner}


def _tensor(*parts: str) -> dict[str, Any]:
    return _node("tensor", "/".join(parts))


def _tuple(items: Sequence[Any]) -> dict[str, Any]:
    return _node("tuple", list(items))


def _by(keys: Iterable[str], value: Callable[[str], Any]) -> dict[str, Any]:
    return {key: value(key) for key in keys}


def _tensors(*keys: str) -> dict[str, Any]:
    return _by(keys, _tensor)


def _under(prefix: str, names: Names) -> dict[str, Any]:
    """The tensors whose names begin with ``prefix/``, by the rest of their names."""
    rest = [name.removeprefix(f"{prefix}/") for name in names if name.startswith(f"{prefix}/")]
    return _by(rest, lambda name: _tensor(prefix, name))


def _by_site(pattern: str, names: Names) -> dict[str, Any]:
    """The tensors whose names are the pattern filled with a site, by site."""
    return {site: _tensor(pattern.format(site)) for site in _SITES if pattern.format(site) in names}


def _copied(cfg: Cfg, *keys: str) -> dict[str, Any]:
    return {key: cfg[key] for key in keys}


def _tuples(cfg: Cfg, *keys: str) -> dict[str, Any]:
    return {key: _tuple(cfg[key]) for key in keys}


def _space(cfg: Cfg) -> dict[str, Any]:
    return {"space": _node("NeuronSpace", cfg["space"])}


def _numbered(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """Texts and languages of tokens, by id."""
    return _node("mapping", [[int(key), _tuple(value)] for key, value in pairs.items()])


def _detection(cfg: Cfg, names: Names) -> dict[str, Any]:
    def by_language(kind: str) -> dict[str, Any]:
        return _by(cfg["documents"], lambda language: _by_site(f"{kind}/{language}/{{}}", names))

    kinds = _by(["counts", "mean_scores", "screened"], by_language)
    return {**_space(cfg), **kinds, **_copied(cfg, "documents", "settings")}


def _activations(cfg: Cfg, names: Names) -> dict[str, Any]:
    languages = list(cfg["tokens"])
    return {
        **_space(cfg),
        "values": _by(languages, lambda language: _by_site(f"{{}}/{language}", names)),
        "streams": _by(languages, lambda language: _tensor("stream", language)),
        **_copied(cfg, "tokens", "statistic", "settings"),
    }


def _effect_matrix(cfg: Cfg, names: Names) -> dict[str, Any]:
    reads = list(cfg["documents"])
    return {
        "nats": _by(cfg["rows"], lambda off: _by(reads, lambda read: _tensor("nats", off, read))),
        **_by(["tokens", "utf8_bytes"], lambda kind: _by(reads, lambda read: _tensor(kind, read))),
        **_copied(cfg, "documents", "folds", "languages", "settings", "unit"),
    }


def _parts(cfg: Cfg, names: Names) -> dict[str, Any]:
    return {"effects": _node("EffectMatrix", _effect_matrix(cfg, names))}


def _generations(cfg: Cfg, names: Names = ()) -> dict[str, Any]:
    rows = [_node("Generation", {**row, "tokens": _tuple(row["tokens"])}) for row in cfg["rows"]]
    return {"rows": _tuple(rows), "settings": cfg["settings"]}


def _workflow(cfg: Cfg, names: Names) -> dict[str, Any]:
    evidence = _tuple([_node("Evidence", found) for found in cfg["evidence"]])
    return {
        "evidence": evidence,
        "layers": _by(cfg["layers"], lambda s: _tuple(cfg["layers"][s])),
        **_copied(cfg, "settings"),
    }


def _language_ratio(cfg: Cfg, names: Names) -> dict[str, Any]:
    counts = _by(cfg["documents"], lambda language: _tensor("counts", language))
    tuples = _tuples(cfg, "layers", "names", "languages")
    return {"counts": counts, **_tensors("chance", "vocabulary"), **tuples, **_copied(cfg, "documents", "settings")}


def _neuron_cards(cfg: Cfg, names: Names) -> dict[str, Any]:
    return {
        "neurons": _tuple([_tuple(neuron) for neuron in cfg["neurons"]]),
        "contexts": _tuple([_tuple(contexts) for contexts in cfg["contexts"]]),
        "tokens": _numbered(cfg["tokens"]),
        **_tensors("firing_rate", "mean", "magnitude", "strongest", "promoted", "suppressed"),
        **_tuples(cfg, "languages"),
        **_copied(cfg, "vocabulary", "settings"),
    }


def _lens_grid(cfg: Cfg, names: Names) -> dict[str, Any]:
    tuples = _tuples(cfg, "tokens", "names")
    decoded = {"decoded": _numbered(cfg["decoded"])}
    return {**_tensors("ids", "probabilities"), **tuples, **decoded, **_copied(cfg, "vocabulary", "settings")}


def _labelled(languages: Sequence[str], cfg: Cfg) -> dict[str, Any]:
    settings = {key: value for key, value in cfg.items() if key not in _HEADER}
    return {"names": _tuple([*languages, "shared", "other"]), "settings": settings}


def _neuron_delta(cfg: Cfg, names: Names) -> dict[str, Any]:
    return {**_space(cfg), **_by(["neurons", "old", "new"], lambda kind: _under(kind, names)), "origin": cfg["origin"]}


def _tuned(cfg: Cfg, names: Names) -> dict[str, Any]:
    return {
        "steps": _tuple([_node("Step", step) for step in cfg["steps"]]),
        "held_out": _node("mapping", cfg["held_out"]),
        "delta": None if cfg["space"] is None else _node("NeuronDelta", _neuron_delta(cfg, names)),
        "settings": cfg["settings"],
    }


def _checkpoint(cfg: Cfg, names: Names) -> dict[str, Any]:
    masters, best = _under("master", names), _under("best", names)
    kinds = ("step", "exp_avg", "exp_avg_sq")
    return {
        **_by(["identity"], cfg.__getitem__),
        "steps": [_node("Step", step) for step in cfg["progress"]["steps"]],
        "measured": _node("mapping", cfg["progress"]["held_out"]),
        "starting": _under("starting", names),
        "masters": masters,
        "optimiser": _by(masters, lambda w: {k: _tensor(k, w) for k in kinds if f"{k}/{w}" in names}),
        "best": best or None,
    }


def _enhancement_run(cfg: Cfg, names: Names) -> dict[str, Any]:
    nats: dict[str, dict[str, Any]] = {}
    for name in names:
        domain, read = name.rsplit("/", 1)
        nats.setdefault(domain, {})[read] = _tensor(name)
    return {"run": cfg["run"] and _node("Run", cfg["run"]), "nats": nats, "metadata": cfg["facts"]}


def _enhancement(cfg: Cfg, names: Names) -> dict[str, Any]:
    def result(name: str, run: Cfg | None) -> dict[str, Any]:
        prefix = f"nats/{name}/"
        run_cfg = {"run": run, "facts": cfg["facts"][name]}
        fields = _enhancement_run(run_cfg, [key.removeprefix(prefix) for key in names if key.startswith(prefix)])
        fields["nats"] = {d: {r: _tensor(prefix + f"{d}/{r}") for r in by} for d, by in fields["nats"].items()}
        return _node("RunResult", fields)

    def name_of(run: Cfg) -> str:
        return f"{run['language']}_{run['arm']}_{run['documents']}_{run['rate']:g}_seed{run['seed']}"

    reads = {
        domain: _node(
            "Passages",
            {
                "tokens": _by(list(names_), lambda r, d=domain: _tensor("tokens", d, r)),
                "documents": names_,
                "corpus": cfg["corpora"][domain],
            },
        )
        for domain, names_ in cfg["documents"].items()
    }
    results = [result(name_of(run), run) for run in cfg["runs"]]
    return {"original": result("original", None), "results": results, "read": reads, "settings": cfg["settings"]}


_UPGRADES: Mapping[str, Callable[[Cfg, Names], dict[str, Any]]] = {
    "neuron_set": lambda cfg, names: {**_space(cfg), "masks": _by_site("{}", names), "origin": cfg["origin"]},
    "detection": _detection,
    "activations": _activations,
    "effect_matrix": _effect_matrix,
    "layer_sweep": _parts,
    "stage_grid": _parts,
    "workflow": _workflow,
    "generations": _generations,
    "steering": lambda cfg, _: {
        "generations": _node("Generations", _generations(cfg)),
        **_copied(cfg, "norms", "stream_norm", "toward", "away", "layer"),
    },
    "language_ratio": _language_ratio,
    "lens_grid": _lens_grid,
    "neuron_cards": _neuron_cards,
    "latent_languages": lambda cfg, names: {
        **_tensors("probability", "rank", "entropy"),
        **_tuples(cfg, "languages", "prompts"),
        **_copied(cfg, "settings"),
    },
    "identifier_accuracy": lambda cfg, _: {
        **_tensors("confusion"),
        **_tuples(cfg, "languages"),
        **_labelled(cfg["languages"], cfg),
    },
    "token_languages": lambda cfg, _: {**_tensors("labels"), **_labelled(cfg["identified_over"], cfg)},
    "neuron_delta": _neuron_delta,
    "tuned": _tuned,
    "tuning_checkpoint": _checkpoint,
    "enhancement_run": _enhancement_run,
    "enhancement": _enhancement,
}
