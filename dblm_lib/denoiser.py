r"""GPT-2 as a denoiser: vectors in, vectors out.

Chapter 3. The trunk of GPT-2 (its blocks, positions and last layer norm)
reads noised embeddings instead of tokens and answers with its guess of the
clean ones, :math:`\hat x_0(z_t, t)`. With causal attention, no conditioning
and clean embeddings it is GPT-2 itself, number for number.
"""

import math

import torch
from torch import nn
from transformers import GPT2Config, GPT2Model, GPT2PreTrainedModel
from transformers import initialization as init

from . import noising, resources, schedules

__all__ = [
    "CONDITIONINGS",
    "DBLM",
    "HEADS",
    "LOSSES",
    "SAMPLER",
    "DBLMConfig",
    "DenoiserBase",
    "attention_mask_4d",
    "linear",
    "load",
    "noise_embedding",
]

CONDITIONINGS = ("none", "time")
HEADS = ("vector", "mixture")
LOSSES = ("mse", "ce")
# How samples are drawn if neither the call nor the configuration says.
SAMPLER = {
    "step": "ancestral",
    "stagger": 0.0,
    "power": 1.0,
    "temperature": 1.0,
    "likelihood_weight": 1.0,
}
# Beyond this signal-to-noise ratio a token is certain: the likelihood stops
# growing there, and stays finite at t = 0.
_LARGEST_SNR = 100.0


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
        sampler=None,
        **kwargs,
    ):
        for field, value, known in (
            ("conditioning", conditioning, CONDITIONINGS),
            ("head", head, HEADS),
            ("loss", loss, LOSSES),
        ):
            if value not in known:
                raise ValueError(
                    f"unknown {field} {value!r}; "
                    f"choose one of {', '.join(known)}"
                )
        if embed_dim is not None and not (
            isinstance(embed_dim, int) and embed_dim >= 1
        ):
            raise ValueError(
                f"embed_dim must be a whole number above 0; got {embed_dim!r}"
            )
        self.causal = causal
        self.conditioning = conditioning
        self.embed_dim = embed_dim
        self.normalise_embeddings = normalise_embeddings
        self.train_embeddings = train_embeddings
        self.schedule = schedule
        self.schedule_options = schedule_options or {}
        schedules.get_schedule(schedule, **self.schedule_options)
        _check_repairs(head, loss, likelihood, self_conditioning, input_std)
        for field, value in (
            ("likelihood", likelihood),
            ("evidence", evidence),
        ):
            if value and conditioning == "none":
                raise ValueError(
                    f"{field}=True needs the noise level: "
                    "set conditioning='time'"
                )
        for field, value in (
            ("self_conditioning", self_conditioning),
            ("clean_rate", clean_rate),
        ):
            if not 0 <= value <= 1:
                raise ValueError(
                    f"{field} is a share, from 0 to 1; got {value}"
                )
        if not 0 <= stagger < math.inf:
            raise ValueError(f"stagger must be 0 or more; got {stagger}")
        self.head = head
        self.loss = loss
        self.input_std = input_std
        self.self_conditioning = self_conditioning
        self.likelihood = likelihood
        self.evidence = evidence
        self.shift = shift
        self.clean_rate = clean_rate
        self.stagger = stagger
        self.sampler = dict(sampler or {})
        unknown = set(self.sampler) - set(SAMPLER)
        if unknown:
            raise ValueError(
                f"sampler has no {', '.join(sorted(unknown))}; "
                f"it knows {', '.join(SAMPLER)}"
            )
        super().__init__(**kwargs)
        if conditioning == "time" and self.n_embd % 2:
            raise ValueError(
                "to be told the time, half of the hidden states are sines and "
                f"half cosines: n_embd must be even; got {self.n_embd}"
            )
        start = self.bos_token_id
        if shift and (start is None or not 0 <= start < self.vocab_size):
            raise ValueError(
                "shift=True puts the token bos_token_id in front: it must be "
                f"one of {self.vocab_size} tokens; got {start}"
            )


