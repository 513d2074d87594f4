"""Tiny Tales: what the grammar promises, checked over many tales.

The checks stand apart from the machine in `dblm_lib.tales`: texts are
compared, corrupted and counted as strings, and probabilities are added up
from the raw tables.
"""

import itertools
import math
import random
import re
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dblm_lib import tales

SEEDS = 3000
MANY = settings(max_examples=300, deadline=None, derandomize=True)
ALWAYS = ("name", "pronoun", "animal", "feeling", "problem")
CLASSES = {
    "name": tales.GIRLS | tales.BOYS,
    "animal": tales.ANIMALS,
    "object": tales.OBJECTS,
    "colour": tales.COLOURS,
    "place": tales.PLACES,
    "feeling": tales.LOW_FEELINGS | tales.HIGH_FEELINGS,
}
OTHER_GENDER = {
    "she": "he",
    "he": "she",
    "his": "her",
    "him": "her",
    "girl": "boy",
    "boy": "girl",
}


@pytest.fixture(scope="module")
def told():
    """A few thousand (tale, text) pairs, one for each seed."""
    drawn = [tales.sample(seed) for seed in range(SEEDS)]
    return [(tale, tales.render(tale)) for tale in drawn]


@pytest.fixture(scope="module")
def surprises():
    """The -log p of 20,000 tales, by plot."""
    rng, by_plot = random.Random(20_000), {plot: [] for plot in tales.PLOTS}
    for _ in range(20_000):
        tale = tales.sample(rng)
        by_plot[tale.plot].append(-tales.log_prob(tale))
    return by_plot


# What a tale is like. -----------------------------------------------------


def test_round_trip_and_coherent(told):
    for tale, text in told:
        assert tales.parse(text) == tale
        verdict = tales.check(text)
        assert verdict.ok and verdict.broken is None, text
        assert not [n for n, v in verdict.agreements.items() if v is False]
        assert all(verdict.agreements[name] for name in ALWAYS), text


@MANY
@given(st.integers())
def test_any_seed_round_trips(seed):
    tale = tales.sample(seed)
    assert tales.parse(tales.render(tale)) == tale


def test_length(told):
    lengths = [tale.length for tale, _ in told]
    assert min(lengths) >= 30 and max(lengths) <= 58


def test_the_longest_possible_tale_fits():
    """Fill every hole with its longest option, plot by plot."""

    def longest(template):
        text = re.sub(r"\{(a )?(\w+)\}", fill, template)
        return len(tales.tokens(text))

    def fill(hole):
        article, name = hole.groups()
        if name.lower() in tales.PRONOUNS:
            return "she"
        slot = tales.SLOTS[name]
        size = max(longest(slot.text(option)) for option in slot.options())
        return "x " * (size + bool(article))

    for plot in tales.PLOTS.values():
        assert longest("{opening} " + plot) <= 60


def test_english(told):
    for _, text in told:
        low = text.lower()
        assert text.isascii() and "\n" not in text and "  " not in text
        assert text[0].isupper() and text[-1] in ".!"
        assert not re.search(r"\b(\w+) \1\b", low), text
        assert not re.search(r"\ban? (an?|the)\b", low), text
        for article, word in re.findall(r"\b(an?) (\w+)", low):
            vowel = word[0] in "aeiou"
            assert article == ("an" if vowel or word == "honest" else "a")
        for start in re.findall(r"(?<!\.\.)[.!] (\w)", text):
            assert start.isupper(), text


def test_variety(told):
    texts = [text for _, text in told]
    assert len(set(texts)) >= len(texts) - 2
    for field, least in (("opening", 6), ("plot", 6), ("ending", 6)):
        assert len({getattr(tale, field) for tale, _ in told}) >= least
    openings = {tale.opening for tale, _ in told}
    assert "Once upon a time, in a land far, far away..." in openings
    assert "In the middle of the night..." in openings
    assert all(text.startswith(tale.opening) for tale, text in told)


