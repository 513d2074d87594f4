"""Curves that follow a slider."""

from html import escape

import numpy as np

from .checks import (
    option_name,
    read_array,
    read_index,
    read_option_notes,
    read_steps,
    require_same,
)
from .drawing import Window
from .figure import figure


def line_explorer(
    frames,
    x,
    series,
    slider_label,
    slider_values,
    *,
    alt,
    xlabel="",
    ylabel="",
    title="",
    select_label="schedule",
    reference=None,
    notes=None,
    xlim=None,
    ylim=None,
    fill=False,
    start=0,
    name=None,
):
    """Draw curves that follow a slider.

    Parameters
    ----------
    frames : array (slider values, series, points), or dict of such arrays
        One frame a slider value. A dict adds a menu of its keys.
    x : array (points,)
    series : list of str
        Names in the legend.
    slider_label : str
        What the slider sets, with its unit.
    slider_values : list of float or str
        What is shown beside the slider, one a frame.
    alt : str
        A sentence that says what is drawn.
    select_label : str
        What the menu chooses.
    reference : dict of str to array (points,), optional
        Curves that stay, dashed: the clean density, the target.
    notes : list of str, or dict of such lists, optional
        The line of text under each frame; without it, where each curve
        is highest.
    xlim, ylim : pair of float, optional
        The window; all the data otherwise.
    fill : bool
        Fill the area under the curves.
    start : int
        The frame shown first.
    name : str, optional
        The figure's id; from its content otherwise.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        Lengths differ, a number is NaN or infinite, or nothing is given.

    Examples
    --------
    >>> line_explorer([[[0, 1]], [[1, 0]]], [0, 1], ["slope"], "t",
    ...               [0, 1], alt="A line that tips over.", name="tip")
    <interactive figure dblm-tip>
    """
    series, steps = list(series), read_steps(slider_values)
    x = read_array(x, "x", 1)
    options = frames if isinstance(frames, dict) else {"": frames}
    if not options:
        raise ValueError("frames is an empty dict: give at least one option")
    shape = (len(steps), len(series), len(x))
    said = "(slider values, series, points)"
    ys = [
        read_array(f, option_name("frames", o), 3) for o, f in options.items()
    ]
    for option, y in zip(options, ys, strict=True):
        require_same(option_name("frames", option), y.shape, shape, said)
    still = {
        key: read_array(y, f"reference {key!r}", 1)
        for key, y in (reference or {}).items()
    }
    for key, y in still.items():
        require_same(f"reference {key!r}", y.shape, x.shape, "(points,)")
    start = read_index(start, len(steps), "start")
    said = _line_notes(notes, options, ys, x, series, slider_label, steps)
    box = Window(
        x,
        np.concatenate([np.ravel(y) for y in ys + [*still.values()]]),
        xlim,
        ylim,
    )
    low = box.y(np.array([box.ylim[0]]))[0]
    data = {
        "steps": steps,
        "x": box.x(x),
        "y": [[[box.y(line) for line in f] for f in y] for y in ys],
        "close": f"L{box.x(x)[-1]} {low}L{box.x(x)[0]} {low}Z",
        "notes": said,
    }
    shapes = []
    for s in range(len(series)):
        d = _path(data["x"], data["y"][0][start][s])
        if fill:
            shapes.append(
                f'<path class="dblm-area" fill="var(--d-{s % 7})" '
                f'd="{d}{data["close"]}"/>'
            )
        shapes.append(
            f'<path class="dblm-line" stroke="var(--d-{s % 7})" '
            f'stroke-dasharray="{_dash(s)}" d="{d}"/>'
        )
    for y in still.values():
        shapes.append(
            '<path class="dblm-still" stroke-dasharray="3 3" '
            f'd="{_path(data["x"], box.y(y))}"/>'
        )
    drawing = box.svg("".join(shapes), alt, xlabel, ylabel)
    legend = _legend(series, still)
    return figure(
        "lines",
        data,
        drawing + legend,
        alt=alt,
        title=title,
        slider=(slider_label, start),
        select=(select_label, list(options)) if len(options) > 1 else None,
        readout=said[0][start],
        name=name,
    )


def _line_notes(notes, options, ys, x, series, slider_label, steps):
    if notes is None:
        notes = {
            option: [
                f"{slider_label} {step}{', ' if option else ''}{option}: "
                + "; ".join(
                    f"{label} is highest at {_brief(x[np.round(line, 6).argmax()])} "
                    f"({_brief(line.max())})"
                    for label, line in zip(series, frame, strict=True)
                )
                for step, frame in zip(steps, y, strict=True)
            ]
            for option, y in zip(options, ys, strict=True)
        }
    return read_option_notes(notes, options, len(steps))


def _path(x, y):
    return "M" + "L".join(f"{a} {b}" for a, b in zip(x, y, strict=True))


def _dash(s):
    return ("none", "none", "7 3", "7 3", "2 2", "2 2", "9 3 2 3")[s % 7]


def _legend(series, still):
    line = (
        '<span><svg viewBox="0 0 28 8" aria-hidden="true"><path d="M0 4H28" '
        'class="{}" stroke="{}" stroke-dasharray="{}"/></svg>{}</span>'
    )
    items = [
        line.format("dblm-key", f"var(--d-{s % 7})", _dash(s), escape(label))
        for s, label in enumerate(series)
    ]
    items += [
        line.format("dblm-key", "var(--d-dim)", "3 3", escape(label))
        for label in still
    ]
    body = "".join(items).replace('class="dblm-key"', 'stroke-width="2.5"')
    return f'<div class="dblm-legend">{body}</div>'


def _brief(value):
    return f"{round(float(value), 6) + 0.0:.3g}"
