"""The figures' scripts and styles, as they travel in a page.

They are written to be read: one statement a line, with comments. A figure
carries them in each output of a notebook, so that comments, indentation
and the spaces of style sheets are left out here.
"""

import functools
import re
from importlib import resources


def code(*names):
    """Join files of this folder to the text of one element.

    Each file becomes a part: a comment with its name, then its code, up to
    the next part. Equal parts can be told by their text, so that a page with
    many figures keeps the first of each (``tools/dblm_sphinx.py``).
    """
    return "".join(map(_part, names))


@functools.cache
def _part(name):
    source = (resources.files(__package__) / name).read_text("utf-8")
    shorten = shorten_style if name.endswith(".css") else shorten_script
    return f"/*dblm {name}*/\n{shorten(source)}\n"


def shorten_style(source):
    """Leave out a style sheet's comments and the spaces that say nothing.

    Strings with spaces, and selectors in which a space stands before a
    colon or a bracket, are not in our style sheets.
    """
    text = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ?([{};,>]) ?", r"\1", text)
    text = text.replace("( ", "(").replace(" )", ")")
    text = text.replace(": ", ":").replace(";}", "}")
    text = re.sub(r'="([a-z]+)"\]', r"=\1]", text)  # quotes of one word
    return re.sub(r"(?<=[:(, ])0\.", ".", text).strip()


def shorten_script(source):
    """Leave out a script's indentation and the lines that are comments.

    A comment stands on lines of its own in our scripts, and no text goes
    over several lines.
    """
    lines = (line.strip() for line in source.splitlines())
    return "\n".join(
        line for line in lines if line and not line.startswith("//")
    )
