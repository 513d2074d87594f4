r"""GPT-2 as a denoiser: vectors in, vectors out.

Chapter 3. The trunk of GPT-2 (its blocks, positions and last layer norm)
reads noised embeddings instead of tokens and answers with its guess of the
clean ones, :math:`\hat x_0(z_t, t)`. With causal attention, no conditioning
and clean embeddings it is GPT-2 itself, number for number.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Model, GPT2PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from . import decoding, noising, posterior, resources, schedules
from .configuration import (
    CONDITIONINGS,
    HEADS,
    LOSSES,
    DBLMConfig,
    fields_of,
)
from .decoding import SAMPLER

__all__ = [
    "CONDITIONINGS",
    "DBLM",
    "HEADS",
    "LOSSES",
    "SAMPLER",
    "DBLMConfig",
    "DenoiserBase",
    "DenoiserOutput",
    "attention_mask_4d",
    "linear",
    "load",
    "noise_embedding",
]


@dataclass
class DenoiserOutput(ModelOutput):
    """What `DBLM.forward` answers.

    Attributes
    ----------
    x0 : tensor, shape ``(batch, length, dim)``
        The guess of the clean embeddings.
    logits : tensor, shape ``(batch, length, vocab)``, or None
        Log-odds of the tokens, float32; None with a vector head. If some
        positions were kept, one row for each of the others.
    """

    x0: torch.Tensor = None
    logits: torch.Tensor = None


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
        ones = torch.ones(length, length, dtype=torch.bool, device=real.device)
        mask = mask & ones.tril()
    return mask


def linear(inputs, outputs):
    """A linear map, or nothing at all where the sizes agree."""
    if inputs == outputs:
        return nn.Identity()
    return nn.Linear(inputs, outputs)


def free_of_file(loaded):
    """Copy the weights of a loaded model; return it.

    Otherwise its file stays mapped as long as the model lives, and Windows
    lets no one replace it.

    Parameters
    ----------
    loaded : transformers.PreTrainedModel, or tuple
        What ``from_pretrained`` returns: a model, or it and a report.

    Returns
    -------
    transformers.PreTrainedModel
    """
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.clone()
    return model


class DenoiserBase(decoding.DiffusionMixin, GPT2PreTrainedModel):
    """Loading, checking and generating; the network itself is in `DBLM`."""

    config_class = DBLMConfig
    base_model_prefix = "dblm"
    _supports_sdpa = True
    main_input_name = "zt"

    @classmethod
    def from_backbone(cls, backbone="tales-gpt2", rows=None, **options):
        """Make a denoiser from a pretrained GPT-2.

        Parameters
        ----------
        backbone : str, path or resources.Backbone
            What `resources.load_backbone` takes or gives.
        rows : tensor of ids, optional
            The tokens that occur in the text; needed only with an
            ``embed_dim`` below GPT-2's own, for `noising.principal_table`.
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
        fields = fields_of(gpt2.config)
        model = cls(cls.config_class(**{**fields, **options}))
        trunk = gpt2.state_dict()
        table = trunk.pop("wte.weight")
        if model.table().shape[1] != table.shape[1]:
            size = model.config.embed_dim
            table = noising.principal_table(table, size, rows)
        model.trunk.load_state_dict(trunk)
        if hasattr(model.trunk.ln_f, "reads_out"):
            with torch.no_grad():  # as in a new model
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
        model = free_of_file(loaded)
        model.embeddings.requires_grad_(model.config.train_embeddings)
        return loaded

    def table(self):
        """The clean embedding of each token, shape ``(vocab, dim)``."""
        weight = self.embeddings.weight
        if self.config.normalise_embeddings:
            # `noising.normalise`, but no number is looked at.
            weight = F.normalize(weight, dim=-1) * math.sqrt(weight.shape[1])
        return weight

    def embed(self, ids):
        """Clean embeddings x0 of ids, shape ``(*ids.shape, dim)``."""
        return self.table()[ids]

    def check_input(
        self, zt, t, mask=None, previous=None, keep=None, table=None
    ):
        """Refuse an input that does not fit, and bring it into shape.

        No number on a GPU is looked at, which would make the program wait
        for it: whether a guess is finite is seen where texts are sampled.

        Parameters
        ----------
        zt, t, mask, previous, keep, table
            As `DBLM.forward` takes them.

        Returns
        -------
        t : float64 tensor, shape ``(batch, 1)`` or ``(batch, length)``
            Or ``(1, length)`` if it is one row for all sequences; None
            without conditioning.
        mask : bool tensor, shape ``(batch, length)``
            Or ``(1, length)`` if there is no padding.
        previous : tensor, shape of ``zt``
            Zeros where there is none.
        asked : bool tensor, shape ``(batch, length)``, or Ellipsis
            Positions whose token is in question; Ellipsis stands for all.
        table : tensor, shape ``(vocab, dim)``
        """
        dim = self.embeddings.embedding_dim
        if zt.ndim != 3 or zt.shape[-1] != dim:
            raise ValueError(
                f"zt must have shape (batch, length, {dim}); "
                f"got {tuple(zt.shape)}"
            )
        if zt.numel() == 0:
            raise ValueError(
                "zt holds no position to denoise: at least one sequence of "
                f"one position is needed; got shape {tuple(zt.shape)}"
            )
        if not zt.is_floating_point():
            raise ValueError(
                f"zt holds {zt.dtype}: the input are noised embeddings, not "
                "token ids; see embed"
            )
        longest = self.config.max_position_embeddings - self.config.shift
        if zt.shape[1] > longest:
            raise ValueError(
                f"this model knows {longest} positions; got {zt.shape[1]}: "
                "shorten the text"
            )
        mask = noising.check_keep(mask, zt.shape[:2], "the attention mask")
        if mask is None:
            mask = zt.new_ones(1, zt.shape[1], dtype=torch.bool)
        keep = noising.check_keep(keep, zt.shape[:2])
        if previous is not None and not self.config.self_conditioning:
            raise ValueError(
                "this model was made without self_conditioning: "
                "it takes no previous guess"
            )
        if previous is not None and previous.shape != zt.shape:
            raise ValueError(
                "previous must have the shape of zt, "
                f"{tuple(zt.shape)}; got {tuple(previous.shape)}"
            )
        return (
            self._check_time(zt, t),
            mask.to(zt.device),
            torch.zeros_like(zt) if previous is None else previous,
            ... if keep is None else ~keep.to(zt.device),
            self.table() if table is None else table,
        )

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
        if t.ndim < 2:
            return t.reshape(-1, 1).expand(batch, 1)
        # One row that was expanded is one row to embed.
        return t[:1] if t.stride(0) == 0 else t

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
        # Unit variance in, unit variance out; `forward` then scales it down.
        if getattr(module, "enters", False) and isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
        if getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)
        if getattr(module, "reads_out", False):
            init.constant_(module.weight, self.config.input_std)

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
        self.project_in.enters = True
        self.project_out = linear(hidden, dim)
        if config.conditioning == "time":
            self.noise_mlp = nn.Sequential(
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
            )
            self.noise_mlp[0].enters = True
            # With input_std the trunk is told nothing at first.
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
            self.project_guess = nn.Linear(dim, hidden, bias=False)
            self.project_guess.starts_at_zero = True
        self.post_init()

    def forward(
        self,
        zt,
        t=None,
        attention_mask=None,
        previous=None,
        keep=None,
        temperature=1.0,
        likelihood_weight=1.0,
        table=None,
    ):
        """Guess the clean embeddings.

        Parameters
        ----------
        zt : tensor, shape ``(batch, length, dim)``
            Noised embeddings, of any floating type.
        t : float or tensor, shape ``()``, ``(batch,)``, ``(batch, length)``
            Times; not needed without conditioning.
        attention_mask : tensor of 0 and 1, shape ``(batch, length)``, optional
            0 at padding.
        previous : tensor, shape of ``zt``, optional
            An earlier guess of x0, for a model with self-conditioning; zeros
            and None mean that there is none.
        keep : tensor of 0 and 1, shape ``(batch, length)``, optional
            1 where ``zt`` is clean: there it is read as it is, and is the
            guess. Logits then come for the n other positions only, shape
            ``(n, vocab)``: in training that saves much work.
        temperature : float
            Of a mixture head: the guess is the mean under the logits divided
            by it. The logits themselves are given undivided.
        likelihood_weight : float
            Weight of the likelihood in the logits, for a model with that
            term: 1 believes each point as much as its noise level allows, 0
            not at all.
        table : tensor, shape ``(vocab, dim)``, optional
            What `table` answers, for one who has it already: in all steps of
            a sample it is the same.

        Returns
        -------
        DenoiserOutput

        Raises
        ------
        ValueError
            If a shape does not fit, ``t`` is missing or outside [0, 1] (on a
            GPU it is not looked at), or an option does not suit the model.
        """
        config = self.config
        t, real, previous, asked, table = self.check_input(
            zt, t, attention_mask, previous, keep, table
        )
        decoding.check_temperature(temperature, config.head == "mixture")
        decoding.check_likelihood_weight(likelihood_weight, config.likelihood)
        points, logits = zt, None
        if config.likelihood or config.evidence:
            likelihood = posterior.log_likelihood(
                zt[asked],
                t.expand(zt.shape[:2])[asked],
                table,
                self.schedule,
            )
        if config.evidence:
            alone = posterior.token_mean(
                likelihood + self.log_frequency, table
            )
            points = _put(points, asked, alone)
        hidden = self.project_in(points.to(self.dtype))
        if config.conditioning == "time":
            code = noise_embedding(t, config.hidden_size)
            hidden = hidden + self.noise_mlp(code.to(hidden.dtype))
        if config.self_conditioning:
            hidden = hidden + self.project_guess(previous.to(hidden.dtype))
        if config.shift:
            start = self.project_in(table[config.bos_token_id])
            start = start.to(hidden.dtype).expand(len(hidden), 1, -1)
            hidden = torch.cat([start, hidden], dim=1)
            real = F.pad(real, (1, 0), value=True)
        if config.input_std is not None:
            hidden = hidden * config.input_std
        states = self.trunk(
            inputs_embeds=hidden,
            attention_mask=self.as_bias(
                attention_mask_4d(real, config.causal)
            ),
            use_cache=False,
        ).last_hidden_state
        if config.shift:
            states = states[:, :-1]
        x0 = self.project_out(states[asked])
        if config.head == "mixture":
            # Logits are products with the embeddings themselves: a token
            # that is seen elsewhere can be copied by copying its embedding.
            with torch.autocast(x0.device.type, enabled=False):
                logits = x0.float() @ table.float().T
        if config.likelihood:
            logits = logits.add_(likelihood, alpha=likelihood_weight)
        if config.head == "mixture":
            x0 = posterior.token_mean(logits, table, temperature)
        return DenoiserOutput(x0=_put(zt, asked, x0), logits=logits)


def _put(points, where, rows):
    """The points with new ones at some positions; all of them at ``...``."""
    if where is ...:
        return rows
    return points.index_put((where,), rows.to(points.dtype))


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
    return load_kind(DBLM, name)


def load_kind(kind, name):
    """Load a model of a kind by name; refuse a tokenizer that is not its own.

    Parameters
    ----------
    kind : type
        Its configuration names the architecture.
    name
        As in `load`, which says what is raised.
    """
    folder = resources.locate(name)
    resources.check_architecture(folder, kind.config_class.model_type)
    model = resources.load_weights(kind, folder)
    if (folder / "tokenizer.json").is_file():
        tokenizer = resources.load_tokenizer(folder)
        resources.check_vocabulary(tokenizer, model.config.vocab_size, folder)
    return model
