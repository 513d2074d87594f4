"""Prompts: what is given of a text, laid on canvases that are to be filled.

Chapter 5. A canvas is a row of ids; beside it a row of True and False says
which of them are given. What is not given is written by the sampler.
"""

import torch

from . import checks, noising, text

__all__ = ["encode", "lay_out", "repeat"]


def encode(prompt, tokenizer):
    """Turn the words of prompts into ids.

    Parameters
    ----------
    prompt : str or list of str
        White space at the ends is left out: no text was trained with it.
    tokenizer : transformers.PreTrainedTokenizerFast

    Returns
    -------
    ids, given : tensors, shape ``(batch, longest)``
        As of `text.pad_prompts`.

    Raises
    ------
    TypeError
        If a prompt is no text.
    ValueError
        If there is none, or one is empty, has no word that the tokenizer
        knows whole, or holds the end-of-text mark.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the list of prompts is empty; leave it out")
    for i, words in enumerate(prompts):
        if not isinstance(words, str):
            raise TypeError(
                f"a prompt is a text; got {words!r} ({type(words).__name__})"
            )
        prompts[i] = words.strip()
        text.check_known(prompts[i], tokenizer)
    ids, given = text.pad_prompts(prompts, tokenizer)
    ends = ((ids == tokenizer.eos_token_id) & given).any(dim=1)
    if bool(ends.any()):
        words = prompts[int(ends.long().argmax())]
        mark = tokenizer.decode([tokenizer.eos_token_id])
        raise ValueError(
            f"the prompt {words!r} holds the end-of-text mark {mark}, behind "
            "which nothing is read: leave it out"
        )
    return ids, given


def lay_out(
    input_ids,
    length,
    vocab_size,
    keep=None,
    attention_mask=None,
    end=None,
    longest=None,
):
    """Lay prompts on canvases.

    Parameters
    ----------
    input_ids : tensor of ids, shape ``(n,)`` or ``(batch, n)``, or None
        Prompts; None stands for one canvas of which nothing is given.
    length : int
        Of a canvas.
    vocab_size : int
    keep : tensor of 0 and 1, shape of ``input_ids``, optional
        Which ids are given; all if left out.
    attention_mask : tensor of 0 and 1, shape of ``input_ids``, optional
        As a tokenizer gives it, in place of ``keep``: prompts that are
        padded on the left are moved to the beginning.
    end : int, optional
        Id of the end-of-text token. Nothing that is given may follow it.
    longest : int, optional
        How long the canvas could be made, for the message.

    Returns
    -------
    canvas : tensor of ids, shape ``(batch, length)``
    given : bool tensor, same shape

    Raises
    ------
    ValueError
        If a prompt is empty, too long, padded without a mask, or no ids of
        the vocabulary.
    """
    if input_ids is None:
        if keep is not None or attention_mask is not None:
            raise ValueError(
                "keep and attention_mask belong to input_ids: give these too"
            )
        canvas = torch.zeros(1, length, dtype=torch.long)
        return canvas, torch.zeros_like(canvas, dtype=torch.bool)
    if keep is not None and attention_mask is not None:
        raise ValueError(
            "keep and attention_mask both say which ids are given: leave "
            "one out"
        )
    ids = _as_rows(input_ids, "input_ids").cpu()
    _check_ids(ids, vocab_size)
    if attention_mask is not None:
        mask = _as_rows(attention_mask, "attention_mask").cpu()
        mask = noising.check_keep(mask, ids.shape, "attention_mask")
        ids, given = _to_the_left(ids, mask)
    elif keep is not None:
        keep = _as_rows(keep, "keep").cpu()
        given = noising.check_keep(keep, ids.shape)
    else:
        given = torch.ones_like(ids, dtype=torch.bool)
    masked = keep is not None or attention_mask is not None
    _check_ends(ids, given, end, masked)
    if ids.shape[1] > length:
        more = " or raise max_length" if length < (longest or length) else ""
        raise ValueError(
            f"the prompt has {ids.shape[1]} tokens, the canvas only "
            f"{length}: shorten it{more}"
        )
    canvas = torch.zeros(len(ids), length, dtype=torch.long)
    held = torch.zeros_like(canvas, dtype=torch.bool)
    canvas[:, : ids.shape[1]], held[:, : ids.shape[1]] = ids, given
    return canvas, held


def repeat(canvas, given, count):
    """Each canvas ``count`` times, copies of one side by side."""
    if not checks.is_whole(count):
        raise ValueError(
            "num_return_sequences must be a whole number of at least 1; "
            f"got {count!r}"
        )
    return canvas.repeat_interleave(count, 0), given.repeat_interleave(
        count, 0
    )


def _as_rows(values, name):
    """One row a prompt, from a tensor, an array or lists."""
    try:
        values = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} must have shape (length,) or (batch, length), rows of "
            f"one length ({error})"
        ) from error
    return values[None] if values.ndim == 1 else values


def _check_ids(ids, vocab_size):
    """Refuse prompts that are empty or no ids of this vocabulary."""
    if ids.numel() == 0:
        raise ValueError("the prompt is empty; leave it out instead")
    whole = not (ids.is_floating_point() or ids.is_complex())
    if ids.ndim != 2 or not whole or ids.dtype == torch.bool:
        raise ValueError(
            "input_ids must be token ids of shape (length,) or "
            f"(batch, length); got {ids.dtype} of shape {tuple(ids.shape)}"
        )
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(
            f"this model has {vocab_size} tokens, ids 0 to {vocab_size - 1}; "
            f"the prompt holds {int(ids.min())} to {int(ids.max())}"
        )


def _to_the_left(ids, mask):
    """Move prompts to the beginning of their rows; what is masked is cut."""
    if not bool(mask.any(dim=1).all()):
        row = int((~mask.any(dim=1)).long().argmax())
        raise ValueError(
            f"row {row} of attention_mask holds no token: that prompt is "
            "empty; leave it out"
        )
    first = mask.long().argmax(dim=1, keepdim=True)
    where = (torch.arange(ids.shape[1]) + first) % ids.shape[1]
    ids, mask = ids.gather(1, where), mask.gather(1, where)
    counts = mask.sum(dim=1, keepdim=True)
    if not torch.equal(mask, torch.arange(ids.shape[1]) < counts):
        raise ValueError(
            "attention_mask has a gap inside a prompt; to have a gap filled, "
            "say with keep which ids are given"
        )
    longest = int(counts.max())
    return ids[:, :longest], mask[:, :longest]


def _check_ends(ids, given, end, masked):
    """Refuse an end-of-text token in front of something that is given."""
    if end is None:
        return
    ends = (ids == end) & given
    if not masked and bool(ends.any()):
        raise ValueError(
            f"the prompt holds the end-of-text token {end}, behind which "
            "nothing is read. If it is padding, give the tokenizer's "
            "attention_mask; if the text shall end there, say with keep "
            "which ids are given"
        )
    behind = ends.long().cumsum(dim=1) - ends.long() > 0
    if bool((behind & given & ~ends).any()):
        raise ValueError(
            f"the prompt goes on behind the end-of-text token {end}, where "
            "nothing is read: leave that token out"
        )
