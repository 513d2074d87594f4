"""Tiny Tales: a small probabilistic grammar of children's stories.

A tale is a template with holes, and every hole is filled from a table of
weighted options. Because the tables are all there is, the truth is known:
each tale has an exact probability, the whole corpus has an exact entropy,
and every text can be read back and checked.

The module reads from top to bottom:

1. the **tables**: what may be written, with the weight of each option;
2. the **slots**: which table fills which hole of a template;
3. the **machine**: one template language, walked by the writer (`sample`,
   `render`, `log_prob`), by the reader (`parse`, `check`) and by `entropy`.

Templates are plain text with three kinds of hole:

``{animal}``
    A slot. Its first occurrence is a choice; a later one repeats the choice.
``{a colour}``
    The same, with the right article in front ("a red", "an orange").
``{he} {him} {his} {girl}``
    A word that follows the hero's gender; ``{He}`` begins a sentence.

Only the standard library is used.
"""

import math
import random
import re
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import chain

__all__ = [
    "AGREEMENTS",
    "ParseError",
    "Tale",
    "Verdict",
    "check",
    "choices",
    "corpus",
    "entropy",
    "log_prob",
    "parse",
    "render",
    "sample",
    "tokens",
    "vocabulary",
    "words",
]

# --------------------------------------------------------------------------
# 1. Tables. Each is {option: weight}; only the ratio of weights matters.
# --------------------------------------------------------------------------

START = "{opening} {plot}"

OPENINGS = {
    "Once upon a time, in a land far, far away...": 4,
    "In the middle of the night...": 4,
    "Long, long ago,": 3,
    "One sunny morning,": 3,
    "One rainy afternoon,": 2,
    "Early one spring day,": 2,
    "On a cold winter evening,": 2,
    "When the moon was full,": 1,
}

# The skeletons. Every one names the hero, the animal and the place, tells a
# problem with its resolution and a feeling with its deed, and ends.
PLOTS = {
    "outing": (
        "{hero} and {his} {size} {animal} took {a colour} {object} to the {place}. "
        "But {mishap}! {hero} was {low} and {low_deed}. "
        "Then the {animal} {remedy}. {ending}"
    ),
    "loan": (
        "{a size} {animal} borrowed {hero}'s {colour} {object}. "
        "In the {place}, {mishap}! {hero} was {low} and {he} {low_deed}. "
        "The sorry {animal} {remedy}. {ending}"
    ),
    "present": (
        "{hero} bought {a colour} {object} for {a size} {animal} "
        "in the {place}. But {mishap}! {hero} was {low} and {low_deed} "
        "until {he} and the {animal} {remedy}. {ending}"
    ),
    "gift": (
        "{hero} got {a colour} {object} from {his} {size} {animal}. "
        "But in the {place}, {mishap}! Then the {animal} {remedy}. "
        "{hero} was {high} and {high_deed}. {ending}"
    ),
    "friend": (
        "{hero}, {a trait} {girl}, met {a size} {animal} in the {place}. "
        "The {animal} {need}, so {he} {help}. "
        "{hero} was {high} and {high_deed}. {ending}"
    ),
    "noise": (
        "{hero} heard a strange noise in the {place}. "
        "It was {a size} {animal}! The {animal} {need}. "
        "{hero} felt {low} and {low_deed}, but then {he} {help}. {ending}"
    ),
    "journey": (
        "{hero}, {a trait} {girl}, set out for the {place} "
        "with {his} {animal}. Soon {trouble}. "
        "{hero} felt {low} and {low_deed}, but the {animal} {rescue}. "
        "{ending}"
    ),
    "errand": (
        "{hero} left for the {place} feeling {high}. {His} {animal} went "
        "too. Soon {trouble}, but {he} and the {animal} {rescue}. "
        "In the {place}, {hero} {high_deed}. {ending}"
    ),
}
PLOT_WEIGHTS = {
    "outing": 4,
    "loan": 3,
    "present": 3,
    "gift": 3,
    "friend": 3,
    "noise": 2,
    "journey": 3,
    "errand": 3,
}

