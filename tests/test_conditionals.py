"""The exact denoiser: against every tale of a small grammar, and the true one.

The brute force knows nothing of skeletons and open words: it writes each
tale out, reads it with the tokenizer, and counts.
"""

import dataclasses
import math

import pytest
import torch

from dblm_lib import conditionals, resources, tales, text

LENGTH = 64
# A grammar small enough to be listed: these options of each table.
FEW = {
    "opening": ("Long, long ago,", "When the moon was full,"),
    "plot": ("loan", "errand"),
    "hero": ("Lily", "Tom", "Ben"),
    "animal": ("fox", "owl"),
    "object": ("kite", "umbrella"),
    "colour": ("red", "orange"),
    "place": ("hills", "forest"),
    "size": ("old", "big"),
    "ending": (
        "They left the {place} smiling.",
        "The {animal} smiled at {him}.",
    ),
    "low": ("worried", "sad"),
    "high": ("happy", "calm"),
    "mishap": ("river", "broken"),
    "trouble": ("lost",),
}


@pytest.fixture(scope="module")
def tokenizer():
    try:
        return resources.load_tokenizer()
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")


@pytest.fixture(scope="module")
def oracle(tokenizer):
    return conditionals.Oracle(tokenizer)


@pytest.fixture(scope="module")
def some(tokenizer):
    """Tales of all eight plots, their canvases and their probabilities."""
    texts = tales.corpus(32, seed=123)
    assert {tales.parse(t).plot for t in texts} == set(tales.PLOTS)
    ids, _ = text.encode_batch(texts, tokenizer, LENGTH)
    exact = [tales.log_prob(tales.parse(t)) for t in texts]
    return ids, torch.tensor(exact, dtype=torch.float64)


def few_slots():
    """The slots of the grammar with few options each."""
    slots = {}
    for name, slot in tales.SLOTS.items():
        table = slot.table
        if name in FEW:
            table = {option: table[option] for option in FEW[name]}
        if slot.given in FEW:
            table = {cause: table[cause] for cause in FEW[slot.given]}
        slots[name] = dataclasses.replace(slot, table=table)
    return slots


def all_tales():
    """Every tale of the grammar as it is now, by going through its choices.

    A script says which option to take at each choice; what is beyond its
    end takes the first, and is the next to be changed.
    """
    script = []
    while script is not None:
        taken = []

        def choose(slot, values, script=script, taken=taken):
            options = list(slot.weights(values))
            at = script[len(taken)] if len(taken) < len(script) else 0
            taken.append((at, len(options)))
            return options[at]

        values = {}
        tales._write(tales.START, values, choose)
        yield tales.Tale(**values)
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        script = [at for at, _ in taken]
        if taken:
            script[-1] += 1
        else:
            script = None


@pytest.fixture(scope="module")
def small(tokenizer):
    """An oracle of the small grammar, and all its tales."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tales, "SLOTS", few_slots())
        found = list(all_tales())
        texts = [tales.render(tale) for tale in found]
        assert len(set(texts)) == len(texts) > 5_000
        shares = [math.exp(tales.log_prob(tale)) for tale in found]
        ids, _ = text.encode_batch(texts, tokenizer, LENGTH)
        exact = conditionals.Oracle(tokenizer)
        forgiving = conditionals.Oracle(tokenizer, slip=1e-3)
    shares = torch.tensor(shares, dtype=torch.float64)
    assert shares.sum().item() == pytest.approx(1)
    return exact, forgiving, ids, shares


def counted(canvas, ids, shares, slip=0.0):
    """What `Oracle.probabilities` says, by weighing every tale."""
    visible = canvas < 1024
    wrong = ((ids != canvas) & visible).sum(dim=1)
    weights = shares * torch.tensor(slip, dtype=torch.float64) ** wrong
    found = torch.zeros(LENGTH, 1024, dtype=torch.float64)
    for place, row in enumerate(found):
        row.index_add_(0, ids[:, place], weights)
    found[visible] = torch.nn.functional.one_hot(canvas[visible], 1024) * (
        weights.sum()
    )
    return found / weights.sum(), weights.sum().item()


def masked(ids, share, seed):
    """Hide each position with this probability."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(ids.shape, generator=generator) < share
    return ids.masked_fill(hidden, 1024)


# --- exact ------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.95, 0.8, 0.5, 0.1])
def test_it_equals_weighing_every_tale_of_a_small_grammar(small, share):
    exact, _, ids, shares = small
    rows = torch.randint(
        len(ids), (6,), generator=torch.Generator().manual_seed(7)
    )
    canvases = masked(ids[rows], share, seed=8)
    got, evidence = exact.probabilities(canvases), exact.log_evidence(canvases)
    for canvas, answer, nats in zip(canvases, got, evidence):
        wanted, total = counted(canvas, ids, shares)
        torch.testing.assert_close(answer, wanted, rtol=1e-9, atol=1e-12)
        assert nats.item() == pytest.approx(math.log(total), abs=1e-9)


def test_a_whole_canvas_has_the_probability_of_its_tale(oracle, some):
    ids, exact = some
    torch.testing.assert_close(oracle.log_evidence(ids), exact)