def test_vocabulary_is_exactly_what_is_reached(told):
    texts = [text for _, text in told] + tales.corpus(12_000, seed=1)
    reached = {word for text in texts for word in tales.words(text)}
    assert reached == tales.vocabulary()
    assert 300 <= len(reached) <= 450


def test_attributes_agree_with_the_text(told):
    for tale, text in told:
        for field in ("hero", "animal", "place", "object", "trait", "size"):
            word = getattr(tale, field)
            assert word is None or re.search(rf"\b{word}\b", text)
        for field in ("problem", "resolution", "feeling", "deed", "ending"):
            assert tale.phrase(field) in text
        gendered = {"girl": ["she", "her"], "boy": ["he", "his", "him"]}
        assert set(gendered[tale.gender]) & set(tales.words(text))
        assert tale.pronoun == gendered[tale.gender][0]
        assert tale.mood in ("low", "high")


def test_each_effect_has_one_cause():
    for slot in tales.SLOTS.values():
        options = slot.options()
        assert len(options) == len(set(options))
        if slot.given:
            assert min(len(table) for table in slot.table.values()) >= 2


def test_word_classes_do_not_overlap():
    words = [word for options in CLASSES.values() for word in options]
    words += [*tales.TRAITS, *tales.SIZES]
    assert not [word for word, n in Counter(words).items() if n > 1]


def test_no_option_begins_with_another():
    """A prefix code: that is why a text can be read in one way only."""
    for slot in tales.SLOTS.values():
        texts = [slot.text(option) + " " for option in slot.options()]
        for one, other in itertools.permutations(texts, 2):
            assert not one.startswith(other)


# Probabilities. -----------------------------------------------------------


def share(table, option):
    return math.log(table[option] / sum(table.values()))


def test_log_prob_by_hand():
    text = (
        "In the middle of the night... Lily, a kind girl, met an old owl in "
        "the park. The owl was hungry, so she baked a pie. Lily was proud "
        "and bowed. And that was that!"
    )
    choices = [
        share(tales.OPENINGS, "In the middle of the night..."),
        share(tales.PLOT_WEIGHTS, "friend"),
        share(CLASSES["name"], "Lily"),
        share(tales.TRAITS, "kind"),
        share(tales.SIZES, "old"),
        share(tales.ANIMALS, "owl"),
        share(tales.PLACES, "park"),
        share({k: row[0] for k, row in tales.NEEDS.items()}, "hungry"),
        share(tales.NEEDS["hungry"][-1], "baked a pie"),
        share({k: r[0] for k, r in tales.HIGH_FEELINGS.items()}, "proud"),
        share(tales.HIGH_FEELINGS["proud"][-1], "bowed"),
        share(tales.ENDINGS, "And that was that!"),
    ]
    assert tales.log_prob(tales.parse(text)) == pytest.approx(sum(choices))


def test_tables_normalise():
    for slot in tales.SLOTS.values():
        tables = slot.table.values() if slot.given else [slot.table]
        for table in tables:
            assert all(type(w) is int and w > 0 for w in table.values())
    # All ways to finish one tale share out the probability of its start.
    tale = next(t for t in map(tales.sample, range(99)) if t.plot == "noise")
    rows = tales.NEEDS
    variants = [
        tales.log_prob(
            replace(tale, problem=need, resolution=help, ending=ending)
        )
        for need, row in rows.items()
        for help in row[-1]
        for ending in tales.ENDINGS
    ]
    rest = tales.log_prob(tale) - (
        share({k: row[0] for k, row in rows.items()}, tale.problem)
        + share(rows[tale.problem][-1], tale.resolution)
        + share(tales.ENDINGS, tale.ending)
    )
    assert math.fsum(map(math.exp, variants)) == pytest.approx(math.exp(rest))


def test_entropy_agrees_with_samples(surprises):
    values = [value for group in surprises.values() for value in group]
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert abs(statistics.mean(values) - tales.entropy()) < 3 * error
    assert 20 < tales.entropy() < 40


