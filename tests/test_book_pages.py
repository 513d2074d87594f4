"""Open every built page in a real browser with the network cut off.

Needs a built book (`make book`) and Chromium with its driver; says why it
was skipped where one is missing. DBLM_REQUIRE_BROWSER=1 makes that a
failure, DBLM_BOOK names another folder than _build/html.
"""

import os
import time
from pathlib import Path

import browser
import pytest

ROOT = Path(__file__).resolve().parents[1]
BOOK = Path(os.environ.get("DBLM_BOOK", ROOT / "_build" / "html"))
REQUIRED = os.environ.get("DBLM_REQUIRE_BROWSER") == "1"
PAGES = browser.pages(BOOK) if (BOOK / "index.html").exists() else []
WIDTHS = (1280, 390)
THEMES = ("light", "dark")


def missing(reason):
    """Skip, or fail where a browser is required."""
    (pytest.fail if REQUIRED else pytest.skip)(reason)


@pytest.fixture(scope="module")
def chrome():
    if not PAGES:
        missing(f"no book in {BOOK}: run `make book` first")
    try:
        with browser.browser() as running:
            yield running
    except browser.NoBrowser as reason:
        missing(str(reason))


@pytest.fixture(
    scope="module",
    params=PAGES or [None],
    ids=lambda p: str(p.relative_to(BOOK)) if p else "no-book",
)
def page(request, chrome):
    """One page, open at full width in light colours."""
    browser.resize(chrome, WIDTHS[0])
    browser.open_page(chrome, request.param)
    browser.theme(chrome, "light")
    # Collapsed cells hold figures too.
    chrome.execute_script(
        "document.querySelectorAll('details').forEach(d=>{d.open=true})"
    )
    chrome.path = request.param
    return chrome


def test_quiet_and_self_contained(page):
    """No error on the console, no request to anywhere else."""
    # Lazy images and deferred scripts ask when they come into view.
    page.execute_script("scrollTo(0, document.body.scrollHeight)")
    time.sleep(0.1)
    assert browser.console_errors(page) == []
    assert browser.outside_requests(page) == []


UNNAMED = """
return [...document.querySelectorAll(
 'main img, main [role=img], main .cell_output svg')]
 .filter(e => !e.closest('[aria-hidden=true], mjx-container, button'))
 .filter(e => !(e.getAttribute('alt') || e.getAttribute('aria-label')
   || e.getAttribute('aria-labelledby') || '').trim())
 .map(e => e.outerHTML.slice(0, 200))
"""
BROKEN = """
return [...document.images].filter(i => i.complete && !i.naturalWidth
 && i.getAttribute('src')).map(i => i.src)
"""


def test_pictures_have_words(page):
    """Every figure has alternative text, and every image is there."""
    assert page.execute_script(UNNAMED) == []
    assert page.execute_script(BROKEN) == []


RAW = r"""
var walk = document.createTreeWalker(document.querySelector('main'), 4), n,
 raw = [];
while ((n = walk.nextNode())) {
 if (n.parentElement.closest(
  'pre,code,script,style,mjx-container,.dblm-figure')) continue;
 if (/\\[(\[]|\\(frac|sqrt|mathbf|alpha|sigma|begin)\b|\$\$/.test(n.data))
  raw.push(n.data.trim().slice(0, 80));
}
return {math: document.querySelectorAll('main .math').length, raw: raw,
 set: document.querySelectorAll('main mjx-container').length,
 errors: document.querySelectorAll('mjx-merror').length}
"""


def test_maths_is_set(page):
    """Each formula became one MathJax container, and no TeX is left."""
    found = page.execute_script(RAW)
    assert found["set"] >= found["math"]
    assert found["raw"] == []
    assert found["errors"] == 0


WIDE = """
var wide = document.documentElement.clientWidth;
function scrolls(e) { for (e = e.parentElement; e; e = e.parentElement)
 if (/auto|scroll|hidden|clip/.test(getComputedStyle(e).overflowX)) return 1 }
return {page: document.documentElement.scrollWidth - wide,
 by: [...document.querySelectorAll('body *')]
  .filter(e => e.getBoundingClientRect().right > wide + 1 && !scrolls(e))
  .slice(0, 5).map(e => e.outerHTML.slice(0, 120)),
 figures: [...document.querySelectorAll('.dblm-figure, main img')]
  .filter(e => e.scrollWidth > e.clientWidth + 1
   || e.getBoundingClientRect().right > wide + 1)
  .map(e => e.outerHTML.slice(0, 120))}
"""


