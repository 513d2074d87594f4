"""Variety: how much of the grammar a writer uses.

Chapter 8. A share of coherent tales says little by itself, since a writer of
few kinds of tales keeps them coherent easily. `metrics` includes these names.
"""

import contextlib
import math
from collections import Counter

from . import tales

__all__ = [
    "coherent_tales",
    "frontier",
    "grammar_nats",
    "slot_distance",
    "slot_distances",
    "total_variation",
]


def coherent_tales(texts):
    """The coherent tales among some texts, as the grammar reads them.

    Parameters
    ----------
    texts : list of str

    Returns
    -------
    list of tales.Tale
    """
    found = []
    for words in texts:
        with contextlib.suppress(tales.ParseError):
            found.append(tales.parse(words))
    return found


def slot_distances(found):
    """How far a writer's choices are from the grammar's, slot by slot.

    Parameters
    ----------
    found : list of tales.Tale
        As `coherent_tales` reads them.

    Returns
    -------
    dict
        Slot (a field of `tales.Tale`) -> ``(distance, expected)``: the total
        variation between the shares of its options and the grammar's, half
        the sum of their absolute differences, from 0 to 1; and what it is on
        average for as many true tales, whose shares miss the grammar's by
        chance alone. A slot that no tale has is at a distance of 1.
    """
    rows = {}
    for slot, shares in tales.choices().items():
        counts = Counter(getattr(tale, slot) for tale in found)
        del counts[None]
        chance = _by_chance(counts, shares)
        rows[slot] = total_variation(counts, shares), chance
    return rows


def total_variation(counts, shares):
    r"""How far counts are from the shares that they should have.

    .. math:: \frac12 \sum_o \Big| \frac{n_o}{n} - p_o \Big|

    Parameters
    ----------
    counts : collections.Counter
        Option -> how often it was chosen.
    shares : dict
        Option -> its probability.

    Returns
    -------
    float
        From 0, where they agree, to 1, where all went to options without
        a share, or nothing was counted.
    """
    total = sum(counts.values())
    if not total:
        return 1.0
    gaps = [abs(counts[o] / total - p) for o, p in shares.items()]
    return sum(gaps) / 2


def _by_chance(counts, shares):
    """Expected total variation of as many draws from the grammar itself.

    The mean absolute deviation of each binomial count is known (de Moivre,
    1730).
    """
    total, deviation = sum(counts.values()), 0.0
    if not total:
        return 1.0
    for p in shares.values():
        if p == 1:
            continue
        most = math.floor(total * p)
        log = (
            math.lgamma(total + 1)
            - math.lgamma(most + 1)
            - math.lgamma(total - most)
            + (most + 1) * math.log(p)
            + (total - most) * math.log1p(-p)
        )
        deviation += 2 * math.exp(log) / total
    return deviation / 2


def slot_distance(found):
    """Mean of `slot_distances` over all slots.

    Together with the share of coherent tales it says what a writer can do:
    a writer of few kinds of tales keeps them coherent easily.

    Parameters
    ----------
    found : list of tales.Tale

    Returns
    -------
    distance, expected : float
        From 0 to 1; the second for as many true tales.

    Raises
    ------
    ValueError
        If there are no tales.
    """
    if not found:
        raise ValueError("no tale is coherent: nothing was chosen")
    rows = slot_distances(found).values()
    return tuple(sum(column) / len(rows) for column in zip(*rows))


def grammar_nats(found):
    """Nats that tales cost under the grammar itself.

    Parameters
    ----------
    found : list of tales.Tale

    Returns
    -------
    mean, standard_error : float
        Of -log p. For true tales the mean is `tales.entropy`; it is lower
        for a writer who keeps to what is common.

    Raises
    ------
    ValueError
        If there are no tales.
    """
    if not found:
        raise ValueError("no tale is coherent: none has a probability")
    nats = [-tales.log_prob(tale) for tale in found]
    mean = sum(nats) / len(nats)
    if len(nats) < 2:
        return mean, 0.0
    squares = sum((value - mean) ** 2 for value in nats)
    return mean, math.sqrt(squares / (len(nats) - 1) / len(nats))


def frontier(rows, good="coherent", bad="slot_distance"):
    """Those of some reports that no other one beats on both measures.

    Parameters
    ----------
    rows : list of dict
        As `report` returns them; one without the measures is left out.
    good, bad : str
        The measure that should be large, and the one that should be small.

    Returns
    -------
    list of dict
        In rising order of ``bad``, and therefore of ``good``.
    """
    known = [row for row in rows if good in row and bad in row]
    found = []
    for row in sorted(known, key=lambda row: (row[bad], -row[good])):
        if not found or row[good] > found[-1][good]:
            found.append(row)
    return found
