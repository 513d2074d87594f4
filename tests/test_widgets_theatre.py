"""The denoising theatre: what it stores, shows and refuses."""

import re
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_widgets import (
    HOSTILE,
    Outline,
    browser,
    chrome,
    data_of,
    press,
    show,
    tag_counts,
)

from dblm_lib import widgets

__all__ = ["chrome", "show"]  # fixtures

END = "<|endoftext|>"
FIRST = [["a", " b", " c"], ["Tom", " b", " cat"], ["Tom", " ran", END]]
OTHER = [["x", END, " y"], ["Lily", END, END], ["Lily", END, END]]
SURE = [[0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [1, 1, 0]]


def panel(frames=FIRST, verdict="holds", **more):
    return {"frames": frames, "verdict": verdict} | more


def stage(**options):
    first = [panel(confidence=SURE), panel(OTHER, "breaks")]
    second = [panel(OTHER, "short"), panel(FIRST, "good", confidence=SURE)]
    given = {
        "tales": [
            {"label": "one", "panels": first},
            {"label": "two", "panels": second},
        ],
        "panel_labels": ["proposal", "repaired"],
        "panel_notes": [["loud", "half", "low"], ["9", "3", "1"]],
        "alt": "Two models write.",
        "name": "stage",
    }
    return widgets.theatre(**given | options)


MASK = "[MASK]"
FILLING = [
    [MASK, MASK, MASK, MASK],
    ["Tom", MASK, MASK, MASK],
    ["Tom", MASK, END, MASK],
    [MASK, " ran", END, " x"],
    ["Lily", " ran", END, " x"],
]


def one(blank=None, start=0, **given):
    """A theatre of one tale and one panel."""
    return widgets.theatre(
        [{"label": "one", "panels": [panel(**given)]}],
        panel_labels=["model"],
        alt="A model writes.",
        name="one",
        blank=blank,
        start=start,
    )


def unpack(letters, width):
    order = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    numbers = [order.index(letter) for letter in letters]
    groups = np.reshape(numbers, (-1, width)).astype(int)
    return (groups @ 64 ** np.arange(width)[::-1]).tolist()


def test_same_bytes_twice():
    assert stage().html == stage().html
    assert stage(name=None).name == stage(name=None).name
    assert stage(name=None).name != stage(name=None, title="Other").name
    sure = np.array(SURE) * (1 - 1e-9)
    assert one(confidence=sure).html == one(confidence=SURE).html


def test_tensors_are_welcome():
    sure = torch.tensor(SURE, dtype=torch.float64, requires_grad=True)
    assert one(confidence=sure).html == one(confidence=SURE).html


def test_markup_is_accessible():
    page = Outline(stage(title="A title").html)
    assert page.tags[0][1]["role"] == "group"
    assert [a["aria-label"] for _, a in page.tags if a.get("role") == "img"]
    assert sum(a.get("type") == "range" for _, a in page.tags) == 1
    assert [t for t, _ in page.tags].count("select") == 1
    assert [t for t, _ in page.tags].count("option") == 2
    assert "select" not in tag_counts(one())


def test_nothing_comes_from_elsewhere():
    html = stage().html
    assert not re.search(r"https?:|//[a-z]|src=|@import|url\((?!#)", html)
    assert "innerHTML" not in html


def hostile(text):
    cast = [panel([[text, text + "2"]] * 2, text)] * 2
    return widgets.theatre(
        [{"label": text, "panels": cast}, {"label": text, "panels": cast}],
        alt="a" + text,
        panel_labels=[text, text],
        step_labels=[text] * 2,
        slider_label=text,
        select_label=text,
        value_label=text,
        notes=[text] * 2,
        panel_notes=[[text] * 2] * 2,
        end=None,
        separator=text,
        title=text,
    )


PLAIN = tag_counts(hostile("plain"))


def test_hostile_text_is_only_text():
    bad = hostile(HOSTILE)
    assert tag_counts(bad) == PLAIN
    assert bad.html.count("</script>") == 2
    assert "<img" not in bad.html


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_any_text_is_only_text(text):
    assert tag_counts(hostile(text)) == PLAIN


SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 6))


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_packing_survives_the_round_trip(shape, words, seed):
    rng = np.random.default_rng(seed)
    ids, sure = rng.integers(words, size=shape), rng.random(shape)
    frames = [[f"w{i}" for i in row] for row in ids]
    data = data_of(one(frames=frames, confidence=sure))
    (((packed,),)) = data["t"]
    back = [data["v"][i] for i in unpack(packed["f"], data["wide"])]
    assert back == [word for row in frames for word in row]
    got = np.reshape(unpack(packed["c"], 1), shape) / 63
    assert np.abs(got - sure).max() <= 0.5 / 63 + 1e-6
    settled = unpack(packed["e"], data["far"])
    for k, first in enumerate(settled):
        assert (ids[first:, k] == ids[-1, k]).all()
        assert first == 0 or ids[first - 1, k] != ids[-1, k]


