"""Measures of generated text: chapters 5 and 7.

Counts are checked by hand, likelihoods against transformers' own loss,
intervals against published ones and by repetition.
"""

import itertools
import json
import math
import random
import statistics
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import metrics, resources, tales, text

tokens = st.lists(st.integers(0, 6), min_size=1, max_size=30)
texts_of_tokens = st.lists(tokens, min_size=1, max_size=5)


# --- distinct-n -------------------------------------------------------------


@pytest.mark.parametrize(
    "sequences, n, share",
    [
        ([["the", "the", "the", "the"]], 1, 1 / 4),
        ([["the", "the", "the", "the"]], 2, 1 / 3),
        ([[1, 2, 3, 4]], 1, 1),
        ([[1, 2, 1, 2, 3]], 2, 3 / 4),
        ([[1, 2], [1, 2]], 2, 1 / 2),
        ([[1, 2], [3, 4]], 2, 1),
        ([[1], [1, 2, 3]], 3, 1),  # the first holds no run of three
        (["aab"], 1, 2 / 3),
    ],
)
def test_distinct_by_hand(sequences, n, share):
    """Runs overlap, and none reaches across the end of a text."""
    assert metrics.distinct_n(sequences, n) == pytest.approx(share)


@given(sequences=texts_of_tokens, n=st.integers(1, 4))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_distinct_properties(sequences, n):
    """Between 0 and 1; a text twice over halves it; names do not matter."""
    if all(len(row) < n for row in sequences):
        with pytest.raises(ValueError, match=f"holds {n} tokens"):
            metrics.distinct_n(sequences, n)
        return
    share = metrics.distinct_n(sequences, n)
    assert 0 < share <= 1
    assert metrics.distinct_n(sequences * 2, n) == pytest.approx(share / 2)
    renamed = [[f"w{token}" for token in row] for row in sequences]
    assert metrics.distinct_n(renamed, n) == share
    assert metrics.distinct_n(sequences[::-1], n) == share


@pytest.mark.parametrize("n", [0, -1])
def test_distinct_refuses_empty_runs(n):
    """A run of no tokens means nothing."""
    with pytest.raises(ValueError, match=f"at least 1; got {n}"):
        metrics.distinct_n([[1, 2]], n)


# --- the commonest token ----------------------------------------------------


@pytest.mark.parametrize(
    "sequences, token, share",
    [
        ([["the", "dog", "the"]], "the", 2 / 3),
        ([[1, 1, 2], [2, 2]], 2, 3 / 5),
        ([[7]], 7, 1),
        ([[3, 4]], 3, 1 / 2),  # a tie: the one met first
        ([[], [5]], 5, 1),
    ],
)
def test_top_token_by_hand(sequences, token, share):
    """The token and its share of all tokens."""
    assert metrics.top_token_share(sequences) == (token, pytest.approx(share))


@given(sequences=texts_of_tokens)
@settings(deadline=None, derandomize=True, max_examples=100)
def test_top_token_properties(sequences):
    """It is as common as it says, and none is commoner."""
    token, share = metrics.top_token_share(sequences)
    flat = [t for row in sequences for t in row]
    assert share == pytest.approx(flat.count(token) / len(flat))
    assert share >= max(flat.count(t) for t in flat) / len(flat) - 1e-12
    assert share >= 1 / len(set(flat)) - 1e-12
    # Few tokens with one common among them: the two measures are tied.
    assert share <= 1 - metrics.distinct_n(sequences, 1) + 1 / len(flat) + 1e-9


@pytest.mark.parametrize("sequences", [[], [[]], [[], []]])
def test_nothing_to_count_is_refused(sequences):
    """Rather than a share of nothing."""
    with pytest.raises(ValueError, match="no tokens"):
        metrics.top_token_share(sequences)


# --- entropy, repeats, distinct texts, copies -------------------------------


@pytest.mark.parametrize(
    "sequences, nats",
    [
        ([["the", "the", "the"]], 0),
        ([[1, 2], [3, 4]], math.log(4)),
        ([[1, 1, 2, 2]], math.log(2)),
        # -(3/4 log 3/4 + 1/4 log 1/4)
        ([[1, 1], [1, 2]], 0.5623351446),
    ],
)
def test_token_entropy_by_hand(sequences, nats):
    """In nats, over the tokens of all sequences together."""
    assert metrics.token_entropy(sequences) == pytest.approx(nats)


