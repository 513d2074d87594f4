"""Bounds and orders: against a joint distribution that can be listed."""

import itertools
import math

import pytest
import torch

from dblm_lib import conditionals, likelihood, resources, tales, text

VOCAB, LENGTH, MASK = 3, 4, 3
ALL = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))


class Joint:
    """The exact denoiser of a random joint distribution of 81 texts.

    Its answers may be turned to ``wrong`` ones, whose orders disagree.
    """

    def __init__(self, wrong=0.0):
        generator = torch.Generator().manual_seed(5)
        dice = torch.randn(len(ALL), generator=generator, dtype=torch.float64)
        self.shares = (1.5 * dice).softmax(dim=0)
        self.wrong, self.calls = wrong, 0

    def __call__(self, ids):
        self.calls += 1
        fits = ((ids[:, None] == ALL) | (ids[:, None] == MASK)).all(dim=2)
        weights = fits * self.shares
        counts = torch.nn.functional.one_hot(ALL, VOCAB).double()
        found = torch.einsum("bn,nlv->blv", weights, counts)
        shares = found / weights.sum(dim=1)[:, None, None]
        # A seen token weighs on the token to its right, as it should not.
        seen = (ids != MASK).double().roll(1, dims=1)[..., None]
        slope = torch.arange(VOCAB) * self.wrong
        return (shares.log() + seen * slope).float()


def listed(denoise):
    """Mean nats of all 81 texts by number of masks: over every set."""
    table = torch.zeros(len(ALL), LENGTH, dtype=torch.float64)
    for number in range(1, LENGTH + 1):
        sets = list(itertools.combinations(range(LENGTH), number))
        for places in sets:
            canvas = ALL.clone()
            canvas[:, list(places)] = MASK
            logs = denoise(canvas).double().log_softmax(dim=2)
            nats = -logs.gather(2, ALL[..., None])[..., 0]
            table[:, number - 1] += nats[:, list(places)].sum(1) / len(sets)
    return table


@pytest.fixture(scope="module", params=[0.0, 0.7], ids=["exact", "wrong"])
def denoise(request):
    return Joint(request.param)


def truth():
    return -Joint().shares.log()


# --- the bound --------------------------------------------------------------


def cut_bound(table, low):
    """The bound without its times below ``low``, from every set listed."""
    t = low + (1 - low) * (torch.arange(20_000).double() + 0.5) / 20_000
    number = torch.arange(1, LENGTH + 1, dtype=torch.float64)
    chance = torch.distributions.Binomial(LENGTH, probs=t[:, None])
    weight = (chance.log_prob(number).exp() / t[:, None]).mean(dim=0)
    return (1 - low) * (table @ weight).mean().item()


@pytest.mark.parametrize("draw", likelihood.DRAWS)
def test_every_draw_estimates_the_bound(denoise, draw):
    """Within four standard errors of what listing every set gives."""
    table, low = listed(denoise), 0.05
    wanted = cut_bound(table, low)
    if draw == "counts":  # which have no low end to cut
        weights = likelihood.step_weights(math.inf, LENGTH)
        wanted = (table @ weights).mean().item()
    got = likelihood.bound(
        denoise, ALL, MASK, draw=draw, rounds=60, low=low, batch_size=81
    )
    assert got.rounds.shape == (60, 81)
    assert got.draw_error < 0.02 * wanted
    assert abs(got.mean - wanted) < 4 * got.draw_error


def test_spread_draws_have_smaller_errors_at_equal_cost():
    """Where nats grow with the number of masks, as they do of texts."""

    def denoise(ids):
        share = (ids == MASK).double().mean(dim=1)[:, None]
        right = (-(share**3)).exp().expand(ids.shape)  # of token 0
        rest = (1 - right) / (VOCAB - 1)
        return torch.stack([right, rest, rest], dim=2).log().float()

    errors = {
        draw: likelihood.bound(
            denoise,
            torch.zeros(32, 64, dtype=torch.long),
            MASK,
            draw=draw,
            rounds=40,
        ).draw_error
        for draw in likelihood.DRAWS
    }
    assert errors["stratified"] < 0.5 * errors["iid"]
    assert errors["low-discrepancy"] < 0.5 * errors["iid"]
    assert errors["counts"] < 0.8 * errors["low-discrepancy"]


def test_a_cut_at_low_times_leaves_out_a_known_piece():
    """``low * length`` times the nats of a token given all others."""
    table, low = listed(Joint()), 0.2
    whole = (table @ likelihood.step_weights(math.inf, LENGTH)).mean().item()
    left = low * LENGTH * table[:, 0].mean().item()
    assert whole - cut_bound(table, low) == pytest.approx(left, rel=0.3)
    got = likelihood.bound(
        Joint(), ALL, MASK, rounds=60, low=low, batch_size=81
    )
    assert abs(got.mean - cut_bound(table, low)) < 4 * got.draw_error
    assert whole - got.mean > 8 * got.draw_error


# --- T steps ----------------------------------------------------------------


