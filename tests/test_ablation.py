"""A run is made once, kept with what it was asked for, and read back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dblm_lib import ablation, resources

RUN = ablation.Run("0 broken: noise", {"causal": True}, {"steps": 3})


def no_more():
    pytest.fail("it is there already")


def test_a_run_is_made_once_and_kept_as_one_file(tmp_path):
    folder = tmp_path / "new" / "runs"
    found = ablation.result(RUN, lambda: {"score": 0.1}, folder)
    assert found == {"score": 0.1}
    (file,) = folder.iterdir()
    assert file.name == "0 broken noise.json"
    assert ablation.result(RUN, no_more, folder) == found


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ablation.result(RUN, lambda: 7) == 7
    assert ablation.result(RUN, lambda: 8) == 8
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        ablation.result(RUN, lambda: 1 / 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_into_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        ablation.result(RUN, lambda: {1, 2}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b"[1, 2]",
        b'{"scores": [1]}',
        b'{"asked": 3, "found": 4}',
        b'{"asked": null, "found": 4}',
        b"\xff\xfe",
        b"",
    ],
)
def test_a_file_of_somebody_else_is_refused_and_stays(tmp_path, content):
    file = RUN.file(tmp_path)
    file.write_bytes(content)
    with pytest.raises(resources.DataError, match="no record of a run"):
        ablation.result(RUN, no_more, tmp_path)
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_of_that_name_is_refused_and_stays(tmp_path):
    RUN.file(tmp_path).mkdir()
    (RUN.file(tmp_path) / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(resources.DataError, match="no record of a run"):
        ablation.result(RUN, no_more, tmp_path)
    assert (RUN.file(tmp_path) / "notes.txt").read_text("utf-8") == "mine"


def test_each_difference_is_named(tmp_path):
    ablation.result(RUN, lambda: 1, tmp_path)
    other = ablation.Run(
        RUN.name, {"causal": False, "head": "mixture"}, {"seed": 0}
    )
    with pytest.raises(resources.DataError) as error:
        ablation.result(other, no_more, tmp_path)
    for said in (
        "True causal, not False",
        "no head, not 'mixture'",
        "3 steps, not without",
        "no seed, not 0",
    ):
        assert said in str(error.value)
    assert ablation.result(RUN, no_more, tmp_path) == 1


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
TREES = st.dictionaries(
    st.text(max_size=2),
    st.recursive(
        VALUES,
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.text(max_size=2), inner, max_size=2)
        ),
        max_leaves=4,
    ),
    max_size=3,
)


@given(TREES, TREES)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_differences_are_there_exactly_if_two_differ(one, other):
    assert bool(ablation.differences(one, other)) == (one != other)
    assert not ablation.differences(one, one)


def test_tuples_are_the_lists_that_come_back(tmp_path):
    run = ablation.Run("a", {"levels": (1.0, 2.0)})
    ablation.result(run, lambda: 1, tmp_path)
    assert ablation.result(run, no_more, tmp_path) == 1
