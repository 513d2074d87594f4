r"""The exact denoiser of Tiny Tales: token probabilities from the grammar.

Chapter 9. Which token stands at a position of a canvas, given those that
are visible, has an exact answer for a text whose grammar is known. No
network can do better, so whatever a sampler loses with this denoiser, it
loses by itself.

A tale is a *skeleton* and a few *words*. A skeleton is one choice of all
that decides where things stand: plot, opening, feeling and deed, problem
and resolution, ending; some 130,000 of them are listed, token by token.
What is left open in a skeleton are words of one token each, such as the
hero's name and what follows from it (``his``, ``girl``). Given the skeleton
they are independent of each other, and each is weighed by itself: for every
option the product, over its mentions, of 1 where the canvas agrees or is
masked, and 0 elsewhere. So the sum over all tales is done without listing
them. Nothing is sampled, and nothing is approximate but the arithmetic.
"""

from array import array
from functools import cache
from itertools import chain

import torch

from . import checks, tales

__all__ = ["Oracle"]

# Answers that are remembered: in a sample many canvases come twice.
_REMEMBERED = 64


class Oracle:
    """The exact probability of each token given the visible ones.

    It is a denoiser like any other: called with canvases it answers with
    logits. On the canvas every position counts; behind its end a tale is
    filled up with end-of-text tokens, see `ladder.canvases`.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast
        One that writes each open word as a single token, as the book's does.
    length : int
        Positions of a canvas.
    mask_id : int, optional
        The id that hides a token; the first one that the tokenizer does not
        use if left out.
    slip : float, optional
        What to do with a canvas that no tale fits, as samplers leave them.
        If left out, it is refused. Otherwise each visible token that a tale
        contradicts multiplies the tale's weight by this small number instead
        of by 0: the answer comes from the tales that contradict least.

    Raises
    ------
    ValueError
        If an open word is not one token, or a tale does not fit on the
        canvas.
    """

    def __init__(self, tokenizer, length=64, mask_id=None, slip=None):
        if not checks.is_whole(length):
            raise ValueError(
                f"length must be a whole number above 0; got {length!r}"
            )
        if slip is not None and not (checks.is_number(slip) and 0 < slip < 1):
            raise ValueError(
                f"slip must lie between 0 and 1, both excluded; got {slip!r}"
            )
        self.length, self.slip = length, slip
        self.vocab_size = len(tokenizer)
        self.mask_id = self.vocab_size if mask_id is None else mask_id
        self._remembered = {}
        self._list_tales(_Writer(tokenizer))

    def _list_tales(self, writer):
        """Write all skeletons and words as tables of numbers."""
        found = writer.skeletons(tales.START, False, ())
        longest = max(len(row) for _, row, _ in found)
        if longest >= self.length:
            raise ValueError(
                f"the longest tale has {longest} tokens and an end: a canvas "
                f"of {self.length} positions is too short"
            )
        end = (writer.end,)
        rows = (row + end * (self.length - len(row)) for _, row, _ in found)
        cells = array("i", chain.from_iterable(rows))
        table = torch.frombuffer(cells, dtype=torch.int32)
        # One row a position, since positions are looked at one by one.
        table = table.view(-1, self.length).T.contiguous()
        open_ = table < 0
        # Token at each position of each skeleton, -1 at open words.
        self._tokens = table.masked_fill(open_, -1)
        self._prior = torch.tensor([p for p, *_ in found], dtype=torch.float64)
        # Skeletons with the same open words at the same places share their
        # arithmetic. A form is an open word as it is written at one place.
        forms = torch.where(open_, -table - 1, -1)
        self._forms, self._shape = torch.unique(
            forms.T, dim=0, return_inverse=True
        )
        words, tokens = writer.words, writer.forms
        most = max(map(len, words.values()))
        names = list(words)
        # Probability of each option of each word.
        self._options = torch.zeros(len(names), most, dtype=torch.float64)
        for row, shares in zip(self._options, words.values()):
            row[: len(shares)] = torch.tensor(shares, dtype=torch.float64)
        self._word = torch.tensor([names.index(name) for name, *_ in tokens])
        # The token of each form, option by option.
        self._spelt = torch.full((len(tokens), most), -1)
        for row, spelt in zip(self._spelt, tokens.values()):
            row[: len(spelt)] = torch.tensor(spelt)

    def __call__(self, ids):
        """Answer with logits: the logarithms of the exact probabilities.

        Parameters
        ----------
        ids : tensor of ids, shape ``(batch, length)``
            Canvases with masks.

        Returns
        -------
        tensor, shape ``(batch, length, vocab_size)``
            float32; minus infinity where a token is impossible. Visible
            positions answer with themselves.

        Raises
        ------
        ValueError
            If the canvases do not fit, or no tale fits one of them and
            there is no ``slip``.
        """
        return self.probabilities(ids).log().float()

    def probabilities(self, ids):
        """The same as probabilities, in float64."""
        rows = [self._answer(row)[0] for row in self._checked(ids)]
        return torch.stack(rows).to(ids.device)

    def log_evidence(self, ids):
        """Log-probability of what is visible, in nats.

        Parameters
        ----------
        ids : tensor of ids, shape ``(batch, length)``

        Returns
        -------
        float64 tensor, shape ``(batch,)``
            Of a canvas without masks, the log-probability of its tale; minus
            infinity where no tale fits.
        """
        found = [self._evidence(row) for row in self._checked(ids)]
        return torch.tensor(found, dtype=torch.float64).log()

    def _checked(self, ids):
        if ids.ndim != 2 or ids.shape[1] != self.length or not len(ids):
            raise ValueError(
                f"canvases must have shape (batch, {self.length}) with at "
                f"least one of them; got {tuple(ids.shape)}"
            )
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"canvases hold token ids; got {ids.dtype}")
        ids = ids.cpu().long()
        known = (ids >= 0) & (ids < self.vocab_size) | (ids == self.mask_id)
        if not known.all():
            raise ValueError(
                f"a canvas holds ids from 0 to {self.vocab_size - 1} and "
                f"{self.mask_id} for masks; got {ids[~known][0].item()}"
            )
        return ids

    def _answer(self, row):
        """Probabilities of a canvas, and of what is visible on it."""
        key = row.numpy().tobytes()
        if key not in self._remembered:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            parts = self._weigh(row)
            if not parts[-1].sum() > 0:
                if self.slip is None:
                    raise ValueError(
                        "no tale fits what is visible on this canvas: "
                        f"{row[row != self.mask_id].tolist()}; to answer "
                        "with the tales that contradict least, give slip"
                    )
                parts = self._weigh(row, self.slip)
            self._remembered[key] = self._collect(row, *parts)
        return self._remembered[key]

    def _evidence(self, row):
        return self._weigh(row)[-1].sum().item()

    def _weigh(self, row, slip=0.0):
        """Weigh each skeleton by the canvas, and each option of its words.

        Returns
        -------
        alive : tensor, shape ``(n,)``
            Skeletons of positive weight.
        shapes, inverse : tensors, shapes ``(g,)`` and ``(n,)``
            Their shapes, and which of those each has.
        options : float64 tensor, shape ``(g, words, most options)``
            Probability of each option given skeleton and canvas.
        weights : float64 tensor, shape ``(n,)``
            Joint probability of skeleton and what is visible.
        """
        visible = (row != self.mask_id).nonzero()[:, 0].tolist()
        alive, weights = torch.arange(len(self._prior)), self._prior
        for i in visible:
            there = self._tokens[i, alive]
            right = (there == row[i]) | (there < 0)
            if slip:
                weights = torch.where(right, weights, weights * slip)
            else:
                alive, weights = alive[right], weights[right]
        shapes, inverse = self._shape[alive].unique(return_inverse=True)
        options = self._options.repeat(len(shapes), 1, 1)
        for i in visible:
            form = self._forms[shapes, i].long()
            here = (form >= 0).nonzero()[:, 0]
            form = form[here]
            right = (self._spelt == row[i]).double().clamp(min=slip)
            options[here, self._word[form]] *= right[form]
        sums = options.sum(dim=2)
        options /= sums.clamp(min=1e-300)[..., None]
        weights = weights * sums.prod(dim=1)[inverse]
        return alive, shapes, inverse, options, weights

    def _collect(self, row, alive, shapes, inverse, options, weights):
        """Add up the weights of the tokens at each masked position."""
        found = torch.zeros(self.length, self.vocab_size).double()
        of_shape = torch.zeros(len(shapes)).double()
        of_shape.index_add_(0, inverse, weights)
        for i in range(self.length):
            if row[i] != self.mask_id:
                found[i, row[i]] = weights.sum()
                continue
            there = self._tokens[i, alive]
            fixed = there >= 0
            found[i].index_add_(0, there[fixed].long(), weights[fixed])
            form = self._forms[shapes, i].long()
            here = (form >= 0).nonzero()[:, 0]
            form = form[here]
            share = of_shape[here, None] * options[here, self._word[form]]
            sums = torch.zeros(self._spelt.shape).double()
            sums.index_add_(0, form, share)
            spelt = self._spelt >= 0
            found[i].index_add_(0, self._spelt[spelt], sums[spelt])
        total = weights.sum()
        return found / total, total.item()


