"""The popular measures: against their definitions, and what fools them."""

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dblm_lib import metrics, popular, resources, tales, text

WORDS = [list("abcab"), list("abd"), list("babcc")]


@pytest.fixture(scope="module")
def judge():
    return resources.load_backbone("tales-gpt2")


def clouds(count=200, dim=16, moved=0.0, seed=0):
    """Features of two writers, the first of them moved along one axis."""
    dice = np.random.default_rng(seed)
    found, real = dice.standard_normal((2, count, dim)) * np.linspace(
        2, 1, dim
    )
    found[:, 0] += moved
    return torch.tensor(found), torch.tensor(real)


# --- counting tokens --------------------------------------------------------


def test_the_entropy_of_a_text_sees_no_other_text():
    mean, error = popular.sample_entropy([list("abab"), list("abcd")])
    assert mean == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert error == pytest.approx((math.log(4) - math.log(2)) / 2)
    same = popular.sample_entropy([list("abcd")] * 5)
    assert same == pytest.approx((math.log(4), 0))
    assert metrics.token_entropy([list("ab"), list("cd")]) > math.log(3)
    assert popular.sample_entropy([list("ab"), list("cd")])[0] == (
        pytest.approx(math.log(2))
    )


def test_an_empty_text_has_no_entropy():
    assert popular.sample_entropy([[], []]) == (0.0, 0.0)
    assert popular.sample_entropy([list("ab")])[1] == 0


def bleu(hypothesis, references, n):
    """By the definition, gram by gram."""
    log = 0.0
    for order in range(1, n + 1):
        grams = [hypothesis[i : i + order] for i in range(len(hypothesis))]
        grams = ["".join(g) for g in grams if len(g) == order]
        hits = 0
        for gram in set(grams):
            most = max(
                sum(
                    "".join(r[i : i + order]) == gram
                    for i in range(len(r) - order + 1)
                )
                for r in references
            )
            hits += min(grams.count(gram), most)
        log += math.log((hits or 0.1) / max(1, len(grams))) / n
    gaps = sorted((abs(len(r) - len(hypothesis)), len(r)) for r in references)
    nearest = gaps[0][1]
    if len(hypothesis) < nearest:
        log += 1 - nearest / len(hypothesis)
    return math.exp(log)


@given(
    st.lists(
        st.lists(st.sampled_from("abc"), min_size=1, max_size=8),
        min_size=2,
        max_size=5,
    ),
    st.integers(1, 4),
)
def test_self_bleu_is_bleu_against_all_others(rows, n):
    found = popular.self_bleu(rows, n)
    wanted = [
        bleu(row, rows[:i] + rows[i + 1 :], n) for i, row in enumerate(rows)
    ]
    assert found == pytest.approx(np.mean(wanted))


def test_self_bleu_is_1_where_all_stands_twice():
    row = list("abcdefg")
    assert popular.self_bleu([row, row]) == pytest.approx(1)
    assert popular.self_bleu(WORDS) < 1


def test_the_divergence_of_ngrams_is_that_of_jensen_and_shannon():
    p = popular.ngram_divergence([list("ab")], [list("cd")], 1)
    assert p == pytest.approx(math.log(2))
    assert popular.ngram_divergence(WORDS, WORDS, 2) == 0
    one, other = Counter("aab"), Counter("abb")
    middle = {"a": 0.5, "b": 0.5}
    wanted = sum(
        counts[c] / 3 * math.log(counts[c] / 3 / middle[c]) / 2
        for counts in (one, other)
        for c in "ab"
    )
    found = popular.ngram_divergence([list("aab")], [list("abb")], 1)
    assert found == pytest.approx(wanted)


# --- MAUVE ------------------------------------------------------------------


def test_states_are_those_of_the_last_token(judge):
    texts = text.load("tales", size=1).valid[:3]
    found = popular.states(*judge, texts)
    for words, state in zip(texts, found, strict=True):
        ids = judge.tokenizer(words)["input_ids"]
        ids = torch.tensor([[judge.tokenizer.eos_token_id, *ids]])
        with torch.no_grad():
            hidden = judge.model(ids, output_hidden_states=True).hidden_states
        assert torch.allclose(hidden[-1][0, -1], state, atol=1e-4)
    one = popular.states(*judge, texts, batch_size=1)
    assert torch.allclose(one, found, atol=1e-4)


