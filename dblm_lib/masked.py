r"""GPT-2 as a denoiser of tokens: masked or noised tokens in, logits out.

Chapters 9 and 10. The trunk of GPT-2 reads a canvas of tokens of which some are
masked, sees both sides of each, and answers at every position with logits of
the clean token. It need not be told the time: given which tokens are masked,
the clean ones do not depend on it. With causal attention and no mask it is
GPT-2 itself, number for number.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2Model, GPT2PreTrainedModel
from transformers import initialization as init

from . import checks, noising, processes, resources, schedules
from .configuration import (
    CONDITIONINGS,
    check_choices,
    check_sizes,
    check_switches,
    fields_of,
)
from .denoiser import (
    DenoiserBase,
    attention_mask_4d,
    free_of_file,
    load_kind,
    noise_embedding,
)

__all__ = [
    "DRAWS",
    "NOISES",
    "TRAINED_WITH",
    "WEIGHTINGS",
    "MaskedConfig",
    "MaskedDenoiser",
    "load",
]

NOISES = ("mask", "uniform", "hybrid")
# Fields that the book trains a model of each noise with.
TRAINED_WITH = {
    "mask": {"draws": "counts"},
    "uniform": {"conditioning": "time", "low": 1 / 64},
    "hybrid": {"conditioning": "time", "low": 1 / 64},
}
WEIGHTINGS = ("1/t", "mean")
DRAWS = ("times", "counts", "staggered")


class MaskedConfig(GPT2Config):
    """GPT-2's configuration and what a masked denoiser adds to it.

    Parameters
    ----------
    causal : bool
        May a position see only what stands to its left, as in GPT-2?
    conditioning : {"none", "time"}
        Whether the network is told the time t. With masks it does not need
        to be; random tokens do not say themselves how many they are.
    shift : bool
        Answer each position from the state before it, behind an end-of-text
        token: what GPT-2 was trained to do (Gong et al., 2025).
    noise : {"mask", "uniform", "hybrid"}
        What the model is trained to undo: masks, random tokens, or masks
        with a share of random tokens, see `processes`. Chapter 10.
    uniform_share : float in [0, 1)
        Of ``"hybrid"`` noise: the share of random tokens half-way.
    drafts : bool
        With masks: train on the model's own drafts, too, see
        `training.draft_loss`.
    weighting : {"1/t", "mean"}
        With masks: what a masked token weighs in the loss. With ``"1/t"``
        the loss is the bound of the likelihood, in nats a position (Sahoo et
        al., 2024; Shi et al., 2024); ``"mean"`` is the plain mean over all
        masked tokens of a batch, which is no bound and leaves canvases with
        few masks little to say.
    draws : {"times", "counts", "staggered"}
        With masks: how a canvas is masked in training: each token by itself
        with probability t, or as many tokens as a count says, which are
        spread evenly over 1 to the length (Nie et al., 2025).
        ``"staggered"``: every other canvas has times that grow from left to
        right, as when a text is written in that direction.
    low : float
        The smallest time that is drawn, above 0: next to 0 hardly a canvas
        has a mask, and those that have one weigh 1/t.
    seq_len : int, optional
        Length of the canvases that the model was trained on.
    **kwargs
        Those of `transformers.GPT2Config`. ``vocab_size`` counts the tokens
        of the text; the mask is one more, see `mask_id`.
    """

    model_type = "dblm-masked"

    def __init__(
        self,
        causal=False,
        conditioning="none",
        shift=True,
        noise="mask",
        uniform_share=0.1,
        drafts=False,
        weighting="1/t",
        draws="times",
        low=1e-3,
        seq_len=None,
        **kwargs,
    ):
        self.causal = causal
        self.conditioning = conditioning
        self.shift = shift
        self.noise = noise
        self.uniform_share = uniform_share
        self.drafts = drafts
        self.weighting = weighting
        self.draws = draws
        self.low = low
        self.seq_len = seq_len
        _check_fields(self)
        super().__init__(**kwargs)
        check_sizes(self)

    @property
    def mask_id(self):
        """The id of the mask: the first that no token of the text has."""
        return self.vocab_size

    @property
    def loss(self):
        """By this `training` knows what to draw, and what the loss is."""
        if self.noise != "mask":
            return "noised"
        return "drafts" if self.drafts else "masked"


def _check_fields(config):
    """Refuse fields of `MaskedConfig` that are wrong by themselves."""
    check_choices(
        config,
        {
            "conditioning": CONDITIONINGS,
            "noise": NOISES,
            "weighting": WEIGHTINGS,
            "draws": DRAWS,
        },
    )
    check_switches(config, ("causal", "shift", "drafts"))
    if config.drafts and config.noise != "mask":
        raise ValueError(
            f"drafts belong to the noise 'mask'; got {config.noise!r}"
        )
    share = config.uniform_share
    if not (checks.is_number(share) and 0 <= share < 1):
        raise ValueError(
            f"uniform_share must be at least 0 and below 1; got {share!r}"
        )
    if not (checks.is_number(config.low) and 0 < config.low < 1):
        raise ValueError(
            f"low must lie between 0 and 1, both excluded; got {config.low!r}"
        )
    if not (config.seq_len is None or checks.is_whole(config.seq_len)):
        raise ValueError(
            f"seq_len must be a whole number above 0; got {config.seq_len!r}"
        )


class MaskedBase(GPT2PreTrainedModel):
    """Loading and checking; the network itself is in `MaskedDenoiser`."""

    config_class = MaskedConfig
    base_model_prefix = "masked"
    _supports_sdpa = True
    main_input_name = "ids"
    as_bias = DenoiserBase.as_bias

    @property
    def process(self):
        """The noise that this model undoes, a `processes.Process`."""
        config, options = self.config, {}
        if config.noise == "hybrid":
            options = {"uniform_share": config.uniform_share}
        return processes.get_process(
            config.noise, config.vocab_size, **options
        )

    @classmethod
    def from_backbone(cls, backbone="tales-gpt2", **options):
        """Make a masked denoiser from a pretrained GPT-2.

        The embedding of the mask is new. It starts as the mean of all
        others: it says as much as no token.

        Parameters
        ----------
        backbone : str, path or resources.Backbone
            What `resources.load_backbone` takes or gives.
        **options
            Fields of `MaskedConfig`.

        Returns
        -------
        MaskedDenoiser
            In evaluation mode.
        """
        if not hasattr(backbone, "model"):
            backbone = resources.load_backbone(backbone)
        gpt2 = backbone.model.transformer
        fields = fields_of(gpt2.config)
        model = cls(cls.config_class(**{**fields, **options}))
        trunk = gpt2.state_dict()
        table = trunk.pop("wte.weight")
        model.trunk.load_state_dict(trunk)
        table = torch.cat([table, table.mean(dim=0, keepdim=True)])
        model.embeddings.load_state_dict({"weight": table})
        return model.eval()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load a saved denoiser; as in `transformers`."""
        loaded = super().from_pretrained(*args, **kwargs)
        free_of_file(loaded)
        return loaded

    def check_input(self, ids, mask=None, t=None, keep=None):
        """Refuse an input that does not fit, and bring it into shape.

        No number on a GPU is looked at, which would make the program wait.

        Parameters
        ----------
        ids, mask, t, keep
            As `MaskedDenoiser.forward` takes them.

        Returns
        -------
        mask : bool tensor, shape ``(batch, length)``
            Or ``(1, length)`` if there is no padding.
        t : float64 tensor, shape ``(batch, 1)``
            None without conditioning.
        asked : bool tensor, shape ``(batch, length)``, or Ellipsis
            Positions whose token is in question; Ellipsis stands for all.
        """
        if ids.ndim != 2 or ids.numel() == 0:
            raise ValueError(
                "ids must have shape (batch, length), with at least one "
                f"position; got {tuple(ids.shape)}"
            )
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(
                f"ids holds {ids.dtype}: the input are token ids, and "
                f"{self.config.mask_id} for a mask"
            )
        longest = self.config.max_position_embeddings - self.config.shift
        if ids.shape[1] > longest:
            raise ValueError(
                f"this model knows {longest} positions; got {ids.shape[1]}: "
                "shorten the text"
            )
        mask = noising.check_keep(mask, ids.shape, "the attention mask")
        if mask is None:
            mask = torch.ones_like(ids[:1], dtype=torch.bool)
        keep = noising.check_keep(keep, ids.shape)
        mask = mask.to(ids.device)
        return (
            mask,
            self._check_time(ids, mask, t),
            ... if keep is None else ~keep.to(ids.device),
        )

    def _check_time(self, ids, mask, t):
        if self.config.conditioning == "none":
            return None
        if t is None:  # what the canvas says of it
            masks = (ids == self.config.mask_id) & mask
            share = masks.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            return share.double()[:, None]
        t = schedules.as_time(t).to(ids.device)
        if t.shape not in [(), (1,), (len(ids),)]:
            raise ValueError(
                f"t must be one number, or have shape ({len(ids)},); got "
                f"{tuple(t.shape)}"
            )
        return t.reshape(-1, 1).expand(len(ids), 1)

    def _init_weights(self, module):
        super()._init_weights(module)
        if getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)

    def get_input_embeddings(self):
        return self.embeddings

    def set_input_embeddings(self, value):
        self.embeddings = value


