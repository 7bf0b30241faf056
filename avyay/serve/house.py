"""Metrics in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

__all__ = ["Metric", "render_metrics", "total"]

Metric: TypeAlias = tuple[str, str, str, Iterable[tuple[Mapping[str, str], float]]]  # name, kind, help, samples


def total(metrics: Iterable[Metric], name: str) -> int:
    """The sum of a metric over all its labels."""
    return int(sum(value for metric, _, _, rows in metrics if metric == name for _, value in rows))


def render_metrics(metrics: Iterable[Metric]) -> bytes:
    """Metrics in Prometheus' text format."""
    lines: list[str] = []
    for name, kind, text, samples in metrics:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for labels, value in samples:
            inner = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
            lines.append(f"{name}{{{inner}}} {value:g}" if inner else f"{name} {value:g}")
    return ("\n".join(lines) + "\n").encode()


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