def test_k_means_finds_what_is_apart():
    middles = torch.tensor([[0.0, 0], [9, 0], [0, 9]]).double()
    noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    wanted = torch.arange(60) % 3
    labels = popular.k_means(middles[wanted] + noise, 3)
    pairs = set(zip(labels.tolist(), wanted.tolist()))
    assert len(pairs) == 3


def test_k_means_takes_the_best_of_its_restarts():
    points = torch.randn(80, 4, generator=torch.Generator().manual_seed(1))

    def cost(labels):
        return sum(
            ((points[labels == k] - points[labels == k].mean(0)) ** 2).sum()
            for k in set(labels.tolist())
        ).item()

    many = cost(popular.k_means(points, 6, restarts=20))
    assert many <= cost(popular.k_means(points, 6, restarts=1)) + 1e-6


def test_shares_add_up_and_equal_sets_agree():
    found, real = clouds()
    for shares in popular.quantise(found, real, 10):
        assert shares.shape == (10,)
        assert shares.sum().item() == pytest.approx(1)
    p, q = popular.quantise(found, found, 10)
    assert torch.equal(p, q)
    assert popular.mauve(found, found) == pytest.approx(1)
    assert popular.quantise(found, real[:50])[0].shape == (5,)


def test_mauve_falls_with_the_distance():
    found = [popular.mauve(*clouds(moved=gap)) for gap in (0, 2, 6)]
    assert found[0] > 0.8
    assert found[0] > found[1] + 0.1 > found[2] + 0.2


@pytest.mark.parametrize("seed", range(3))
def test_mauve_equals_the_package_mauve_text_on_the_same_shares(seed):
    """What follows the clusters is compared: curve, area, scale."""
    theirs = pytest.importorskip(
        "mauve.compute_mauve", reason="mauve-text is not installed"
    )
    dice = np.random.default_rng(seed)
    p, q = dice.dirichlet(np.full(12, 0.3), 2)
    p[:3] = 0  # clusters that one of them does not reach
    p /= p.sum()
    curve = theirs.get_divergence_curve_for_multinomials(
        p, q, np.linspace(1e-6, 1 - 1e-6, 25), 5
    )
    ours = popular.divergence_curve(torch.tensor(p), torch.tensor(q))
    assert np.allclose(curve, ours.numpy(), atol=1e-12)
    x, y = curve.T
    area = theirs.compute_area_under_curve
    one, other = np.argsort(x), np.argsort(y)
    wanted = area(x[one], y[one]) / 2 + area(y[other], x[other]) / 2
    found = popular.mauve_of_shares(torch.tensor(p), torch.tensor(q))
    assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("moved", [0.0, 2.0, 4.0])
def test_mauve_is_near_the_package_mauve_text_on_the_same_features(moved):
    """Their k-means starts elsewhere: only near, over some seeds."""
    theirs = pytest.importorskip("mauve", reason="mauve-text is not installed")
    found, real = clouds(300, moved=moved)
    wanted = [
        theirs.compute_mauve(
            found.numpy(), real.numpy(), num_buckets=15, seed=seed
        ).mauve
        for seed in range(4)
    ]
    ours = [popular.mauve(found, real, 15, seed) for seed in range(4)]
    error = np.hypot(np.std(wanted), np.std(ours)) / math.sqrt(3)
    assert abs(np.mean(ours) - np.mean(wanted)) < 4 * error + 0.01


def test_the_area_by_hand():
    """Two distributions without a common cluster."""
    p, q = torch.tensor([1.0, 0]).double(), torch.tensor([0, 1.0]).double()
    curve = popular.divergence_curve(p, q, scale=1.0, points=3)
    # r = w p + (1 - w) q, so exp(-KL(q || r)) = 1 - w and the other one w.
    ends = (1 - 1e-6, 0.5, 1e-6)
    assert np.allclose(curve[1:4, 0], ends)
    assert np.allclose(curve[1:4, 1], ends[::-1])
    assert popular.mauve_of_shares(p, q, 1.0) == pytest.approx(0.5, abs=1e-3)
    assert popular.mauve_of_shares(p, q) < 0.01