def test_a_book_sized_theatre_stays_small():
    rng = np.random.default_rng(0)
    tales = []
    for label in "abcdef":
        ids = rng.integers(1000, size=(2, 24, 64))
        cast = [
            panel(
                [[f" word{i}" for i in row] for row in rows],
                "The name breaks: Tom, then Lily.",
                confidence=rng.random((24, 64)),
            )
            for rows in ids
        ]
        tales.append({"label": label, "panels": cast})
    figure = widgets.theatre(tales, alt="Six.", panel_labels=["a", "b"])
    assert len(figure.html) < 100_000


def test_byte_marks_become_characters():
    data = data_of(one(frames=[["Once", "Ġupon", "Ċ"]]))
    assert data["v"] == ["Once", " upon", "\n"]


def words(figure):
    body = figure.html.split('class="dblm-data"')[0]
    box = re.search(r'dblm-stage".*?</div>', body, re.DOTALL)[0]
    return re.findall(
        r'<span class="(.*?)" title="(.*?)".*?>(.*?)</span>', box
    )


def test_first_frame_says_what_will_change():
    sure = [[0.5] * 3] * 3
    assert words(one(confidence=sure)) == [
        ("dblm-still-changes ", "confidence 0.51, will still change", text)
        for text in FIRST[0]
    ]
    last = widgets.theatre(
        [{"label": "one", "panels": [panel()]}],
        panel_labels=[""],
        alt="The end.",
        start=1,
    )
    assert [(bool(mark), text) for mark, _, text in words(last)] == [
        (False, "Tom"),
        (True, " b"),
        (True, " cat"),
    ]
    assert ">1 of 3 positions are final<" in last.html


def test_text_ends_where_it_ends():
    figure = one(frames=[["Tom", END, END, " x"]])
    assert words(figure) == [
        ("", "final", "Tom"),
        ("", "final", "∎"),
        ("dblm-beyond", "final", " ·"),
        ("dblm-beyond", "final", " x"),
    ]
    assert 'aria-label="model: Tom"' in figure.html
    assert "end of the text" in figure.html
    assert "end of the text" not in one(frames=[["Tom"]]).html


def test_masks_are_blanks_that_are_filled():
    """And turn back; a token just written is marked, one that goes, too."""

    def at(i):
        return words(one(frames=FILLING, blank=MASK, start=i))

    blank = ("dblm-blank ", "masked", "_")
    assert at(0) == [blank] * 4
    assert at(1) == [
        ("dblm-still-changes dblm-new ", "will still change", "Tom"),
        *[blank] * 3,
    ]
    assert at(2)[0] == ("dblm-still-changes ", "will still change", "Tom")
    assert at(2)[2] == ("dblm-new ", "final", "∎")
    assert at(2)[3] == ("dblm-blank dblm-beyond", "masked", "_")
    assert at(3)[0] == blank and at(3)[1][0] == "dblm-new "
    assert at(4) == [
        ("dblm-new ", "final", "Lily"),
        ("", "final", " ran"),
        ("", "final", "∎"),
        ("dblm-beyond", "final", " x"),
    ]
    figure = one(frames=FILLING, blank=MASK, start=2)
    assert 'aria-label="model: Tom _"' in figure.html
    assert ">1 of 4 positions are final<" in figure.html
    sure = one(frames=[[MASK]], blank=MASK, confidence=[[0.5]])
    assert words(sure) == [("dblm-blank ", "confidence 0.51, masked", "_")]
    sure = one(frames=[["Tom"]], blank=MASK, confidence=[[1]])
    assert words(sure) == [("", "final", "Tom")], "nothing is guessed there"