GIRLS = {
    "Lily": 3,
    "Anna": 2,
    "Emma": 2,
    "Mia": 2,
    "Nora": 2,
    "Rosa": 2,
    "Zoe": 2,
    "Ella": 1,
    "Eva": 1,
    "Ivy": 1,
    "Ruby": 1,
}
BOYS = {
    "Tom": 3,
    "Ben": 2,
    "Finn": 2,
    "Jack": 2,
    "Leo": 2,
    "Max": 2,
    "Sam": 2,
    "Hugo": 1,
    "Noah": 1,
    "Theo": 1,
    "Tim": 1,
}

# Each form of the gendered words: (for a girl, for a boy).
PRONOUNS = {
    "he": ("she", "he"),
    "him": ("her", "him"),
    "his": ("her", "his"),
    "girl": ("girl", "boy"),
}


def _weights(text):
    """Read ``"red:3 blue"`` as ``{"red": 3, "blue": 1}``."""
    pairs = (item.partition(":") for item in text.split())
    return {word: int(weight or 1) for word, _, weight in pairs}


ANIMALS = _weights(
    "rabbit:3 fox:3 mouse:3 bear:3 owl:2 otter:2 puppy:2 kitten:2 duck:2 "
    "frog:2 hedgehog:2 dragon:2 unicorn pony goat lamb goose cat dog hen "
    "pig toad"
)
OBJECTS = _weights(
    "kite:3 ball:3 drum:3 hat:2 lamp:2 boat:2 bell:2 book:2 umbrella:2 "
    "basket:2 whistle:2 teapot:2 cup flute box mask clock crown shoe spoon "
    "wand ring"
)
COLOURS = _weights(
    "red:4 blue:4 green:3 yellow:3 golden:2 silver:2 purple:2 orange:2 "
    "pink white"
)
PLACES = _weights(
    "forest:4 garden:3 meadow:3 village:3 castle:2 market:2 harbour:2 "
    "valley:2 park:2 orchard:2 hills:2 fields woods jungle palace town "
    "marsh bay"
)
TRAITS = _weights(
    "brave:3 shy:3 clever:3 gentle:2 kind:2 merry:2 eager:2 honest "
    "polite dreamy"
)
SIZES = _weights(
    "small:3 tiny:3 big:2 old:2 young:2 fluffy:2 friendly:2 wise fat "
    "funny odd ugly"
)

# "a" or "an" goes by the first letter, save for these (a silent h).
ARTICLES = {"honest": "an"}

# Feelings and the deeds that only they explain. {feeling: (weight, deeds)}
LOW_FEELINGS = {
    "sad": (4, {"cried": 3, "shed a tear": 2, "wept": 2}),
    "scared": (3, {"trembled": 3, "hid": 2}),
    "angry": (3, {"shouted": 3, "stamped": 2}),
    "worried": (2, {"sighed": 2, "bit {his} lip": 2}),
    "puzzled": (2, {"scratched {his} head": 2, "thought hard": 2}),
    "tired": (1, {"sat down": 2, "yawned": 2}),
    "hopeful": (2, {"made a wish": 3, "looked up": 1}),
}
HIGH_FEELINGS = {
    "happy": (4, {"danced": 3, "sang": 3, "laughed": 1}),
    "proud": (3, {"bowed": 3, "stood tall": 2}),
    "excited": (3, {"jumped up": 2, "cheered": 2, "clapped": 2}),
    "thankful": (2, {"said thank you": 2, "baked a cake": 1}),
    "calm": (1, {"smiled": 2, "hummed": 1}),
}

