"""What a denoiser is told to be: GPT-2's configuration, and ours.

Chapters 3 and 7. Every field is checked when a configuration is made, so
that a wrong one is named before anything is built, trained or sampled.
"""

from transformers import GPT2Config

from . import checks, decoding, schedules

__all__ = ["CONDITIONINGS", "HEADS", "LOSSES", "DBLMConfig"]

CONDITIONINGS = ("none", "time")
HEADS = ("vector", "mixture")
LOSSES = ("mse", "ce")
# Fields that are either True or False.
_SWITCHES = (
    "causal",
    "normalise_embeddings",
    "train_embeddings",
    "likelihood",
    "evidence",
    "shift",
)


class DBLMConfig(GPT2Config):
    """GPT-2's configuration and what a denoiser adds to it.

    Parameters
    ----------
    causal : bool
        May a position see only what stands to its left, as in GPT-2?
    conditioning : {"none", "time"}
        Whether the network is told the time t, that is, how noisy its input
        is.
    embed_dim : int, optional
        Dimension of the space that is noised; that of GPT-2's hidden states
        if left out, and then no projection is needed.
    normalise_embeddings : bool
        Scale each embedding to length sqrt(embed_dim).
    train_embeddings : bool
        Whether the embeddings learn too.
    schedule : str
        Name of the noise schedule, see `schedules.get_schedule`.
    schedule_options : dict, optional
    head : {"vector", "mixture"}
        Whether the network answers with a vector, or with a probability for
        each token; the guess is then the mean of the tokens' embeddings
        (Dieleman et al., 2022). The logits are products with the embeddings.
        Chapter 7, as all that follows.
    loss : {"mse", "ce"}
        Mean squared error of the guess, or cross-entropy of the tokens,
        which needs the mixture head.
    input_std : float, optional
        Standard deviation with which noised points of unit variance enter
        the trunk of a new model: the projection starts by keeping their
        variance, and this multiplies what enters. The time and the previous
        guess start unheard. If left out, GPT-2's own initialisation decides.
    self_conditioning : float
        Share of the training sequences whose first guess is an input of a
        second one (Chen et al., 2023). In sampling the guess of the last
        step serves. 0 switches it off.
    likelihood : bool
        Add to the mixture's logits how likely each token makes the noised
        point: the network need only learn what the context says (Gulrajani
        & Hashimoto, 2023).
    evidence : bool
        What enters the trunk is not the noised point, but what it alone
        tells about its token: the mean of all tokens' embeddings, weighed
        by how likely each makes the point and how frequent it is, which is
        learned. No noise is left to drown the context in.
    shift : bool
        Answer each position from the state of the one before it, behind an
        end-of-text token: what GPT-2 was trained to do (Gong et al., 2025).
    clean_rate : float
        Share of the training sequences in which a random share of the
        positions stays clean.
    stagger : float
        How far, at most, the left of the other training sequences is ahead
        of the right, see `decoding.staggered_times`; 0 noises all positions
        of a sequence alike.
    seq_len : int, optional
        Length of the canvases that the model was trained on, and so of those
        that it writes on, see `decoding.canvas_of`.
    sampler : dict, optional
        What `decoding.generate_ids` takes for ``step``, ``stagger``,
        ``power``, ``temperature`` and ``likelihood_weight`` of this model
        where the call does not say.
    **kwargs
        Those of `transformers.GPT2Config`.
    """

    model_type = "dblm"

    def __init__(
        self,
        causal=False,
        conditioning="time",
        embed_dim=None,
        normalise_embeddings=False,
        train_embeddings=False,
        schedule="linear",
        schedule_options=None,
        head="vector",
        loss="mse",
        input_std=None,
        self_conditioning=0.0,
        likelihood=False,
        evidence=False,
        shift=False,
        clean_rate=0.0,
        stagger=0.0,
        seq_len=None,
        sampler=None,
        **kwargs,
    ):
        self.causal = causal
        self.conditioning = conditioning
        self.embed_dim = embed_dim
        self.normalise_embeddings = normalise_embeddings
        self.train_embeddings = train_embeddings
        self.schedule = schedule
        self.schedule_options = schedule_options or {}
        self.head = head
        self.loss = loss
        self.input_std = input_std
        self.self_conditioning = self_conditioning
        self.likelihood = likelihood
        self.evidence = evidence
        self.shift = shift
        self.clean_rate = clean_rate
        self.stagger = stagger
        self.seq_len = seq_len
        self.sampler = sampler or {}
        _check_fields(self)
        self.sampler = dict(self.sampler)
        super().__init__(**kwargs)
        check_sizes(self)