@pytest.mark.parametrize("plot", tales.PLOTS)
def test_entropy_of_each_plot_agrees_with_samples(surprises, plot):
    """Given its plot, a tale costs log p(plot) less."""
    values = surprises[plot]
    error = statistics.stdev(values) / math.sqrt(len(values))
    within = tales._entropy("{opening} " + tales.PLOTS[plot], {"plot"})
    expected = within - share(tales.PLOT_WEIGHTS, plot)
    assert abs(statistics.mean(values) - expected) < 4 * error


def test_choices_agree_with_samples():
    """Every option as often as it should be, in the tales that have it."""
    rng = random.Random(5)
    drawn = [tales.sample(rng) for _ in range(8000)]
    for field, shares in tales.choices().items():
        assert sum(shares.values()) == pytest.approx(1)
        counts = Counter(getattr(tale, field) for tale in drawn)
        del counts[None]
        total = sum(counts.values())
        assert set(counts) <= set(shares)
        for option, p in shares.items():
            error = math.sqrt(p * (1 - p) / total)
            assert abs(counts[option] / total - p) < 4.5 * error, option


def test_entropy_agrees_with_enumeration(monkeypatch):
    """A grammar small enough to list all of its texts."""
    monkeypatch.setattr(
        tales, "START", "{a colour} {low} {low_deed} {need} {help} {colour}"
    )
    probabilities = Counter()
    for colour in tales.COLOURS:
        for (low, left), (need, right) in itertools.product(
            tales.LOW_FEELINGS.items(), tales.NEEDS.items()
        ):
            for deed, help in itertools.product(left[-1], right[-1]):
                p = math.exp(
                    share(tales.COLOURS, colour)
                    + share(left[-1], deed)
                    + share(right[-1], help)
                )
                p *= left[0] / sum(r[0] for r in tales.LOW_FEELINGS.values())
                p *= right[0] / sum(r[0] for r in tales.NEEDS.values())
                probabilities[colour, low, deed, need, help] += p
    assert math.fsum(probabilities.values()) == pytest.approx(1)
    listed = -math.fsum(p * math.log(p) for p in probabilities.values())
    assert tales.entropy() == pytest.approx(listed)


@pytest.mark.parametrize("field", ["opening", "plot", "hero", "animal"])
def test_frequencies_follow_the_weights(told, field):
    counts = Counter(getattr(tale, field) for tale, _ in told)
    table = tales.SLOTS[field].table
    for option, weight in table.items():
        p = weight / sum(table.values())
        error = math.sqrt(SEEDS * p * (1 - p))
        assert abs(counts[option] - SEEDS * p) < 4.5 * error


# Corruptions. -------------------------------------------------------------


def spots(text, word):
    """Return the (start, end) of every whole-word occurrence."""
    return [m.span() for m in re.finditer(rf"\b{re.escape(word)}\b", text)]


def put(text, span, word):
    return text[: span[0]] + word + text[span[1] :]


def other(rng, options, word):
    return rng.choice([option for option in options if option != word])


def word_corruptions(tale, text, rng):
    """Yield (agreement, corrupted text), one for every spot of a class."""
    for agreement, options in CLASSES.items():
        field = {"name": "hero"}.get(agreement, agreement)
        word = getattr(tale, field)
        found = spots(text, word) if word else []
        if agreement == "feeling":
            options = (
                tales.LOW_FEELINGS
                if tale.mood == "low"
                else tales.HIGH_FEELINGS
            )
        elif len(found) < 2:
            continue
        for span in found:
            yield agreement, put(text, span, other(rng, options, word))
    for span in [m.span() for m in re.finditer(r"\b[A-Za-z]+\b", text)]:
        word = text[slice(*span)]
        if word.lower() == "her":
            wrong = "him" if text[: span[0]].endswith("at ") else "his"
        else:
            wrong = OTHER_GENDER.get(word.lower())
        if wrong:
            wrong = wrong.capitalize() if word[0].isupper() else wrong
            yield "pronoun", put(text, span, wrong)
        if word in ("a", "an"):
            # Only the articles that belong to a slot.
            nexts = (tale.colour, tale.size, tale.trait)
            if text[span[1] + 1 :].split()[0] in nexts:
                yield "article", put(text, span, {"a": "an", "an": "a"}[word])