def test_tables_are_tables(page):
    """What a cell displays as a table in Markdown is drawn as one."""
    bars = "return [...document.querySelectorAll('main p')]"
    bars += (
        ".map(e => e.innerText).filter(t => /\\|\\s*(—|---)\\s*\\|/.test(t))"
    )
    assert page.execute_script(bars) == []


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows(page, width, theme):
    """No page scrolls sideways, no figure is cut, on a phone either."""
    browser.resize(page, width)
    browser.theme(page, theme)
    found = page.execute_script(WIDE)
    assert found["page"] <= 0, found["by"]
    assert found["figures"] == []


CONTRAST = """
function rgb(c) { return c.match(/[\\d.]+/g).slice(0, 3).map(Number) }
function light(c) { return rgb(c).map(v => v / 255).map(v => v <= .03928
 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
 .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0) }
return [...document.querySelectorAll('.dblm-figure')].map(root => {
 var back = light(getComputedStyle(root).backgroundColor);
 return [...root.querySelectorAll('p, label, output, .dblm-legend')]
  .map(e => light(getComputedStyle(e).color))
  .map(f => (Math.max(f, back) + .05) / (Math.min(f, back) + .05))
  .reduce((a, b) => Math.min(a, b), 21)})
"""


@pytest.mark.parametrize("theme", THEMES)
def test_figures_are_readable(page, theme):
    """Text on an interactive figure keeps a contrast of 4.5 at least."""
    browser.theme(page, theme)
    assert all(ratio >= 4.5 for ratio in page.execute_script(CONTRAST))


DRAWN = """
return [...arguments[0].querySelectorAll(
 '.dblm-drawing, .dblm-drawing svg, .dblm-tokens')]
 .map(e => e.outerHTML).join('') || arguments[0].textContent
"""


def changes(page, figure, act, patience=1.5):
    """Tell whether an act changes what a figure shows, and soon."""
    before = page.execute_script(DRAWN, figure)
    act()
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if page.execute_script(DRAWN, figure) != before:
            return True
        time.sleep(0.02)
    return False


def click(page, element, across=None):
    """Click in the middle of an element, or so far across it."""
    from selenium.webdriver import ActionChains

    wide = element.size["width"]
    aside = 0 if across is None else int((across - 0.5) * wide)
    ActionChains(page, duration=0).move_to_element_with_offset(
        element, aside, 0
    ).click().perform()


def test_figures_answer(page):
    """Each control of each figure answers to keyboard and to mouse."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    browser.resize(page, WIDTHS[0])
    browser.theme(page, "light")
    silent = []

    def expect(figure, what, act):
        if not changes(page, figure, act):
            silent.append(f"{figure.get_attribute('id')}: {what}")

    for figure in page.find_elements(By.CSS_SELECTOR, ".dblm-figure"):
        if not figure.is_displayed():
            continue
        page.execute_script("arguments[0].scrollIntoView()", figure)
        controls = "input, select, button"
        tools = figure.find_elements(By.CSS_SELECTOR, controls)
        assert tools, f"{figure.get_attribute('id')} has nothing to move"
        # Sliders first: the choices of a menu may agree at an end.
        tools.sort(key=lambda tool: tool.tag_name != "input")
        for tool in tools:
            assert page.execute_script(
                "var e=arguments[0];return (e.labels&&e.labels[0]"
                "||e).textContent.trim()||e.getAttribute('aria-label')",
                tool,
            ), "a control without a name"
            page.execute_script(
                "arguments[0].scrollIntoView({block:'center'})", tool
            )
            kind = tool.tag_name
            if tool.get_attribute("type") == "range":
                tool.send_keys(Keys.HOME)
                expect(
                    figure,
                    "slider by keyboard",
                    lambda t=tool: t.send_keys(Keys.END),
                )
                expect(
                    figure,
                    "slider by mouse",
                    lambda t=tool: click(page, t, 0.4),
                )
            elif kind == "select":
                expect(
                    figure,
                    "menu by keyboard",
                    lambda t=tool: t.send_keys(Keys.DOWN),
                )
                expect(
                    figure,
                    "menu by mouse",
                    lambda t=tool: Select(t).select_by_index(0),
                )
            elif kind == "button":
                # The first press plays, the second stops.
                for way, press in (
                    ("keyboard", lambda t=tool: t.send_keys(Keys.ENTER)),
                    ("mouse", lambda t=tool: click(page, t)),
                ):
                    expect(figure, f"button by {way}", press)
                    if tool.text == "Pause":
                        click(page, tool)
    assert silent == []
    assert browser.console_errors(page) == []


def test_search_works_from_a_folder(chrome):
    """The search page finds the book's subject without a server."""
    browser.open_page(chrome, BOOK / "search.html")
    chrome.get((BOOK / "search.html").resolve().as_uri() + "?q=noise")
    for _ in range(100):
        found = chrome.execute_script(
            "return document.querySelectorAll('#search-results li').length"
        )
        if found:
            break
        time.sleep(0.05)
    assert found, "searching for 'noise' finds nothing"
