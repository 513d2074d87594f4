"""Scripts and styles of the figures: readable here, short and once a page."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_widgets import KINDS, browser, chrome, lines, show, tokens
from test_widgets_theatre import stage

from dblm_lib import widgets
from dblm_lib.widgets import code
from dblm_lib.widgets.figure import SCRIPTS, STYLES

__all__ = ["chrome", "show"]  # fixtures

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(widgets.__file__).parent
SOURCES = {
    path.name: path.read_text("utf-8")
    for path in sorted(FOLDER.iterdir())
    if path.suffix in (".js", ".css")
}
SHEETS = [name for name in SOURCES if name.endswith(".css")]
PROGRAMS = [name for name in SOURCES if name.endswith(".js")]


@pytest.fixture
def sphinx():
    pytest.importorskip("myst_nb")
    return pytest.importorskip("dblm_sphinx")


def all_kinds():
    return [*(kind() for kind in KINDS), stage()]


# --- what travels -----------------------------------------------------------


def test_every_file_travels_with_some_figure():
    named = {*itertools.chain(*STYLES.values(), *SCRIPTS.values())}
    assert named == set(SOURCES)


def test_a_figure_carries_what_it_needs():
    """A notebook may show each output in a frame of its own."""
    for figure in all_kinds():
        for name in (*STYLES[figure.kind], *SCRIPTS[figure.kind]):
            assert figure.html.count(code.code(name)) == 1, name


def test_code_keeps_its_weight():
    """What one figure carries, and a page with all kinds, in bytes."""
    for kind in STYLES:
        assert len(code.code(*STYLES[kind], *SCRIPTS[kind])) < 8_200, kind
    assert len(code.code(*SOURCES)) < 11_500


@pytest.mark.parametrize("name", SOURCES)
def test_code_stays_inside_its_element(name):
    """Nothing in it closes the element, or looks like another part."""
    assert "</" not in code.code(name)
    assert code.code(name).count("/*") == 1
    assert "\n\n" not in code.code(name)


# --- shorter, and the same ---------------------------------------------------


def test_a_style_gets_shorter():
    source = """
/* Said in
   two lines: a > b */
a[theme="dark"]  .b,
c > d:hover {
  margin: 0.5rem 0 10.5px;
  font:
    1rem / 1.5 x,
    y;
  /* why */
  color: rgba(var(--h), calc(var(--v, 0) * 0.45));
  background: linear-gradient(
    90deg,
    red
  );
}

