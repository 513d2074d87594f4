"""What several files of tests about the command line begin with."""

import pytest
from command import PROPOSAL

from dblm_lib import cli, tales


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A reader's own file with 40 texts."""
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n\n".join(tales.corpus(40, seed=3)), "utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, stories):
    """The folder of a finished run of three steps, of the proposal."""
    out = tmp_path_factory.mktemp("runs") / "my-run"
    settings = ["--text", str(stories), *PROPOSAL]
    assert cli.main(["train", "--out", str(out), *settings]) == 0
    return out
