"""The book's figures: one style, the same bytes twice, clear errors."""

import io
import subprocess
import sys
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch

mpl.use("agg")
import matplotlib.pyplot as plt

from dblm_lib import plots

X = np.linspace(0, 1, 11)


@pytest.fixture(autouse=True)
def style():
    with warnings.catch_warnings(), mpl.rc_context():
        # A missing letter or a bad layout is a warning on a reader's page.
        warnings.simplefilter("error")
        # Seaborn meets these; Python shows them to nobody.
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        plots.use_style()
        yield
        plt.close("all")


def png():
    """Return the current figure as a notebook would store it."""
    file = io.BytesIO()
    plt.savefig(file, metadata={"Software": None}, dpi=60)
    return file.getvalue()


def draw_all():
    """Draw one of each kind; return the pictures."""
    rng = np.random.default_rng(0)
    tokens = ["Once", " upon", "\n", " $x_2$", " 日本", "Ġthe", ""]
    calls = [
        lambda: plots.curves(
            X,
            {"a": X, "b": X**2},
            "t",
            "alpha",
            marks={"here": 0.5},
            levels={"floor": 0.1},
        ),
        lambda: plots.density(X, {"p": X}, samples=rng.random(50)),
        lambda: plots.heatmap(
            rng.random((7, 7)), rows=tokens, columns=tokens, label="cosine"
        ),
        lambda: plots.heatmap(
            rng.random((2, 2)) - 0.5, diverging=True, annotate=".1f"
        ),
        lambda: plots.token_strip(tokens, rng.random(7), label="cosine"),
        lambda: plots.trajectory([tokens] * 3, rng.random((3, 7))),
        lambda: plots.loss_curve({"mse": rng.random(40)}, levels={"f": 0.2}),
    ]
    pictures = []
    for call in calls:
        axes = call()
        assert isinstance(axes, mpl.axes.Axes)
        pictures.append(png())
        plt.close("all")
    return pictures


def test_figures_are_the_same_twice():
    first, second = draw_all(), draw_all()
    assert first == second
    assert len(set(first)) == len(first)
    assert not any(b"Software" in picture for picture in first)


def test_card_is_near_white_and_opaque():
    """A dark page must not shine through, nor letters sit at the edge."""
    plots.curves(X, {"a": X}, "t", "alpha")
    pixels = plt.imread(io.BytesIO(png()))
    card = mpl.colors.to_rgb(plots.CARD)
    assert pixels.shape[2] == 3 or (pixels[..., 3] == 1).all()
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert np.allclose(edge[..., :3], card, atol=0.01)


def luminance(colour):
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(
        rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4
    )
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("colour", [*plots.PALETTE, plots.INK, plots.GREY])
def test_colours_stand_out_on_the_card(colour):
    """WCAG asks 3 for graphics and 4.5 for text."""
    ratio = (luminance(plots.CARD) + 0.05) / (luminance(colour) + 0.05)
    assert ratio >= (4.5 if colour in (plots.INK, plots.GREY) else 3)


def test_lines_differ_without_colour():
    """Neighbours in the palette differ in brightness or in dashes."""
    axes = plots.curves(X, {str(i): X * i for i in range(7)}, "t", "y")
    looks = [
        (line.get_linestyle(), str(line._unscaled_dash_pattern))
        for line in axes.lines
    ]
    assert len(set(looks)) >= 4


def test_letters_survive_a_phone():
    """350 of 5.4 inches' pixels: the smallest letters stay above 8."""
    size = min(mpl.rcParams["xtick.labelsize"], 9)
    assert size * 350 / plots.SIZE[0] / 72 >= 8


def test_font_travels_with_matplotlib():
    assert mpl.rcParams["font.family"] == ["DejaVu Sans"]


def test_tensors_are_welcome():
    y = torch.linspace(0, 1, 11, requires_grad=True)
    (line,) = plots.curves(torch.as_tensor(X), {"a": y}, "t", "y").lines
    assert np.allclose(line.get_ydata(), y.tolist())


def test_labels_are_drawn():
    axes = plots.curves(X, {"a": X, "b": X}, "time t", "alpha (1)", log_y=True)
    assert axes.get_xlabel() == "time t"
    assert axes.get_ylabel() == "alpha (1)"
    assert axes.get_yscale() == "log"
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["a", "b"]