@given(sequences=texts_of_tokens)
@settings(deadline=None, derandomize=True, max_examples=100)
def test_token_entropy_properties(sequences):
    """At most the log of the number of tokens; order plays no part."""
    nats = metrics.token_entropy(sequences)
    different = {t for row in sequences for t in row}
    assert -1e-12 <= nats <= math.log(len(different)) + 1e-12
    shuffled = [sorted(row) for row in sequences[::-1]]
    assert metrics.token_entropy(shuffled) == pytest.approx(nats)
    _, share = metrics.top_token_share(sequences)
    assert nats >= -math.log(share) - 1e-12  # the commonest is a lower bound
    with pytest.raises(ValueError, match="no tokens"):
        metrics.token_entropy([[]])


@pytest.mark.parametrize(
    "sequences, share",
    [
        ([["the", "the", "the", "dog"]], 2 / 3),
        ([[1, 2], [2, 3]], 0),  # no neighbours across texts
        ([[1, 1], [1, 2]], 1 / 2),
        ([[1], []], 0),
        ([[1, 2, 1, 2]], 0),
    ],
)
def test_repeats_by_hand(sequences, share):
    """Tokens equal to their left neighbour, of those that have one."""
    assert metrics.repeat_share(sequences) == pytest.approx(share)


def test_distinct_and_copied_texts():
    """Letter for letter."""
    texts = ["a", "b", "a", "a"]
    assert metrics.distinct_share(texts) == 1 / 2
    assert metrics.copied_share(texts, ["a", "c"]) == 3 / 4
    assert metrics.copied_share(texts, {"A", "b "}) == 0
    assert metrics.copied_share(texts, iter(["b"])) == 1 / 4
    for measure in (
        metrics.distinct_share,
        lambda texts: metrics.copied_share(texts, ["a"]),
    ):
        with pytest.raises(ValueError, match="no texts"):
            measure([])


# --- intervals --------------------------------------------------------------