class _Writer:
    """Walks the templates of the grammar and writes them as tokens.

    Attributes
    ----------
    words : dict
        Open word, such as ``"animal"`` -> probabilities of its options.
    forms : dict
        ``(word, how it is written)`` -> its token, option by option. In a
        skeleton the form number f stands as ``-1 - f``.
    """

    def __init__(self, tokenizer):
        self.words, self.forms = {}, {}
        self.end = tokenizer.eos_token_id
        self.causes = {
            tales.SLOTS[slot.given].field
            for slot in tales.SLOTS.values()
            if slot.given
        }
        # The same words and templates come up in many places.
        self.encode = cache(
            lambda words: tuple(tokenizer(words)["input_ids"]) if words else ()
        )
        self.skeletons = cache(self.skeletons)

    def skeletons(self, template, space, causes):
        """List what a template may become, open words left open.

        Parameters
        ----------
        template : str
        space : bool
            Whether a space stands before it: the tokenizer writes it into
            the token that follows.
        causes : tuple of (field, option)
            Choices made already on which others depend.

        Returns
        -------
        list of (probability, symbols, causes)
        """
        states = [(1.0, (), causes)]
        before = " " if space else ""
        for literal, article, name in tales._pieces(template):
            literal, before = before + literal, ""
            # A space before a hole belongs to what fills the hole.
            space = name is not None and literal.endswith(" ")
            symbols = self.encode(literal[:-1] if space else literal)
            states = [(p, row + symbols, made) for p, row, made in states]
            if name is not None:
                states = self._fill(states, name, article, space)
        return states

    def _fill(self, states, name, article, space):
        """Fill a hole: with a form of an open word, or in every way."""
        if name.lower() in tales.PRONOUNS:
            form = self._form("hero", name, space)
            return [(p, (*row, form), made) for p, row, made in states]
        if self._is_open(tales.SLOTS[name]):
            forms = (self._form(name, "", space or bool(article)),)
            if article:
                forms = (self._form(name, "a", space), *forms)
            return [(p, row + forms, made) for p, row, made in states]
        if article:
            raise ValueError(f"{name} is no single word: it takes no article")
        return [
            (p * q * r, row + inner, after)
            for p, row, made in states
            for q, option in self._choices(tales.SLOTS[name], made)
            for r, inner, after in self.skeletons(
                tales.SLOTS[name].text(option),
                space,
                self._noted(tales.SLOTS[name], option, made),
            )
        ]

    @staticmethod
    def _is_open(slot):
        """Is it one word, on which nothing but its own forms depends?"""
        leads = any(
            other.given and tales.SLOTS[other.given] is slot
            for other in tales.SLOTS.values()
        )
        plain = all(slot.text(o).isalpha() for o in slot.options())
        return plain and not leads and slot.given is None

    def _choices(self, slot, made):
        table = slot.weights(dict(made))
        return [(q, option) for option, q in tales._shares(table).items()]

    def _noted(self, slot, option, made):
        if slot.field not in self.causes:
            return made
        return (*made, (slot.field, option))

    def _form(self, word, form, space):
        """The symbol of a form; it is spelt where it first occurs."""
        key = (word, form, space)
        if key not in self.forms:
            shares = tales._shares(tales.SLOTS[word].table)
            self.words[word] = list(shares.values())
            self.forms[key] = [
                self._token(self._spell(option, form), space)
                for option in shares
            ]
        return -1 - list(self.forms).index(key)

    @staticmethod
    def _spell(option, form):
        if form == "a":
            return tales._article(option)
        return tales._gendered(form, option) if form else option

    def _token(self, word, space):
        found = self.encode(f" {word}" if space else word)
        if len(found) != 1:
            raise ValueError(
                f"this tokenizer writes {word!r} as {len(found)} tokens: the "
                "oracle needs one a word, as the book's tokenizer has"
            )
        return found[0]
