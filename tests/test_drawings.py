"""The schematic drawings: legible, apart, the same twice, and quiet."""

import io
import subprocess
import sys
import warnings

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("agg")
import matplotlib.pyplot as plt

from dblm_lib import drawings, plots

NAMES = drawings.__all__
PHONE = 350  # pixels across


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings(), mpl.rc_context():
        # A missing letter is a warning on a reader's page.
        warnings.simplefilter("error")
        yield
        plt.close("all")


def draw(name):
    return getattr(drawings, name)()


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, metadata={"Software": None}, dpi=60)
    return file.getvalue()


def written(figure):
    """All texts of a figure, with the rectangles that they take."""
    figure.canvas.draw()
    return [
        (text, text.get_window_extent())
        for axes in figure.axes
        for text in axes.texts
        if text.get_text()
    ]


def pairs_that_overlap(figure):
    found = written(figure)
    return [
        (one.get_text(), other.get_text())
        for i, (one, here) in enumerate(found)
        for other, there in found[i + 1 :]
        if here.overlaps(there)
    ]


def outside(figure):
    return [
        text.get_text()
        for text, box in written(figure)
        if not all(figure.bbox.contains(*corner) for corner in box.corners())
    ]


def smallest_on_a_phone(figure):
    sizes = [text.get_size() for text, _ in written(figure)]
    return min(sizes) / 72 * PHONE / figure.get_size_inches()[0]


def test_the_four_drawings_are_there():
    assert set(NAMES) == {
        *("two_ways", "token_to_point", "network", "sampling_loop"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_is_a_figure_of_the_books_width(name):
    figure = draw(name)
    assert isinstance(figure, mpl.figure.Figure)
    wide, high = figure.get_size_inches()
    assert wide == plots.SIZE[0]
    assert high <= 1.2 * wide  # not longer than a phone's screen
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("name", NAMES)
def test_letters_survive_a_phone(name):
    assert smallest_on_a_phone(draw(name)) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_no_words_overlap_or_leave_the_sheet(name):
    figure = draw(name)
    assert pairs_that_overlap(figure) == []
    assert outside(figure) == []


def test_overlaps_strays_and_small_letters_are_noticed():
    """Or the three tests above could not fail."""
    sheet = drawings._Sheet(2)
    sheet.write(1, 1, "one")
    sheet.write(1.1, 1, "two")
    sheet.write(0, 1.5, "three", size=4)
    assert pairs_that_overlap(sheet.figure) == [("one", "two")]
    assert outside(sheet.figure) == ["three"]
    assert smallest_on_a_phone(sheet.figure) < 8


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_opaque_and_near_white_to_its_edges(name):
    """On a dark page too: nothing shines through, no line is cut."""
    pixels = plt.imread(io.BytesIO(png(draw(name))))
    card = mpl.colors.to_rgb(plots.CARD)
    assert pixels.shape[2] == 3 or (pixels[..., 3] == 1).all()
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert np.allclose(edge[..., :3], card, atol=0.01)
    assert not np.allclose(pixels[..., :3], card, atol=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_is_the_same_twice_in_any_style(name):
    """Drawn once bare and once in the book's style, and no dice are moved."""
    state = np.random.get_state()[1].tolist()
    bare = png(draw(name))
    with warnings.catch_warnings():
        # Seaborn meets these; Python shows them to nobody.
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        plots.use_style()
    before = dict(mpl.rcParams)
    assert png(draw(name)) == bare
    assert dict(mpl.rcParams) == before
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two_ways", ["step 6", "noise", "step 3"]),
        ("token_to_point", ["$x_0$", "little noise:\nrounds to cat ✓"]),
        ("network", ["queries", "(length, dim)", "residual", "GPT-2 block"]),
        ("sampling_loop", ["start: noise $z_1$", "network", "tokens"]),
    ],
)
def test_a_drawing_says_what_its_chapter_needs(name, words):
    said = [text.get_text() for text, _ in written(draw(name))]
    assert set(words) <= set(said)


def test_both_ways_end_with_the_same_text():
    said = [text.get_text() for text, _ in written(drawings.two_ways())]
    for word in drawings.WORDS:
        assert said.count(word) >= 2


def test_rounding_goes_where_the_drawing_says():
    """The noised points lie nearest to the rows that their labels name."""
    axes = drawings.token_to_point().axes[0]
    dots = {"o": [], "X": []}
    for line in axes.lines:
        if line.get_marker() in dots:
            dots[line.get_marker()].append(line.get_xydata()[0])
    names = ["cat", "dog", "ball", "ran", "the"]
    assert len(dots["o"]) == len(names)
    nearest = [
        names[np.argmin([np.hypot(*(dot - row)) for row in dots["o"]])]
        for dot in dots["X"]
    ]
    assert nearest == ["cat", "dog"]


def test_import_is_light():
    code = (
        "import sys, dblm_lib.drawings; "
        "sys.exit(bool({'torch', 'matplotlib', 'seaborn'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