@pytest.mark.parametrize(
    "successes, total, low, high",
    [
        # Newcombe (1998), Table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_of_shares_as_published(successes, total, low, high):
    """Wilson's interval, also where nothing or all succeeded."""
    found = metrics.interval(successes, total)
    assert found == pytest.approx((low, high), abs=5e-5)
    other = metrics.interval(total - successes, total)
    assert other == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(total=st.integers(1, 3000), share=st.floats(0, 1))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_intervals_hold_their_share(total, share):
    """Within [0, 1], around the share, and narrower with more texts."""
    successes = round(share * total)
    low, high = metrics.interval(successes, total)
    assert 0 <= low <= successes / total <= high <= 1
    finer = metrics.interval(4 * successes, 4 * total)
    assert finer[1] - finer[0] < high - low


def test_intervals_hold_the_truth_as_often_as_they_say():
    """About 95 of 100 times, at a share where the usual formula fails."""
    rng = random.Random(0)
    truth, total, runs = 0.97, 100, 2000
    hits = 0
    for _ in range(runs):
        low, high = metrics.interval(
            sum(rng.random() < truth for _ in range(total)), total
        )
        hits += low <= truth <= high
    assert 0.93 < hits / runs < 0.99


@pytest.mark.parametrize("counts", [(-1, 5), (6, 5), (0, 0)])
def test_intervals_of_no_share_are_refused(counts):
    """Also when there is nothing to count."""
    with pytest.raises(ValueError, match="successes"):
        metrics.interval(*counts)


def test_interval_of_a_mean():
    """Two standard errors to each side, nearly."""
    low, high = metrics.mean_interval(3, 0.5)
    assert (low, high) == pytest.approx((2.02, 3.98), abs=1e-3)
    assert metrics.mean_interval(3, 0) == (3, 3)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    """Each row a group: then the two formulas are one (Tukey, 1958)."""
    rng = random.Random(1)
    rows = [rng.gauss(0, 2) for _ in range(40)]
    found = metrics.jackknife(statistics.fmean, rows, groups=40)
    assert found == pytest.approx(statistics.stdev(rows) / math.sqrt(40))
    assert metrics.jackknife(statistics.fmean, rows[:1]) == 0
    assert metrics.jackknife(len, rows * 5) == 0


@pytest.mark.parametrize(
    "measure",
    [
        metrics.token_entropy,
        metrics.repeat_share,
        lambda rows: metrics.distinct_n(rows, 2),
    ],
)
def test_the_jackknife_sees_what_repetition_sees(measure):
    """Its error is the spread of the measure over fresh draws."""

    def draw(seed):
        rng = random.Random(seed)
        return [rng.choices(range(30), range(1, 31), k=15) for _ in range(100)]

    spread = statistics.stdev(measure(draw(seed)) for seed in range(60))
    errors = [metrics.jackknife(measure, draw(seed)) for seed in range(10)]
    assert 0.6 < statistics.fmean(errors) / spread < 1.6


# --- coherence --------------------------------------------------------------


def test_coherent_share_counts_and_names():
    """Whole tales pass; broken ones are counted under what broke."""
    good = tales.corpus(6, seed=3)
    assert metrics.coherent_share(good) == (1.0, Counter())
    spoilt = "The the the"
    share, broken = metrics.coherent_share([*good, spoilt, spoilt])
    assert share == pytest.approx(6 / 8)
    assert broken == Counter({tales.check(spoilt).broken: 2})


def test_coherent_share_of_nothing_is_refused():
    """No texts, no share."""
    with pytest.raises(ValueError, match="no texts"):
        metrics.coherent_share([])


TALE = (
    "Once upon a time, in a land far, far away... Lily and her small fox "
    "took a red kite to the forest. But the red kite fell into the river! "
    "Lily was sad and cried. Then the fox used a net. And that was that!"
)


def test_agreements_are_counted_text_by_text():
    """Kept, broken, broken first, or not put to the test."""
    assert tales.check(TALE).ok
    one = TALE.replace("Then the fox", "Then the bear")
    two = one.replace("her small", "his small")
    found = metrics.agreements([TALE, TALE, one, two, "The the"])
    row = {"kept": 3, "broken": 1, "first": 1, "untested": 1}
    assert found["pronoun"] == row
    row = {"kept": 2, "broken": 2, "first": 1, "untested": 1}
    assert found["animal"] == row
    assert found["syntax"] == {
        "kept": 4,
        "broken": 1,
        "first": 1,
        "untested": 0,
    }
    assert all(sum(row.values()) - row["first"] == 5 for row in found.values())
    texts = [TALE, one, two, "x"]
    _, broken = metrics.coherent_share(texts)
    first = {k: v["first"] for k, v in metrics.agreements(texts).items()}
    assert broken == Counter(first) - Counter()


# --- likelihood -------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    """The tokenizer of the tales."""
    try:
        return resources.load_tokenizer("tales")
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")


@pytest.fixture(scope="module")
def model(tokenizer):
    """A lively random GPT-2 with the tales' vocabulary."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=96,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    gpt2 = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in gpt2.parameters():
            weight.normal_(0, 0.5)
    return gpt2


def test_nats_agree_with_transformers(model, tokenizer):
    """Each text alone, start and end token added, by the model's own loss."""
    texts = ["Once upon a time.", *text.load("tales", 1, 4).valid]
    end = tokenizer.eos_token_id
    nats = []
    for words in texts:
        ids = torch.tensor([[end, *tokenizer(words)["input_ids"], end]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.double()
        nats.append(loss.item() * (ids.shape[1] - 1))
    mean, error = metrics.nats_per_tale(model, tokenizer, texts)
    assert mean == pytest.approx(sum(nats) / len(nats), rel=1e-4)
    spread = torch.tensor(nats).std().item()
    assert error == pytest.approx(spread / math.sqrt(len(nats)), rel=1e-3)


def test_nats_do_not_depend_on_the_batches(model, tokenizer):
    """Padding beside a longer text changes nothing."""
    texts = ["Once upon a time.", *text.load("tales", 1, 4).valid]
    whole = metrics.nats_per_tale(model, tokenizer, texts)
    parts = metrics.nats_per_tale(model, tokenizer, texts, batch_size=2)
    assert whole == pytest.approx(parts, rel=1e-5)
    _, error = metrics.nats_per_tale(model, tokenizer, texts[:1])
    assert error == 0


def nats_by_hand(model, tokenizer, words, start=""):
    """Of each token but those of the start, by transformers' own loss."""
    end = tokenizer.eos_token_id
    row = [end, *tokenizer(words)["input_ids"], end]
    nats = []
    begin = 1 + len(tokenizer(start)["input_ids"])
    for i in range(begin, min(len(row), 1 + model.config.n_positions)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row[:i]])).logits[0, -1]
        nats.append(-logits.double().log_softmax(0)[row[i]].item())
    return nats


def test_the_judge_counts_tokens_not_texts(model, tokenizer):
    """The mean over all tokens, of texts of very different length."""
    texts = ["Once upon a time.", "", *text.load("tales", 1, 3).valid]
    nats = [nats_by_hand(model, tokenizer, words) for words in texts]
    assert len(nats[1]) == 1  # the end of an empty text
    flat = [n for row in nats for n in row]
    mean, error = metrics.judge(model, tokenizer, texts)
    assert mean == pytest.approx(statistics.fmean(flat), rel=1e-4)
    again = metrics.judge(model, tokenizer, texts, batch_size=2)
    assert again == pytest.approx((mean, error), rel=1e-4)
    assert metrics.judge(model, tokenizer, texts[:1])[1] == 0


def test_the_judges_error_is_the_spread_over_repetitions(model, tokenizer):
    """Texts are drawn at random, long and short; tokens within are not."""
    pool = [*tales.corpus(60, seed=5), *["Once upon a time."] * 60]
    per_text = [metrics.judge(model, tokenizer, [w])[0] for w in pool]
    assert statistics.stdev(per_text) > 0.05
    rng = random.Random(0)
    runs = [
        metrics.judge(model, tokenizer, rng.choices(pool, k=30))
        for _ in range(60)
    ]
    spread = statistics.stdev(mean for mean, _ in runs)
    assert 0.7 < statistics.fmean(e for _, e in runs) / spread < 1.4


def test_the_judge_reads_a_beginning_but_does_not_count_it(model, tokenizer):
    """As if its tokens cost nothing, and as if they were not there."""
    start = "Once upon a time, in a land far, far away..."
    wanted = nats_by_hand(model, tokenizer, TALE, start)
    mean, _ = metrics.judge(model, tokenizer, [TALE], [start])
    assert mean == pytest.approx(statistics.fmean(wanted), rel=1e-4)
    whole = metrics.judge(model, tokenizer, [TALE])
    assert metrics.judge(model, tokenizer, [TALE], [""]) == whole
    with pytest.raises(ValueError, match="1 texts need as many"):
        metrics.judge(model, tokenizer, [TALE], [start, start])
    with pytest.raises(ValueError, match="no texts"):
        metrics.judge(model, tokenizer, [])


def test_the_judge_takes_texts_of_any_length(model, tokenizer):
    """What its positions do not hold is left out of nats and of tokens."""
    long = "the garden " * 100
    wanted = nats_by_hand(model, tokenizer, long)
    assert len(wanted) == 96 < len(tokenizer(long)["input_ids"])
    mean, _ = metrics.judge(model, tokenizer, [long])
    assert mean == pytest.approx(statistics.fmean(wanted), rel=1e-4)
    canvas = tokenizer.decode(tokenizer(long)["input_ids"][:64])
    assert metrics.judge(model, tokenizer, [canvas])[0] > 0


# --- variety ----------------------------------------------------------------


def true_tales(count, seed=0):
    rng = random.Random(seed)
    return [tales.sample(rng) for _ in range(count)]


def test_told_reads_the_coherent_texts_only():
    texts = tales.corpus(5, seed=4)
    found = metrics.coherent_tales([texts[0], "The the.", *texts[1:], ""])
    assert found == [tales.parse(words) for words in texts]


def test_slot_distances_by_hand():
    """One tale: all weight on one option of each slot that it has."""
    tale = next(t for t in true_tales(20) if t.object is None)
    rows = metrics.slot_distances([tale])
    shares = tales.choices()
    assert list(rows) == list(shares)
    for slot, (distance, expected) in rows.items():
        option = getattr(tale, slot)
        if option is None:
            assert (distance, expected) == (1, 1)
            continue
        p = shares[slot]
        assert distance == pytest.approx(1 - p[option])
        # A draw of one: 1 - p of the option drawn, on average.
        mean = sum(q * (1 - q) for q in p.values())
        assert expected == pytest.approx(mean)
    mean = statistics.fmean(d for d, _ in rows.values())
    assert metrics.slot_distance([tale])[0] == pytest.approx(mean)


@pytest.mark.parametrize("count", [60, 400])
def test_true_tales_are_as_far_as_expected(count):
    """The expectation is exact: de Moivre's formula against repetition."""
    found = [metrics.slot_distance(true_tales(count, s)) for s in range(25)]
    distance = [d for d, _ in found]
    error = statistics.stdev(distance) / 5
    expected = statistics.fmean(e for _, e in found)
    assert abs(statistics.fmean(distance) - expected) < 4 * error
    assert error < 0.05 * expected


def test_a_writer_of_few_things_is_far_off():
    """Coherence cannot see it; slot distance and grammar nats do."""
    every = true_tales(3000, seed=1)
    common = set(list(tales.OBJECTS)[:10])
    heroes = set(list(tales.GIRLS)[:5]) | set(list(tales.BOYS)[:5])
    few = [
        tale
        for tale in every
        if tale.hero in heroes and tale.object in {None, *common}
    ]
    whole = every[: len(few)]
    (far, expected), (near, _) = map(metrics.slot_distance, (few, whole))
    assert far > near + 0.02
    assert near < 1.3 * expected
    rows = metrics.slot_distances(few)
    worst = sorted(rows, key=lambda slot: rows[slot][1] - rows[slot][0])
    assert set(worst[:2]) == {"hero", "object"}
    nats = metrics.grammar_nats(few)[0]
    assert nats < metrics.grammar_nats(whole)[0] - 0.3


def test_grammar_nats_of_true_tales_are_the_entropy():
    found = true_tales(2000, seed=2)
    mean, error = metrics.grammar_nats(found)
    assert abs(mean - tales.entropy()) < 4 * error < 0.4
    by_hand = [-tales.log_prob(tale) for tale in found]
    assert mean == pytest.approx(statistics.fmean(by_hand))
    assert error == pytest.approx(statistics.stdev(by_hand) / math.sqrt(2000))
    assert metrics.grammar_nats(found[:1])[1] == 0


@pytest.mark.parametrize(
    "measure", [metrics.slot_distance, metrics.grammar_nats]
)
def test_no_tales_have_no_variety(measure):
    with pytest.raises(ValueError, match="no tale is coherent"):
        measure([])


def test_the_frontier_holds_what_nothing_beats():
    points = [(0.9, 0.3), (0.5, 0.1), (0.9, 0.2), (0.4, 0.1), (0.95, 0.4)]
    rows = [{"coherent": c, "slot_distance": d} for c, d in points]
    found = metrics.frontier([*rows, {"coherent": 1.0}])
    assert found == [rows[1], rows[2], rows[4]]
    assert metrics.frontier([]) == []


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=9
    )
)
def test_every_report_is_beaten_by_the_frontier_or_on_it(points):
    rows = [{"coherent": c, "slot_distance": d} for c, d in points]
    found = metrics.frontier(rows)
    for row in rows:
        assert any(
            best["coherent"] >= row["coherent"]
            and best["slot_distance"] <= row["slot_distance"]
            for best in found
        )
    for a, b in itertools.pairwise(found):
        assert a["coherent"] < b["coherent"]
        assert a["slot_distance"] < b["slot_distance"]