@media (width: 1px) {
  e:not([f]) :focus {
    top: 0;
  }
}
"""
    assert code.shorten_style(source) == (
        "a[theme=dark] .b,c>d:hover{margin:.5rem 0 10.5px;"
        "font:1rem / 1.5 x,y;"
        "color:rgba(var(--h),calc(var(--v,0) * .45));"
        "background:linear-gradient(90deg,red)}"
        "@media (width:1px){e:not([f]) :focus{top:0}}"
    )


def test_a_script_gets_shorter():
    source = (
        "// A word\n// before.\n\nf(() => {\n"
        '  // Why.\n  const a = "http://x  y";\n\n  return a / 2;\n});\n'
    )
    assert code.shorten_script(source) == (
        'f(() => {\nconst a = "http://x  y";\nreturn a / 2;\n});'
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_scripts_can_be_shortened_line_by_line(name):
    """No comment behind code, no text over several lines."""
    for line in SOURCES[name].splitlines():
        assert "/*" not in line
        assert "//" not in line or line.lstrip().startswith("//")
        if not line.lstrip().startswith("//"):
            assert line.count("`") % 2 == 0, line


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_script_can_run_twice_on_a_page(name):
    """Outputs of a notebook share a page: no name is declared at its top."""
    for line in SOURCES[name].splitlines():
        assert re.match(r"(//|window\.|\s|[})]|$)", line), line


def unspaced(rule):
    """Write a rule alike: values with var() are kept as they were typed."""
    rule = " ".join(rule.split()).replace(", ", ",")
    rule = rule.replace("( ", "(").replace(" )", ")")
    return re.sub(r"(?<![\d.])0\.", ".", rule)


@pytest.mark.parametrize("name", SHEETS)
def test_a_shorter_style_says_the_same(chrome, show, name):
    """A browser reads the same rules from it as from the source."""
    show(lines())  # a page to start from
    rules = """
    var all = [];
    for (const text of arguments) {
      const sheet = new CSSStyleSheet();
      sheet.replaceSync(text);
      all.push([...sheet.cssRules].map(rule => rule.cssText));
    }
    return all;
    """
    source = SOURCES[name]
    long, short = chrome.execute_script(rules, source, code.code(name))
    assert [*map(unspaced, long)] == [*map(unspaced, short)]
    assert len(long) == len(re.findall(r"(?m)^\S.*\{$", source)) > 0


def test_both_dark_palettes_are_the_same():
    """A system's dark mode and a page's look alike."""
    palettes = re.findall(r"[^{}]*color-scheme: dark;", SOURCES["figure.css"])
    first, second = ("".join(text.split()) for text in palettes)
    assert first == second
    assert first.count("--d-") == 12


# --- once a page --------------------------------------------------------------


def page(*figures):
    return "<p>before</p>\n" + "\n<p>between</p>\n".join(
        figure.html for figure in figures
    )


def bare(html):
    """Leave out all code."""
    return re.sub(r"<(style|script)>.*?</\1>\n?", "", html, flags=re.DOTALL)


def test_each_part_stands_once_on_a_page(sphinx):
    figures = [*all_kinds(), *all_kinds()]
    for order in (figures, figures[::-1]):
        html = sphinx.keep_code_once(page(*order))
        for name in SOURCES:
            assert html.count(code.code(name)) == 1, name
        assert bare(html) == bare(page(*order))
        assert "<style></style>" not in html
        assert "<script></script>" not in html


def test_a_page_with_one_figure_stays_as_it_is(sphinx):
    for figure in all_kinds():
        html = page(figure)
        assert sphinx.keep_code_once(html) == html
    assert sphinx.keep_code_once("<p>none</p>") == "<p>none</p>"


def test_versions_are_not_mixed(sphinx):
    """Outputs of an older library keep their own code."""
    old = widgets.Figure("", "", lines().html.replace("const", "var"))
    html = page(lines(), old, lines())
    assert sphinx.keep_code_once(html) == html


def test_an_authors_code_is_left_alone(sphinx):
    """What does not come from a figure stays, be it twice."""
    own = "<style>p{top:0}</style><script>f()</script>" * 2
    html = page(lines()) + own + page(lines()) + own
    assert sphinx.keep_code_once(html).count(own) == 2


MOVED = """
return [...document.querySelectorAll('.dblm-figure')].map(root => {
  const drawing = root.querySelector('.dblm-drawing');
  const before = drawing.outerHTML;
  const range = root.querySelector('input');
  range.value = 2;
  range.dispatchEvent(new Event('input'));
  return drawing.outerHTML !== before;
});
"""


@pytest.mark.parametrize("backwards", [False, True])
def test_figures_of_a_shared_page_all_move(chrome, show, sphinx, backwards):
    """In any order, above and below the code that they share."""
    figures = [*all_kinds(), *all_kinds()]
    html = sphinx.keep_code_once(page(*figures[:: -1 if backwards else 1]))
    show(widgets.Figure("", "", html))
    assert chrome.execute_script(MOVED) == [True] * len(figures)
    assert browser.console_errors(chrome) == []


def test_figures_move_where_each_carries_its_code(chrome, show):
    """As in a notebook."""
    figures = [*all_kinds(), *all_kinds()]
    show(*figures)
    assert chrome.execute_script(MOVED) == [True] * len(figures)
    assert browser.console_errors(chrome) == []


def test_an_output_that_comes_later_moves_too(chrome, show):
    """A notebook puts an output into a page that was read long ago."""
    show(widgets.Figure("", "", "<main></main>"))
    chrome.execute_script(
        """
        const main = document.querySelector('main');
        for (const html of arguments) {
          const cell = document.createElement('div');
          cell.innerHTML = html;
          main.append(cell);
          for (const old of cell.querySelectorAll('script:not([type])')) {
            const script = document.createElement('script');
            script.textContent = old.textContent;
            old.replaceWith(script);
          }
        }
        """,
        *(figure.html for figure in all_kinds()),
    )
    assert chrome.execute_script(MOVED) == [True] * 5


def test_a_broken_figure_stops_no_other(chrome, show, sphinx):
    """Neither the one above it nor the one below."""
    broken = lines().html.replace('class="dblm-data">{', 'class="dblm-data">')
    figures = [lines(), widgets.Figure("", "", broken), tokens(), lines()]
    show(widgets.Figure("", "", sphinx.keep_code_once(page(*figures))))
    assert chrome.execute_script(MOVED) == [True, False, True, True]
    (error,) = browser.console_errors(chrome)
    assert "JSON" in str(error)


# --- in a build ----------------------------------------------------------------

CONF = """
import dblm_sphinx

dblm_sphinx.fingerprint = lambda: "the same library"
dblm_sphinx.copy_mathjax = lambda app: None
extensions = ["myst_nb", "dblm_sphinx"]
nb_execution_mode = "off"
"""


def test_a_built_page_holds_each_part_once(sphinx, tmp_path):
    """From stored outputs to the page, nothing but copies gets lost."""
    import nbformat

    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / "conf.py").write_text(CONF, "utf-8")
    figures = [lines(), tokens(), lines(name="again"), stage()]
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": figure.html})
        for figure in figures
    ]
    cells = [
        nbformat.v4.new_markdown_cell("# Figures"),
        *(
            nbformat.v4.new_code_cell("show()", outputs=[output])
            for output in outputs
        ),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, source / "index.ipynb")
    command = [sys.executable, "-m", "sphinx", "-q", "-W"]
    done = subprocess.run(
        [*command, source, out],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    html = (out / "index.html").read_text("utf-8")
    for figure in figures:
        assert bare(figure.html) in bare(html)
        for name in (*STYLES[figure.kind], *SCRIPTS[figure.kind]):
            assert html.count(code.code(name)) == 1, name
