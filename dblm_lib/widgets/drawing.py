"""Numbers and tokens on their way into a picture."""

import math
from html import escape

import numpy as np


class Window:
    """Axes: data to whole quarter-units of a 440 x 270 picture."""

    wide, tall, left, right, top, low = 440, 270, 52, 10, 10, 46

    def __init__(self, x, y, xlim, ylim):
        self.xlim = _limits(xlim, x, "xlim", 0.0)
        self.ylim = _limits(ylim, y, "ylim", 0.04)

    def x(self, values):
        low, high = self.xlim
        span = self.wide - self.left - self.right
        return quarters(self.left + (values - low) / (high - low) * span)

    def y(self, values):
        low, high = self.ylim
        span = self.tall - self.top - self.low
        share = np.clip((values - low) / (high - low), -0.5, 1.5)
        return quarters(self.tall - self.low - share * span)

    def svg(self, shapes, alt, xlabel, ylabel):
        right, floor = self.wide - self.right, self.tall - self.low
        marks = []
        for value in _ticks(*self.xlim):
            at = self.x(np.array([value]))[0] / 4
            marks.append(
                f'<path class="dblm-grid" d="M{at:g} {self.top}V{floor}"/>'
                f'<text x="{at:g}" y="{floor + 16}" text-anchor="middle">'
                f"{_say(value)}</text>"
            )
        for value in _ticks(*self.ylim):
            at = self.y(np.array([value]))[0] / 4
            marks.append(
                f'<path class="dblm-grid" d="M{self.left} {at:g}H{right}"/>'
                f'<text x="{self.left - 6}" y="{at + 4:g}" '
                f'text-anchor="end">{_say(value)}</text>'
            )
        middle = (self.top + floor) / 2
        return (
            f'<svg class="dblm-drawing" viewBox="0 0 {self.wide} {self.tall}" '
            f'role="img" aria-label="{escape(alt)}">'
            f'<clipPath id="CLIP-clip"><rect x="{self.left}" y="{self.top}" '
            f'width="{right - self.left}" height="{floor - self.top}"/>'
            f"</clipPath>{''.join(marks)}"
            f'<path class="dblm-axis" d="M{self.left} {floor}H{right}"/>'
            f'<text x="{(self.left + right) / 2:g}" y="{self.tall - 8}" '
            f'text-anchor="middle">{escape(xlabel)}</text>'
            f'<text transform="translate(13 {middle:g}) rotate(-90)" '
            f'text-anchor="middle">{escape(ylabel)}</text>'
            f'<g clip-path="url(#CLIP-clip)"><g transform="scale(.25)">'
            f"{shapes}</g></g></svg>"
        )


def _limits(given, values, name, margin):
    """Return the ends of an axis: as given, or around the data."""
    if given is None:
        low, high = float(np.min(values)), float(np.max(values))
        pad = margin * (high - low) or 0.5 * (low == high)
        floor = 0.0 if low >= 0 else -math.inf
        given = (max(low - pad, floor), high + pad)
    low, high = (float(v) for v in given)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name} must be (low, high), got {given}")
    return low, high


def _ticks(low, high, most=6):
    """Choose round numbers between two ends."""
    rough = (high - low) / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(s * scale for s in (1, 2, 5, 10) if s * scale >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _say(value):
    return f"{value:.6g}".replace("-", "−")


def quarters(values):
    return whole(4 * np.asarray(values))


def whole(values):
    """Round to whole numbers, a tie alike on every machine."""
    return np.rint(np.round(values, 6)).astype(int).tolist()


def visible(token):
    text = str(token).replace("Ġ", " ").replace("Ċ", "\n").strip(" ")
    return text.replace("\n", "↵") or "␣"
