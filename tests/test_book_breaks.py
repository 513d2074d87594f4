"""The breaks on the page about testing are possible, listed and noticed."""

from pathlib import Path

import break_on_purpose as breaks
import marked
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("fault", breaks.BREAKS, ids=lambda f: f.file)
def test_each_break_still_has_its_place(fault):
    source = (ROOT / fault.file).read_text("utf-8")
    assert source.count(fault.old) == 1
    assert fault.new not in source
    assert all((ROOT / target).is_file() for target in fault.targets)


def test_the_page_names_what_noticed_each_break():
    rows = marked.read(breaks.TABLE)
    for fault in breaks.BREAKS:
        (row,) = [r for r in rows.splitlines() if fault.meaning in r]
        named = row.split("|")[3]
        assert any(Path(target).name in named for target in fault.targets)


@pytest.mark.slow
def test_a_break_is_noticed_now():
    assert breaks.first_failure(breaks.BREAKS[0])


def test_a_place_that_is_gone_is_said(tmp_path):
    fault = breaks.Break("x", "dblm_lib/tales.py", "no such line", "y", ())
    with pytest.raises(SystemExit, match="mend the list"):
        breaks.copy_with(fault, tmp_path)