# --- the whole row ----------------------------------------------------------


def test_a_report_is_made_of_its_measures(model, tokenizer):
    """Each figure is what its own function says, and lies in its interval."""
    good = tales.corpus(20, seed=3)
    texts = [*good, good[0], "The the the"]
    judge = resources.Backbone(model, tokenizer)
    real = (5.0, 0.3)
    found = metrics.report(texts, judge, training_texts=good[:2], real=real)
    rows = tokenizer(texts)["input_ids"]
    assert found["texts"] == 22
    assert found["coherent"] == pytest.approx(21 / 22)
    assert found["coherent_interval"] == list(metrics.interval(21, 22))
    assert found["broken"] == {"syntax": 1}
    assert found["distinct"] == pytest.approx(21 / 22)
    assert found["copied"] == pytest.approx(3 / 22)
    assert found["copied_interval"] == list(metrics.interval(3, 22))
    assert found["distinct_2"] == metrics.distinct_n(rows, 2)
    assert found["repeats"] == metrics.repeat_share(rows)
    assert found["entropy"] == metrics.token_entropy(rows)
    assert found["tokens"] == pytest.approx(sum(map(len, rows)) / 22)
    told = metrics.coherent_tales(texts)
    distance, expected = metrics.slot_distance(told)
    assert found["slot_distance"] == distance
    assert found["above_true"] == pytest.approx(distance - expected)
    assert found["grammar_nats"] == metrics.grammar_nats(told)[0]
    nats, error = metrics.judge(model, tokenizer, texts)
    assert found["judge"] == nats
    low, high = found["above_real_interval"]
    assert found["above_real"] == pytest.approx(nats - 5)
    half = 1.959964 * math.hypot(error, 0.3)
    assert (high - low) / 2 == pytest.approx(half)
    for name in found:
        if f"{name}_interval" in found:
            low, high = found[f"{name}_interval"]
            assert low <= found[name] <= high and low < high, name
    without = metrics.report(texts, judge)
    assert "above_real" not in without and without["copied"] == 0
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("texts", [["", ""], ["the"], ["the", ""]])
def test_a_report_of_next_to_nothing(model, tokenizer, texts):
    """A model that writes nothing is measured like any other."""
    judge = resources.Backbone(model, tokenizer)
    found = metrics.report(texts, judge)
    assert found["coherent"] == 0 and found["broken"] == {"syntax": len(texts)}
    assert "slot_distance" not in found and "grammar_nats" not in found
    json.dumps(found, allow_nan=False)  # no figure is infinite or no number


