"""The book's schematic drawings: how data flows, before any code does.

Chapters 0, 2, 3 and 5. They show no measurement: words, points and noise
in them are made up. Style and colours are those of `plots`; a drawing is as
wide as a plot, so that its letters stay legible on a phone.
"""

import functools

import numpy as np

from .plots import CARD, GREY, INK, PALETTE, SIZE

__all__ = ["network", "sampling_loop", "token_to_point", "two_ways"]

WIDTH = SIZE[0]
BLUE, VERMILION, GREEN = PALETTE[:3]
TINT = "#dcebf5"  # what is written, looked up or taken in
SMALL, NORMAL, LARGE = 9.5, 10.5, 11.5  # points
DPI = 144  # that of `plots`
WORDS = ("Tim", "lost", "his", "little", "red", "ball")


def _plain(draw):
    """Let a drawing come out the same, whatever style is set outside."""

    @functools.wraps(draw)
    def drawn():
        import matplotlib.style

        with matplotlib.style.context("default"):
            return draw()

    return drawn


class _Sheet:
    """A page measured in inches from its upper left corner."""

    def __init__(self, height):
        import matplotlib.pyplot as plt

        self.figure = plt.figure(
            figsize=(WIDTH, height), dpi=DPI, facecolor=CARD, layout="none"
        )
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, WIDTH), ylim=(height, 0))
        self.ax.set_axis_off()
        self.noise = np.random.default_rng(0)

    def write(self, x, y, words, size=NORMAL, ha="center", **style):
        """Write one line or more around a height; ``halo`` keeps it legible.

        The base of a single line is set, not its middle: words in a row of
        boxes then stand level, whether they have a descender or not.
        """
        from matplotlib.patheffects import withStroke

        lines = words.count("\n")
        if style.pop("halo", False):
            style["path_effects"] = [withStroke(linewidth=3, foreground=CARD)]
        self.ax.text(
            x,
            y if lines else y + 0.36 * size / 72,
            words,
            size=size,
            ha=ha,
            va="center" if lines else "baseline",
            color=style.pop("color", INK),
            family="DejaVu Sans",
            math_fontfamily="dejavusans",
            **style,
        )

    def box(self, x, y, wide, high, words="", face=CARD, edge=GREY, **style):
        """Draw a box around its middle, and write into it."""
        from matplotlib.patches import FancyBboxPatch

        self.ax.add_patch(
            FancyBboxPatch(
                (x - wide / 2 + 0.06, y - high / 2 + 0.06),
                wide - 0.12,
                high - 0.12,
                boxstyle="round,pad=0.06",
                facecolor=face,
                edgecolor=edge,
                linewidth=style.pop("line", 1.2),
                linestyle=style.pop("dash", "-"),
            )
        )
        if words:
            self.write(x, y, words, **style)

    def line(self, *corners, color=INK, head=True, dash="-", width=1.4):
        """Draw a line through its corners, with a head at the last."""
        xs, ys = zip(*corners)
        if len(corners) > 2 or not head:
            stop = len(corners) if not head else -1
            self.ax.plot(
                xs[:stop],
                ys[:stop],
                color=color,
                lw=width,
                ls=dash,
                solid_capstyle="butt",
                solid_joinstyle="round",
            )
        if head:
            self.ax.annotate(
                "",
                corners[-1],
                corners[-2],
                arrowprops={
                    "arrowstyle": "-|>,head_width=.25,head_length=.5",
                    "color": color,
                    "linewidth": width,
                    "linestyle": dash,
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
            )

    def speckle(self, x, y, wide, high, level):
        """Fill a rectangle around a middle with noise of a level in [0, 1]."""
        import matplotlib as mpl

        grains = self.noise.random((max(int(high * 22), 1), int(wide * 22)))
        colours = mpl.colors.LinearSegmentedColormap.from_list(
            "noise", [TINT, GREY]
        )
        self.ax.imshow(
            level * grains,
            vmin=0,
            vmax=1.25,
            cmap=colours,
            extent=(x - wide / 2, x + wide / 2, y + high / 2, y - high / 2),
            aspect="auto",
            interpolation="nearest",
        )

    def canvas(self, x, y, wide, words, level=0.0, high=0.3, edge=GREY):
        """Draw a row of positions around a middle, noisy or written."""
        cell = wide / len(words)
        for i, word in enumerate(words):
            middle = x - wide / 2 + (i + 0.5) * cell
            self.speckle(middle, y, cell - 0.05, high, level)
            self.frame(middle, y, cell - 0.05, high, edge)
            if word:
                slanted = "italic" if level else "normal"
                self.write(
                    middle, y, word, SMALL, style=slanted, halo=bool(level)
                )

    def frame(
        self, x, y, wide, high, edge=GREY, dash="-", face="none", zorder=1
    ):
        """Draw a rectangle around its middle."""
        from matplotlib.patches import Rectangle

        self.ax.add_patch(
            Rectangle(
                (x - wide / 2, y - high / 2),
                wide,
                high,
                facecolor=face,
                edgecolor=edge,
                linewidth=1.2,
                linestyle=dash,
                zorder=zorder,
            )
        )

    def done(self):
        """Return the figure, its limits as they were set."""
        height = self.figure.get_size_inches()[1]
        self.ax.set(xlim=(0, WIDTH), ylim=(height, 0))
        return self.figure


@_plain
def two_ways():
    """Writing from left to right above writing by diffusion; chapter 0.

    Returns
    -------
    matplotlib.figure.Figure
    """
    sheet = _Sheet(4.85)
    left, wide, row = 0.95, 4.25, 0.36
    cell = wide / len(WORDS)
    sheet.write(
        0.12,
        0.2,
        "Left to right: one token a step",
        LARGE,
        "left",
        weight="bold",
    )
    for step in range(len(WORDS)):
        y = 0.58 + row * step
        sheet.write(0.12, y, f"step {step + 1}", SMALL, "left", color=GREY)
        for i, word in enumerate(WORDS):
            x = left + (i + 0.5) * cell
            new, written = i == step, i <= step
            sheet.frame(
                x,
                y,
                cell - 0.05,
                0.3,
                BLUE if new else GREY,
                "-" if written else ":",
                BLUE if new else TINT if written else "none",
            )
            if written:
                sheet.write(x, y, word, SMALL, color=CARD if new else INK)
    sheet.write(
        0.12,
        3.03,
        "Diffusion: every position at each step",
        LARGE,
        "left",
        weight="bold",
    )
    moments = (
        ("noise", 1.0, [""] * 6, GREY),
        ("step 1", 0.7, ["Tim", "was", "his", "his", "red", "the"], BLUE),
        ("step 2", 0.35, ["Tim", "lost", "his", "old", "red", "ball"], BLUE),
        ("step 3", 0.0, WORDS, BLUE),
    )
    for i, (name, level, words, edge) in enumerate(moments):
        y = 3.41 + row * i
        sheet.write(0.12, y, name, SMALL, "left", color=GREY)
        sheet.canvas(left + wide / 2, y, wide, words, level, edge=edge)
    return sheet.done()


@_plain
def token_to_point():
    """Token, row, point, noise, and rounding back; chapter 2.

    Returns
    -------
    matplotlib.figure.Figure
    """
    sheet = _Sheet(5.35)
    points = {
        "cat": (2.05, 3.72),
        "dog": (3.6, 2.9),
        "ball": (4.8, 4.8),
        "ran": (0.75, 4.72),
        "the": (0.95, 2.6),
    }
    sheet.write(0.62, 0.2, "token", weight="bold")
    sheet.box(0.62, 0.82, 0.8, 0.36, "cat", TINT, BLUE)
    sheet.line((1.06, 0.82), (1.49, 0.82))
    sheet.write(2.63, 0.2, "embedding table", weight="bold")
    for i, word in enumerate(("the", "cat", "dog", "ball")):
        y = 0.56 + 0.26 * i
        chosen = word == "cat"
        sheet.write(
            2.02, y, word, SMALL, "right", color=INK if chosen else GREY
        )
        for j, shade in enumerate(sheet.noise.random(6)):
            x = 2.24 + 0.26 * j
            sheet.ax.fill_between(
                [x - 0.12, x + 0.12],
                y - 0.11,
                y + 0.11,
                color=BLUE if chosen else GREY,
                alpha=0.25 + 0.7 * shade,
                linewidth=0,
            )
    sheet.frame(2.7, 0.82, 2.35, 0.28, BLUE)
    sheet.line((3.9, 0.82), (4.3, 0.82))
    sheet.write(4.78, 0.2, "point", weight="bold")
    sheet.write(4.6, 0.83, "$x_0$", LARGE)
    sheet.line((4.6, 1.05), (4.6, 1.55), (2.05, 1.55), (2.05, 3.58))
    _regions(sheet, points, top=2.2, bottom=5.25)
    sheet.write(0.12, 1.98, "embedding space", NORMAL, "left", weight="bold")
    for word, (x, y) in points.items():
        chosen = word == "cat"
        sheet.ax.plot(x, y, "o", color=BLUE if chosen else INK, ms=8)
        ha, side = ("right", -0.14) if chosen else ("left", 0.14)
        sheet.write(x + side, y, word, ha=ha, halo=True)
    cat, dog = points["cat"], points["dog"]
    _moved(sheet, cat, (2.0, 4.5), GREEN, cat, (0.09, 0))
    _moved(sheet, cat, (3.35, 3.62), VERMILION, dog)
    label = {"size": SMALL, "halo": True, "weight": "bold"}
    sheet.write(
        2.0, 4.86, "little noise:\nrounds to cat ✓", color=GREEN, **label
    )
    sheet.write(
        3.52,
        3.66,
        "much noise:\nrounds to dog ✗",
        ha="left",
        **label,
        color=VERMILION,
    )
    return sheet.done()


def _moved(sheet, start, end, colour, row, aside=(0, 0)):
    """A noised point, the way to it, and the way to the nearest row."""
    sheet.line(start, end, color=colour, width=1.8)
    near = np.add(end, aside) + 0.12 * np.subtract(row, end)
    back = np.add(row, aside) + 0.16 * np.subtract(end, row)
    sheet.line(near, back, color=GREY, dash=(0, (2, 1.5)))
    sheet.ax.plot(*end, "X", color=colour, ms=9, mec=CARD)


def _regions(sheet, points, top, bottom):
    """Shade the places from which rounding leads to each of the points."""
    across, down = (
        np.linspace(0.1, WIDTH - 0.1, 700),
        np.linspace(top, bottom, 420),
    )
    places = np.stack(np.meshgrid(across, down), axis=-1)
    rows = np.array(list(points.values()))
    nearest = ((places[..., None, :] - rows) ** 2).sum(-1).argmin(-1)
    for k, word in enumerate(points):
        region = (nearest == k).astype(float)
        if word == "cat":
            sheet.ax.contourf(
                across, down, region, levels=[0.5, 1.5], colors=[TINT]
            )
        sheet.ax.contour(
            across, down, region, levels=[0.5], colors=[GREY], linewidths=0.8
        )
    middle = (top + bottom) / 2
    sheet.frame(WIDTH / 2, middle, WIDTH - 0.2, bottom - top, GREY)


@_plain
def network():
    """The denoiser's data flow, and one GPT-2 block opened; chapter 3.

    Returns
    -------
    matplotlib.figure.Figure
    """
    sheet = _Sheet(5.75)
    x = 1.05
    sheet.write(x, 0.2, "the denoiser", LARGE, weight="bold")
    sheet.write(x, 0.55, "noised points $z_t$")
    sheet.write(x, 0.77, "(length, dim)", SMALL, color=GREY)
    sheet.line((x, 0.92), (x, 1.12))
    sheet.box(x, 1.3, 1.6, 0.36, "linear map in", TINT, BLUE)
    sheet.line((x, 1.48), (x, 1.7))
    sheet.box(x, 1.98, 1.6, 0.56, "+ position\n+ time $t$")
    sheet.line((x, 2.26), (x, 2.66))
    sheet.write(x + 0.1, 2.44, "(length,\nhidden)", SMALL, "left", color=GREY)
    for k in (2, 1, 0):
        words = "GPT-2 block" if k == 0 else ""
        move = 0.07 * k
        sheet.box(x + move, 2.98 - move, 1.5, 0.46, words, TINT, BLUE)
    sheet.line((x, 3.21), (x, 3.51))
    sheet.box(x, 3.69, 1.6, 0.36, "layer norm")
    sheet.line((x, 3.87), (x, 4.12))
    sheet.box(x, 4.3, 1.6, 0.36, "linear map out", TINT, BLUE)
    sheet.line((x, 4.48), (x, 4.74))
    sheet.write(x, 4.9, r"prediction $\hat{x}_0$")
    sheet.write(x, 5.13, "(length, dim)", SMALL, color=GREY)
    for low, high in ((2.76, 0.4), (3.18, 5.62)):
        sheet.line((1.87, low), (2.32, high), color=GREY, head=False, dash=":")
    _block(sheet)
    return sheet.done()


def _block(sheet):
    """One GPT-2 block, from its input above to its output below."""
    x, side = 3.76, 5.1
    sheet.box(3.8, 3.01, 2.92, 5.22, "", "none", GREY)
    sheet.write(x, 0.2, "one block", LARGE, weight="bold")
    sheet.line((x, 0.45), (x, 0.78))
    sheet.line((x, 0.58), (side, 0.58), (side, 3.5), (x + 0.14, 3.5))
    sheet.box(x, 0.96, 1.3, 0.36, "layer norm")
    for middle, name in zip((2.88, x, 4.64), ("queries", "keys", "values")):
        sheet.line((x + 0.3 * (middle - x), 1.14), (middle, 1.44), width=1.1)
        sheet.box(middle, 1.6, 0.8, 0.32, name, TINT, BLUE, size=SMALL)
        sheet.line((middle, 1.76), (x + 0.3 * (middle - x), 2.06), width=1.1)
    for k in (2, 1, 0):
        _attention(sheet, x + 0.07 * k, 2.37 - 0.07 * k, 0.5, 2 - 0.1 * k)
    sheet.write(3.42, 2.37, "attention\nin each head", SMALL, "right")
    sheet.line((x, 2.62), (x, 2.88))
    sheet.box(x, 3.04, 1.3, 0.32, "linear map")
    sheet.line((x, 3.2), (x, 3.36))
    _plus(sheet, x, 3.5)
    sheet.line((x, 3.64), (x, 4.02))
    sheet.line((x, 3.8), (side, 3.8), (side, 5.16), (x + 0.14, 5.16))
    sheet.box(x, 4.2, 1.3, 0.36, "layer norm")
    sheet.line((x, 4.38), (x, 4.54))
    sheet.box(x, 4.71, 1.9, 0.34, "MLP, per position", TINT, BLUE)
    sheet.line((x, 4.88), (x, 5.02))
    _plus(sheet, x, 5.16)
    sheet.line((x, 5.3), (x, 5.6))
    sheet.write(3.0, 3.51, "residual", SMALL, color=GREY)
    sheet.write(3.0, 5.17, "residual", SMALL, color=GREY)


def _attention(sheet, x, y, size, above):
    """A small matrix of weights: who looks at whom."""
    weights = sheet.noise.random((4, 4)) ** 2
    sheet.ax.imshow(
        weights,
        cmap="Blues",
        vmax=1.3,
        extent=(x - size / 2, x + size / 2, y + size / 2, y - size / 2),
        aspect="auto",
        interpolation="nearest",
        zorder=above,
    )
    sheet.frame(x, y, size, size, BLUE, zorder=above)


def _plus(sheet, x, y):
    """A circle in which two streams are added."""
    sheet.ax.plot(x, y, "o", ms=19, mfc=CARD, mec=INK, mew=1.3, zorder=3)
    sheet.write(x, y, "+", LARGE, zorder=4)


@_plain
def sampling_loop():
    """From noise to tokens by way of the denoiser; chapter 5.

    Returns
    -------
    matplotlib.figure.Figure
    """
    sheet = _Sheet(4.9)
    left, right, wide = 1.35, 4.1, 2.3
    first = ["", "", "", "", ""]
    guess = ["Tim", "was", "his", "his", "ball"]
    final = ["Tim", "lost", "his", "red", "ball"]
    sheet.write(0.2, 0.22, "start: noise $z_1$", ha="left", weight="bold")
    sheet.canvas(left, 0.55, wide, first, 1.0)
    sheet.line((2.1, 0.74), (2.1, 1.49))
    sheet.write(0.2, 1.36, "points $z_t$", ha="left", weight="bold")
    sheet.canvas(left, 1.68, wide, first, 0.75)
    sheet.line((2.55, 1.68), (3.06, 1.68))
    sheet.write(right, 0.72, "time $t$")
    sheet.line((right, 0.88), (right, 1.34))
    sheet.box(right, 1.68, 2.0, 0.66, "network", TINT, BLUE, size=LARGE)
    sheet.line((4.6, 2.01), (4.6, 2.77))
    sheet.write(
        4.45, 2.6, r"prediction $\hat{x}_0$", ha="right", weight="bold"
    )
    sheet.canvas(right, 2.96, wide, guess, 0.45)
    sheet.line((2.92, 2.96), (2.42, 2.96))
    sheet.box(
        left,
        2.96,
        2.1,
        0.66,
        "posterior step to\n$z_s$, where $s < t$",
        TINT,
        BLUE,
    )
    sheet.line((2.1, 1.88), (2.1, 2.6))
    sheet.write(2.18, 2.25, "$z_t$", ha="left")
    sheet.line((0.8, 2.6), (0.8, 1.88), color=VERMILION, width=2.2)
    sheet.write(0.9, 2.25, "again,\n$s$ is now $t$", SMALL, "left")
    sheet.line((right, 3.15), (right, 3.64), dash=(0, (4, 2)))
    sheet.write(4.0, 3.4, "after the last step", SMALL, "right", color=GREY)
    sheet.box(
        right, 3.86, 2.2, 0.4, "round to nearest rows", TINT, BLUE, size=SMALL
    )
    sheet.line((right, 4.06), (right, 4.32))
    sheet.canvas(right, 4.52, wide, final, 0.0, edge=BLUE)
    sheet.write(2.8, 4.52, "tokens", ha="right", weight="bold")
    return sheet.done()
