"""Points drifting in the plane, each tied to its nearest anchor."""

from html import escape

import numpy as np

from .checks import (
    read_array,
    read_index,
    read_integers,
    read_steps,
    read_texts,
    require_same,
)
from .drawing import visible, whole
from .figure import figure


def points_explorer(
    frames,
    labels,
    slider_values,
    *,
    alt,
    anchors=None,
    anchor_labels=None,
    home=None,
    nearest=None,
    slider_label="noise level",
    notes=None,
    title="",
    extent=None,
    start=0,
    play=False,
    interval=160,
    name=None,
):
    """Watch points drift, each tied to the anchor nearest to it.

    A point still nearest to its own anchor is a filled disc with a solid
    tie; a point that is lost is a hollow ring with a dashed one.

    Parameters
    ----------
    frames : array (slider values, points, 2)
        Where each point is, for instance noised embeddings in the plane.
    labels : list of str
        One a point.
    slider_values : list of float or str
    alt : str
        A sentence that says what is drawn.
    anchors : array (anchors, 2), optional
        The places that stay, for instance the clean embeddings; the first
        frame otherwise.
    anchor_labels : list of str, optional
    home : list of int, optional
        The anchor that each point belongs to; its own number otherwise.
    nearest : array (slider values, points) of int, optional
        The nearest anchor, if it was found in more dimensions than two;
        in the plane otherwise.
    extent : float, optional
        The window reaches from minus to plus this number.
    slider_label, notes, title, start, play, interval, name
        As in `line_explorer` and `token_explorer`.

    Returns
    -------
    Figure
    """
    frames = read_array(frames, "frames", 3)
    steps, labels = read_steps(slider_values), [str(label) for label in labels]
    require_same(
        "frames",
        frames.shape,
        (len(steps), len(labels), 2),
        "(slider values, points, 2)",
    )
    if anchors is None:
        anchors, anchor_labels = frames[0], anchor_labels or labels
    anchors = read_array(anchors, "anchors", 2)
    require_same("anchors", anchors.shape, (len(anchors), 2), "(anchors, 2)")
    fixed = read_texts(
        [""] * len(anchors) if anchor_labels is None else anchor_labels,
        len(anchors),
        "anchor_labels",
    )
    home = range(len(labels)) if home is None else home
    home = read_integers(home, (len(labels),), len(anchors), "home")
    if nearest is None:
        gaps = frames[:, :, None, :] - anchors[None, None]
        nearest = (gaps**2).sum(-1).argmin(-1)
    near = read_integers(nearest, frames.shape[:2], len(anchors), "nearest")
    start = read_index(start, len(steps), "start")
    if notes is None:
        notes = [
            f"{slider_label} {step}: {sum(map(int.__eq__, row, home))} of "
            f"{len(home)} points are nearest to their own place"
            for step, row in zip(steps, near, strict=True)
        ]
    notes = read_texts(notes, len(steps), "notes")
    spots, places = _plane(frames, anchors, extent)
    data = {
        "steps": steps,
        "p": spots,
        "a": places,
        "near": near,
        "home": home,
        "notes": notes,
        "ms": int(interval),
    }
    return figure(
        "points",
        data,
        _points_svg(data, labels, fixed, start, alt),
        alt=alt,
        title=title,
        slider=(slider_label, start),
        play=play,
        readout=notes[start],
        name=name,
    )


def _plane(frames, anchors, extent):
    """Map the plane to a 440 x 340 picture, both axes to one scale."""
    wide, tall, margin = 440, 340, 24
    everything = np.concatenate([frames.reshape(-1, 2), anchors])
    if extent is None:
        low, high = everything.min(0), everything.max(0)
    elif extent > 0:
        low, high = np.full(2, -extent), np.full(2, extent)
    else:
        raise ValueError(f"extent must be positive, got {extent}")
    room = np.array([wide - 2 * margin, tall - 2 * margin])
    scale = (room / np.maximum(high - low, 1e-9)).min()
    centre = (low + high) / 2

    def place(points):
        out = np.array([1, -1]) * (points - centre) * scale
        return whole(out + np.array([wide, tall]) / 2)

    return [place(frame) for frame in frames], place(anchors)


def _points_svg(data, labels, fixed, start, alt):
    ties, dots, names = [], [], []
    for n, (x, y) in enumerate(data["p"][start]):
        near = data["near"][start][n]
        lost = "" if near == data["home"][n] else " dblm-lost"
        to = data["a"][near]
        ties.append(
            f'<line class="dblm-tie{lost}" x1="{x}" y1="{y}" x2="{to[0]}" '
            f'y2="{to[1]}"/>'
        )
        dots.append(
            f'<circle class="dblm-dot{lost}" cx="{x}" cy="{y}" r="4">'
            f"<title>{escape(visible(labels[n]))}</title></circle>"
        )
        names.append(
            f'<text class="dblm-name" x="{x + 7}" y="{y - 6}">'
            f"{escape(visible(labels[n]))}</text>"
        )
    rings = [
        f'<circle class="dblm-anchor" cx="{x}" cy="{y}" r="7"/>'
        f'<text class="dblm-home" x="{x + 9}" y="{y + 12}">'
        f"{escape(visible(label) if label else '')}</text>"
        for (x, y), label in zip(data["a"], fixed, strict=True)
    ]
    return (
        '<svg class="dblm-drawing" viewBox="0 0 440 340" role="img" '
        f'aria-label="{escape(alt)}">{"".join(rings + ties + dots + names)}'
        "</svg>"
    )
