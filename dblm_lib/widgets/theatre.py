"""Several texts coming out of noise or masks, models side by side."""

import string
from html import escape

from .checks import (
    read_index,
    read_shares,
    read_steps,
    read_texts,
    read_tokens,
    require_keys,
    require_same,
)
from .figure import figure

# Whole numbers are packed into texts, six bits a letter.
_LETTERS = string.ascii_uppercase + string.ascii_lowercase
_LETTERS += string.digits + "-_"
_SUREST = len(_LETTERS) - 1  # one letter a confidence

_MARKS = ["∎", " ·", "↵"]  # the end, an end after the end, a line break
_FATES = ["will still change", "final", " positions are final", "masked"]
_MASK = "_"  # in the place of a word


def theatre(
    tales,
    *,
    alt,
    panel_labels,
    step_labels=None,
    slider_label="step",
    select_label="tale",
    value_label="confidence",
    notes=None,
    panel_notes=None,
    end="<|endoftext|>",
    blank=None,
    separator="",
    title="",
    start=0,
    play=True,
    autoplay=False,
    interval=160,
    name=None,
):
    """Choose a tale and drag through the steps in which models write it.

    As `token_explorer`, with a menu of tales and a panel a model. A token
    that will still change before the end is italic and has a dotted line
    under it. The first end-of-text token is a small square; what
    stands after it is faint and not counted as text. With ``blank`` texts
    come out of masks: a mask is a muted blank, coloured by the confidence
    of what may stand there; a token written in this step has a line under
    it, and one that is masked again turns back.

    Parameters
    ----------
    tales : list of dict
        ``label``, its name in the menu, and ``panels``, one dict a model:
        ``frames``, list of list of str, the tokens of each step, all of one
        length; ``confidence``, array (steps, positions) in [0, 1], may be
        left out; ``verdict``, str, the line under the text at all steps,
        for instance "At the end the name breaks: Tom, then Lily."
    alt : str
        A sentence that says what is drawn.
    panel_labels : list of str
        Names of the models, one a panel.
    step_labels : list, optional
        What is shown beside the slider, one a step.
    select_label : str
        What the menu chooses.
    value_label : str
        What ``confidence`` is.
    notes : list of str, optional
        The line of text under each step; without it, the step.
    panel_notes : list of lists of str, optional
        For each panel and step what stands before the count of positions
        that are final, for instance its noise level.
    end : str, optional
        The end-of-text token; None if there is none.
    blank : str, optional
        The token that stands for a mask, such as `writing.BLANK`; what
        `writing.theatre_panel` makes of a recorded course are frames with it.
    separator, title, start, play, autoplay, interval, name
        As in `token_explorer`.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        A tale lacks something, shapes differ, a confidence is outside
        [0, 1], or nothing is given.
    TypeError
        A tale or a panel is no dict.

    Notes
    -----
    The page grows by three bytes a token and step.

    Examples
    --------
    >>> panel = {"frames": [["a", " b"], ["a", " cat"]], "verdict": "good"}
    >>> theatre([{"label": "first", "panels": [panel]}], name="stage",
    ...         alt="Two words.", panel_labels=["repaired"])
    <interactive figure dblm-stage>
    """
    if blank is not None and (not isinstance(blank, str) or blank == end):
        raise ValueError(
            "blank must be the text that stands for a mask, and not the "
            f"end-of-text token; got {blank!r}"
        )
    names = read_texts(panel_labels, len(panel_labels), "panel_labels")
    labels, plays = _plays(tales, len(names))
    count = len(plays[0][0]["rows"])
    steps = read_steps(range(count) if step_labels is None else step_labels)
    require_same("step_labels", (len(steps),), (count,), "one a step")
    for t, panels in enumerate(plays):
        for p, panel in enumerate(panels):
            if len(panel["rows"]) != count:
                raise ValueError(
                    f"all panels need the same number of steps: {_spot(t, p)} "
                    f"has {len(panel['rows'])}, the first panel {count}"
                )
    start = read_index(start, count, "start")
    if notes is None:
        notes = [f"{slider_label} {step}" for step in steps]
    notes = read_texts(notes, count, "notes")
    before = _before(panel_notes, len(names), count)
    known = {}
    for panels in plays:
        for panel in panels:
            for row in panel["rows"]:
                for token in row:
                    known.setdefault(token, len(known))
    wide, far = _width(len(known)), _width(count)
    data = {
        "steps": steps,
        "letters": _LETTERS,
        "v": list(known),
        "wide": wide,
        "far": far,
        "t": [
            [_packed(q, known, wide, far) for q in panels] for panels in plays
        ],
        "gap": separator,
        "end": end,
        "blank": blank,
        "mask": _MASK,
        "marks": _MARKS,
        "words": _FATES,
        "names": [f"{label}: " if label else "" for label in names],
        "before": before,
        "label": value_label,
        "notes": notes,
        "ms": int(interval),
        "auto": bool(play and autoplay),
    }
    boxes = "".join(
        "<div>"
        + (f'<p class="dblm-title">{escape(label)}</p>' if label else "")
        + _stage(panel, start, data, label)
        + f'<p class="dblm-count">{escape(said[start])}'
        + f"{_final(panel, start)}</p>"
        + f'<p class="dblm-verdict">{escape(panel["verdict"])}</p></div>'
        for panel, label, said in zip(plays[0], names, before, strict=True)
    )
    legend = _stage_legend(plays, value_label, data)
    return figure(
        "theatre",
        data,
        f'<div class="dblm-panels dblm-drawing">{boxes}</div>{legend}',
        alt=alt,
        title=title,
        slider=(slider_label, start),
        select=(select_label, labels) if len(labels) > 1 else None,
        play=play,
        readout=notes[start],
        name=name,
    )


