"""Three tokens at three positions with a joint law that can be enumerated.

Here a perfect network exists: every conditional probability is a sum over
the 27 texts. What a sampler or a bound makes of it is compared with the law.
"""

import itertools

import torch

SIZE, LENGTH = 3, 3
MASK = SIZE
TEXTS = torch.tensor(list(itertools.product(range(SIZE), repeat=LENGTH)))
NOISED = torch.tensor(list(itertools.product(range(SIZE + 1), repeat=LENGTH)))
_draw = torch.Generator().manual_seed(3)
JOINT = (
    torch.rand(len(TEXTS), generator=_draw, dtype=torch.float64) ** 3 + 0.03
)
JOINT = JOINT / JOINT.sum()
ENTROPY = float(torch.special.entr(JOINT).sum())
ONE_HOT = torch.nn.functional.one_hot(TEXTS, SIZE).double()
# Position by position, and the entropy of three such texts.
MARGINALS = torch.einsum("n,nlv->lv", JOINT, ONE_HOT)
MARGINAL_ENTROPY = float(torch.special.entr(MARGINALS).sum())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def texts(count, seed=0):
    """Draws from the joint."""
    drawn = torch.multinomial(
        JOINT, count, replacement=True, generator=seeded(seed)
    )
    return TEXTS[drawn]


def weigh(likelihood):
    """log p(x_i = v | what has this likelihood), from ``(n, 27)``."""
    weights = likelihood * JOINT
    probs = weights @ ONE_HOT.flatten(1)
    probs = probs.view(-1, LENGTH, SIZE) / weights.sum(1)[:, None, None]
    return probs.log()


def masked_denoiser(ids):
    """The exact answer to masks, float64."""
    seen = (ids[:, None] == TEXTS) | (ids[:, None] == MASK)
    return weigh(seen.all(-1).double())


def likelihoods(process, zt, t):
    """q(z_t at i | text) of each of the 27 texts, ``(n, 27, length)``."""
    law = process.probabilities(ONE_HOT, t)  # (27, length, V + 1)
    rows = law[None].expand(len(zt), *law.shape)
    return rows.gather(-1, zt[:, None, :, None].expand(-1, 27, -1, 1))[..., 0]


def plain(process, zt, t):
    """log p(x_i | z_t), which counts what stands at i."""
    return weigh(likelihoods(process, zt, t).prod(-1))


def around(process, zt, t):
    """log p(x_i | z_t without position i), from the joint alone."""
    single = likelihoods(process, zt, t)
    found = []
    for i in range(LENGTH):
        others = [j for j in range(LENGTH) if j != i]
        found.append(weigh(single[..., others].prod(-1))[:, i])
    return torch.stack(found, 1)


def chi_square(ids, law=JOINT):
    """Pearson's statistic of texts against a law; 26 degrees of freedom.

    Above 60 by chance once in about 6,000 draws of a seed.
    """
    code = (ids * torch.tensor([9, 3, 1])).sum(1)
    seen = torch.bincount(code, minlength=27).double()
    expected = law * len(ids)
    return float(((seen - expected) ** 2 / expected).sum())