def phrase_corruptions(tale, text, rng):
    """Yield an effect of another cause, and another cause."""
    for slot in tales.SLOTS.values():
        if not slot.given:
            continue
        cause = tales.SLOTS[slot.given]
        before = getattr(tale, cause.field)
        if before not in slot.table:
            continue
        effect = tale.phrase(slot.field)
        wrong = rng.choice(list(slot.table[other(rng, slot.table, before)]))
        spell = replace_holes(wrong, tale)
        yield cause.field, put(text, clause(text, effect), spell)
        if cause.field == "problem":
            wrong = cause.text(other(rng, slot.table, before))
            spell = replace_holes(wrong, tale)
            yield "problem", text.replace(tale.phrase("problem"), spell, 1)


def clause(text, phrase):
    """Return the span of a phrase that ends its clause."""
    return re.search(rf"\b{phrase}(?=[.,]| until)", text).span()


def replace_holes(template, tale):
    his = {"she": "her", "he": "his"}[tale.pronoun]
    return template.format(his=his, colour=tale.colour, object=tale.object)


def test_every_corruption_is_named(told):
    rng, caught = random.Random(0), Counter()
    for tale, text in told[:2000]:
        pairs = itertools.chain(
            word_corruptions(tale, text, rng),
            phrase_corruptions(tale, text, rng),
        )
        # One spot of each class, so that the test stays short.
        chosen = dict(rng.sample(found := list(pairs), len(found)))
        for agreement, broken in chosen.items():
            verdict = tales.check(broken)
            assert not verdict.ok
            assert verdict.broken == agreement, (broken, verdict)
            assert verdict.agreements[agreement] is False
            assert agreement in verdict.message
            caught[agreement] += 1
    assert set(caught) == set(tales.AGREEMENTS)
    assert min(caught.values()) > 500


def test_a_change_that_breaks_nothing_is_a_tale(told):
    """Words named once are free; only the article must follow them."""
    rng, changed = random.Random(1), Counter()
    for tale, text in told[:2000]:
        for field, table in (
            ("trait", tales.TRAITS),
            ("size", tales.SIZES),
            ("place", tales.PLACES),
        ):
            word = getattr(tale, field)
            if word is None or len(spots(text, word)) != 1:
                continue
            new = other(rng, table, word)
            rest = put(text, spots(text, word)[0], new)
            fixed = rest.replace(
                f" a {new}", f" {tales._article(new)} {new}"
            ).replace(f" an {new}", f" {tales._article(new)} {new}")
            assert tales.check(fixed).ok
            assert tales.parse(fixed) == replace(tale, **{field: new})
            if rest != fixed:
                assert tales.check(rest).broken == "article"
            changed[field] += 1
    assert len(changed) == 3


def test_any_word_anywhere(told):
    """Replace every word by a random one: ok means exactly a tale."""
    rng, words = random.Random(2), sorted(tales.vocabulary())
    for _, text in told[:60]:
        for match in re.finditer(r"[a-z']+", text):
            changed = put(text, match.span(), rng.choice(words))
            verdict = tales.check(changed)
            if verdict.ok:
                assert tales.render(tales.parse(changed)) == changed
            else:
                assert verdict.broken in (*tales.AGREEMENTS, "syntax")
                with pytest.raises(tales.ParseError):
                    tales.parse(changed)


# Errors. ------------------------------------------------------------------