def _plays(tales, count):
    """Check the tales of a theatre; labels, and panels ready to draw."""
    if isinstance(tales, dict) or not len(tales):
        raise ValueError("tales must be a list of dicts, at least one")
    labels, plays = [], []
    for t, tale in enumerate(tales):
        where = f"tales[{t}]"
        require_keys(tale, where, ["label", "panels"])
        labels.append(str(tale["label"]))
        if isinstance(tale["panels"], dict) or len(tale["panels"]) != count:
            raise ValueError(
                f"{where} has {len(tale['panels'])} panels, but there are "
                f"{count} panel_labels: give a list with one dict a label"
            )
        plays.append(
            [_play(q, _spot(t, p)) for p, q in enumerate(tale["panels"])]
        )
    return labels, plays


def _play(panel, where):
    require_keys(panel, where, ["frames", "verdict"], ["confidence"])
    rows = read_tokens(panel["frames"], f"{where} frames")
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{where} frames must have one length: step {i} has "
                f"{len(row)} tokens, step 0 has {len(rows[0])}"
            )
    sure = panel.get("confidence")
    sure = read_shares(sure, rows, f"{where} confidence", _SUREST)
    # The first step from which a position's token stays as it is.
    settled = [
        next(
            (i + 1 for i in reversed(range(len(rows))) if rows[i][k] != last),
            0,
        )
        for k, last in enumerate(rows[-1])
    ]
    return {
        "rows": rows,
        "sure": sure,
        "settled": settled,
        "verdict": str(panel["verdict"]),
    }


def _spot(t, p):
    return f"tales[{t}] panels[{p}]"


def _before(panel_notes, panels, count):
    if panel_notes is None:
        return [[""] * count for _ in range(panels)]
    if isinstance(panel_notes, str) or len(panel_notes) != panels:
        raise ValueError(
            f"panel_notes must be {panels} lists of texts, one a panel; "
            f"got {panel_notes!r}"
        )
    return [
        [f"{note}; " for note in read_texts(said, count, f"panel_notes[{p}]")]
        for p, said in enumerate(panel_notes)
    ]


