"""Which output answers to which input."""

from html import escape

from .checks import (
    option_name,
    read_array,
    read_index,
    read_option_notes,
    require_same,
)
from .drawing import visible, whole
from .figure import figure


def grid_explorer(
    matrix,
    labels,
    *,
    alt,
    output_labels=None,
    slider_label="changed position",
    select_label="attention",
    threshold=1e-6,
    notes=None,
    title="",
    start=0,
    name=None,
):
    """Choose an input and see which outputs change.

    Parameters
    ----------
    matrix : array (outputs, inputs), or dict of such arrays
        How far output i moves when input j is changed, not negative; or
        attention weights. A dict adds a menu, for instance of ``"causal"``
        and ``"both sides"``. All share one colour scale.
    labels : list of str
        One an input, for instance tokens.
    alt : str
        A sentence that says what is drawn.
    output_labels : list of str, optional
        One an output; ``labels`` otherwise.
    threshold : float
        An output has changed if it moved by more than this.
    slider_label, select_label, notes, title, start, name
        As in `line_explorer`.

    Returns
    -------
    Figure
    """
    columns = [str(label) for label in labels]
    rows = [str(r) for r in output_labels or columns]
    options = matrix if isinstance(matrix, dict) else {"": matrix}
    if not columns or not options:
        raise ValueError("nothing to draw: give labels and a matrix")
    arrays = [
        read_array(m, option_name("matrix", o), 2) for o, m in options.items()
    ]
    for option, array in zip(options, arrays, strict=True):
        require_same(
            option_name("matrix", option),
            array.shape,
            (len(rows), len(columns)),
            "(outputs, inputs)",
        )
        if array.min() < 0:
            raise ValueError(
                f"{option_name('matrix', option)} has the negative value "
                f"{array.min():g}: give sizes of changes, or weights"
            )
    start = read_index(start, len(columns), "start")
    top = max(array.max() for array in arrays) or 1.0
    on = [(array > threshold).T.astype(int).tolist() for array in arrays]
    if notes is None:
        notes = {
            o: [_grid_note(rows, columns, c, j) for j, c in enumerate(seen)]
            for o, seen in zip(options, on, strict=True)
        }
    notes = read_option_notes(notes, options, len(columns))
    data = {
        "steps": [f"{j + 1}: {visible(c)}" for j, c in enumerate(columns)],
        "m": [whole(100 * a / top) for a in arrays],
        "on": on,
        "notes": notes,
    }
    drawing = _grid_svg(data, rows, columns, start, alt)
    return figure(
        "grid",
        data,
        drawing,
        alt=alt,
        title=title,
        slider=(slider_label, start),
        select=(select_label, list(options)) if len(options) > 1 else None,
        readout=notes[0][start],
        name=name,
    )


attention_explorer = grid_explorer


def _grid_svg(data, rows, columns, start, alt):
    names = [_short(visible(label)) for label in rows]
    heads = [_short(visible(label)) for label in columns]
    left = 16 + 8 * max(map(len, names))
    top = 16 + 8 * max(map(len, heads))
    side = (440 - left - 8) // max(len(columns), 6)
    data["left"], data["side"] = left, side
    cells, texts = [], []
    for r, row in enumerate(data["m"][0]):
        on = " dblm-on" if data["on"][0][start][r] else ""
        texts.append(
            f'<text class="dblm-row{on}" x="{left - 6}" '
            f'y="{top + (r + 0.5) * side + 4:g}" text-anchor="end">'
            f"{escape(names[r])}</text>"
        )
        cells += [
            f'<rect class="dblm-cell" data-at="{c}" x="{left + c * side}" '
            f'y="{top + r * side}" width="{side}" height="{side}" '
            f'fill-opacity="{value / 100:g}"/>'
            for c, value in enumerate(row)
        ]
    for c, head in enumerate(heads):
        on = " dblm-on" if c == start else ""
        at = f"{left + (c + 0.5) * side + 4:g} {top - 6}"
        texts.append(
            f'<text class="dblm-column{on}" data-at="{c}" '
            f'transform="translate({at}) rotate(-90)">{escape(head)}</text>'
        )
    tall = top + side * len(rows) + 8
    return (
        f'<svg class="dblm-drawing" viewBox="0 0 440 {tall}" role="img" '
        f'aria-label="{escape(alt)}">{"".join(texts + cells)}'
        f'<rect class="dblm-ring" x="{left + start * side}" y="{top}" '
        f'width="{side}" height="{side * len(rows)}" pointer-events="none"/>'
        "</svg>"
    )


def _grid_note(rows, columns, seen, j):
    moved = [f"{i + 1} {visible(rows[i])}" for i, s in enumerate(seen) if s]
    return (
        f"changing {j + 1} {visible(columns[j])} moves {len(moved)} of "
        f"{len(rows)} outputs: {', '.join(moved) or 'none'}"
    )


def _short(text, width=10):
    return text if len(text) <= width else text[: width - 1] + "…"
