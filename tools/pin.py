"""Write constraints.txt: the versions in this environment that the book uses.

    .venv/bin/python tools/pin.py

Walks from the requirements in pyproject.toml (all extras) to everything they
need here. Run it in an environment whose tests have just passed.
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# The set of versions this book was tested with; written by tools/pin.py.
# Use: pip install -c constraints.txt -e '.[book,test]'
"""


def canonical(name):
    """Return a project's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(text):
    """Return the requirements in the text of a pyproject.toml."""
    project = tomllib.loads(text)["project"]
    extras = project.get("optional-dependencies", {}).values()
    lines = project["dependencies"] + [x for extra in extras for x in extra]
    return [Requirement(line) for line in lines]


def closure(requirements, own="dblm"):
    """Return {name: version} of all that ``requirements`` need here."""
    pins, queue = {}, list(requirements)
    visited = set()
    while queue:
        requirement = queue.pop()
        name = canonical(requirement.name)
        key = (name, frozenset(requirement.extras))
        if name == own or key in visited:
            continue
        visited.add(key)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform or extra
        # +cpu names one build of the same version
        pins[name] = found.version.split("+")[0]
        queue += _needs(found, requirement.extras)
    return dict(sorted(pins.items()))


def _needs(distribution, extras):
    """List what ``distribution`` with ``extras`` requires here."""
    requirements = [Requirement(r) for r in distribution.requires or []]
    environments = [{"extra": extra} for extra in (extras or {""})]
    return [
        r
        for r in requirements
        if not r.marker or any(r.marker.evaluate(e) for e in environments)
    ]


def main():
    """Write the file and say what is missing here."""
    requirements = wanted((ROOT / "pyproject.toml").read_text("utf-8"))
    pins = closure(requirements)
    lines = [f"{name}=={version}\n" for name, version in pins.items()]
    (ROOT / "constraints.txt").write_text(HEAD + "".join(lines), "utf-8")
    missing = {canonical(r.name) for r in requirements} - {*pins, "dblm"}
    if missing:
        print(f"not installed here: {', '.join(sorted(missing))}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