# --- telling two sets apart -------------------------------------------------


def test_equal_writers_are_not_told_apart():
    found = popular.two_sample_test(*clouds(300))
    assert found.total == 600
    assert abs(found.accuracy - 0.5) < 0.1
    assert abs(found.area - 0.5) < 0.1


def test_moved_writers_are_told_apart():
    some = popular.two_sample_test(*clouds(200, moved=3))
    more = popular.two_sample_test(*clouds(200, moved=8))
    assert 0.65 < some.accuracy < more.accuracy
    assert 0.7 < some.area < more.area
    assert more.area > 0.95


def test_columns_that_are_always_zero_change_nothing():
    """The points of many columns are turned into a smaller space."""
    found, real = clouds(30, moved=2)
    wide = [
        torch.cat([part, part.new_zeros(30, 99)], 1) for part in (found, real)
    ]
    plain, turned = (
        popular.two_sample_test(*p) for p in ((found, real), wide)
    )
    assert plain.right == turned.right
    assert plain.area == pytest.approx(turned.area, abs=1e-3)


def test_unequal_sizes_do_not_decide_the_accuracy():
    found, real = clouds(300)
    result = popular.two_sample_test(found[:60], real)
    assert abs(result.area - 0.5) < 0.15
    assert result.total == 360


def test_the_bag_holds_what_a_text_holds():
    found, real = popular.bag_of_ngrams([list("abz")], [list("ab"), "ba"])
    grams = {("a",), ("b",), ("a", "b")}  # z and ba stand in one text only
    assert found.shape == (1, len(grams))
    assert found.sum() == 3
    assert real.sum(1).tolist() == [3, 2]


def test_texts_that_stand_twice_are_learnt_by_heart():
    """Why a tiled batch is told apart: its halves meet in training."""
    found, real = clouds(200, dim=64)
    plain = popular.two_sample_test(found, real)
    tiled = popular.two_sample_test(found[:50].repeat(4, 1), real)
    assert tiled.area > plain.area + 0.15


# --- novelty ----------------------------------------------------------------


def test_the_nearest_tale_is_counted_in_slots():
    rng = random.Random(0)
    known = [tales.sample(rng) for _ in range(300)]
    assert popular.nearest(known[:5], known).tolist() == [0] * 5
    from dataclasses import replace

    girls = [tale for tale in known if tale.gender == "girl"]
    other = next(t.hero for t in girls if t.hero != girls[0].hero)
    near = replace(girls[0], hero=other)
    assert popular.nearest([near], known).item() in (0, 1)
    fresh = [tales.sample(rng) for _ in range(50)]
    assert popular.nearest(fresh, known).double().mean() > 3


def test_the_nearest_is_the_smallest_number_of_differences():
    rng = random.Random(1)
    known, found = ([tales.sample(rng) for _ in range(20)] for _ in range(2))
    wanted = [
        min(
            sum(
                a != b
                for a, b in zip(vars(one).values(), vars(other).values())
            )
            for other in known
        )
        for one in found
    ]
    assert popular.nearest(found, known).tolist() == wanted


# --- refusals ---------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: popular.sample_entropy([]),
        lambda: popular.self_bleu([list("ab")]),
        lambda: popular.self_bleu(WORDS, 0),
        lambda: popular.ngram_divergence([["a"]], WORDS, 2),
        lambda: popular.ngram_divergence(WORDS, WORDS, 1.5),
        lambda: popular.states(None, None, []),
        lambda: popular.states(None, None, "a text"),
        lambda: popular.k_means(torch.zeros(3, 2), 4),
        lambda: popular.k_means(torch.zeros(3, 2), 0),
        lambda: popular.two_sample_test(torch.zeros(3, 2), torch.ones(9, 2)),
        lambda: popular.two_sample_test(*clouds(9), folds=1),
        lambda: popular.nearest([], []),
    ],
)
def test_what_means_nothing_is_refused(call):
    with pytest.raises(ValueError, match=r"\S+ \S+"):
        call()


def test_measures_do_not_touch_the_global_random_numbers():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    found, real = clouds(60)
    for _ in itertools.repeat(None, 2):
        popular.mauve(found, real, 5)
        popular.two_sample_test(found, real)
    assert torch.equal(before, torch.random.get_rng_state())