def test_parse_error_says_where_and_what(told):
    for tale, text in told[:300]:
        start = text.index(f" {tale.place}") + 1
        broken = put(text, (start, start + len(tale.place)), "teapotx")
        with pytest.raises(tales.ParseError) as error:
            tales.parse(broken)
        assert error.value.position == start
        assert "forest" in error.value.expected
        assert str(start) in str(error.value)
        verdict = tales.check(broken)
        assert verdict.broken == "syntax" and str(start) in verdict.message


def test_parse_error_at_a_broken_agreement():
    text = tales.render(tales.sample(3))
    hero = tales.parse(text).hero
    start = text.rindex(hero)
    wrong = "Tom" if hero != "Tom" else "Ben"
    with pytest.raises(tales.ParseError) as error:
        tales.parse(put(text, (start, start + len(hero)), wrong))
    assert error.value.position == start
    assert error.value.expected == (hero,)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_truncated_tale(seed, part):
    text = tales.render(tales.sample(seed))
    cut = text[: int(part * len(text))]
    with pytest.raises(tales.ParseError) as error:
        tales.parse(cut)
    assert cut.rfind(" ") < error.value.position + 1 <= len(cut) + 1
    assert "the end of the text" in str(error.value) or cut
    verdict = tales.check(cut)
    assert verdict.broken == "syntax"
    assert False not in verdict.agreements.values()


@pytest.mark.parametrize(
    "text",
    ["", " ", "hello", "Once", "the the the", "\u4f60\u597d", "Zoë\n\t\0"],
)
def test_text_that_is_no_tale(text):
    with pytest.raises(tales.ParseError, match="expected"):
        tales.parse(text)
    verdict = tales.check(text)
    assert (verdict.ok, verdict.broken) == (False, "syntax")
    assert not verdict


@MANY
@given(st.text())
def test_any_text_gets_a_verdict(text):
    assert not tales.check(text).ok


def test_outside_the_tale_nothing_is_let_through(told):
    for _, text in told[:50]:
        for changed in (" " + text, text + " ", text + text, text[:-1]):
            assert tales.check(changed).broken == "syntax"


@pytest.mark.parametrize("bad", [None, 3, b"Once", ["Once"]])
def test_not_a_text(bad):
    for function in (tales.parse, tales.check):
        with pytest.raises(TypeError, match="expected the text"):
            function(bad)


@pytest.mark.parametrize("bad", [None, "7", 1.0, True, random])
def test_not_a_source_of_randomness(bad):
    with pytest.raises(TypeError, match="seed"):
        tales.sample(bad)


def test_not_a_tale():
    tale = next(t for t in map(tales.sample, range(99)) if t.plot == "friend")
    for function in (tales.render, tales.log_prob):
        with pytest.raises(TypeError, match="expected a Tale"):
            function("Once upon a time")
        with pytest.raises(ValueError, match="animal='whale'"):
            function(replace(tale, animal="whale"))
        with pytest.raises(ValueError, match="deed"):
            function(replace(tale, deed="cried"))
        with pytest.raises(ValueError, match="no use for object"):
            function(replace(tale, object="drum"))
        with pytest.raises(ValueError, match="trait=None"):
            function(replace(tale, trait=None))
    with pytest.raises(ValueError, match="has no 'object'"):
        tale.phrase("object")
    with pytest.raises(FrozenInstanceError):
        tale.hero = "Tom"


# The corpus. --------------------------------------------------------------


def test_corpus_is_reproducible():
    assert tales.corpus(30, 7) == tales.corpus(50, 7)[:30]
    assert tales.corpus(30, 7) != tales.corpus(30, 8)
    assert tales.corpus(0, 7) == []
    rng = random.Random(7)
    assert tales.corpus(3, 7) == [
        tales.render(tales.sample(rng)) for _ in range(3)
    ]
    with pytest.raises(ValueError, match="-1"):
        tales.corpus(-1, 0)
    for bad in (2.0, "3", None, True):
        with pytest.raises(TypeError, match="integer"):
            tales.corpus(bad, 0)


def test_import_is_light():
    code = (
        "import sys, dblm_lib.tales; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
