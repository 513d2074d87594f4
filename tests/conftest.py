"""What several files of tests about the command line begin with."""

import functools

import pytest
from command import MASKED, PROPOSAL
from small_book import small_book

from dblm_lib import cli, tales, text


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A small book in place of the real one; each text is loaded once."""
    root = tmp_path_factory.mktemp("book") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBLM_DATA", str(small_book(root)))
        patch.setattr(text, "load", functools.cache(text.load))
        yield root


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A reader's own file with 40 texts."""
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n\n".join(tales.corpus(40, seed=3)), "utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, stories):
    """The folder of a finished run of three steps, of the proposal."""
    return _run(tmp_path_factory, stories, PROPOSAL)


@pytest.fixture(scope="module")
def filling(tmp_path_factory, stories):
    """The same of a model that fills masks."""
    return _run(tmp_path_factory, stories, MASKED)


@pytest.fixture(scope="module", params=["trained", "filling"])
def either(request):
    """Settings of a quick run of one part, and the folder it has left."""
    settings = {"trained": PROPOSAL, "filling": MASKED}[request.param]
    return settings, request.getfixturevalue(request.param)


def _run(tmp_path_factory, stories, settings):
    out = tmp_path_factory.mktemp("runs") / "my-run"
    settings = ["--text", str(stories), *settings]
    assert cli.main(["train", "--out", str(out), *settings]) == 0
    return out
