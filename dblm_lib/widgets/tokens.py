"""Text coming out of noise, step by step."""

from html import escape

from .checks import (
    read_index,
    read_shares,
    read_steps,
    read_texts,
    read_tokens,
    require_same,
)
from .figure import figure


def token_explorer(
    frames,
    values=None,
    *,
    alt,
    step_labels=None,
    slider_label="step",
    value_label="confidence",
    compare=None,
    compare_values=None,
    panel_labels=("", ""),
    notes=None,
    separator="",
    title="",
    start=0,
    play=True,
    autoplay=False,
    interval=160,
    name=None,
):
    """Drag through the steps of a text coming out of noise.

    Parameters
    ----------
    frames : list of list of str
        The tokens of each step, spaces included (or see ``separator``).
        A token that differs from the step before is underlined.
    values : array (steps, positions) in [0, 1], optional
        Confidence of each token: the deeper its colour, the surer.
    alt : str
        A sentence that says what is drawn.
    step_labels : list, optional
        What is shown beside the slider, one a step.
    value_label : str
        What ``values`` are.
    compare, compare_values : optional
        A second panel beside the first, with as many steps.
    panel_labels : pair of str
        Headings of the two panels.
    notes : list of str, optional
        The line of text under each step; without it, the step and its
        mean value.
    separator : str
        Put between tokens: ``" "`` if they are words without spaces.
    play, autoplay : bool
        Show a play button; press it once when the figure is first seen.
        A reader who asked for less motion gets a button for one step.
    interval : int
        Milliseconds a step while playing.
    start, title, name
        As in `line_explorer`.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        Steps and values differ in shape, a value is outside [0, 1], or
        nothing is given.
    """
    panels = [read_tokens(frames, "frames")]
    sure = [read_shares(values, panels[0], "values")]
    if compare is not None:
        panels.append(read_tokens(compare, "compare"))
        sure.append(read_shares(compare_values, panels[1], "compare_values"))
        if len(panels[1]) != len(panels[0]):
            raise ValueError(
                f"compare has {len(panels[1])} steps and frames "
                f"{len(panels[0])}: give both the same number"
            )
    elif compare_values is not None:
        raise ValueError("compare_values was given without compare")
    count = len(panels[0])
    steps = read_steps(range(count) if step_labels is None else step_labels)
    require_same("step_labels", (len(steps),), (count,), "one a step")
    start = read_index(start, count, "start")
    if notes is None:
        notes = [
            _token_note(slider_label, step, sure[0], i, value_label)
            for i, step in enumerate(steps)
        ]
    notes = read_texts(notes, count, "notes")
    names = [str(label) for label in panel_labels][: len(panels)]
    if len(names) != len(panels):
        raise ValueError("give panel_labels, one a panel")
    known = {}
    ids = [
        [[known.setdefault(t, len(known)) for t in row] for row in panel]
        for panel in panels
    ]
    data = {
        "steps": steps,
        "v": list(known),
        "f": ids,
        "c": sure,
        "gap": separator,
        "names": [f"{label}: " if label else "" for label in names],
        "label": value_label,
        "notes": notes,
        "ms": int(interval),
        "auto": bool(play and autoplay),
    }
    boxes = "".join(
        "<div>"
        + (f'<p class="dblm-title">{escape(label)}</p>' if label else "")
        + _token_box(panel[start], c and c[start], separator, label)
        + "</div>"
        for panel, c, label in zip(panels, sure, names, strict=True)
    )
    scale = ""
    if any(sure):
        scale = (
            f'<p class="dblm-legend"><span>{escape(value_label)} 0 '
            '<span class="dblm-scale" aria-hidden="true"></span> 1</span></p>'
        )
    return figure(
        "tokens",
        data,
        f'<div class="dblm-panels dblm-drawing">{boxes}</div>{scale}',
        alt=alt,
        title=title,
        slider=(slider_label, start),
        play=play,
        readout=notes[start],
        name=name,
    )


def _token_note(slider_label, step, sure, i, value_label):
    note = f"{slider_label} {step}"
    if sure:
        mean = sum(sure[i]) / len(sure[i]) / 100
        note += f": mean {value_label} {mean:.2f}"
    return note


def _token_box(row, sure, separator, label):
    spans = []
    for k, token in enumerate(row):
        style = ""
        if sure:
            style = f' style="--v:{sure[k] / 100:g}"'
        text = escape(token).replace("\n", "↵\n")
        spans.append(f"<span{style}>{text}</span>")
    said = (f"{label}: " if label else "") + separator.join(row)
    return (
        f'<div class="dblm-tokens" role="img" aria-label="{escape(said)}">'
        f"{escape(separator).join(spans)}</div>"
    )
