"""Interactive figures: safe, the same twice, and alive in a browser."""

import builtins
import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dblm_lib import widgets

X = np.linspace(-2, 2, 9)
FRAMES = np.array([[X * k, X**2 - k] for k in range(4)])
HOSTILE = "</script><img src=x onerror=alert(1)>&\"'`${x}\u2028 $x$ \\(y\\)"
VOID = {"img", "input", "meta", "br"}


def lines(**options):
    given = {
        "frames": {"cosine": FRAMES, "linear": FRAMES + 1},
        "x": X,
        "series": ["signal", "noise"],
        "slider_label": "time t",
        "slider_values": [0, 0.25, 0.5, 1],
        "alt": "Two curves that move.",
        "name": "lines",
    }
    return widgets.line_explorer(**given | options)


def tokens(**options):
    given = {
        "frames": [["a", " b"], ["the", " b"], ["the", " dog", "."]],
        "values": [[0.1, 0.2], [0.9, 0.2], [1, 1, 1]],
        "alt": "Words come out of noise.",
        "compare": [["x"], ["y"], ["z"]],
        "panel_labels": ["DBLM", "rounded"],
        "name": "tokens",
    }
    return widgets.token_explorer(**given | options)


def points(**options):
    places = np.array([[0, 0], [4, 0], [0, 3]], dtype=float)
    push = np.array([[3, 0], [-1, 0], [0, 0]], dtype=float)
    given = {
        "frames": [places, places + push / 2, places + push],
        "labels": ["cat", "dog", "sun"],
        "slider_values": [0, 1, 2],
        "alt": "Three words drift.",
        "play": True,
        "name": "points",
    }
    return widgets.points_explorer(**given | options)


def grid(**options):
    whole = np.arange(1.0, 10).reshape(3, 3)
    given = {
        "matrix": {"causal": np.tril(whole), "both sides": whole},
        "labels": ["once", " upon", " a"],
        "alt": "Which outputs change.",
        "name": "grid",
    }
    return widgets.grid_explorer(**given | options)


KINDS = [lines, tokens, points, grid]