# Problems and the resolutions that only fit them.
# {name: (weight, problem, resolutions)}
MISHAPS = {
    "river": (
        4,
        "the {colour} {object} fell into the river",
        {"used a net": 3, "dived after it": 2, "swam out to it": 1},
    ),
    "tree": (
        4,
        "the {colour} {object} flew into a tree",
        {"climbed up for it": 3, "shook the tree": 2, "got a ladder": 2},
    ),
    "magpie": (
        3,
        "a magpie stole the {colour} {object}",
        {"chased the bird": 2, "found the nest": 2},
    ),
    "mud": (
        3,
        "the {colour} {object} sank in mud",
        {"dug it out": 2, "washed it clean": 2},
    ),
    "broken": (
        3,
        "the {colour} {object} came apart",
        {"mended it with glue": 3, "tied it together": 2},
    ),
    "hole": (
        2,
        "the {colour} {object} rolled down a hole",
        {"crawled in for it": 2, "asked a mole": 2, "used a rope": 1},
    ),
}
NEEDS = {
    "hungry": (
        4,
        "was hungry",
        {"shared some bread": 3, "baked a pie": 2},
    ),
    "thirsty": (
        3,
        "was thirsty",
        {"found some water": 3, "found a spring": 1},
    ),
    "hurt": (
        3,
        "had a sore foot",
        {"kissed it better": 2, "washed the foot": 1},
    ),
    "cold": (
        3,
        "was freezing",
        {"made a fire": 2, "made it a bed": 2, "found a blanket": 1},
    ),
    "sleepless": (
        2,
        "could not sleep",
        {"sang softly": 2, "told a story": 2, "counted sheep": 1},
    ),
    "trapped": (
        2,
        "was stuck in a bush",
        {"cut it free": 2, "pulled it out": 2},
    ),
}
TROUBLES = {
    "lost": (
        4,
        "they got lost",
        {"followed the stars": 3, "found a map": 2, "asked the moon": 1},
    ),
    "storm": (
        3,
        "a storm began",
        {"waited in a cave": 2, "built a hut": 2},
    ),
    "crossing": (
        3,
        "they came to a river",
        {
            "made a raft": 2,
            "found a boat": 1,
            "swam across": 2,
            "jumped across": 1,
        },
    ),
    "giant": (
        3,
        "a giant blocked the road",
        {"tickled its toes": 2, "crept past": 2, "baked it a cake": 1},
    ),
    "witch": (
        2,
        "a witch cast a spell",
        {
            "said a magic word": 2,
            "broke the spell": 2,
            "waited until morning": 1,
        },
    ),
}

ENDINGS = {
    "They lived happily ever after.": 4,
    "They left the {place} smiling.": 3,
    "{hero} hugged the {animal} tightly.": 3,
    "The {place} felt peaceful again.": 2,
    "Everyone laughed and went home.": 2,
    "What an adventure it was!": 2,
    "{hero} loved that {animal} forever.": 2,
    "The {animal} smiled at {him}.": 2,
    "Soon it was bedtime.": 1,
    "And that was that!": 1,
}