@pytest.mark.parametrize("order", ["left to right", "at random"])
def test_by_the_chain_rule_it_gives_the_probability_of_a_tale(
    oracle, some, order
):
    """Position by position, each given those before it in any order."""
    ids, exact = some
    places = torch.arange(LENGTH)
    if order == "at random":
        places = places[
            torch.randperm(LENGTH, generator=torch.Generator().manual_seed(3))
        ]
    rank = places.argsort()
    for row, wanted in zip(ids[:1], exact):
        hidden = rank >= torch.arange(LENGTH)[:, None]
        logits = oracle(row.expand(LENGTH, -1).masked_fill(hidden, 1024))
        nats = logits.double()[torch.arange(LENGTH), places, row[places]]
        assert nats.sum().item() == pytest.approx(wanted.item(), abs=1e-4)


def test_with_nothing_visible_it_knows_how_frequent_tokens_are(
    oracle, tokenizer
):
    """Against tales that were sampled, within five standard errors."""
    count = 3_000
    ids, _ = text.encode_batch(tales.corpus(count, seed=9), tokenizer, LENGTH)
    share = oracle.probabilities(torch.full((1, LENGTH), 1024))[0]
    seen = torch.nn.functional.one_hot(ids, 1024).double().mean(dim=0)
    error = (share * (1 - share) / count).sqrt()
    assert ((seen - share).abs() <= 5 * error + 1e-9).all()
    assert seen[share == 0].sum() == 0
    once = tokenizer("Once")["input_ids"][0]
    openings = tales.OPENINGS
    wanted = openings["Once upon a time, in a land far, far away..."]
    wanted /= sum(openings.values())
    assert share[0, once].item() == pytest.approx(wanted)


def test_answers_are_logits_of_whole_distributions(oracle, some):
    ids, _ = some
    canvases = masked(ids[:8], 0.6, seed=1)
    logits = oracle(canvases)
    assert logits.dtype == torch.float32
    assert logits.shape == (8, LENGTH, 1024)
    assert not logits.isnan().any()
    torch.testing.assert_close(
        logits.logsumexp(dim=-1), torch.zeros(8, LENGTH), rtol=0, atol=1e-5
    )
    # What is true is possible, and what is visible is certain.
    true = logits.gather(2, ids[:8, :, None])[..., 0]
    assert true.isfinite().all()
    assert (true[canvases < 1024] == 0).all()
    one_by_one = torch.cat([oracle(row[None]) for row in canvases])
    assert torch.equal(logits, one_by_one)


# --- no tale fits -----------------------------------------------------------


def test_a_canvas_that_no_tale_fits_is_refused(oracle, some):
    ids, _ = some
    canvas = masked(ids[:1], 0.5, seed=2)
    canvas[0, 0] = ids[0, 1]  # no tale begins like this
    with pytest.raises(ValueError, match="no tale fits.*give slip"):
        oracle(canvas)
    assert oracle.log_evidence(canvas).item() == -math.inf


def test_with_slip_the_tales_answer_that_contradict_least(small):
    """As weighing every tale does; and exactly where one fits."""
    exact, forgiving, ids, shares = small
    rows = torch.arange(0, len(ids), len(ids) // 4)[:4]
    canvases = masked(ids[rows], 0.5, seed=4)
    assert torch.equal(
        forgiving.probabilities(canvases), exact.probabilities(canvases)
    )
    other = masked(ids[rows.flip(0)], 0.0, seed=0)
    swapped = torch.where(canvases < 1024, other, canvases)
    mixed = torch.where(torch.arange(LENGTH) % 3 == 0, swapped, canvases)
    contradicted = exact.log_evidence(mixed) == -math.inf
    assert contradicted.any()
    for canvas in mixed[contradicted]:
        wanted, _ = counted(canvas, ids, shares, slip=1e-3)
        got = forgiving.probabilities(canvas[None])[0]
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


# --- wrong input ------------------------------------------------------------


@pytest.mark.parametrize(
    ("canvases", "words"),
    [
        (torch.zeros(2, 9, dtype=torch.long), r"\(batch, 64\).*\(2, 9\)"),
        (torch.zeros(LENGTH, dtype=torch.long), r"\(batch, 64\)"),
        (torch.zeros(0, LENGTH, dtype=torch.long), "at least one"),
        (torch.zeros(1, LENGTH), "token ids; got torch.float32"),
        (torch.full((1, LENGTH), 1025), "1024 for masks; got 1025"),
        (torch.full((1, LENGTH), -1), "got -1"),
    ],
)
def test_what_is_no_canvas_is_refused(oracle, canvases, words):
    with pytest.raises(ValueError, match=words):
        oracle(canvases)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 0}, "above 0; got 0"),
        ({"length": 2.5}, "above 0; got 2.5"),
        ({"slip": 0}, "between 0 and 1"),
        ({"slip": 1.0}, "between 0 and 1"),
        ({"slip": "no"}, "between 0 and 1"),
    ],
)
def test_a_wrong_setting_is_named(tokenizer, options, words):
    with pytest.raises(ValueError, match=words):
        conditionals.Oracle(tokenizer, **options)


def test_a_canvas_too_short_for_a_tale_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tales, "SLOTS", few_slots())
    with pytest.raises(ValueError, match="40 positions is too short"):
        conditionals.Oracle(tokenizer, length=40)


def test_a_tokenizer_that_splits_words_is_refused(monkeypatch):
    class Letters:
        eos_token_id = 0

        def __len__(self):
            return 256

        def __call__(self, words):
            return {"input_ids": list(words.encode())}

    monkeypatch.setattr(tales, "SLOTS", few_slots())
    with pytest.raises(ValueError, match="'old' as 4 tokens"):
        conditionals.Oracle(Letters())
