r"""What a noised point says about its token, by Bayes' rule alone.

Chapter 7. A point is the right embedding times alpha plus Gaussian noise, so
each token makes it more or less likely. From that follows the mean of the
clean embedding given the point, without any network. Everything here works
on plain tensors.
"""

import torch

from . import schedules

__all__ = ["LARGEST_SNR", "empirical_denoiser", "log_likelihood", "token_mean"]

# Beyond this signal-to-noise ratio a token is certain: the likelihood stops
# growing there, and stays finite at t = 0.
LARGEST_SNR = 100.0


def log_likelihood(zt, t, table, schedule):
    r"""Log-density of zt if each token were the right one.

    .. math:: \log N(z_t; \alpha e_v, \sigma^2) = \mathrm{snr}
              \left(\frac{z_t}{\alpha} \cdot e_v
              - \frac{|e_v|^2}{2}\right) + \mathrm{const}

    Parameters
    ----------
    zt : tensor, shape ``(..., dim)``
    t : tensor, shape ``(...)``; ones where it repeats
    table : tensor, shape ``(vocab, dim)``
        The clean embedding of each token.
    schedule : Schedule

    Returns
    -------
    tensor, shape ``(..., vocab)``, float32
        The constant, the same for all tokens, is left out. The
        signal-to-noise ratio counts for `LARGEST_SNR` at most.
    """
    # Where a schedule ends without any signal, 0 / 0 stands for 0.
    alpha = schedule.alpha(t).clamp(min=1e-6)
    snr = schedule.snr(t)
    alpha, snr = (v.to(zt.device).float()[..., None] for v in (alpha, snr))
    # bf16 has 8 bits: too few for a sum that decides between tokens.
    with torch.autocast(zt.device.type, enabled=False):
        table, points = table.float(), zt.float() / alpha
        # One product gives both terms: (z, -1/2) . (e, |e|^2).
        half = torch.full_like(points[..., :1], -0.5)
        points = torch.cat([points, half], dim=-1)
        table = torch.cat([table, table.square().sum(1, True)], dim=1)
        return (snr.clamp(max=LARGEST_SNR) * points) @ table.T


def token_mean(logits, table, temperature=1.0):
    r"""The mean of the tokens' embeddings under their probabilities.

    .. math:: \hat x_0 = \sum_v p_v e_v, \qquad
              p = \mathrm{softmax}(\ell / \text{temperature})

    Parameters
    ----------
    logits : tensor, shape ``(..., vocab)``
    table : tensor, shape ``(vocab, dim)``
    temperature : float
        Above 0; below 1 it leans to the likely tokens.

    Returns
    -------
    tensor, shape ``(..., dim)``, float32
        The guess of x0.
    """
    with torch.autocast(logits.device.type, enabled=False):
        if temperature != 1:
            logits = logits / temperature
        return logits.float().softmax(dim=-1) @ table.float()


def empirical_denoiser(points, schedule):
    r"""The exact denoiser when the data is a finite list of texts.

    .. math:: E[x_0 \mid z_t] = \sum_i w_i x_i, \qquad
              w_i \propto \exp(-\|z_t - \alpha x_i\|^2 / 2 \sigma^2)

    It knows its texts by heart and can say nothing else, but for them no
    network does better.

    Parameters
    ----------
    points : tensor, shape ``(n, length, dim)``
        Clean embeddings of the texts.
    schedule : Schedule

    Returns
    -------
    callable ``(zt, t) -> x0_hat``
        For `sample`; times may differ by position. It counts in float64:
        next to a kept prompt the other positions weigh little.
    """
    flat = points.flatten(1).double()
    squares = points.double().square().sum(dim=-1)  # (n, length)

    def denoise(zt, t):
        t = schedules.as_time(t).expand(zt.shape[:2])
        alpha = schedule.alpha(t)
        variance = schedule.sigma_squared(t).clamp(min=1e-6)  # kept: t = 0
        pull = (alpha / variance)[..., None] * zt
        log_posterior = pull.flatten(1) @ flat.T
        log_posterior -= (alpha**2 / variance) @ squares.T / 2
        weights = log_posterior.softmax(dim=1)
        return (weights @ flat).reshape(zt.shape).to(zt.dtype)

    return denoise