def _width(count):
    """How many letters a number below ``count`` takes (at most ``count``)."""
    return next(w for w in range(1, 9) if count < len(_LETTERS) ** w)


def _pack(numbers, width):
    """Write whole numbers as letters, six bits each."""
    base = len(_LETTERS)
    return "".join(
        _LETTERS[number // base**place % base]
        for number in numbers
        for place in reversed(range(width))
    )


def _packed(panel, known, wide, far):
    rows, sure = panel["rows"], panel["sure"]
    return {
        "n": len(rows[0]),
        "f": _pack((known[token] for row in rows for token in row), wide),
        "c": sure and _pack((c for row in sure for c in row), 1),
        "e": _pack(panel["settled"], far),
        "s": panel["verdict"],
    }


def _final(panel, i):
    settled = panel["settled"]
    done = sum(first <= i for first in settled)
    return f"{done} of {len(settled)}{_FATES[2]}"


def _stage(panel, i, data, label):
    """One panel's text at one step, as the script draws it."""
    spans, text, ended = [], [], False
    blank = data["blank"]
    for k, token in enumerate(panel["rows"][i]):
        moves = i < panel["settled"][k]
        masked = blank is not None and token == blank
        fate = _FATES[3 if masked else not moves]
        if masked:
            mark = "dblm-blank "
        else:
            mark = "dblm-still-changes " if moves else ""
            mark += "dblm-new " if _is_new(panel, i, k, blank) else ""
        mark += "dblm-beyond" if ended else ""
        style = ""
        if panel["sure"] and (masked or blank is None):
            sure = f"{panel['sure'][i][k] / _SUREST:.2f}"
            style = f' style="--v:{sure}"'
            fate = f"{data['label']} {sure}, {fate}"
        shown = token.replace("\n", _MARKS[2] if ended else _MARKS[2] + "\n")
        if token == data["end"]:
            shown, ended = _MARKS[ended], True
            said = ""
        else:
            shown = _MASK if masked else shown
            said = f" {_MASK}" if masked else token
        if not ended:
            text.append(said)
        spans.append(
            f'<span class="{mark}" title="{escape(fate)}"{style}>'
            f"{escape(shown)}</span>"
        )
    gap = data["gap"]
    said = (f"{label}: " if label else "") + gap.join(text)
    return (
        f'<div class="dblm-tokens dblm-stage" role="img" '
        f'aria-label="{escape(said)}">{escape(gap).join(spans)}</div>'
    )


def _is_new(panel, i, k, blank):
    """Whether a token was written in this step, among masks."""
    rows = panel["rows"]
    return blank is not None and i > 0 and rows[i - 1][k] != rows[i][k]


def _stage_legend(plays, value_label, data):
    """Say what a token's looks mean; only what occurs."""
    looks = [("dblm-still-changes", "word", _FATES[0])]
    if data["blank"] is not None:
        looks = [
            ("dblm-blank", _MASK, _FATES[3]),
            ("dblm-new", "word", "written in this step"),
            *(looks if _some_turn_back(plays, data["blank"]) else []),
        ]
    rows = [
        f'<span><span class="dblm-tokens"><span class="{mark}">{word}</span>'
        f"</span> {fate}</span>"
        for mark, word, fate in [*looks, ("", "word", _FATES[1])]
    ]
    if data["end"] in data["v"]:
        rows.append(f"<span>{_MARKS[0]} end of the text</span>")
    if any(panel["sure"] for panels in plays for panel in panels):
        rows.append(
            f'<span>{escape(value_label)} 0 <span class="dblm-scale" '
            'aria-hidden="true"></span> 1</span>'
        )
    return f'<p class="dblm-legend">{"".join(rows)}</p>'


def _some_turn_back(plays, blank):
    """Whether a token is written that does not stay."""
    return any(
        i < panel["settled"][k] and token != blank
        for panels in plays
        for panel in panels
        for i, row in enumerate(panel["rows"])
        for k, token in enumerate(row)
    )
