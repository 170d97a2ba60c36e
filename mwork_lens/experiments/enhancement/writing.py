"""The results folder of the experiment: tables, figures, a page."""

from typing import Any, get_args

import pandas as pd

from ... import plots
from ...report import Section
from ..folder import ResultsFolder
from .design import ARMS
from .result import Enhancement, Rate

READING = (
    "Change of next-token loss on documents that neither detection, nor tuning, nor the choice of rates has seen, in "
    "nats a token, against the original model: below zero, tuning helped. Intervals are 95 % by bootstrap over "
    "documents and seeds; they do not cover the choice of tuning text. Every arm reads the same passages in equally "
    "many steps. An arm's own rate is the one with the lowest development loss of the tuned language."
)
PAPER_VALUES = "The paper's values (task scores of other models) are not available here."


def write(folder: ResultsFolder, found: Enhancement) -> None:
    """Everything a reader needs beside the pieces that are there already."""
    folder.table("runs", found.runs())
    folder.table("rates", found.rates())
    folder.table("changes", found.changes)
    sections = [
        Section("What it shows", [*found.findings(), PAPER_VALUES]),
        Section("How to read this", [READING, *(f"{arm}: {meaning}." for arm, meaning in _arms(found).items())]),
    ]
    rates: list[Rate] = [rate for rate in get_args(Rate) if rate in set(found.changes["rate"])]
    for rate in rates:
        sections += [section for domain in found.read for section in _matrix(folder, found, domain, rate)]
        sections += _figures(folder, found, rate)
    sections += [Section("Learning rates tried", (), found.rates()), Section("Runs", (), found.runs())]
    folder.page(f"Tuning a language's neurons: {found.settings['model']}", sections)


def _arms(found: Enhancement) -> dict[str, str]:
    return {arm: ARMS[arm] for arm in found.design["arms"]}


def _matrix(folder: ResultsFolder, found: Enhancement, domain: str, rate: Rate) -> list[Section]:
    name = f"{domain}-{rate}"
    figure, table = plots.enhancement_matrix(found, domain, rate=rate), found.table(domain, rate=rate)
    folder.figure(f"matrix-{name}", figure)
    folder.table(f"matrix-{name}", found.matrix(domain, rate=rate).to_frame())
    sections = [Section(f"Tuned by read: {domain}, {rate} rate", (), figure)]
    if len(table):
        folder.table(f"summary-{name}", table)
        sections.append(Section(f"Own language, English and others: {domain}, {rate} rate", (), shown(table)))
    return sections


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers of :meth:`Enhancement.table` as one reads them: changes, neurons and rates differ in size."""
    formats = {"neurons": "{:,.0f}", "learning_rate": "{:g}"}
    columns = {name: table[name].map(formats.get(str(name), "{:+.4f}").format) for name in table}
    return pd.DataFrame(columns).where(table.notna(), "–")


def _figures(folder: ResultsFolder, found: Enhancement, rate: Rate) -> list[Section]:
    figures: dict[str, tuple[str, Any]] = {}
    if len(found.design["documents"]) > 1:
        figures["by-documents"] = ("Fig. 4, in loss", plots.enhancement_by_documents(found, rate=rate))
    figures["by-language"] = ("The low-resource table, in loss", plots.enhancement_by_language(found, rate=rate))
    for name, (_, figure) in figures.items():
        folder.figure(f"{name}-{rate}", figure)
    return [Section(f"{title}: {rate} rate", (), figure) for title, figure in figures.values()]