def fields_of(gpt2):
    """Fields of a GPT-2's configuration that another one can take over.

    Parameters
    ----------
    gpt2 : transformers.GPT2Config

    Returns
    -------
    dict
    """
    fields = gpt2.to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        fields.pop(name, None)
    return fields


def check_choices(config, known_of):
    """Refuse a field that is none of its known words."""
    for field, known in known_of.items():
        value = getattr(config, field)
        if not isinstance(value, str) or value not in known:
            raise ValueError(
                f"unknown {field} {value!r}; choose one of {', '.join(known)}"
            )


def check_switches(config, fields):
    """Refuse a field that is neither True nor False."""
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, bool):
            raise TypeError(f"{field} is True or False; got {value!r}")


def _check_fields(config):
    """Refuse fields of `DBLMConfig` that are wrong by themselves or together.

    Those of GPT-2 are not there yet, see `check_sizes`.
    """
    check_choices(
        config,
        {"conditioning": CONDITIONINGS, "head": HEADS, "loss": LOSSES},
    )
    check_switches(config, _SWITCHES)
    for field in ("embed_dim", "seq_len"):
        value = getattr(config, field)
        if not (value is None or checks.is_whole(value)):
            raise ValueError(
                f"{field} must be a whole number above 0; got {value!r}"
            )
    for field in ("self_conditioning", "clean_rate"):
        value = getattr(config, field)
        if not (checks.is_number(value) and 0 <= value <= 1):
            raise ValueError(f"{field} is a share, from 0 to 1; got {value!r}")
    if not (checks.is_number(config.stagger) and config.stagger >= 0):
        raise ValueError(f"stagger must be 0 or more; got {config.stagger!r}")
    std = config.input_std
    if not (std is None or (checks.is_number(std) and std > 0)):
        raise ValueError(f"input_std must be positive; got {std!r}")
    for field in ("schedule_options", "sampler"):
        value = getattr(config, field)
        if not isinstance(value, dict):
            raise TypeError(f"{field} must be a dictionary; got {value!r}")
    _check_together(config)
    schedules.get_schedule(config.schedule, **config.schedule_options)
    decoding.check_sampler(
        decoding.SAMPLER | config.sampler,
        mixture=config.head == "mixture",
        likelihood=config.likelihood,
    )


def _check_together(config):
    """Refuse fields that need another one which is not set."""
    if config.head == "vector" and (config.loss == "ce" or config.likelihood):
        wrong = "loss='ce'" if config.loss == "ce" else "likelihood=True"
        raise ValueError(
            f"{wrong} needs a probability for each token: set head='mixture'"
        )
    if config.self_conditioning and config.loss != "ce":
        raise ValueError(
            "self_conditioning is trained by cross-entropy only: set loss='ce'"
        )
    for field in ("likelihood", "evidence"):
        if getattr(config, field) and config.conditioning == "none":
            raise ValueError(
                f"{field}=True needs the noise level: set conditioning='time'"
            )


def check_sizes(config):
    """Refuse sizes of GPT-2 that make no network, or do not fit ours."""
    for field in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        value = getattr(config, field)
        if not checks.is_whole(value):
            raise ValueError(
                f"{field} must be a whole number above 0; got {value!r}"
            )
    for field in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        value = getattr(config, field)
        if not (checks.is_number(value) and 0 <= value <= 1):
            raise ValueError(f"{field} is a share, from 0 to 1; got {value!r}")
    if config.conditioning == "time" and config.n_embd % 2:
        raise ValueError(
            "to be told the time, half of the hidden states are sines and "
            f"half cosines: n_embd must be even; got {config.n_embd}"
        )
    start = config.bos_token_id
    if config.shift and not (
        checks.is_whole(start, 0) and start < config.vocab_size
    ):
        raise ValueError(
            "shift=True puts the token bos_token_id in front: it must be "
            f"one of {config.vocab_size} tokens; got {start}"
        )
    longest = config.n_positions - config.shift
    if config.seq_len is not None and config.seq_len > longest:
        raise ValueError(
            f"this model knows {longest} positions; seq_len must not be "
            f"above that; got {config.seq_len}"
        )
