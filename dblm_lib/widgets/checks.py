"""Read what a figure was given, or say what is wrong with it.

Each function returns plain Python or numpy values and raises ValueError
with the name of the argument and what was expected.
"""

import numpy as np

from .drawing import whole


def read_array(values, name, dims):
    """Read numbers, from a tensor too; refuse NaN, infinity and nothing."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be numbers in rows of equal length ({error})"
        ) from None
    if array.ndim != dims or array.size == 0:
        raise ValueError(
            f"{name} must have {dims} dimension(s) and not be empty, "
            f"got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds NaN or infinity: a figure cannot draw it; "
            "clip it, or leave the end point out"
        )
    return array


def require_same(name, got, wanted, meaning):
    if tuple(got) != tuple(wanted):
        raise ValueError(
            f"{name} has shape {tuple(got)}, but {tuple(wanted)} was "
            f"expected: {meaning}"
        )


def read_integers(values, shape, limit, name):
    array = read_array(values, name, len(shape))
    require_same(name, array.shape, tuple(shape), "one a point")
    if (array != np.rint(array)).any() or not (
        0 <= array.min() and array.max() < limit
    ):
        raise ValueError(
            f"{name} must be whole numbers of anchors, 0 to {limit - 1}"
        )
    return array.astype(int).tolist()


def read_index(value, count, name):
    if not -count <= value < count:
        raise ValueError(f"{name} must be a frame, 0 to {count - 1}: {value}")
    return int(value) % count


def read_steps(values):
    steps = [v if isinstance(v, str) else _say_step(v) for v in values]
    if not steps:
        raise ValueError("the slider needs at least one value")
    return steps


def _say_step(value):
    value = float(value)
    return str(int(value)) if value.is_integer() else f"{value:.4g}"


def read_texts(values, count, name):
    if isinstance(values, str) or len(values) != count:
        raise ValueError(f"{name} must be {count} texts, got {values!r}")
    return [str(value) for value in values]


def read_option_notes(notes, options, count):
    if not isinstance(notes, dict):
        notes = dict.fromkeys(options, notes)
    if list(notes) != list(options):
        raise ValueError(
            f"notes are for {list(notes)}, the options are {list(options)}"
        )
    return [
        read_texts(notes[o], count, option_name("notes", o)) for o in options
    ]


def option_name(name, option):
    return f"{name}[{option!r}]" if option != "" else name


def read_tokens(frames, name):
    if isinstance(frames, str) or not len(frames):
        raise ValueError(f"{name} needs a list of tokens for each step")
    rows = []
    for i, row in enumerate(frames):
        if isinstance(row, str) or not len(row):
            raise ValueError(
                f"{name}[{i}] must be a list of tokens, at least one; "
                f"got {row!r}"
            )
        marks = str.maketrans({"Ġ": " ", "Ċ": "\n"})
        rows.append([str(token).translate(marks) for token in row])
    return rows


def read_shares(values, rows, name, top=100):
    """Turn values in [0, 1] into whole numbers up to top, row by row."""
    if values is None:
        return None
    if len(values) != len(rows):
        raise ValueError(
            f"{name} has {len(values)} rows for {len(rows)} steps of tokens"
        )
    out = []
    for i, (value, row) in enumerate(zip(values, rows, strict=True)):
        value = read_array(value, f"{name}[{i}]", 1)
        require_same(f"{name}[{i}]", value.shape, (len(row),), "one a token")
        if value.min() < -1e-6 or value.max() > 1 + 1e-6:
            raise ValueError(
                f"{name} must lie in [0, 1]; row {i} reaches from "
                f"{value.min():g} to {value.max():g}"
            )
        out.append(whole(top * np.clip(value, 0, 1)))
    return out


def require_keys(given, where, needed, allowed=()):
    """Refuse a dict that lacks a key, or has one that nobody reads."""
    if not isinstance(given, dict):
        raise TypeError(
            f"{where} must be a dict with {', '.join(needed)}; "
            f"got {type(given).__name__}"
        )
    missing = [key for key in needed if key not in given]
    unknown = [key for key in given if key not in {*needed, *allowed}]
    if missing or unknown:
        wrong = f"lacks {missing}" if missing else f"has unknown {unknown}"
        raise ValueError(
            f"{where} {wrong}: give {', '.join(needed)}"
            + (f" and, if you like, {', '.join(allowed)}" if allowed else "")
        )