def test_infinity_leaves_a_gap():
    """log-snr is infinite at t = 0: the rest of the curve is drawn."""
    plots.curves(X, {"a": np.where(X == 0, np.inf, X)}, "t", "y")
    png()


def test_moving_average_has_no_bias_at_the_start():
    assert np.allclose(plots.moving_average([3.0] * 5, 0.9), 3.0)
    got = plots.moving_average([0.0, 1.0], 0.5)
    assert np.allclose(got, [0, 2 / 3])


def test_loss_curve_smooths_but_shows_the_raw_loss():
    raw, smooth = plots.loss_curve([1.0, 3.0, 2.0]).lines
    assert list(raw.get_ydata()) == [1, 3, 2]
    assert list(smooth.get_ydata()) != [1, 3, 2]
    assert len(plots.loss_curve([1.0, 3.0], smooth=0).lines) == 1


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" the", "the"),
        ("Ġthe", "the"),
        ("\n", "↵"),
        ("  ", "␣"),
        ("", "␣"),
        ("\x00日", "▯▯"),
        ("internationalisation", "internation…"),
    ],
)
def test_token_label(token, label):
    assert plots.token_label(token) == label


def test_panels():
    assert len(plots.panels(2)) == 2
    assert len(plots.panels(2, 2)) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.curves(X, {"a": X[:5]}, "t", "y"), "11 points"),
        (lambda: plots.curves(X, {}, "t", "y"), "at least one"),
        (lambda: plots.curves(X, [X], "t", "y"), "dict of name"),
        (lambda: plots.curves([], {"a": []}, "t", "y"), "x is empty"),
        (lambda: plots.heatmap([[1, 2], [3]]), "differ in length"),
        (lambda: plots.heatmap([1, 2]), "matrix"),
        (lambda: plots.heatmap(np.eye(2), rows=["a"]), "1 labels for 2"),
        (lambda: plots.trajectory([["a"]], [[1, 2]]), "one value a token"),
        (lambda: plots.trajectory([["a"], []], [[1], [2]]), "one value"),
        (lambda: plots.loss_curve([1], smooth=1), r"\[0, 1\)"),
        (lambda: plots.loss_curve([]), "empty"),
        (lambda: plots.panels(0), "1 or more"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def shown(monkeypatch, *arguments, **options):
    """What a call of `show_table` displays, line by line."""
    found = []
    monkeypatch.setattr("IPython.display.display", found.append)
    assert plots.show_table(*arguments, **options) is None
    (table,) = found
    assert type(table).__name__ == "Markdown"
    return table.data.split("\n")


def test_a_table_of_names_has_a_column_for_them(monkeypatch):
    rows = {"a": (1, 0.126, "x"), 2: (True, torch.tensor(2.0), np.int64(3))}
    assert shown(monkeypatch, ["n", "p", "t"], rows) == [
        "|  | n | p | t |",
        "| --- | --- | --- | --- |",
        "| a | 1 | 0.13 | x |",
        "| 2 | True | 2.00 | 3 |",
    ]


def test_a_table_of_rows_holds_all_its_cells(monkeypatch):
    """Two rows may begin alike; heads and rows may come one by one."""
    rows = ([word, x] for word, x in (("a", 0.5), ("a", np.nan)))
    assert shown(monkeypatch, (h for h in "wx"), rows, form=".0%") == [
        "| w | x |",
        "| --- | --- |",
        "| a | 50% |",
        "| a | nan% |",
    ]


def test_what_would_end_a_cell_or_a_row_does_not(monkeypatch):
    lines = shown(monkeypatch, ["of $|x|$", "b"], [["p | q", "two\nlines"]])
    assert lines == [
        r"| of $\|x\|$ | b |",
        "| --- | --- |",
        r"| p \| q | two lines |",
    ]


@pytest.mark.parametrize("rows", [{"a": [1]}, {"a": [1, 2, 3]}, [[1]]])
def test_a_row_of_another_length_is_refused(rows):
    with pytest.raises(ValueError, match="as many as there are heads"):
        plots.show_table(["x", "y"], rows)


def test_import_is_light():
    code = (
        "import sys, dblm_lib.plots; "
        "sys.exit(bool({'torch', 'matplotlib', 'seaborn'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