def test_one_step_is_the_sum_of_the_marginals(denoise):
    got = likelihood.step_bound(denoise, ALL, MASK, steps=1)
    logs = denoise(torch.full((1, LENGTH), MASK)).double().log_softmax(2)
    wanted = -logs.expand(81, -1, -1).gather(2, ALL[..., None]).sum((1, 2))
    torch.testing.assert_close(got.values, wanted)


def test_with_the_exact_denoiser_it_falls_to_the_entropy():
    """Averaged over texts as probable as they are; every step helps."""
    exact = Joint()
    table = exact.shares @ listed(exact)
    steps = [1, 2, 3, 4, 8, 16, 64, 256, 4096, math.inf]
    bounds = [
        (table @ likelihood.step_weights(T, LENGTH)).item() for T in steps
    ]
    assert all(a > b for a, b in itertools.pairwise(bounds))
    entropy = (exact.shares * truth()).sum().item()
    assert bounds[-1] == pytest.approx(entropy, abs=1e-6)
    assert bounds[0] > 1.1 * entropy
    assert bounds[-2] - entropy < 1e-3


@pytest.mark.parametrize("steps", [2, 5])
def test_steps_as_defined_agree_with_the_table_of_counts(denoise, steps):
    wanted = (listed(denoise) @ likelihood.step_weights(steps, LENGTH)).mean()
    got = likelihood.step_bound(
        denoise, ALL, MASK, steps, rounds=40, batch_size=81
    )
    assert got.draw_error < 0.02 * wanted
    assert abs(got.mean - wanted.item()) < 4 * got.draw_error


def test_the_table_of_counts_estimates_what_listing_gives(denoise):
    few = ALL[::5]
    wanted = listed(denoise)[::5]
    found = likelihood.count_nats(denoise, few, MASK, rounds=24)
    table = found.nats
    assert table.shape == (24, len(few), LENGTH)
    error = table.mean(dim=1).std(dim=0) / math.sqrt(24)
    off = (table.mean(dim=(0, 1)) - wanted.mean(dim=0)).abs()
    assert (off <= 4 * error + 1e-6).all() and error.max() < 0.1
    # With all masked there is nothing to draw.
    torch.testing.assert_close(table[:, :, -1], wanted[:, -1].expand(24, -1))
    bounds = likelihood.step_bounds(found, [1, 4, math.inf])
    assert list(bounds) == [1, 4, math.inf]
    assert bounds[math.inf].mean == pytest.approx(found.orders.mean)
    for T, got in bounds.items():
        true = wanted @ likelihood.step_weights(T, LENGTH)
        off = got.mean - true.mean().item()
        assert abs(off) <= 4 * got.draw_error + 1e-5


def test_with_the_exact_denoiser_no_order_is_left_to_chance():
    """In the limit nothing is, and much less than in the plain estimate."""
    few = ALL[::5]
    found = likelihood.count_nats(Joint(), few, MASK, rounds=24)
    bounds = likelihood.step_bounds(found, [64, math.inf])
    torch.testing.assert_close(
        bounds[math.inf].rounds,
        truth()[::5].expand(24, -1),
        rtol=0,
        atol=1e-5,
    )
    plain = found.nats @ likelihood.step_weights(64, LENGTH)
    assert bounds[64].draw_error < 0.5 * likelihood.Nats(plain).draw_error


@pytest.mark.parametrize("steps", [1, 2, 7, 300, math.inf])
def test_each_position_is_counted_once(steps):
    """The weights, times the share that is masked, add up to the length."""
    weights = likelihood.step_weights(steps, 64)
    number = torch.arange(1, 65, dtype=torch.float64)
    assert (weights * number).sum().item() == pytest.approx(64)
    assert (weights >= 0).all()
    if steps == 1:
        assert weights[:-1].sum() == 0


# --- orders -----------------------------------------------------------------


def test_with_the_exact_denoiser_every_order_gives_the_truth():
    for order in [None, *itertools.permutations(range(LENGTH))][::5]:
        given = None if order is None else torch.tensor(order)
        got = likelihood.chain_rule(Joint(), ALL[::7], MASK, given)
        torch.testing.assert_close(got.values, truth()[::7], rtol=0, atol=1e-5)
        torch.testing.assert_close(got.places.sum(dim=1), got.values)


def test_the_bound_is_the_mean_of_all_orders(denoise):
    few, orders = ALL[::9], list(itertools.permutations(range(LENGTH)))
    found = torch.stack(
        [
            likelihood.chain_rule(denoise, few, MASK, torch.tensor(o)).values
            for o in orders
        ]
    )
    wanted = listed(denoise)[::9] @ likelihood.step_weights(math.inf, LENGTH)
    torch.testing.assert_close(found.mean(dim=0), wanted, rtol=0, atol=1e-5)
    spread = found.std(dim=0).max().item()
    assert spread > 0.1 if denoise.wrong else spread < 1e-5