def _check_repairs(head, loss, likelihood, self_conditioning, input_std):
    """Refuse fields that need another one which is not set."""
    if head == "vector" and (loss == "ce" or likelihood):
        wrong = "loss='ce'" if loss == "ce" else "likelihood=True"
        raise ValueError(
            f"{wrong} needs a probability for each token: set head='mixture'"
        )
    if self_conditioning and loss != "ce":
        raise ValueError(
            "self_conditioning is trained by cross-entropy only: set loss='ce'"
        )
    if input_std is not None and not 0 < input_std < math.inf:
        raise ValueError(f"input_std must be positive; got {input_std}")


def noise_embedding(t, dim):
    """Write times as vectors: sines and cosines of many frequencies.

    Parameters
    ----------
    t : tensor, any shape
        Times in [0, 1].
    dim : int
        Even; half of it sines, half cosines.

    Returns
    -------
    tensor, shape ``(*t.shape, dim)``
        Close times get close vectors, and no two times the same
        (Vaswani et al., 2017; Ho et al., 2020, with t counted to 1000).
    """
    half = dim // 2
    steps = torch.arange(half, device=t.device) / half
    frequencies = torch.exp(-math.log(10_000) * steps)
    angles = 1000 * t[..., None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def attention_mask_4d(real, causal):
    """Who may look at whom: True where position i may see position j.

    Parameters
    ----------
    real : bool tensor, shape ``(batch, length)``
        False where the canvas is only padding; padding is never looked at.
    causal : bool
        Whether what stands to the right is hidden too.

    Returns
    -------
    bool tensor, shape ``(batch, 1, length, length)``
        In the form scaled-dot-product attention takes.
    """
    batch, length = real.shape
    mask = real[:, None, None, :].expand(batch, 1, length, length)
    if causal:
        ones = torch.ones(length, length, dtype=torch.bool)
        mask = mask & ones.tril().to(real.device)
    return mask


def linear(inputs, outputs):
    """A linear map, or nothing at all where the sizes agree."""
    if inputs == outputs:
        return nn.Identity()
    return nn.Linear(inputs, outputs)


def _put(points, where, rows):
    """The points with new ones at some positions; all of them at ``...``."""
    if where is ...:
        return rows
    return points.index_put((where,), rows.to(points.dtype))


class DenoiserBase(GPT2PreTrainedModel):
    """Loading, checking and generating; the network itself is in `DBLM`."""

    config_class = DBLMConfig
    base_model_prefix = "dblm"
    _supports_sdpa = True
    main_input_name = "zt"

    @classmethod
    def from_backbone(cls, backbone="tales-gpt2", **options):
        """Make a denoiser from a pretrained GPT-2.

        Parameters
        ----------
        backbone : str, path or resources.Backbone
            What `resources.load_backbone` takes or gives.
        **options
            Fields of `DBLMConfig`. With an ``embed_dim`` below GPT-2's own,
            the embeddings are pressed into it by principal components.

        Returns
        -------
        DBLM
            In evaluation mode.
        """
        if not hasattr(backbone, "model"):
            backbone = resources.load_backbone(backbone)
        gpt2 = backbone.model.transformer
        fields = gpt2.config.to_dict()
        for name in ("model_type", "architectures", "transformers_version"):
            fields.pop(name, None)
        model = cls(cls.config_class(**{**fields, **options}))
        trunk = gpt2.state_dict()
        table = trunk.pop("wte.weight")
        if model.table().shape[1] != table.shape[1]:
            table = noising.principal_table(table, model.config.embed_dim)
        model.trunk.load_state_dict(trunk)
        if hasattr(model.trunk.ln_f, "reads_out"):
            with torch.no_grad():  # as in a new model, see add_repairs
                for weight in model.trunk.ln_f.parameters():
                    weight.mul_(model.config.input_std)
        model.embeddings.load_state_dict({"weight": table})
        return model.eval()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load a saved denoiser; as in `transformers`.

        Its embeddings are fixed again unless ``train_embeddings`` is set:
        loading by itself would let all weights learn.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.embeddings.requires_grad_(model.config.train_embeddings)
        return loaded

    def table(self):
        """The clean embedding of each token, shape ``(vocab, dim)``."""
        weight = self.embeddings.weight
        if self.config.normalise_embeddings:
            weight = noising.normalise(weight)
        return weight

    def embed(self, ids):
        """Clean embeddings x0 of ids, shape ``(*ids.shape, dim)``."""
        return self.table()[ids]

    def check_input(self, zt, t, mask):
        """Refuse an input that does not fit, and bring it into shape.

        Parameters
        ----------
        zt, t, mask
            As `DBLM.forward` takes them.

        Returns
        -------
        t : float64 tensor, shape ``(batch, 1)`` or ``(batch, length)``
            None without conditioning.
        mask : bool tensor, shape ``(batch, length)``
        """
        dim = self.embeddings.embedding_dim
        if zt.ndim != 3 or zt.shape[-1] != dim:
            raise ValueError(
                f"zt must have shape (batch, length, {dim}); "
                f"got {tuple(zt.shape)}"
            )
        longest = self.config.max_position_embeddings - self.config.shift
        if zt.shape[1] > longest:
            raise ValueError(
                f"this model knows {longest} positions; got {zt.shape[1]}: "
                "shorten the text"
            )
        if not bool(torch.isfinite(zt).all()):
            raise ValueError("zt must be finite; it holds NaN or infinity")
        if mask is None:
            mask = torch.ones(zt.shape[:2], dtype=torch.bool)
        if mask.shape != zt.shape[:2]:
            raise ValueError(
                f"the attention mask must have shape {tuple(zt.shape[:2])}, "
                f"one value a position; got {tuple(mask.shape)}"
            )
        return self._check_time(zt, t), mask.to(zt.device, torch.bool)

    def _check_time(self, zt, t):
        if self.config.conditioning == "none":
            return None
        if t is None:
            raise ValueError(
                "this model is conditioned on the time: give t, "
                "one number, one a sequence or one a position"
            )
        t = schedules.as_time(t).to(zt.device)
        batch, length = zt.shape[:2]
        if t.shape not in [(), (1,), (batch,), (batch, length)]:
            raise ValueError(
                f"t must be one number, or have shape ({batch},) or "
                f"({batch}, {length}); got {tuple(t.shape)}"
            )
        return t if t.ndim == 2 else t.reshape(-1, 1).expand(batch, 1)

    def as_bias(self, mask):
        """A mask in the form that the chosen attention takes.

        Scaled-dot-product attention takes True and False. The eager one,
        faster on processors in training, adds numbers to its scores.
        """
        if self.config._attn_implementation != "eager":
            return mask
        bias = torch.zeros(mask.shape, device=mask.device)
        return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)

    def _init_weights(self, module):
        super()._init_weights(module)
        if self.config.input_std is None:
            return
        # Unit variance in, unit variance out; `enter` then scales it down.
        if getattr(module, "enters", False):
            init.normal_(module.weight, std=module.in_features**-0.5)
        if getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)
        if getattr(module, "reads_out", False):
            init.constant_(module.weight, self.config.input_std)

    def add_repairs(self):
        """Chapter 7: layers that its repairs need, and marks on others.

        The marks say how a layer starts, see `_init_weights`; without
        ``input_std`` nothing heeds them. By default no layer is added.
        """
        config, dim = self.config, self.embeddings.embedding_dim
        for layer in self.entrance():
            layer.enters = True
        if config.conditioning == "time":
            # At first the trunk is told nothing, and is not disturbed.
            self.noise_mlp[-1].enters = False
            self.noise_mlp[-1].starts_at_zero = True
        if config.shift and config.input_std:
            # What leaves is multiplied by the embeddings, which input_std
            # made shorter on the way in only: it has to be made up for here.
            self.trunk.ln_f.reads_out = True
            with torch.no_grad():  # the trunk has been initialised already
                self.trunk.ln_f.weight.fill_(config.input_std)
        if config.evidence:
            self.log_frequency = nn.Parameter(torch.zeros(config.vocab_size))
        if config.self_conditioning:
            self.project_guess = nn.Linear(dim, config.hidden_size, bias=False)
            self.project_guess.starts_at_zero = True

    def entrance(self):
        """Linear layers by which points and times enter the trunk."""
        layers = [self.project_in, *getattr(self, "noise_mlp", ())]
        return [layer for layer in layers if isinstance(layer, nn.Linear)]

    def noised(self, zt, keep=None):
        """Chapter 7: the positions whose token is in question.

        Parameters
        ----------
        zt : tensor, shape ``(batch, length, dim)``
        keep : bool tensor, shape ``(batch, length)``, optional
            True where ``zt`` is clean.

        Returns
        -------
        bool tensor, shape ``(batch, length)``, or Ellipsis
            Ellipsis stands for all.
        """
        noising.check_keep(keep, zt.shape[:2])
        return ... if keep is None else ~keep

    def weigh(self, zt, t, asked=...):
        """Chapter 7: how likely each token makes each noised point.

        Parameters
        ----------
        zt : tensor, shape ``(batch, length, dim)``
        t : tensor, shape ``(batch, 1)`` or ``(batch, length)``
        asked : bool tensor, shape ``(batch, length)``, or Ellipsis
            Positions whose token is in question; ``...`` for all.

        Returns
        -------
        tensor
            As `log_likelihood`, one row a position that is asked for; None
            where the configuration has no use for it.
        """
        if not (self.config.likelihood or self.config.evidence):
            return None
        if asked is not ...:
            t = t.expand(zt.shape[:2])[asked]
        return self.log_likelihood(zt[asked], t)

    def reweigh(self, likelihood, weight=1.0):
        """What the likelihood adds to the logits at a weight; see `forward`."""
        check_likelihood_weight(weight, self.config.likelihood)
        return likelihood if weight == 1 else weight * likelihood

    def read(self, zt, likelihood=None, asked=...):
        """Chapter 7: what the trunk is given to read.

        Parameters
        ----------
        zt : tensor, shape ``(batch, length, dim)``
        likelihood : tensor or None
            What `weigh` returned.
        asked : bool tensor, shape ``(batch, length)``, or Ellipsis

        Returns
        -------
        tensor, shape of ``zt``
            The points themselves; with ``evidence`` the guess of x0 that
            each position makes by itself.
        """
        if not self.config.evidence:
            return zt
        return _put(zt, asked, self.mix(likelihood + self.log_frequency))

    def enter(self, hidden, real, previous=None):
        """Chapter 7: what happens to points on their way into the trunk.

        Parameters
        ----------
        hidden : tensor, shape ``(batch, length, hidden_size)``
        real : bool tensor, shape ``(batch, length)``
        previous : tensor, shape ``(batch, length, dim)``, optional
            An earlier guess of x0; zeros and None mean that there is none.

        Returns
        -------
        hidden, real : tensors
            With the previous guess added, brought to the trunk's scale and,
            with ``shift``, longer by an end-of-text token in front.
        """
        if previous is not None:
            if not self.config.self_conditioning:
                raise ValueError(
                    "this model was made without self_conditioning: "
                    "it takes no previous guess"
                )
            hidden = hidden + self.project_guess(previous.to(hidden.dtype))
        if self.config.shift:
            start = self.project_in(self.table()[self.config.bos_token_id])
            start = start.to(hidden.dtype).expand(len(hidden), 1, -1)
            hidden = torch.cat([start, hidden], dim=1)
            real = torch.cat([torch.ones_like(real[:, :1]), real], dim=1)
        if self.config.input_std is not None:
            hidden = hidden * self.config.input_std
        return hidden, real

    def answer(
        self, hidden, likelihood=None, logits=False, asked=..., zt=None
    ):
        """Chapter 7: from the trunk's last states to the guess of x0.

        Parameters
        ----------
        hidden : tensor, shape ``(batch, length, hidden_size)``
        likelihood : tensor, optional
            What `weigh` returned.
        logits : bool
            Answer with logits over the vocabulary instead.
        asked : bool tensor, shape ``(batch, length)``, or Ellipsis
        zt : tensor, shape ``(batch, length, dim)``, optional
            The points: where nothing is asked, they are the guess. Needed
            unless all positions are asked.

        Returns
        -------
        tensor
            The guess at each position; with ``shift`` it is read off the
            state before that position. Of logits one row a position that is
            asked for.
        """
        if self.config.shift:
            hidden = hidden[:, :-1]
        output = self.project_out(hidden[asked])
        if self.config.head == "vector":
            if logits:
                raise ValueError(
                    "this model answers with vectors, not with logits over "
                    "tokens: set head='mixture'"
                )
            return _put(zt, asked, output)
        # Logits are products with the embeddings themselves: a token that is
        # seen elsewhere can be copied by copying its embedding.
        with torch.autocast(output.device.type, enabled=False):
            output = output.float() @ self.table().float().T
        if self.config.likelihood:
            output = output + likelihood
        return output if logits else _put(zt, asked, self.mix(output))

    def log_likelihood(self, zt, t):
        r"""Log-density of zt if each token were the right one.

        .. math:: \log N(z_t; \alpha e_v, \sigma^2) = \mathrm{snr}
                  \left(\frac{z_t}{\alpha} \cdot e_v
                  - \frac{|e_v|^2}{2}\right) + \mathrm{const}

        Parameters
        ----------
        zt : tensor, shape ``(..., dim)``
        t : tensor, shape ``(...)``; ones where it repeats

        Returns
        -------
        tensor, shape ``(..., vocab)``, float32
        """
        # Where a schedule ends without any signal, 0 / 0 stands for 0.
        alpha = self.schedule.alpha(t).clamp(min=1e-6)
        snr = self.schedule.snr(t)
        alpha, snr = (v.to(zt.device).float()[..., None] for v in (alpha, snr))
        # bf16 has 8 bits: too few for a sum that decides between tokens.
        with torch.autocast(zt.device.type, enabled=False):
            table, points = self.table().float(), zt.float() / alpha
            # One product gives both terms: (z, -1/2) . (e, |e|^2).
            half = torch.full_like(points[..., :1], -0.5)
            points = torch.cat([points, half], dim=-1)
            table = torch.cat([table, table.square().sum(1, True)], dim=1)
            return (snr.clamp(max=_LARGEST_SNR) * points) @ table.T

    def mix(self, logits):
        """The mean of the tokens' embeddings under their probabilities.

        Parameters
        ----------
        logits : tensor, shape ``(..., vocab)``

        Returns
        -------
        tensor, shape ``(..., dim)``, float32
            The guess of x0.
        """
        with torch.autocast(logits.device.type, enabled=False):
            return logits.float().softmax(dim=-1) @ self.table().float()

    def get_input_embeddings(self):
        return self.embeddings

    def set_input_embeddings(self, value):
        self.embeddings = value

    @property
    def schedule(self):
        """The noise schedule that the configuration names."""
        config = self.config
        return schedules.get_schedule(
            config.schedule, **config.schedule_options
        )

    def generate(self, input_ids=None, **options):
        """Sample ids by reverse diffusion; see `decoding.generate_ids`."""
        from . import decoding  # one floor up: only when it is asked for

        return decoding.generate_ids(self, input_ids, **options)