class Outline(HTMLParser):
    """Tags and attributes; fails on tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def data_of(figure):
    text = re.search(
        r'class="dblm-data">(.*?)</script>', figure.html, re.DOTALL
    )
    return json.loads(text[1])


@pytest.mark.parametrize("kind", KINDS)
def test_same_bytes_twice(kind):
    assert kind().html == kind().html
    assert kind(name=None).name == kind(name=None).name
    assert kind(name=None).name != kind(name=None, title="Other").name
    noisy = kind()  # rounding hides the last digits of another machine
    assert noisy.html == kind().html


def test_rounding_absorbs_another_machine():
    assert lines(frames=FRAMES).html == lines(frames=FRAMES + 1e-9).html


@pytest.mark.parametrize("kind", KINDS)
def test_display_protocol(kind):
    figure = kind()
    assert figure._repr_html_() is figure.html
    assert repr(figure) == f"<interactive figure dblm-{kind.__name__}>"
    assert len(figure.html) < 60_000


@pytest.mark.parametrize("kind", KINDS)
def test_markup_is_accessible(kind):
    page = Outline(kind(title="A title").html)
    tag, root = page.tags[0]
    assert tag == "div"
    assert "dblm-figure" in root["class"]
    assert root["role"] == "group"
    assert root["aria-label"]
    assert any(
        a.get("role") == "img" and a.get("aria-label") for _, a in page.tags
    )
    assert any(a.get("aria-live") == "polite" for _, a in page.tags)
    sliders = [a for t, a in page.tags if a.get("type") == "range"]
    assert len(sliders) == 1
    assert sliders[0]["aria-valuetext"]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_comes_from_elsewhere(kind):
    html = kind().html
    assert not re.search(r"https?:|//[a-z]|src=|@import|url\((?!#)", html)
    assert "innerHTML" not in html
    assert "prefers-reduced-motion" in html
    assert "prefers-color-scheme" in html
    assert "data-theme=dark" in html


def hostile_figures(text):
    return [
        lines(
            frames=FRAMES,
            series=[text, "b"],
            slider_label=text,
            slider_values=[text] * 4,
            alt="a" + text,
            title=text,
            xlabel=text,
            ylabel=text,
            notes=[text] * 4,
            reference={text: X},
        ),
        lines(frames={text: FRAMES, text + "2": FRAMES}, select_label=text),
        tokens(
            frames=[[text, text]] * 3,
            values=None,
            panel_labels=[text, text],
            separator=text,
            value_label=text,
            step_labels=[text] * 3,
            notes=[text] * 3,
            alt="a" + text,
        ),
        points(
            labels=[text] * 3,
            anchor_labels=[text] * 3,
            slider_label=text,
            alt="a" + text,
            notes=[text] * 3,
        ),
        grid(labels=[text] * 3, alt="a" + text, select_label=text),
    ]


def tag_counts(figure):
    return [tag for tag, _ in Outline(figure.html).tags]


def test_hostile_text_is_only_text():
    for bad, good in zip(
        hostile_figures(HOSTILE), hostile_figures("plain"), strict=True
    ):
        assert tag_counts(bad) == tag_counts(good)
        assert bad.html.count("</script>") == 2
        assert "<img" not in bad.html
        data_of(bad)


PLAIN = [tag_counts(figure) for figure in hostile_figures("plain")]


@settings(max_examples=25)
@given(st.text(min_size=1, max_size=30))
def test_any_text_is_only_text(text):
    assert [tag_counts(figure) for figure in hostile_figures(text)] == PLAIN


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_tokens_survive_the_round_trip(words):
    data = data_of(tokens(frames=[words] * 3, values=None))
    marks = str.maketrans({"Ġ": " ", "Ċ": "\n"})
    back = [data["v"][i] for i in data["f"][0][0]]
    assert back == [word.translate(marks) for word in words]


def test_line_data_are_the_numbers():
    data = data_of(lines())
    assert data["steps"] == ["0", "0.25", "0.5", "1"]
    assert np.shape(data["y"]) == (2, 4, 2, 9)
    y = np.array(data["y"])
    # Screen coordinates grow downwards and are linear in the data.
    values = np.array([FRAMES, FRAMES + 1])
    slope = np.polyfit(values.ravel(), y.ravel(), 1)
    assert slope[0] < 0
    assert np.abs(np.polyval(slope, values) - y).max() < 1


def test_confidence_is_rounded_to_hundredths():
    assert data_of(tokens())["c"] == [[[10, 20], [90, 20], [100] * 3], None]


def test_points_know_their_nearest():
    data = data_of(points())
    assert data["near"] == [[0, 1, 2], [0, 1, 2], [1, 1, 2]]
    assert "2 of 3 points" in data["notes"][2]
    near = data_of(points(nearest=[[2, 2, 2]] * 3))["near"]
    assert near == [[2, 2, 2]] * 3


def test_grid_knows_what_changes():
    data = data_of(grid())
    assert data["on"][0] == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert data["on"][1] == [[1, 1, 1]] * 3
    assert data["notes"][0][1] == (
        "changing 2 upon moves 2 of 3 outputs: 2 upon, 3 a"
    )


def test_first_frame_is_drawn_without_a_script():
    """Where scripts are off, the chosen frame is there all the same."""
    figure = tokens(start=-1)
    body = figure.html.split('class="dblm-data"')[0]
    assert "> dog</span>" in body
    assert 'd="M' in lines().html.split('class="dblm-data"')[0]


def test_tensors_are_welcome():
    frames = torch.tensor(FRAMES, requires_grad=True)
    assert lines(frames=frames).html == lines(frames=FRAMES).html


NAN = np.where(FRAMES > 3, np.nan, FRAMES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lines(frames=NAN), "NaN or infinity"),
        (lambda: lines(frames=FRAMES[:3]), "slider values, series, points"),
        (lambda: lines(frames={}), "at least one option"),
        (lambda: lines(frames=[]), "not be empty"),
        (lambda: lines(frames=[[1], [2, 3]]), "rows of equal length"),
        (lambda: lines(series=["one"]), r"\(4, 1, 9\)"),
        (lambda: lines(slider_values=[]), "at least one value"),
        (lambda: lines(alt=" "), "alt must be a sentence"),
        (lambda: lines(name="No Good"), "lower-case"),
        (lambda: lines(start=4), "0 to 3"),
        (lambda: lines(ylim=(1, 1)), "low, high"),
        (lambda: lines(notes=["one"]), "4 texts"),
        (lambda: lines(notes={"x": ["a"] * 4}), "options are"),
        (lambda: lines(reference={"r": X[:3]}), "shape"),
        (lambda: tokens(frames=[]), "for each step"),
        (lambda: tokens(frames=["a b"] * 3), "list of tokens"),
        (lambda: tokens(frames=[["a"], [], ["b"]]), "at least one"),
        (lambda: tokens(values=[[1]]), "1 rows for 3"),
        (lambda: tokens(values=[[1], [1, 1], [1, 1, 1]]), "one a token"),
        (lambda: tokens(values=[[2, 1], [1, 1], [1] * 3]), r"\[0, 1\]"),
        (lambda: tokens(compare=[["a"]]), "same number"),
        (lambda: tokens(compare=None, compare_values=[1]), "without compare"),
        (lambda: tokens(panel_labels=["one"]), "panel_labels"),
        (lambda: tokens(step_labels=[1]), "one a step"),
        (lambda: points(labels=["a"]), "points, 2"),
        (lambda: points(home=[0, 1, 7]), "0 to 2"),
        (lambda: points(nearest=[[0.5, 1, 2]] * 3), "whole numbers"),
        (lambda: points(extent=0), "positive"),
        (lambda: points(anchor_labels=["a"]), "3 texts"),
        (lambda: grid(labels=["a"]), "outputs, inputs"),
        (lambda: grid(labels=[]), "nothing to draw"),
        (lambda: grid(matrix=-np.eye(3)), "negative"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- live ----------------------------------------------------------------


def test_live_shows_a_widget(monkeypatch):
    ipywidgets = pytest.importorskip("ipywidgets")
    shown, calls = [], []
    monkeypatch.setattr("IPython.display.display", shown.append)
    assert (
        widgets.live(lambda t, on: calls.append(t), t=(0, 4), on=True) is None
    )
    (box,) = shown
    assert isinstance(box, ipywidgets.VBox)
    slider = box.children[0]
    assert slider.continuous_update is False
    box.update()
    slider.value = 3
    assert calls[-1] == 3


def test_live_without_ipywidgets(monkeypatch, capsys):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "ipywidgets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert widgets.live(print, t=(0, 1)) is None
    assert "pip install ipywidgets" in capsys.readouterr().out


def test_live_wants_a_function_and_a_control():
    with pytest.raises(TypeError, match="function first"):
        widgets.live(3, t=(0, 1))
    with pytest.raises(ValueError, match="needs a control"):
        widgets.live(print)


def test_import_is_light():
    code = (
        "import sys, dblm_lib.widgets; "
        "sys.exit(bool({'torch', 'IPython', 'ipywidgets'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- in a browser --------------------------------------------------------


@pytest.fixture(scope="module")
def chrome():
    try:
        with browser.browser() as running:
            yield running
    except browser.NoBrowser as reason:
        if os.environ.get("DBLM_REQUIRE_BROWSER") == "1":
            pytest.fail(str(reason))
        pytest.skip(str(reason))


@pytest.fixture
def show(chrome, tmp_path):
    """Show figures on a page of their own; return a function that asks."""

    def open_figures(*figures, theme="light"):
        page = tmp_path / "page.html"
        page.write_text(
            f'<!doctype html><html lang="en" data-theme="{theme}">'
            '<meta charset="utf-8"><title>t</title><link rel="icon" '
            'href="data:,"><body>' + "".join(f.html for f in figures),
            encoding="utf-8",
        )
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.resize(chrome, 800)
        browser.open_page(chrome, page)
        return lambda script: chrome.execute_script(f"return {script}")

    return open_figures


def press(chrome, *keys, where="input"):
    from selenium.webdriver.common.keys import Keys

    element = chrome.find_element("css selector", where)
    for key in keys:
        element.send_keys(getattr(Keys, key))


def test_lines_move_with_the_keyboard(chrome, show):
    ask = show(lines())
    path = "document.querySelector('.dblm-line').getAttribute('d')"
    said = "document.querySelector('.dblm-readout').textContent"
    value = "document.querySelector('input').getAttribute('aria-valuetext')"
    data = data_of(lines())

    def expected(option, step):
        ys = data["y"][option][step][0]
        pairs = [f"{a} {b}" for a, b in zip(data["x"], ys, strict=True)]
        return "M" + "L".join(pairs)

    assert ask(path) == expected(0, 0)
    press(chrome, "ARROW_RIGHT", "ARROW_RIGHT")
    assert ask(path) == expected(0, 2)
    assert ask(said) == data["notes"][0][2]
    assert ask(value) == "0.5"
    press(chrome, "ARROW_DOWN", where="select")
    assert ask(path) == expected(1, 2)
    assert ask(said) == data["notes"][1][2]
    assert browser.console_errors(chrome) == []


def test_drawing_by_python_and_by_script_agree(show):
    """What Python drew is what the script draws for the same frame."""
    # Without a script the browser reads Python's own drawing.
    still = [
        kind(start=2 if kind is not grid else 1, name=f"x-{kind.__name__}")
        for kind in KINDS
    ]
    plain = [
        widgets.Figure(
            "", "", re.sub(r"<script>.*</script>", "", f.html, flags=re.DOTALL)
        )
        for f in still
    ]
    # Tokens are marked as new only by the script.
    drawn = (
        "[...document.querySelectorAll('.dblm-drawing')].map(e => "
        'e.outerHTML.replace(/ (class|title|style)="[^"]*"/g, \'\'))'
    )
    by_python = show(*plain)(drawn)
    by_script = show(*still)(drawn)
    assert by_python == by_script
    assert len(by_script) == len(KINDS)


def test_tokens_move_and_play(chrome, show):
    ask = show(tokens(interval=30))
    text = "document.querySelector('.dblm-tokens').textContent"
    label = "document.querySelector('.dblm-tokens').getAttribute('aria-label')"
    assert ask(text) == "a b"
    press(chrome, "ARROW_RIGHT")
    assert ask(text) == "the b"
    assert ask(label) == "DBLM: the b"
    assert ask("document.querySelector('.dblm-new').textContent") == "the"
    assert ask("document.querySelector('.dblm-tokens span').title") == (
        "confidence 0.90"
    )
    press(chrome, "HOME")
    press(chrome, "ENTER", where="button")
    for _ in range(100):
        if ask(text) == "the dog.":
            break
        time.sleep(0.02)
    assert ask(text) == "the dog."
    assert ask("document.querySelector('button').textContent") == "Play"


def test_autoplay_runs_once_and_stops(show):
    ask = show(tokens(autoplay=True, interval=20))
    time.sleep(0.6)
    assert ask("document.querySelector('input').value") == "2"


def test_less_motion_is_respected(chrome, tmp_path, show):
    show(tokens())  # a page to start from
    less = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": less})
    page = tmp_path / "page.html"
    page.write_text(tokens(autoplay=True, interval=20).html, encoding="utf-8")
    browser.open_page(chrome, page)
    time.sleep(0.3)
    state = (
        "return [document.querySelector('input').value,"
        "document.querySelector('button').textContent]"
    )
    assert chrome.execute_script(state) == ["0", "Next step"]
    press(chrome, "ENTER", where="button")
    time.sleep(0.2)
    assert chrome.execute_script(state) == ["1", "Next step"]


def test_points_move_and_get_lost(chrome, show):
    ask = show(points())
    dots = "document.querySelectorAll('.dblm-dot')[0].getAttribute('cx')"
    lost = "document.querySelectorAll('.dblm-dot.dblm-lost').length"
    before = ask(dots)
    assert ask(lost) == 0
    press(chrome, "END")
    assert ask(dots) != before
    assert ask(lost) == 1


def test_grid_answers_to_keys_and_clicks(chrome, show):
    ask = show(grid())
    rows = (
        "[...document.querySelectorAll('.dblm-row.dblm-on')]"
        ".map(e => e.textContent)"
    )
    assert ask(rows) == ["once", "upon", "a"]
    press(chrome, "ARROW_RIGHT")
    assert ask(rows) == ["upon", "a"]
    cell = chrome.find_elements("css selector", ".dblm-cell[data-at='2']")[0]
    cell.click()
    assert ask(rows) == ["a"]
    assert ask("document.querySelector('input').value") == "2"
    press(chrome, "ARROW_DOWN", where="select")
    assert ask(rows) == ["once", "upon", "a"]


def test_hostile_text_runs_nothing(chrome, show):
    bad = "</script><img src=x onerror='window.hacked=1'><b>"
    ask = show(*[f for f in hostile_figures(bad)])
    for slider in chrome.find_elements("css selector", "input"):
        slider.send_keys("\ue010")  # End
    time.sleep(0.1)
    assert ask("[window.hacked || 0, document.images.length]") == [0, 0]
    assert (
        ask("document.querySelectorAll('main b, .dblm-figure b').length") == 0
    )
    assert browser.console_errors(chrome) == []


def test_two_copies_of_a_figure_live_apart(chrome, show):
    ask = show(tokens(), tokens())
    press(chrome, "END")
    texts = (
        "[...document.querySelectorAll('.dblm-tokens')].map(e => e.innerText)"
    )
    assert ask(texts) == ["the dog.", "z", "a b", "x"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_fits_a_phone_in_both_themes(chrome, show, theme):
    long = [["w" * 90, " " + "日本語" * 30]] * 3
    ask = show(
        *[k() for k in KINDS],
        tokens(frames=long, values=None, name="l"),
        theme=theme,
    )
    browser.resize(chrome, 390)
    assert ask("document.documentElement.scrollWidth") <= 390
    back = ask(
        "getComputedStyle(document.querySelector('.dblm-figure')).backgroundColor"
    )
    red = int(re.findall(r"\d+", back)[0])
    assert red > 200 if theme == "light" else red < 60
