"""Every figure and table of both papers with its state, so that what is missing is visible from the first day on."""

import pandas as pd

from sige.analysis.targets import Item, Targets

COLUMNS = ["paper", "item", "name", "kind", "version", "established", "title", "shows", "state", "why", "cells"]
COLUMNS += ["reproduced", "better", "worse", "ambiguous", "not_comparable", "not_run", "no_value", "figure"]
KIND_ORDER = ("figure", "table", "appendix", "text", "reference")

_COUNTED = {
    "reproduced": "reproduced",
    "better": "better",
    "worse": "worse",
    "ambiguous": "ambiguous",
    "not comparable": "not_comparable",
    "not run": "not_run",
    "published value not available": "no_value",
}


def build_catalogue(
    targets: Targets, verdicts: pd.DataFrame, figures: dict[tuple[str, str], str] | None = None
) -> pd.DataFrame:
    """Return one row an item: its state, why, and how many of its cells have each verdict.

    ``figures`` maps (paper, item) to the figure or table this project makes of it. States: ``reproduced`` (every published
    number met or beaten), ``partly (n of m)``, ``not run``, ``cannot``.
    """
    rows = []
    for (paper, name), item in targets.items.items():
        own = verdicts[(verdicts["paper"] == paper) & (verdicts["item"] == name)]
        state, why = _state(item, own)
        tally = own["verdict"].value_counts()
        rows.append(
            {
                "paper": paper,
                "item": name,
                "name": item.name,
                "kind": item.kind,
                "version": item.version,
                "established": item.established,
                "title": item.title,
                "shows": item.shows,
                "state": state,
                "why": why,
                "cells": len(own),
                **{column: int(tally.get(verdict, 0)) for verdict, column in _COUNTED.items()},
                "figure": (figures or {}).get((paper, name), ""),
            }
        )
    catalogue = pd.DataFrame(rows, columns=COLUMNS)
    catalogue["order"] = catalogue["kind"].map(KIND_ORDER.index)
    catalogue = catalogue.sort_values(["paper", "order"], ascending=[False, True], kind="stable")
    return catalogue[COLUMNS].reset_index(drop=True)


def _state(item: Item, own: pd.DataFrame) -> tuple[str, str]:
    if item.cannot:
        return "cannot", item.cannot
    with_value = own[own["published"].notna()]
    if len(own) and not len(with_value):
        return "cannot", "published values not available"
    if not len(own):
        return "not run", "images only: the project does not make them yet"
    met = int(with_value["verdict"].isin(["reproduced", "better"]).sum())
    others = with_value[~with_value["verdict"].isin(["reproduced", "better"])]
    if met == len(with_value):
        return "reproduced", ""
    tried = with_value["verdict"].isin(["reproduced", "better", "worse", "ambiguous"]).any()
    if tried or with_value["measured"].notna().any():
        return f"partly ({met} of {len(with_value)} cells)", _most_common(others)
    if (with_value["verdict"] == "not comparable").all():
        return "cannot", _most_common(others)
    return "not run", _most_common(others)


def _most_common(rows: pd.DataFrame) -> str:
    reasons = rows["why"].where(rows["why"] != "", rows["verdict"])
    counted = reasons.value_counts(sort=True)
    return "; ".join(f"{reason} ({count})" for reason, count in counted.head(2).items())
