"""Figures: one file each, drawn from the long table and the papers' numbers alone.

A new figure is a file in this folder with a function ``(table, targets) -> (Figure, DataFrame)`` under
``@figure("<paper>-<item>", items=[...])``; the frame holds every number in the picture.
"""

import importlib
import io
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sige.analysis.schema import write_atomically


@dataclass(frozen=True)
class FigureSpec:
    """A registered figure: its file name, the papers' items it answers, its caption, and the function that draws it."""

    name: str
    items: tuple[tuple[str, str], ...]
    caption: str
    draw: Callable
    order: int = 50


_FIGURES: dict[str, FigureSpec] = {}


def figure(name: str, items: list[str], caption: str, order: int = 50) -> Callable:
    """Register a drawing function as ``name`` = ``<paper>-<item>``; ``items`` are ids of the paper's items it answers.

    Figures stand in the report by ascending ``order``.
    """
    paper = name.split("-")[0]

    def register(draw: Callable) -> Callable:
        if name in _FIGURES and _FIGURES[name].draw.__module__ != draw.__module__:
            raise ValueError(
                f"two figures are called {name!r}: {_FIGURES[name].draw.__module__} and {draw.__module__}."
            )
        _FIGURES[name] = FigureSpec(name, tuple((paper, item) for item in items), caption, draw, order)
        return draw

    return register


def all_figures() -> dict[str, FigureSpec]:
    """Import every file of this folder and return the figures they register, in the report's order."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_FIGURES.items(), key=lambda entry: (entry[1].order, entry[0])))


def by_item() -> dict[tuple[str, str], str]:
    """Return (paper, item) -> name of the figure that answers it."""
    return {item: spec.name for spec in all_figures().values() for item in spec.items}


def write(spec: FigureSpec, table, targets, folder: str | Path) -> list[Path]:
    """Draw one figure and write ``<name>.svg``, ``.png`` and ``.csv`` into ``folder``; return the three paths."""
    from matplotlib import pyplot

    from sige.analysis.figures import style

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with style.context(spec.name):
        drawing, frame = spec.draw(table, targets)
        files = {}
        for suffix, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            buffer = io.BytesIO()
            drawing.savefig(buffer, format=suffix, **options)
            files[folder / f"{spec.name}.{suffix}"] = buffer.getvalue()
        pyplot.close(drawing)
    files[folder / f"{spec.name}.csv"] = frame.to_csv(index=False).encode()
    write_atomically(files)
    return list(files)