# --------------------------------------------------------------------------
# 2. Slots: which table fills which hole.
# --------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A hole of a template and the table that fills it.

    Attributes
    ----------
    field : str
        The attribute of `Tale` that holds the choice.
    table : dict
        ``{option: weight}``; where `given` is set, one such table for each
        value of the slot `given`: ``{value: {option: weight}}``.
    given : str or None
        The slot on whose choice this one depends.
    texts : dict
        The wording of options that are names (plots and problems). An
        option that is not listed is its own wording.
    """

    field: str
    table: dict
    given: str | None = None
    texts: dict | None = None

    def weights(self, values):
        """Return ``{option: weight}`` where `values` are chosen already."""
        if self.given is None:
            return self.table
        return self.table[values[SLOTS[self.given].field]]

    def text(self, option):
        """Return the template that `option` stands for."""
        return (self.texts or {}).get(option, option)

    def options(self):
        """Return every option, whatever the slot depends on."""
        if self.given is None:
            return list(self.table)
        return [option for table in self.table.values() for option in table]

    @cached_property
    def leads(self):
        """For each option the words before its first hole."""
        return {o: _pieces(self.text(o))[0][0] for o in self.options()}


def _cause_and_effect(causes, effects, given, table):
    """Build two slots from ``{name: (weight, [wording], effects)}``."""
    weights = {name: row[0] for name, row in table.items()}
    texts = {name: row[1] for name, row in table.items() if len(row) == 3}
    follow = {name: row[-1] for name, row in table.items()}
    return Slot(causes, weights, texts=texts), Slot(effects, follow, given)


def _build_slots():
    slots = {
        "opening": Slot("opening", OPENINGS),
        "plot": Slot("plot", PLOT_WEIGHTS, texts=PLOTS),
        "hero": Slot("hero", GIRLS | BOYS),
        "animal": Slot("animal", ANIMALS),
        "object": Slot("object", OBJECTS),
        "colour": Slot("colour", COLOURS),
        "place": Slot("place", PLACES),
        "trait": Slot("trait", TRAITS),
        "size": Slot("size", SIZES),
        "ending": Slot("ending", ENDINGS),
    }
    for cause, effect, table in (
        ("low", "low_deed", LOW_FEELINGS),
        ("high", "high_deed", HIGH_FEELINGS),
    ):
        slots[cause], slots[effect] = _cause_and_effect(
            "feeling", "deed", cause, table
        )
    for cause, effect, table in (
        ("mishap", "remedy", MISHAPS),
        ("need", "help", NEEDS),
        ("trouble", "rescue", TROUBLES),
    ):
        slots[cause], slots[effect] = _cause_and_effect(
            "problem", "resolution", cause, table
        )
    return slots


SLOTS = _build_slots()

# What must agree across a tale, in the order in which `check` reports it.
AGREEMENTS = (
    "name",
    "pronoun",
    "animal",
    "object",
    "colour",
    "place",
    "feeling",
    "problem",
    "article",
)


@dataclass(frozen=True)
class Tale:
    """The choices that make one tale; `render` writes it out.

    An attribute that the plot has no use for is None. `problem` and `plot`
    are short names; `resolution`, `deed` and `ending` are templates, and
    `phrase` spells any of them out.
    """

    opening: str
    plot: str
    hero: str
    animal: str
    place: str
    problem: str
    resolution: str
    feeling: str
    deed: str
    ending: str
    object: str | None = None
    colour: str | None = None
    trait: str | None = None
    size: str | None = None

    @property
    def gender(self):
        """``"girl"`` or ``"boy"``, by the hero's name."""
        return "girl" if self.hero in GIRLS else "boy"

    @property
    def pronoun(self):
        """``"she"`` or ``"he"``, by the hero's name."""
        return PRONOUNS["he"][self.gender == "boy"]

    @property
    def mood(self):
        """``"low"`` or ``"high"``, by the feeling."""
        return "low" if self.feeling in LOW_FEELINGS else "high"

    @property
    def length(self):
        """The number of words and punctuation marks of the tale."""
        return len(tokens(render(self)))

    def phrase(self, field):
        """Return the wording of `field`, such as ``tale.phrase("deed")``."""
        option = getattr(self, field)
        for slot in SLOTS.values():
            if slot.field == field and option in slot.options():
                values = _values(self)
                return _write(slot.text(option), values, None)
        raise ValueError(f"this tale has no {field!r}: it is {option!r}")


# --------------------------------------------------------------------------
# 3. The machine.
# --------------------------------------------------------------------------

_HOLE = re.compile(r"\{(a )?(\w+)\}")


@cache
def _pieces(template):
    """Cut a template into ``(literal, article, name)`` triples."""
    pieces, start = [], 0
    for hole in _HOLE.finditer(template):
        pieces.append((template[start : hole.start()], *hole.groups()))
        start = hole.end()
    return (*pieces, (template[start:], None, None))


def _article(word):
    return ARTICLES.get(word, "an" if word[0] in "aeiou" else "a")


def _gendered(name, hero):
    """Return the word that ``{he}``, ``{His}``... stands for."""
    word = PRONOUNS[name.lower()][hero in BOYS]
    return word.capitalize() if name[0].isupper() else word


# The writer: one walk that samples, renders and weighs. -------------------


def _write(template, values, choose):
    """Write `template`, asking `choose` at every hole not yet filled.

    `choose(slot, values)` returns an option; `values` (field to option) is
    filled in reading order.
    """
    out = []
    for literal, article, name in _pieces(template):
        out.append(literal)
        if name is None:
            continue
        if name.lower() in PRONOUNS:
            out.append(_gendered(name, values["hero"]))
            continue
        slot = SLOTS[name]
        if slot.field not in values:
            values[slot.field] = choose(slot, values)
        word = _write(slot.text(values[slot.field]), values, choose)
        out.append(f"{_article(word)} {word}" if article else word)
    return "".join(out)


def sample(rng):
    """Draw a tale from the grammar.

    Parameters
    ----------
    rng : random.Random or int
        The source of randomness, or a seed for a new one.

    Returns
    -------
    Tale

    Raises
    ------
    TypeError
        If `rng` is neither.
    """
    rng = _generator(rng)

    def choose(slot, values):
        weights = slot.weights(values)
        return rng.choices(list(weights), list(weights.values()))[0]

    values = {}
    _write(START, values, choose)
    return Tale(**values)


