"""Figures that a reader can move without a kernel.

A published page has no Python behind it. Each function here therefore
precomputes what the reader may ask for, and returns one self-contained
piece of HTML: the picture, its data as JSON, native controls, and a few
lines of JavaScript that swap one frame for another. It needs no network
and looks the same in Jupyter, in Colab and on the page.

- `line_explorer`: curves that follow a slider.
- `token_explorer`: text coming out of noise, step by step.
- `theatre`: several such texts, two models side by side.
- `points_explorer`: points drifting in the plane, tied to their nearest.
- `grid_explorer`: which output answers to which input.
- `live`: the same control with a kernel behind it (ipywidgets).

The HTML is the same bytes for the same numbers: coordinates are rounded
to whole units of a fine grid. Every figure asks for ``alt``, a sentence
that says what is drawn to a reader who cannot see it. Tokens and labels
are escaped; they may hold anything.

Each kind of figure has a Python file, a script and, where it needs one, a
style sheet of the same name beside it. The last two travel in the HTML,
without their comments; ``tools/dblm_sphinx.py`` keeps one copy a page.
"""

from .figure import Figure
from .grid import attention_explorer, grid_explorer
from .lines import line_explorer
from .live import live
from .points import points_explorer
from .theatre import theatre
from .tokens import token_explorer

__all__ = [  # noqa: RUF022  (the order in the book's list of functions)
    "Figure",
    "line_explorer",
    "token_explorer",
    "points_explorer",
    "grid_explorer",
    "attention_explorer",
    "theatre",
    "live",
]
