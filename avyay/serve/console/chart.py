"""Bar charts as SVG, drawn by the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "bar_chart"]

_WIDTH, _HEIGHT = 720, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 8, 10, 24
_STEPS = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """A day: what there was, and in front of which whole it stands (what it would have been)."""

    label: str
    value: float
    whole: float = 0.0
    told: str = ""


def bar_chart(bars: Sequence[Bar], *, unit: str = "", title: str = "") -> str:
    """An SVG element. `told` is shown when the pointer rests on a bar, and read out by screen readers."""
    top = _round_up(max((max(bar.value, bar.whole) for bar in bars), default=0.0))
    inner, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    steps = _STEPS if top else 0  # of nothing there is only the ground
    for step in range(steps + 1):
        y = _TOP + tall * (1 - step / _STEPS)
        name = escape(f"{unit}{_short(top * step / _STEPS)}")
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    slot = inner / max(1, len(bars))
    every = max(1, round(len(bars) / 8))
    for place, bar in enumerate(bars):
        x, width = _LEFT + slot * (place + 0.15), slot * 0.7
        told = escape(bar.told or f"{bar.label}: {unit}{bar.value:g}")
        parts.append(f"<g><title>{told}</title>")
        for kind, amount in (("whole", bar.whole), ("part", bar.value)):
            tallness = tall * amount / top if top else 0.0
            y = _TOP + tall - tallness
            parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{tallness:.1f}" rx="1"/>'
            )
        parts.append("</g>")
        if place % every == 0:
            middle = x + width / 2
            parts.append(
                f'<text class="tick" x="{middle:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(bar.label)}</text>'
            )
    return "".join([*parts, "</svg>"])


def _round_up(value: float) -> float:
    """The next number that reads well on an axis: 1, 2 or 5 times a power of ten, at least `value`."""
    if value <= 0:
        return 0.0
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(power * step for step in (1, 2, 5, 10) if power * step >= value * (1 - 1e-9))


def _short(value: float) -> str:
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:.3g}" if value >= 1e-3 or not value else f"{value:.9f}".rstrip("0")  # no 5e-05