def test_what_follows_a_foreign_prompt_is_put_behind_an_opening():
    """Or left alone if it brings its own."""
    prompt = "generate me a story"
    opening, rest = TALE[:44], TALE[44:]
    assert metrics.behind_opening(prompt + rest, prompt) == (TALE, opening)
    assert metrics.behind_opening(f"{prompt} {TALE}", prompt) == (
        TALE,
        opening,
    )
    other = TALE.replace(opening, "Long, long ago,")
    found = metrics.behind_opening(f"{prompt} {other}", prompt)
    assert found == (other, "Long, long ago,")
    broken, _ = metrics.behind_opening(f"{prompt}, so Anna", prompt)
    assert tales.check(broken).broken == "syntax"


# --- sampling ---------------------------------------------------------------


def test_sampling_is_reproducible_and_leaves_no_trace(model, tokenizer):
    """The same seed the same texts; the global random numbers go on."""
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    options = {"count": 4, "max_length": 12}
    first = metrics.sample_language_model(model, tokenizer, **options)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    again = metrics.sample_language_model(model, tokenizer, **options)
    other = metrics.sample_language_model(model, tokenizer, seed=1, **options)
    assert first == again and first != other and len(first) == 4
    assert not any("<|endoftext|>" in words for words in first)


def test_samples_follow_the_model(model, tokenizer):
    """The first token is drawn from the model's own distribution."""
    start = torch.tensor([[tokenizer.eos_token_id]])
    with torch.no_grad():
        chances = model(input_ids=start).logits[0, -1].softmax(dim=0)
    n = 2000
    texts = metrics.sample_language_model(model, tokenizer, n, max_length=1)
    token = int(chances.argmax())
    share = texts.count(tokenizer.decode([token])) / n
    chance = chances[token].item()
    assert abs(share - chance) < 5 * math.sqrt(chance * (1 - chance) / n)
    assert 0.02 < chance < 0.98, "a model that leaves a choice"


