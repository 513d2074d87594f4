"""What a setting may be, and the words with which others are refused."""

import math

import numpy as np
import pytest

from dblm_lib import checks


@pytest.mark.parametrize("value", [1, 7, np.int64(3), 10**30])
def test_whole_numbers_are_taken(value):
    assert checks.is_whole(value)
    checks.check_whole("steps", value)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None, math.inf])
def test_others_are_refused_with_their_name(value):
    assert not checks.is_whole(value)
    words = f"^steps must be a whole number of at least 1; got {value!r}$"
    with pytest.raises(ValueError, match=words):
        checks.check_whole("steps", value)


def test_the_least_may_be_another():
    checks.check_whole("rest", 0, least=0)
    with pytest.raises(ValueError, match="rest .* at least 2; got 1"):
        checks.check_whole("rest", 1, least=2)


@pytest.mark.parametrize(
    ("value", "number"),
    [(0, True), (-1.5, True), (np.float32(2), True), (True, False)]
    + [(math.nan, False), (math.inf, False), ("1", False), (None, False)],
)
def test_numbers_are_finite_and_real(value, number):
    assert checks.is_number(value) is number


def test_differences_are_named_entry_by_entry():
    stored = {"steps": 3, "model": {"dim": 8, "head": "a"}, "old": 1}
    asked = {"steps": 4, "model": {"dim": 8, "head": "b"}, "new": 2}
    assert checks.differences(stored, asked) == [
        "3 steps, not 4",
        "'a' head, not 'b'",
        "1 old, not without",
        "no new, not 2",
    ]
    assert checks.differences(stored, stored) == []