def render(tale):
    """Write a tale out as one paragraph.

    Raises
    ------
    TypeError, ValueError
        If `tale` is not a `Tale`, or not one that the grammar can tell.
    """
    return _follow(tale)[0]


def log_prob(tale):
    """Return the exact log-probability of a tale, in nats.

    Since a text can be read in one way only, this is the log-probability of
    its text as well. Errors are those of `render`.
    """
    return _follow(tale)[1]


def _follow(tale):
    """Return ``(text, log probability)`` of a tale, checking its choices."""
    given, total = _values(tale), 0.0

    def choose(slot, values):
        nonlocal total
        weights, option = slot.weights(values), given.get(slot.field)
        if option not in weights:
            raise ValueError(
                f"a tale cannot have {slot.field}={option!r} here: use one "
                f"of {_listed(weights)}"
            )
        total += math.log(weights[option] / sum(weights.values()))
        return option

    values = {}
    text = _write(START, values, choose)
    if spare := sorted(given.keys() - values.keys()):
        raise ValueError(
            f"the plot {tale.plot!r} has no use for {', '.join(spare)}: "
            f"leave it None"
        )
    return text, total


def _values(tale):
    if not isinstance(tale, Tale):
        raise TypeError(
            f"expected a Tale (from sample or parse), got {_kind(tale)}"
        )
    pairs = ((field.name, getattr(tale, field.name)) for field in fields(tale))
    return {name: value for name, value in pairs if value is not None}


def entropy():
    """Return the exact entropy of the grammar, in nats per tale.

    By the chain rule it is the sum of the entropies of the choices, each
    weighted by the probability that it comes up at all. No tale is drawn
    and none is listed: only the tables are read.
    """
    return _entropy(START, set())


def _entropy(template, filled):
    """Return the entropy of the holes in `template` not yet `filled`."""
    made = _choices(template, filled, 1.0)
    return -sum(weight * math.log(p) for _, _, p, weight in made)


@cache
def choices():
    """Return how often each choice is made, field by field.

    Like `entropy` it only reads the tables.

    Returns
    -------
    dict
        Field of `Tale` -> ``{option: probability}`` among the tales that
        have this field, in the order of the tables; each sums to 1.
    """
    found = {}
    for field, option, _, weight in _choices(START, set(), 1.0):
        table = found.setdefault(field, {})
        table[option] = table.get(option, 0.0) + weight
    shares = {field: _shares(weights) for field, weights in found.items()}
    return {f.name: shares[f.name] for f in fields(Tale)}


def _choices(template, filled, weight):
    """Yield each choice at the holes in `template` not yet `filled`.

    As ``(field, option, p, weight)``: its probability where it is made, and
    the probability that it is made at all, times the given weight.
    """
    for _, _, name in _pieces(template):
        slot = SLOTS.get(name)
        if slot is None or slot.field in filled:
            continue
        filled.add(slot.field)
        for share, table in _tables(slot):
            for option, p in _shares(table).items():
                here = weight * share * p
                yield slot.field, option, p, here
                yield from _choices(slot.text(option), set(filled), here)


def _tables(slot):
    """Yield the tables of a slot with the probability of meeting each."""
    if slot.given is None:
        yield 1.0, slot.table
        return
    for value, share in _shares(SLOTS[slot.given].table).items():
        yield share, slot.table[value]


def _shares(table):
    total = sum(table.values())
    return {option: weight / total for option, weight in table.items()}


# The reader: lenient first, then strict. ----------------------------------


class ParseError(ValueError):
    """A text that is no tale.

    Attributes
    ----------
    position : int
        The character at which the text stops being a tale.
    expected : tuple of str
        What could have stood there.
    """

    def __init__(self, text, position, expected):
        self.position = position
        self.expected = tuple(dict.fromkeys(expected))
        found = text[position : position + 24]
        found = repr(found) if found else "the end of the text"
        super().__init__(
            f"not a Tiny Tale: at character {position} expected "
            f"{_listed(self.expected)}, found {found}"
        )


