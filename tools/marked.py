"""Tables that a program writes into a page, between two marks.

The marks are comments of HTML: ``<!-- name: begin -->``, ``<!-- name: end
-->``. Around them the page is as its author wrote it.
"""

from pathlib import Path

from dblm_lib import storage

PAGE = Path(__file__).resolve().parents[1] / "chapters" / "testing.md"


def marks(name):
    """Return the two marks of a table."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def read(name, page=PAGE):
    """Return what stands between the marks, without the lines' ends."""
    begin, end = marks(name)
    _, _, rest = Path(page).read_text("utf-8").partition(begin)
    return rest.partition(end)[0].strip("\n")


def write(name, text, page=PAGE):
    """Replace what stands between the marks.

    Raises
    ------
    ValueError
        If the page does not hold each mark once, in order.
    """
    begin, end = marks(name)
    old = Path(page).read_text("utf-8")
    if (old.count(begin), old.count(end)) != (1, 1) or (
        old.index(begin) > old.index(end)
    ):
        raise ValueError(f"{page} must hold '{begin}' and '{end}' once each")
    before, _, rest = old.partition(begin)
    after = rest.partition(end)[2]
    new = f"{before}{begin}\n{text}\n{end}{after}"
    storage.write_text(page, new)


def table(header, rows):
    """Return a table in Markdown."""
    lines = [
        "| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)
    ]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])
