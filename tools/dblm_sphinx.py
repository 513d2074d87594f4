"""Sphinx extension of this book: what Jupyter Book leaves to be done.

- A change in ``dblm_lib/``, ``data/`` or the installed versions runs the
  chapters again; the cache of Jupyter Book looks at the notebooks alone.
- One line under each chapter's title: how long it ran here, how long on a
  GPU (``chapters/gpu_times.json``), how long it reads.
- MathJax is copied from an installed package, so no page needs a network.
- Scripts that would be written twice are written once, the code of the
  interactive figures once a page; icons that no page shows are left out.
"""

import hashlib
import json
import os
import platform
import re
import shutil
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pydata_sphinx_theme
from docutils import nodes
from docutils.statemachine import StringList
from jupyter_cache import get_cache
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
# What decides the numbers on a page, besides the notebooks themselves.
SOURCES = ("dblm_lib", "data")
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "matplotlib")
# Written by tools/gpu_times.py on a machine with a GPU; may be absent.
GPU_TIMES = ROOT / "chapters" / "gpu_times.json"
WORDS_PER_MINUTE = 200
CODE_LINES_PER_MINUTE = 30
THEME = (
    Path(pydata_sphinx_theme.__file__).parent
    / "theme/pydata_sphinx_theme/static"
)
# Input TeX, output HTML; speech and other formats stay out (6 MB).
MATHJAX_PARTS = (
    "tex-chtml.js",
    "input/tex/extensions",
    "output/chtml/fonts",
    "a11y",
    "ui",
)