@dataclass(frozen=True)
class Verdict:
    """What `check` found.

    Attributes
    ----------
    ok : bool
        Whether the text is a tale of the grammar.
    broken : str or None
        The first broken agreement in the order of `AGREEMENTS`,
        ``"syntax"`` if the text does not follow any plot, else None.
    agreements : dict
        For each agreement True (kept), False (broken) or None (the text, as
        far as it could be read, does not put it to the test).
    message : str
        The same as a sentence.
    """

    ok: bool
    broken: str | None
    agreements: dict
    message: str

    def __bool__(self):
        return self.ok


@dataclass(frozen=True)
class _Seen:
    """One word or phrase that the reader recognised in a hole."""

    name: str  # the hole: "animal", "his", "a" for an article
    value: str
    wanted: tuple  # the values that agree with what came before
    agreement: str | None  # None: a first mention, nothing to agree with
    position: int


class _Reader:
    """Reads a text by the skeletons, with each hole free in its class.

    No option of a slot begins with another option (a prefix code, like
    Huffman's), so at most one of them fits and no choice is ever regretted.
    """

    def __init__(self, text):
        self.text = text
        self.furthest = (-1, [], [])  # position, expected, what was seen

    def read(self):
        """Return everything seen, or None if the text stops being a tale."""
        seen = []
        end = self._template(START, 0, {}, seen)
        if end is not None and end != len(self.text):
            end = self._fail(end, "the end of the text", seen)
        return None if end is None else seen

    def _fail(self, position, expected, seen):
        """Note the furthest failure: that is where the text goes wrong."""
        if position > self.furthest[0]:
            self.furthest = (position, [], list(seen))
        if position == self.furthest[0]:
            self.furthest[1].append(expected)

    def _literal(self, literal, start, seen):
        """Match plain text; return its end, or None."""
        end = start + len(literal)
        if self.text[start:end] != literal:
            return self._fail(*_mismatch(self.text, literal, start), seen)
        if literal[-1:].isalpha() and self.text[end : end + 1].isalpha():
            begin = start + literal.rfind(" ") + 1
            return self._fail(begin, literal.split()[-1], seen)
        return end

    def _template(self, template, start, values, seen):
        """Match a template; fill `values` and `seen`; return its end."""
        for literal, article, name in _pieces(template):
            start = self._literal(literal, start, seen)
            if start is None or name is None:
                return start
            if name.lower() in PRONOUNS:
                start = self._pronoun(name, start, values, seen)
            elif article:
                start = self._article(SLOTS[name], start, values, seen)
            else:
                start = self._slot(SLOTS[name], start, values, seen)
            if start is None:
                return None

    def _pronoun(self, name, start, values, seen):
        right = _gendered(name, values["hero"])
        for hero in (next(iter(GIRLS)), next(iter(BOYS))):
            word = _gendered(name, hero)
            end = self._literal(word, start, seen)
            if end is not None:
                seen.append(_Seen(name, word, (right,), "pronoun", start))
                return end

    def _article(self, slot, start, values, seen):
        for word in ("an ", "a "):
            after = self._literal(word, start, seen)
            if after is not None:
                here = len(seen)
                seen.append(None)  # its place; the next word decides
                end = self._slot(slot, after, values, seen)
                right = (
                    _article(self.text[after:end].split()[0]) if end else ""
                )
                seen[here] = _Seen(
                    "a", word.strip(), (right,), "article", start
                )
                return end

    def _slot(self, slot, start, values, seen):
        """Match the one option that fits; bind it, or compare it."""
        leads, before = slot.leads, len(seen)
        likely = [o for o in leads if self.text.startswith(leads[o], start)]
        # The others cannot fit: they are tried to say what was expected.
        others = (option for option in leads if option not in likely)
        for option in chain(likely, others):
            trial = dict(values)
            end = self._template(slot.text(option), start, trial, seen)
            if end is None:
                del seen[before:]
                continue
            values |= trial
            seen.insert(before, self._compare(slot, option, start, values))
            values.setdefault(slot.field, option)
            return end

    def _compare(self, slot, option, start, values):
        if slot.field in values:
            name = "name" if slot.field == "hero" else slot.field
            wanted = (values[slot.field],)
        elif slot.given:
            name = SLOTS[slot.given].field
            wanted = tuple(slot.weights(values))
        else:
            name, wanted = None, (option,)
        return _Seen(slot.field, option, wanted, name, start)