def test_each_text_may_have_its_own_order():
    wrong, ids = Joint(0.7), ALL[40:43]
    orders = likelihood.random_orders(
        LENGTH, 3, torch.Generator().manual_seed(2)
    )
    assert len({tuple(o) for o in orders.tolist()}) > 1
    together = likelihood.chain_rule(wrong, ids, MASK, orders)
    for row, order in enumerate(orders):
        alone = likelihood.chain_rule(wrong, ids[row : row + 1], MASK, order)
        torch.testing.assert_close(alone.places[0], together.places[row])


def test_nats_stand_at_the_positions_they_belong_to():
    """The first position in the order is answered with nothing seen."""
    order = torch.tensor([2, 0, 3, 1])
    got = likelihood.chain_rule(Joint(), ALL, MASK, order)
    logs = Joint()(torch.full((1, LENGTH), MASK)).double()[0, 2]
    torch.testing.assert_close(got.places[:, 2], -logs[ALL[:, 2]])


# --- nats -------------------------------------------------------------------


def test_errors_of_nats():
    rounds = torch.tensor([[1.0, 5.0, 3.0], [3.0, 5.0, 7.0]]).double()
    nats = likelihood.Nats(rounds)
    assert nats.values.tolist() == [2, 5, 5] and nats.mean == 4
    assert nats.error == pytest.approx(math.sqrt(3) / math.sqrt(3))
    assert nats.draw_error == pytest.approx(1.0)
    other = likelihood.Nats(torch.tensor([[1.0, 4.0, 4.0]]).double())
    difference = nats.minus(other)
    assert difference.mean == 1 and difference.error == 0
    assert str(nats) == "4.00 ± 1.00 nats a text"
    with pytest.raises(ValueError, match="same texts.*got 3 and 2"):
        nats.minus(likelihood.Nats(torch.zeros(1, 2)))


def test_the_truth_of_tales_is_near_their_entropy():
    corpus = tales.corpus(300, seed=4)
    nats = likelihood.exact(corpus)
    assert abs(nats.mean - tales.entropy()) < 4 * nats.error
    assert nats.values[0].item() == -tales.log_prob(tales.parse(corpus[0]))
    with pytest.raises(tales.ParseError):
        likelihood.exact([corpus[0], "Once upon a time there was no tale."])
    for wrong in ([], corpus[0]):
        with pytest.raises(ValueError, match="list of tales"):
            likelihood.exact(wrong)


def test_masks_are_drawn_as_the_seed_says():
    first, second, third = (
        likelihood.bound(
            Joint(), ALL, MASK, generator=torch.Generator().manual_seed(s)
        ).values
        for s in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, third)


# --- wrong input ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": ALL[0]}, r"\(n, length\)"),
        ({"ids": ALL.float()}, "whole numbers; got torch.float32"),
        ({"ids": torch.full((1, 4), MASK)}, "holds the mask, 3"),
        ({"draw": "evenly"}, "one of iid, stratified"),
        ({"rounds": 0}, "rounds must be a whole number of at least 1; got 0"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"low": 0}, "low must lie between 0 and 1"),
        ({"denoise": lambda ids: ids}, r"\(batch, length, vocab\)"),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    given = {"denoise": Joint(), "ids": ALL[:2], "mask_id": MASK} | changes
    with pytest.raises(ValueError, match=words):
        likelihood.bound(**given)


@pytest.mark.parametrize("steps", [0, 2.5, True])
def test_a_wrong_number_of_steps_is_named(steps):
    with pytest.raises(ValueError, match="steps must be a whole number"):
        likelihood.step_bound(Joint(), ALL[:2], MASK, steps)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        likelihood.step_weights(steps, LENGTH)


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 2], [[0, 1, 2, 3]]])
def test_what_is_no_order_is_refused(order):
    with pytest.raises(ValueError, match="each position from 0 to 3 once"):
        likelihood.chain_rule(Joint(), ALL[:2], MASK, torch.tensor(order))


# --- tales ------------------------------------------------------------------


def test_the_oracle_at_both_ends_of_the_curve():
    """One step: the marginals. One by one: the truth of the tale."""
    try:
        tokenizer = resources.load_tokenizer()
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")
    oracle = conditionals.Oracle(tokenizer)
    corpus = tales.corpus(12, seed=6)
    ids, _ = text.encode_batch(corpus, tokenizer, oracle.length)
    marginals = oracle.probabilities(torch.full((1, 64), oracle.mask_id))[0]
    wanted = -marginals.expand(12, -1, -1).gather(2, ids[..., None]).log()
    one = likelihood.step_bound(oracle, ids, oracle.mask_id, steps=1)
    torch.testing.assert_close(
        one.values, wanted.sum((1, 2)), rtol=0, atol=1e-4
    )
    # In the mean over all tales it is the sum of the entropies.
    entropies = -(marginals * marginals.log().nan_to_num(neginf=0)).sum()
    assert abs(one.mean - entropies.item()) < 5 * one.error
    assert entropies > 5 * tales.entropy()
    got = likelihood.chain_rule(oracle, ids[:1], oracle.mask_id)
    true = likelihood.exact(corpus[:1])
    assert got.mean == pytest.approx(true.mean, abs=1e-4)