def test_a_low_temperature_writes_what_is_likeliest(model, tokenizer):
    """In the limit all texts are the one that greedy search finds."""
    cold = metrics.sample_language_model(
        model, tokenizer, 4, max_length=8, temperature=1e-4
    )
    end = torch.tensor([[tokenizer.eos_token_id]])
    greedy = model.generate(
        end,
        attention_mask=torch.ones_like(end),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )
    assert set(cold) == set(text.decode_batch(greedy[:, 1:], tokenizer))
    for temperature in (0, -1, float("nan"), "hot"):
        with pytest.raises(ValueError, match="temperature must be positive"):
            metrics.sample_language_model(
                model, tokenizer, temperature=temperature
            )


def test_prompts_are_continued_in_their_order(model, tokenizer):
    """Prompts of different length, each by the model's own distribution."""
    prompts = ["Once upon a time", "", "Anna", "Tom"]
    texts = metrics.sample_language_model(
        model, tokenizer, 3, max_length=6, prompts=prompts
    )
    assert len(texts) == 12
    for i, words in enumerate(texts):
        assert words.startswith(prompts[i // 3])
        assert len(tokenizer(prompts[i // 3])["input_ids"]) < 6
        assert len(words) > len(prompts[i // 3])
    row = [tokenizer.eos_token_id, *tokenizer("Anna")["input_ids"]]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0, -1]
    n, chances = 2000, logits.softmax(dim=0)
    token, chance = int(chances.argmax()), chances.max().item()
    texts = metrics.sample_language_model(
        model, tokenizer, n, max_length=len(row), prompts=["Anna"]
    )
    share = texts.count("Anna" + tokenizer.decode([token])) / n
    assert abs(share - chance) < 5 * math.sqrt(chance * (1 - chance) / n)
    assert 0.02 < chance < 0.98, "a model that leaves a choice"