def _mismatch(text, literal, start):
    """Return where `text` leaves `literal`, and the word expected there."""
    same = 0
    while text[start + same : start + same + 1] == literal[same]:
        same += 1
    word = literal.rfind(" ", 0, same) + 1
    return start + word, (literal[word:].split() or [literal])[0]


def parse(text):
    """Read a tale back from its text.

    Returns
    -------
    Tale
        The one tale with ``render(tale) == text``.

    Raises
    ------
    TypeError
        If `text` is not a string.
    ParseError
        If no tale has this text; it says where and what was expected.
    """
    reader = _Reader(_string(text))
    seen = reader.read()
    if seen is None:
        raise ParseError(text, *reader.furthest[:2])
    wrong = [s for s in seen if s.value not in s.wanted]
    if wrong:
        first = min(wrong, key=lambda s: s.position)
        raise ParseError(text, first.position, first.wanted)
    names = {field.name for field in fields(Tale)}
    return Tale(**{s.name: s.value for s in seen if s.name in names})


def check(text):
    """Say whether a text is a coherent tale and, if not, what breaks first.

    The text is read leniently: it must follow one of the plots, but every
    slot may hold any word of its class. Then the slots are compared.

    Returns
    -------
    Verdict

    Raises
    ------
    TypeError
        If `text` is not a string.
    """
    reader = _Reader(_string(text))
    seen = reader.read()
    syntax = seen is None
    agreements = dict.fromkeys(AGREEMENTS)
    wrong = {}
    for item in reader.furthest[2] if syntax else seen:
        if item is None or item.agreement is None:
            continue
        kept = item.value in item.wanted
        if not kept:
            wrong.setdefault(item.agreement, item)
        agreements[item.agreement] = kept and (
            agreements[item.agreement] is not False
        )
    if syntax:
        error = ParseError(text, *reader.furthest[:2])
        return Verdict(False, "syntax", agreements, str(error))
    broken = next((name for name in AGREEMENTS if name in wrong), None)
    if broken is None:
        return Verdict(True, None, agreements, "a coherent tale")
    item = wrong[broken]
    message = (
        f"the {broken} does not agree: {item.value!r} at character "
        f"{item.position}, where {_listed(item.wanted)} would fit"
    )
    return Verdict(False, broken, agreements, message)


# Corpus and vocabulary. ---------------------------------------------------


def corpus(n, seed):
    """Return `n` tales as a list of strings, the same for the same seed.

    The first tales of a longer corpus are those of a shorter one.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer of at least 0, or `seed` not an integer.
    """
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"n must be an integer, got {_kind(n)}")
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    rng = _generator(seed)
    return [render(sample(rng)) for _ in range(n)]


_TOKEN = re.compile(r"\.\.\.|'s|\w+|[^\w\s]")


def tokens(text):
    """Split a text into words and punctuation marks."""
    return _TOKEN.findall(text)


def words(text):
    """Return the words of a text in lower case, without punctuation."""
    return [token for token in tokens(text.lower()) if token.isalpha()]


@cache
def vocabulary():
    """Return the word types that tales can hold, as a frozen set.

    Words are in lower case; all of them are reachable.
    """
    found = {"a", "an", *sum(PRONOUNS.values(), ())}
    for slot in SLOTS.values():
        for option in slot.options():
            found.update(words(_HOLE.sub(" ", slot.text(option))))
    return frozenset(found)


def _generator(rng):
    if isinstance(rng, random.Random):
        return rng
    if isinstance(rng, int) and not isinstance(rng, bool):
        return random.Random(rng)
    raise TypeError(
        f"expected a random.Random or an integer seed, got {_kind(rng)}"
    )


def _string(text):
    if isinstance(text, str):
        return text
    raise TypeError(f"expected the text of a tale (str), got {_kind(text)}")


def _kind(thing):
    return f"{type(thing).__name__} ({str(thing)[:40]!r})"


def _listed(options, most=4):
    """Write options for a message: ``'a', 'b' or 'c'``."""
    options = [repr(option) for option in options]
    if len(options) > most:
        return f"{', '.join(options[:most])} or {len(options) - most} more"
    start, last = ", ".join(options[:-1]), options[-1]
    return f"{start} or {last}" if start else last
