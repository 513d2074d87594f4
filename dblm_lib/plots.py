"""The book's figures and tables: one style, and the few kinds it needs.

Matplotlib and seaborn are imported inside the functions, so that
``import dblm_lib.plots`` stays light. Every kind of plot draws on the axes
it is given, or on new ones, and returns them; a cell ends with ``plt.show()``.

A figure carries its own near-white card. A transparent one would have to
guess the page behind it: light page, dark page, Colab, a slide.
"""

import numbers

import numpy as np

CARD = "#fcfcfb"
INK = "#24292f"
GREY = "#656d76"
GRID = "#e3e5e8"
# Okabe and Ito's colours, two of them darkened to stand out on the card.
PALETTE = (
    "#0072b2",  # blue
    "#d55e00",  # vermilion
    "#009070",  # green
    "#aa4499",  # purple
    "#b07d00",  # ochre
    "#3a8fc4",  # sky
    "#595959",  # grey
)
# Lines differ in dashes too: colour is never the only sign.
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 2, 2)))
# 5.4 inches: letters stay legible when a phone shrinks it to 350 pixels.
SIZE = (5.4, 3.3)


def use_style():
    """Set the book's style for every figure drawn from now on.

    Text is set in DejaVu Sans, which travels with matplotlib, and PNGs are
    written without the version stamp, so that two runs on two machines
    with the same library give the same file.
    """
    import matplotlib as mpl
    import seaborn as sns
    from cycler import cycler

    sns.set_theme(style="whitegrid", rc=_style())
    dashes = [DASHES[i // 2 % len(DASHES)] for i in range(len(PALETTE))]
    mpl.rcParams["axes.prop_cycle"] = cycler(color=PALETTE) + cycler(
        linestyle=dashes
    )
    _quiet_png()


def _style():
    return {
        "figure.figsize": SIZE,
        "figure.dpi": 144,
        "savefig.dpi": 144,
        "figure.facecolor": CARD,
        "savefig.facecolor": CARD,
        "axes.facecolor": CARD,
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.h_pad": 0.06,
        "figure.constrained_layout.w_pad": 0.06,
        "font.family": ["DejaVu Sans"],
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.labelsize": 11,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GREY,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 2.0,
        "image.cmap": "cividis",
        "svg.hashsalt": "dblm",
    }


def _quiet_png():
    """Leave matplotlib's version out of the PNGs that a notebook stores."""
    import sys

    shell = sys.modules.get("IPython")
    if shell is None or shell.get_ipython() is None:
        return
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("png", metadata={"Software": None})
    except (ImportError, TypeError, AttributeError):
        pass  # an older inline backend: the figure is the same, the tag stays


def panels(rows=1, columns=1, *, height=None, share_x=False, share_y=False):
    """Make a figure of several plots; stack them for readers on a phone.

    Parameters
    ----------
    rows, columns : int
        Number of plots downwards and across. Two across is the most that
        a phone can show.
    height : float, optional
        Height of one row in inches.
    share_x, share_y : bool
        One axis for all.

    Returns
    -------
    list of matplotlib.axes.Axes
        Row by row.
    """
    import matplotlib.pyplot as plt

    if rows < 1 or columns < 1:
        raise ValueError(f"panels needs 1 or more, got {rows} x {columns}")
    tall = height or (SIZE[1] if rows == 1 else 2.4)
    _, axes = plt.subplots(
        rows,
        columns,
        figsize=(SIZE[0] * (1 if columns == 1 else 1.35), rows * tall),
        sharex=share_x,
        sharey=share_y,
        squeeze=False,
    )
    return list(axes.flat)


def curves(
    x,
    ys,
    xlabel,
    ylabel,
    *,
    title=None,
    log_x=False,
    log_y=False,
    xlim=None,
    ylim=None,
    marks=None,
    levels=None,
    ax=None,
):
    """Draw named curves over one x axis.

    Parameters
    ----------
    x : array of shape (points,)
    ys : dict of str to array of shape (points,)
        Name in the legend, and values; NaN and infinity leave a gap.
    xlabel, ylabel : str
        With units where there are any.
    log_x, log_y : bool
    xlim, ylim : pair of float, optional
    marks : dict of str to float, optional
        Vertical lines at these x, named.
    levels : dict of str to float, optional
        Horizontal lines at these y, named.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        A curve is as long as something else than ``x``, or is empty.
    """
    ax = _axes(ax)
    x = _array(x, "x")
    for name, y in _named(ys, len(x)).items():
        ax.plot(x, y, label=name)
    if log_x:
        ax.set_xscale("log")
    if log_y:
        ax.set_yscale("log")
    _limits(ax, xlim, ylim)
    _lines(ax, marks, levels)
    return _finish(ax, xlabel, ylabel, title, len(ys) > 1)


def density(
    x,
    ys,
    *,
    samples=None,
    xlabel="x",
    ylabel="density",
    title=None,
    bins=60,
    ax=None,
):
    """Draw densities as filled curves, over a histogram of samples.

    Parameters
    ----------
    x : array of shape (points,)
    ys : dict of str to array of shape (points,)
    samples : array, optional
        Drawn behind the curves as a histogram of area one.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = _axes(ax)
    x = _array(x, "x")
    if samples is not None:
        values = _array(samples, "samples").ravel()
        ax.hist(
            values, bins, range=(x.min(), x.max()), density=True, color=GRID
        )
    for name, y in _named(ys, len(x)).items():
        (line,) = ax.plot(x, y, label=name)
        ax.fill_between(x, y, color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set_ylim(bottom=0)
    return _finish(ax, xlabel, ylabel, title, len(ys) > 1)


def heatmap(
    values,
    *,
    rows=None,
    columns=None,
    xlabel="",
    ylabel="",
    label="",
    title=None,
    limits=None,
    annotate=None,
    diverging=False,
    ax=None,
):
    """Draw a matrix as coloured cells.

    Parameters
    ----------
    values : array of shape (rows, columns)
    rows, columns : list of str, optional
        Names along the two sides, for instance tokens.
    label : str
        What the colour means, with its unit.
    limits : pair of float, optional
        Ends of the colour scale.
    annotate : str, optional
        Format of a number in each cell, such as ``".2f"``.
    diverging : bool
        Centre the colours on zero.

    Returns
    -------
    matplotlib.axes.Axes
    """
    import seaborn as sns

    values = _matrix(values, "values")
    low, high = limits or (None, None)
    ax = _axes(ax)
    sns.heatmap(
        values,
        vmin=low,
        vmax=high,
        center=0 if diverging else None,
        cmap="PuOr" if diverging else "cividis",
        annot=annotate is not None,
        fmt=annotate or "",
        cbar_kws={"label": label},
        linewidths=0.4 if values.size <= 900 else 0,
        linecolor=CARD,
        xticklabels=False,
        yticklabels=False,
        ax=ax,
    )
    _ticks(ax, "x", columns, values.shape[1])
    _ticks(ax, "y", rows, values.shape[0])
    return _finish(ax, xlabel, ylabel, title, False)


def token_strip(tokens, values, *, label="", title=None, limits=(0, 1)):
    """Draw one row of tokens, each on the colour of its value.

    Parameters
    ----------
    tokens : list of str
    values : array of shape (len(tokens),)
        For instance the cosine to the nearest embedding.

    Returns
    -------
    matplotlib.axes.Axes
    """
    return trajectory(
        [tokens], [values], label=label, title=title, limits=limits
    )


def trajectory(
    frames,
    values,
    *,
    step_labels=None,
    xlabel="position",
    ylabel="step",
    label="",
    title=None,
    limits=(0, 1),
    width=9,
    ax=None,
):
    """Draw tokens against steps: text coming out of noise, row by row.

    Parameters
    ----------
    frames : list of list of str
        One row of tokens a step, all of one length.
    values : array of shape (steps, positions)
        Colour of each cell, for instance confidence.
    step_labels : list, optional
        One a row; the row's number otherwise.
    limits : pair of float
        Ends of the colour scale.
    width : int
        Tokens are cut to so many characters.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        Rows differ in length, or values and tokens in shape.
    """
    values = _matrix(values, "values")
    shape = (len(frames), len(frames[0]) if frames else 0)
    if any(len(row) != shape[1] for row in frames) or values.shape != shape:
        raise ValueError(
            f"values have shape {values.shape} and the rows of tokens lengths "
            f"{sorted({len(row) for row in frames})} in {len(frames)} steps: "
            "give one value a token"
        )
    if ax is None:
        size = (max(SIZE[0], 0.78 * shape[1]), 0.9 + 0.3 * shape[0])
        ax = _axes(None, size)
    picture = ax.imshow(
        values, vmin=limits[0], vmax=limits[1], cmap="cividis", aspect="auto"
    )
    for (row, column), value in np.ndenumerate(values):
        share = (value - limits[0]) / ((limits[1] - limits[0]) or 1)
        ax.text(
            column,
            row,
            token_label(frames[row][column], width),
            color=INK if share > 0.55 else "white",
            ha="center",
            va="center",
            fontsize=9,
            parse_math=False,
        )
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks(range(shape[0]), step_labels or range(shape[0]))
    if shape[0] == 1:
        ax.set_yticks([])
        xlabel = ylabel = ""
    ax.figure.colorbar(picture, ax=ax, label=label, pad=0.02)
    return _finish(ax, xlabel, ylabel, title, False)


def loss_curve(
    losses,
    *,
    steps=None,
    smooth=0.9,
    levels=None,
    xlabel="training step",
    ylabel="loss",
    title=None,
    log_y=False,
    ax=None,
):
    """Draw a training loss, raw in the background and smoothed in front.

    Parameters
    ----------
    losses : dict of str to array, or array of shape (steps,)
    steps : array, optional
        Step numbers; 1, 2, 3, ... otherwise.
    smooth : float in [0, 1)
        Weight of the past in the moving average; 0 draws the raw loss.
    levels : dict of str to float, optional
        Named horizontal lines: a floor, a rival.

    Returns
    -------
    matplotlib.axes.Axes
    """
    if not 0 <= smooth < 1:
        raise ValueError(f"smooth must be in [0, 1), got {smooth}")
    if not isinstance(losses, dict):
        losses = {"loss": losses}
    ax = _axes(ax)
    for i, (name, values) in enumerate(losses.items()):
        y = _array(values, name)
        x = np.arange(1, len(y) + 1) if steps is None else _array(steps, "x")
        (y,) = _named({name: y}, len(x)).values()
        colour = PALETTE[i % len(PALETTE)]
        if smooth:
            ax.plot(x, y, color=colour, alpha=0.25, linewidth=1, ls="-")
        ax.plot(x, moving_average(y, smooth), color=colour, label=name)
    if log_y:
        ax.set_yscale("log")
    _lines(ax, None, levels)
    return _finish(ax, xlabel, ylabel, title, len(losses) > 1)


def moving_average(values, smooth):
    """Average exponentially, without the bias of a start at zero."""
    total = weight = 0.0
    out = []
    for value in values:
        total = smooth * total + (1 - smooth) * value
        weight = smooth * weight + (1 - smooth)
        out.append(total / weight)
    return np.array(out)


def show_table(columns, rows, form=".2f"):
    """Display a table in a notebook.

    Parameters
    ----------
    columns : iterable of str
        Heads.
    rows : dict or sequence
        A dictionary has one row for each name, which stands in a column of
        its own, without a head, before all others. In a sequence each row
        holds all of its cells.
    form : str
        How numbers are written. Whole ones and texts stay as they are.

    Raises
    ------
    ValueError
        If a row has more or fewer cells than there are heads.
    """
    from IPython.display import Markdown, display

    display(Markdown(_table(columns, rows, form)))


def _table(columns, rows, form):
    """Write a table in Markdown."""
    head = [_cell(str(head), form) for head in columns]
    if hasattr(rows, "items"):
        head = ["", *head]
        rows = [[name, *cells] for name, cells in rows.items()]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        lines.append([_cell(value, form) for value in row])
        if len(lines[-1]) != len(head):
            raise ValueError(
                f"a row needs {len(head)} cells, as many as there are heads; "
                f"got {len(lines[-1])}: {lines[-1]}"
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value, form):
    """Write what stands in a cell; a bar would end it, so it is escaped."""
    whole = isinstance(value, numbers.Integral)
    if isinstance(value, str) or whole:
        return " ".join(str(value).split("\n")).replace("|", r"\|")
    return format(float(value), form)


def token_label(token, width=12):
    """Make a token visible: its space, its line break, its length."""
    text = str(token).replace("Ġ", " ").replace("Ċ", "\n")
    text = text.strip(" ") or "␣"
    text = text.replace("\n", "↵").replace("\t", "→")
    text = "".join(_drawable(character) for character in text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _drawable(character):
    """Replace what DejaVu Sans cannot draw: a warning helps nobody."""
    code = ord(character)
    known = code < 0x590 or 0x1E00 <= code < 0x2800
    return character if known and character.isprintable() else "▯"


def _axes(ax, size=None):
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size)[1] if ax is None else ax


def _array(values, name):
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError(f"{name} is empty: nothing to draw")
    return array


def _matrix(values, name):
    values = values.tolist() if hasattr(values, "tolist") else values
    lengths = {np.size(row) for row in values}
    if len(lengths) > 1:
        raise ValueError(
            f"the rows of {name} differ in length: {sorted(lengths)}"
        )
    array = _array(values, name)
    if array.ndim != 2:
        raise ValueError(
            f"{name} must be a matrix (rows, columns), got shape {array.shape}"
        )
    return array


def _named(ys, length):
    if not isinstance(ys, dict) or not ys:
        raise ValueError(
            "give the curves as a dict of name to values, at least one"
        )
    arrays = {name: _array(y, f"curve {name!r}") for name, y in ys.items()}
    for name, y in arrays.items():
        if y.shape != (length,):
            raise ValueError(
                f"curve {name!r} has shape {y.shape}, but x has "
                f"{length} points: give one value a point"
            )
    return arrays


def _limits(ax, xlim, ylim):
    if xlim is not None:
        ax.set_xlim(*xlim)
    if ylim is not None:
        ax.set_ylim(*ylim)


def _lines(ax, marks, levels):
    style = {"color": GREY, "linewidth": 1.2, "linestyle": (0, (3, 2))}
    for name, place in (marks or {}).items():
        ax.axvline(place, **style)
        ax.annotate(
            name,
            (place, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=9,
            color=GREY,
        )
    for name, place in (levels or {}).items():
        ax.axhline(place, **style)
        ax.annotate(
            name,
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=GREY,
        )


def _ticks(ax, side, labels, count):
    if labels is None:
        return
    if len(labels) != count:
        raise ValueError(
            f"{len(labels)} labels for {count} cells along {side}: "
            "give one a cell"
        )
    places = np.arange(count) + 0.5
    texts = [token_label(label) for label in labels]
    if side == "x":
        ax.set_xticks(places, texts, rotation=90)
    else:
        ax.set_yticks(places, texts, rotation=0)
    axis = ax.xaxis if side == "x" else ax.yaxis
    for text in axis.get_ticklabels():
        text.set_parse_math(False)


def _finish(ax, xlabel, ylabel, title, legend):
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if title:
        ax.set_title(title, loc="left")
    if legend:
        ax.legend()
    return ax