def test_the_legend_says_what_blanks_are_if_there_are_any():
    def legend(frames, **given):
        html = one(frames=frames, **given).html
        return re.search(r'<p class="dblm-legend">.*?</p>', html)[0]

    assert "masked" not in legend(FIRST)
    full = legend(FILLING, blank=MASK)
    for said in ("masked", "written in this step", "will still change"):
        assert said in full
    assert "will still change" not in legend(FILLING[3:], blank=MASK)


def bad(**given):
    return lambda: one(**given)


def cast(tales):
    return lambda: stage(tales=tales, panel_notes=None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (cast([]), "at least one"),
        (cast({"label": "x"}), "list of dicts"),
        (cast([{"label": "x"}]), "lacks .'panels'"),
        (cast([{"label": "x", "panels": [panel()]}]), "2 panel_labels"),
        (
            cast([{"label": "x", "panels": [panel(), panel(FIRST[:2])]}]),
            r"tales\[0\] panels\[1\] has 2, the first panel 3",
        ),
        (
            cast([{"label": "x", "panels": [panel(), {"frames": FIRST}]}]),
            r"tales\[0\] panels\[1\] lacks .'verdict'",
        ),
        (bad(values=SURE), "unknown .'values'"),
        (bad(frames=[]), "for each step"),
        (bad(frames=["abc"]), "list of tokens"),
        (bad(frames=[["a", "b"], ["a"]]), "step 1 has 1 tokens"),
        (bad(confidence=SURE[:2]), "2 rows for 3 steps"),
        (bad(confidence=[[1, 1]] * 3), "one a token"),
        (bad(confidence=[[2, 1, 1]] * 3), r"\[0, 1\]"),
        (bad(confidence=[[np.nan] * 3] * 3), "NaN"),
        (bad(blank=END), "not the end-of-text token"),
        (bad(blank=3), "blank must be the text"),
        (lambda: stage(alt=" "), "alt must be"),
        (lambda: stage(name="No Good"), "lower-case"),
        (lambda: stage(start=3), "0 to 2"),
        (lambda: stage(notes=["one"]), "3 texts"),
        (lambda: stage(step_labels=["one"]), "one a step"),
        (lambda: stage(panel_notes=[["a"] * 3]), "2 lists of texts"),
        (lambda: stage(panel_notes=[["a"] * 3, ["b"]]), "3 texts"),
        (lambda: stage(panel_labels="ab"), "panel_labels"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_panel_is_a_dict():
    with pytest.raises(TypeError, match=r"panels\[0\] must be a dict"):
        stage(tales=[{"label": "x", "panels": [FIRST, FIRST]}])


# --- in a browser --------------------------------------------------------

TEXTS = "[...document.querySelectorAll('.dblm-stage')].map(e => e.innerText)"
COUNTS = (
    "[...document.querySelectorAll('.dblm-count')].map(e => e.textContent)"
)
VERDICTS = COUNTS.replace("count", "verdict")


def test_a_reader_chooses_and_drags(chrome, show):
    ask = show(stage())
    assert ask(TEXTS) == ["a b c", "x∎ y"]
    assert ask(COUNTS) == [
        "loud; 0 of 3 positions are final",
        "9; 1 of 3 positions are final",
    ]
    assert ask(VERDICTS) == ["holds", "breaks"]
    press(chrome, "ARROW_RIGHT")
    assert ask(TEXTS) == ["Tom b cat", "Lily∎ ·"]
    assert ask(COUNTS)[0] == "half; 1 of 3 positions are final"
    assert ask(
        "[...document.querySelectorAll('.dblm-stage .dblm-still-changes')]"
        ".map(e => e.textContent + '|' + e.title)"
    ) == [
        " b|confidence 0.60, will still change",
        " cat|confidence 0.70, will still change",
    ]
    assert ask("document.querySelectorAll('.dblm-stage')[1].ariaLabel") == (
        "repaired: Lily"
    )
    press(chrome, "ARROW_DOWN", where="select")
    assert ask(TEXTS) == ["Lily∎ ·", "Tom b cat"]
    assert ask(VERDICTS) == ["short", "good"]
    press(chrome, "END")
    assert ask(COUNTS)[1] == "1; 3 of 3 positions are final"
    assert browser.console_errors(chrome) == []


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("kind", ["noise", "masks"])
def test_drawing_by_python_and_by_script_agree(show, start, kind):
    sure = np.linspace(0.1, 1, 20).reshape(5, 4)
    figure = (
        stage(start=start)
        if kind == "noise"
        else one(MASK, start, frames=FILLING, confidence=sure)
    )
    plain = re.sub(r"<script>.*</script>", "", figure.html, flags=re.DOTALL)
    drawn = (
        "document.querySelector('.dblm-drawing').outerHTML"
        ".replace(/min-height: [0-9.]+px;?/g, '')"
        ".replace(/ style=\"\"/g, '').replace(/--v: ?([0-9.]+);?/g, '--v:$1')"
    )
    by_python = show(widgets.Figure("", "", plain))(drawn)
    by_script = show(figure)(drawn)
    sorted_attributes = [
        re.sub(r"<span [^>]*", lambda m: " ".join(sorted(m[0].split('" '))), t)
        for t in (by_python, by_script)
    ]
    assert sorted_attributes[0] == sorted_attributes[1]
    assert "--v:" in by_python


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_masks_fill_under_the_keys(chrome, show, theme):
    """Each is as wide as a short word, and muted on both grounds."""
    ask = show(one(frames=FILLING, blank=MASK), theme=theme)
    blanks = "[...document.querySelectorAll('.dblm-stage .dblm-blank')]"
    assert ask(f"{blanks}.map(e => e.textContent)") == ["_"] * 4
    assert min(ask(f"{blanks}.map(e => e.offsetWidth)")) > 15
    colours = [
        ask(f"getComputedStyle(document.querySelector('{one}')).color")
        for one in (".dblm-stage .dblm-blank", ".dblm-stage")
    ]
    assert colours[0] != colours[1]
    for left in (3, 2, 1, 0):
        press(chrome, "ARROW_RIGHT")
        assert ask(f"{blanks}.length") == left
    assert ask(TEXTS) == ["Lily ran∎ x"]
    assert browser.console_errors(chrome) == []


def test_it_plays(chrome, show):
    ask = show(stage(interval=20))
    press(chrome, "ENTER", where="button")
    for _ in range(100):
        if ask(TEXTS)[0] == "Tom ran∎":
            break
        time.sleep(0.02)
    assert ask(TEXTS) == ["Tom ran∎", "Lily∎ ·"]


def test_hostile_text_runs_nothing(chrome, show):
    ask = show(hostile("</script><img src=x onerror='window.hacked=1'><b>"))
    press(chrome, "END")
    time.sleep(0.1)
    assert ask("[window.hacked || 0, document.images.length]") == [0, 0]
    assert ask("document.querySelectorAll('.dblm-figure b').length") == 0
    assert browser.console_errors(chrome) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_panels_stack_on_a_phone(chrome, show, theme):
    long = panel([["w" * 90, " " + "日本語" * 30, END] + [END] * 40] * 2)
    figure = widgets.theatre(
        [{"label": "a long label " * 5, "panels": [long, long]}] * 2,
        panel_labels=["proposal", "repaired"],
        alt="Long words.",
    )
    ask = show(figure, theme=theme)
    tops = (
        "[...document.querySelectorAll('.dblm-stage')]"
        ".map(e => Math.round(e.getBoundingClientRect().top))"
    )
    beside = ask(tops)
    assert beside[0] == beside[1]
    browser.resize(chrome, 390)
    stacked = ask(tops)
    assert stacked[1] > stacked[0] + 40
    assert ask("document.documentElement.scrollWidth") <= 390