class DBLM(DenoiserBase):
    """GPT-2's trunk, denoising embeddings.

    Parameters
    ----------
    config : DBLMConfig
    """

    def __init__(self, config):
        super().__init__(config)
        hidden = config.hidden_size
        dim = config.embed_dim or hidden
        self.embeddings = nn.Embedding(config.vocab_size, dim)
        self.embeddings.requires_grad_(config.train_embeddings)
        self.trunk = GPT2Model(config)
        self.trunk.wte = None  # vectors come in, not tokens
        self.project_in = linear(dim, hidden)
        self.project_out = linear(hidden, dim)
        if config.conditioning == "time":
            self.noise_mlp = nn.Sequential(
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
            )
        self.add_repairs()  # Chapter 7; none by default
        self.post_init()

    def forward(
        self,
        zt,
        t=None,
        attention_mask=None,
        previous=None,
        logits=False,
        keep=None,
        likelihood_weight=1.0,
    ):
        """Guess the clean embeddings.

        Parameters
        ----------
        zt : tensor, shape ``(batch, length, dim)``
            Noised embeddings.
        t : float or tensor, shape ``()``, ``(batch,)``, ``(batch, length)``
            Times; not needed without conditioning.
        attention_mask : bool tensor, shape ``(batch, length)``, optional
            False at padding.
        previous : tensor, shape of ``zt``, optional
            An earlier guess of x0, for a model with self-conditioning.
        logits : bool
            Answer with logits over tokens, shape ``(batch, length, vocab)``;
            a mixture head only.
        keep : bool tensor, shape ``(batch, length)``, optional
            True where ``zt`` is clean: there it is read as it is, and is
            the guess. Logits then come for the n other positions only,
            shape ``(n, vocab)``: in training that saves much work.
        likelihood_weight : float
            Weight of the likelihood in the logits, for a model with that
            term: 1 believes each point as much as its noise level allows, 0
            not at all.

        Returns
        -------
        tensor, shape of ``zt``
            The guess of x0.

        Raises
        ------
        ValueError
            If a shape does not fit, a number is not finite, ``t`` is missing
            or outside [0, 1], or there is no likelihood to weigh.
        """
        t, real = self.check_input(zt, t, attention_mask)
        asked = self.noised(zt, keep)  # Chapter 7; all by default
        likelihood = self.weigh(zt, t, asked)  # Chapter 7; None by default
        hidden = self.project_in(self.read(zt, likelihood, asked))
        if t is not None:
            code = noise_embedding(t, hidden.shape[-1])
            hidden = hidden + self.noise_mlp(code.to(hidden.dtype))
        hidden, real = self.enter(hidden, real, previous)
        output = self.trunk(
            inputs_embeds=hidden,
            attention_mask=self.as_bias(
                attention_mask_4d(real, self.config.causal)
            ),
            use_cache=False,
        )
        states = output.last_hidden_state
        # Chapter 7; unchanged by default
        likelihood = self.reweigh(likelihood, likelihood_weight)
        return self.answer(states, likelihood, logits, asked, zt)


def check_likelihood_weight(weight, likelihood):
    """Refuse a weight of the likelihood that means nothing."""
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"likelihood_weight must not be negative or infinite; got {weight}"
        )
    if weight != 1 and not likelihood:
        raise ValueError(
            "this model adds no likelihood to its logits: likelihood_weight "
            "has nothing to weigh"
        )


def load(name):
    """Load a trained denoiser.

    Parameters
    ----------
    name : str or path
        A checkpoint of the book, or a folder made by `save_pretrained`.

    Returns
    -------
    DBLM
        In evaluation mode.

    Raises
    ------
    resources.DataError
        If files are missing, damaged or those of another architecture.
    ValueError
        If the name is unknown; the message suggests the nearest.
    """
    folder = resources.locate(name)
    resources.check_architecture(folder, "dblm")
    return resources.load_weights(DBLM, folder)
