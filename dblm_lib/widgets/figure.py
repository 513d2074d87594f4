"""What all figures share: their frame, controls, data and code."""

import hashlib
import json
import re
from html import escape

from .code import code

# The files of each kind, in the order in which a browser reads them.
STYLES = {
    "lines": ("figure.css", "lines.css"),
    "tokens": ("figure.css", "tokens.css"),
    "points": ("figure.css", "points.css"),
    "grid": ("figure.css", "grid.css"),
    "theatre": ("figure.css", "tokens.css", "theatre.css"),
}
SCRIPTS = {kind: ("figure.js", f"{kind}.js") for kind in STYLES}


class Figure:
    """An interactive figure as HTML; Jupyter and the book display it.

    Attributes
    ----------
    html : str
        The whole figure: markup, style, data and script.
    name : str
        Its id on the page.
    """

    def __init__(self, kind, name, html):
        self.kind, self.name, self.html = kind, name, html

    def _repr_html_(self):
        return self.html

    def __repr__(self):
        return f"<interactive figure {self.name}>"


def figure(
    kind,
    data,
    drawing,
    *,
    alt,
    title,
    slider,
    readout,
    name,
    select=None,
    play=False,
):
    """Put controls, drawing, data and script together."""
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(
            "alt must be a sentence that says what the figure shows"
        )
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    ident = _ident(kind, name, [text, drawing, alt, title, slider, select])
    controls = _controls(data["steps"], slider, select, play)
    heading = f'<p class="dblm-title">{escape(title)}</p>' if title else ""
    html = (
        f'<div class="dblm-figure tex2jax_ignore mathjax_ignore" '
        f'id="{ident}" data-dblm="{kind}" role="group" '
        f'aria-label="{escape(title or alt)}">\n'
        f"<style>{code(*STYLES[kind])}</style>\n"
        f"{heading}{controls}\n{drawing.replace('CLIP', ident)}\n"
        f'<p class="dblm-readout" aria-live="polite">{escape(readout)}</p>\n'
        f'<script type="application/json" class="dblm-data">{text}</script>'
        f"\n<script>{code(*SCRIPTS[kind])}</script>\n</div>"
    )
    return Figure(kind, ident, html)


def _controls(steps, slider, select, play):
    label, start = slider
    parts = []
    if select:
        choices = "".join(
            f'<option value="{i}">{escape(str(option))}</option>'
            for i, option in enumerate(select[1])
        )
        parts.append(
            f'<label class="dblm-pick"><span>{escape(select[0])}</span> '
            f'<select autocomplete="off">{choices}</select></label>'
        )
    parts.append(
        f"<label><span>{escape(label)}</span> "
        f'<input type="range" min="0" max="{len(steps) - 1}" step="1" '
        f'value="{start}" autocomplete="off" '
        f'aria-valuetext="{escape(steps[start])}"> '
        f"<output>{escape(steps[start])}</output></label>"
    )
    if play:
        parts.append('<button type="button">Play</button>')
    return f'<div class="dblm-controls">{"".join(parts)}</div>'


def _ident(kind, name, content):
    if name is None:
        digest = hashlib.sha256(repr(content).encode()).hexdigest()
        return f"dblm-{kind}-{digest[:10]}"
    if not re.fullmatch(r"[a-z][a-z0-9-]*", str(name)):
        raise ValueError(
            f"name must be lower-case letters, digits and hyphens, "
            f"such as 'noise-slider'; got {name!r}"
        )
    return f"dblm-{name}"