@lru_cache
def fingerprint(root=ROOT):
    """Return a digest of the library, its data and the versions below it."""
    digest = hashlib.sha256(platform.python_version().encode())
    for package in PACKAGES:
        digest.update(f"{package} {_version(package)}\n".encode())
    for folder in SOURCES:
        for path in sorted((Path(root) / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.relative_to(root).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def forget_stale_runs(app):
    """Empty the notebook cache when the library or its data changed."""
    settings = app.env.mystnb_config
    if settings.execution_mode != "cache" or not settings.execution_cache_path:
        return
    cache = Path(settings.execution_cache_path)
    stamp = cache / "library.sha256"
    if stamp.exists() and stamp.read_text() == fingerprint():
        return
    cache.mkdir(parents=True, exist_ok=True)
    runs = get_cache(cache)  # it knows what it wrote, and removes no more
    for run in runs.list_cache_records():
        runs.remove_cache(run.pk)
    stamp.write_text(fingerprint())


def outdated_chapters(app, env, added, changed, removed):
    """Name the pages to read again: new library, GPU times, failed run.

    New GPU times change pages, not numbers: the notebooks are not run again.
    """
    forget_stale_runs(app)
    notebooks = {
        name
        for name in env.found_docs
        if str(env.doc2path(name)).endswith(".ipynb")
    }
    outdated = {name for name in notebooks if _failed(env, name)}
    if getattr(env, "dblm_fingerprint", None) != fingerprint():
        env.dblm_fingerprint = fingerprint()
        outdated |= notebooks
    times = gpu_times()
    if getattr(env, "dblm_gpu_times", {}) != times:
        env.dblm_gpu_times = times
        outdated |= env.found_docs
    return sorted(outdated)


def gpu_times():
    """Read the record of the run on a GPU; empty where there is none."""
    if not GPU_TIMES.exists():
        return {}
    return json.loads(GPU_TIMES.read_text("utf-8"))


def _run_of(env, docname):
    """Return how a notebook ran in this build, or None."""
    return NbMetadataCollector.get_exec_data(env, docname)


def _failed(env, docname):
    run = _run_of(env, docname)
    return run is not None and not run["succeeded"]


def reading_minutes(doctree):
    """Estimate how long the text and the shown code take to read."""
    words = lines = 0
    for cell in doctree.findall(nodes.container):
        classes = cell.get("classes", [])
        hidden = any("hide" in name or "remove" in name for name in classes)
        if "cell" in classes and not hidden:
            for part in cell.children:
                if "cell_input" in part.get("classes", []):
                    lines += len(part.astext().splitlines())
    for kind in (nodes.paragraph, nodes.title):
        for node in doctree.findall(kind):
            if not _in_output(node):
                words += len(node.astext().split())
    minutes = words / WORDS_PER_MINUTE + lines / CODE_LINES_PER_MINUTE
    return max(1, round(minutes))


def _in_output(node):
    """Whether a node was printed by a cell, not written by an author."""
    while node is not None:
        if "cell_output" in getattr(node, "attributes", {}).get("classes", []):
            return True
        node = node.parent
    return False


def running_note(run, minutes, gpu=None):
    """Write the line under a title.

    Parameters
    ----------
    run : dict or None
        Execution data of MyST-NB; None where the build ran nothing.
    minutes : int
        Reading time.
    gpu : tuple of (float or None, str), optional
        Seconds that the chapter took on a GPU machine, None if it put no
        work on the GPU, and the GPU's name.
    """
    reading = f"about {minutes} minute{'s' if minutes > 1 else ''} of reading"
    times, parts = [], []
    if run is not None and run.get("runtime") is not None:
        times.append(
            f"{_seconds(run['runtime'])} on {device()} here "
            f"(torch {_version('torch')}, Python {platform.python_version()})"
        )
    if gpu is not None and gpu[0] is not None:
        seconds, name = gpu
        times.append(f"{_seconds(seconds)} on a machine with a GPU ({name})")
    if times:
        parts.append(f"Runs in {', '.join(times)}")
    if gpu is not None and gpu[0] is None:
        parts.append("uses no GPU" if times else "Uses no GPU")
    parts.append(reading if parts else reading[0].upper() + reading[1:])
    return " · ".join(parts)


def _seconds(seconds):
    return f"{max(1, round(seconds))} s"


def device():
    """Name what the chapters run on, without importing torch."""
    return "CPU" if shutil.which("nvidia-smi") is None else "a GPU machine"


def add_running_note(app, doctree):
    """Insert the line about time under the title of a notebook's page."""
    docname = app.env.docname
    source = Path(app.env.doc2path(docname))
    section = doctree.next_node(nodes.section)
    if section is None or not isinstance(section[0], nodes.title):
        return
    if source.suffix != ".ipynb":
        return
    times, gpu = gpu_times(), None
    if source.stem in times.get("seconds", {}):
        used = times["used_gpu"][source.stem]
        seconds = times["seconds"][source.stem] if used else None
        gpu = seconds, times["device"]
    minutes = reading_minutes(doctree)
    text = running_note(_run_of(app.env, docname), minutes, gpu)
    section.insert(1, nodes.paragraph("", text, classes=["running-note"]))


class BuildVersions(SphinxDirective):
    """``{build-versions}``: what machine and versions made these pages."""

    def run(self):
        """Return a list of the versions that decide the numbers."""
        facts = [
            f"Python {platform.python_version()}",
            *(f"{name} {_version(name)}" for name in PACKAGES),
            f"{platform.system()}, {platform.machine()}",
            f"{os.cpu_count()} CPU cores",
        ]
        items = [
            nodes.list_item("", nodes.paragraph("", fact)) for fact in facts
        ]
        return [nodes.bullet_list("", *items)]


class GpuTimes(SphinxDirective):
    """``{gpu-times}``: each chapter's seconds on a machine with a GPU."""

    def run(self):
        """Return what is on record: the machine, then a row a chapter."""
        node = nodes.Element()
        lines = StringList(gpu_table(gpu_times()).splitlines(), "gpu-times")
        self.state.nested_parse(lines, self.content_offset, node)
        return node.children


def gpu_table(times):
    """Write the record of tools/gpu_times.py in words and as a table.

    Links are relative to the folder of the chapters.
    """
    if not times:
        return "No run on a GPU is on record."
    together = times["side_by_side"]
    many = f"{together} chapters" if together > 1 else "one chapter"
    rows = [
        f"| {{doc}}`{name}` | {seconds:.1f} | {_gpu_memory(times, name)} |"
        for name, seconds in times["seconds"].items()
    ]
    machine = (
        f"{times['device']} and {times['cores']} CPU cores, {many} at a "
        f"time, on {times['date']}; Python {times['python']}, "
        f"torch {times['torch']}, transformers {times['transformers']}."
    )
    head = "| Chapter | Run time (s) | GPU memory |\n|---|---|---|"
    note = (
        "Where the GPU was not used, the chapter computes on the CPU "
        "wherever it runs."
    )
    return "\n".join([machine, "", head, *rows, "", note])


def _gpu_memory(times, name):
    """Say how much of the GPU a chapter filled, if it used it at all."""
    if not times["used_gpu"][name]:
        return "not used"
    return f"{max(1, round(times['gpu_megabytes'][name]))} MB"


def copy_mathjax(app):
    """Copy MathJax with its fonts beside the pages that use it."""
    if app.builder.format != "html":
        return
    try:
        package = metadata.distribution("sphinx-mathjax-offline")
    except metadata.PackageNotFoundError:
        logger.warning("MathJax: pip install sphinx-mathjax-offline")
        return
    source = Path(package.locate_file("sphinx-mathjax-offline/static/mathjax"))
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX_PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / part, target / part)


def drop_needless_scripts(app, pagename, templatename, context, doctree):
    """Keep one of equal scripts and none of Thebe, which is switched off.

    Jupyter Book sets Thebe's constants twice on every page; browsers report
    the second `const` as an error.
    """
    seen, kept = set(), []
    for script in context.get("script_files", []):
        filename = str(getattr(script, "filename", script) or "")
        attributes = dict(getattr(script, "attributes", {}))
        body = attributes.get("body") or ""
        key = (filename, body)
        if "thebe" in filename or "THEBE" in body or key in seen:
            continue
        seen.add(key)
        kept.append(script)
    context["script_files"] = kept


# An element of a figure that holds code, and the parts of the code: see
# dblm_lib/widgets/code.py. A part goes on to the next one.
CODE = re.compile(r"<(style|script)>(/\*dblm .*?)</\1>\n?", re.DOTALL)
PART = re.compile(r"/\*dblm (\S+)\*/.*?(?=/\*dblm |\Z)", re.DOTALL)


def keep_code_once(html):
    """Return a page on which each part of the figures' code stands once.

    An output of a notebook carries all that its figure needs. On a page the
    first copy serves all figures: a style reaches the whole page, a script
    starts the figures below it when the page has been read. Where two
    figures come with different versions of a part (outputs of two versions
    of the library), all stay as they are: the versions need not agree.
    """
    parts = {
        (part[1], part[0])
        for code in CODE.finditer(html)
        for part in PART.finditer(code[2])
    }
    if len({name for name, _ in parts}) < len(parts):
        return html
    seen = set()

    def keep(code):
        names = {part[1]: part[0] for part in PART.finditer(code[2])}
        new = [name for name in names if name not in seen]
        seen.update(new)
        kept = "".join(names[name] for name in new)
        return f"<{code[1]}>{kept}</{code[1]}>\n" if kept else ""

    return CODE.sub(keep, html)


def share_figure_code(app, pagename, templatename, context, doctree):
    """Write the code of a page's figures once."""
    if "body" in context:
        context["body"] = keep_code_once(context["body"])


# One icon in the theme's script: name, size, other names, code, path.
ICON = re.compile(
    r'"?([\w-]+)"?:\[\d+,\d+,\[([^\]]*)\],"\w+",'
    r'(?:"[^"]*"|\[(?:"[^"]*",?)*\])\],?'
)


def keep_icons(script, used):
    """Return the icon script with the icons in ``used`` only.

    A script of another form than expected is returned as it is.
    """
    if len(ICON.findall(script)) < 1000:
        return script

    def choose(icon):
        names = {icon[1], *re.findall(r'"([\w-]+)"', icon[2])}
        return icon[0] if names & used else ""

    return ICON.sub(choose, script)


def drop_unused_icons(app, exception):
    """Make the theme's 1.5 MB of icons the few kilobytes that are used."""
    static = Path(app.outdir) / "_static"
    target = static / "scripts" / "fontawesome.js"
    if exception or app.builder.format != "html" or not target.exists():
        return
    source = THEME / "scripts" / "fontawesome.js"
    pages = [*Path(app.outdir).rglob("*.html"), *static.rglob("*.js")]
    used = set()
    for page in pages:
        if page.name != "fontawesome.js" and "mathjax" not in page.parts:
            used |= set(
                re.findall(r"\bfa-([a-z0-9-]+)", page.read_text("utf-8"))
            )
    script = keep_icons(source.read_text("utf-8"), used)
    target.write_text(script, "utf-8")


def setup(app):
    """Connect the parts above to the build."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DBLM_QUIET", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app.add_directive("build-versions", BuildVersions)
    app.add_directive("gpu-times", GpuTimes)
    app.connect("builder-inited", copy_mathjax)
    app.connect("env-get-outdated", outdated_chapters)
    app.connect("doctree-read", add_running_note)
    app.connect("build-finished", drop_unused_icons)
    app.connect("html-page-context", share_figure_code)
    app.connect("html-page-context", drop_needless_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