class MaskedDenoiser(MaskedBase):
    """GPT-2's trunk, filling in masks.

    Parameters
    ----------
    config : MaskedConfig
    """

    def __init__(self, config):
        super().__init__(config)
        hidden = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size + 1, hidden)
        self.trunk = GPT2Model(config)
        self.trunk.wte = None  # ours has a row for the mask
        if config.conditioning == "time":
            self.noise_mlp = nn.Sequential(
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
            )
            self.noise_mlp[-1].starts_at_zero = True
        self.post_init()

    def forward(self, ids, mask=None, t=None, keep=None):
        """Say which token stands at each position.

        Parameters
        ----------
        ids : tensor of ids, shape ``(batch, length)``
            A canvas: tokens, and ``config.mask_id`` where there is a mask.
        mask : tensor of 0 and 1, shape ``(batch, length)``, optional
            0 at padding, which is never looked at.
        t : float or tensor, shape ``()`` or ``(batch,)``, optional
            Times, for a model that is told them; if left out, the share of
            masks on each canvas. Other models do not look at it.
        keep : tensor of 0 and 1, shape ``(batch, length)``, optional
            1 at positions whose token is not in question: logits come for
            the n others only, shape ``(n, vocab_size)``.

        Returns
        -------
        tensor, shape ``(batch, length, vocab_size)``
            Logits in float32, at visible positions, too: there nothing was
            trained, see `masking.carry_over`. The mask is no answer.

        Raises
        ------
        ValueError
            If a shape does not fit, or ``t`` lies outside [0, 1].
        """
        config = self.config
        real, t, asked = self.check_input(ids, mask, t, keep)
        hidden = self.embeddings(ids)
        if config.conditioning == "time":
            code = noise_embedding(t, config.hidden_size)
            hidden = hidden + self.noise_mlp(code.to(hidden.dtype))
        if config.shift:
            start = self.embeddings.weight[config.bos_token_id]
            start = start.to(hidden.dtype).expand(len(hidden), 1, -1)
            hidden = torch.cat([start, hidden], dim=1)
            real = F.pad(real, (1, 0), value=True)
        states = self.trunk(
            inputs_embeds=hidden,
            attention_mask=self.as_bias(
                attention_mask_4d(real, config.causal)
            ),
            use_cache=False,
        ).last_hidden_state
        if config.shift:
            states = states[:, :-1]
        # As in GPT-2 the logits are products with the embeddings.
        table = self.embeddings.weight[: config.vocab_size]
        with torch.autocast(states.device.type, enabled=False):
            return states[asked].float() @ table.float().T


def load(name):
    """Load a trained masked denoiser.

    Parameters
    ----------
    name : str or path
        A checkpoint of the book, or a folder made by `save_pretrained`.

    Returns
    -------
    MaskedDenoiser
        In evaluation mode.

    Raises
    ------
    resources.DataError
        If files are missing, damaged or those of another architecture.
    ValueError
        If the name is unknown; the message suggests the nearest.
    """
    return load_kind(MaskedDenoiser, name)
