"""Prometheus and Loki alert rules, as rule files or as Kubernetes PrometheusRule objects: one section a rule."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from avyay.rag.parsers.types import Heading, Outline, Span, merge_spans, split_lines

__all__ = ["parse"]

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEPTH = 40  # deeper than any rule file, and no recursion error on a hostile one


def parse(text: str) -> Outline:
    """Groups are level 1, rules level 2, and a rule is never cut. YAML without rules, or broken: no headings."""
    try:
        roots = list(yaml.compose_all(text, Loader=LOADER))
    except (yaml.YAMLError, ValueError, RecursionError):
        return Outline("", (), ())
    headings: list[Heading] = []
    whole: list[Span] = []
    lines = len(split_lines(text))
    for root in roots:
        for group in _groups(root, 0):
            name = _scalar(group, "name")
            rules = [rule for rule in _sequence(group, "rules") if isinstance(rule, yaml.MappingNode)]
            if name and rules:
                headings.append(Heading(name, 1, group.start_mark.line + 1))
            for rule in rules:
                title = _scalar(rule, "alert") or _scalar(rule, "record")
                first = rule.start_mark.line + 1
                # The end mark of a block mapping stands at the start of what follows it.
                last = min(lines, rule.end_mark.line + (1 if rule.end_mark.column and rule.flow_style else 0))
                whole.append(Span(first, max(first, last)))
                if title:
                    headings.append(Heading(title, 2 if name else 1, first))
    return Outline("", tuple(sorted(headings, key=lambda heading: (heading.line, heading.level))), merge_spans(whole))


def _groups(node: yaml.Node | None, depth: int) -> Iterator[yaml.MappingNode]:
    """Every mapping that holds a list called `rules`, wherever the file keeps it (`groups`, `spec.groups`, Helm)."""
    if depth > DEPTH:
        return
    if isinstance(node, yaml.MappingNode):
        if _sequence(node, "rules"):
            yield node
            return
        for _, value in node.value:
            yield from _groups(value, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _groups(value, depth + 1)


def _value(node: yaml.MappingNode, key: str) -> yaml.Node | None:
    return next((value for name, value in node.value if getattr(name, "value", None) == key), None)


def _sequence(node: yaml.MappingNode, key: str) -> list[yaml.Node]:
    value = _value(node, key)
    return value.value if isinstance(value, yaml.SequenceNode) else []


def _scalar(node: yaml.MappingNode, key: str) -> str:
    value = _value(node, key)
    return str(value.value).strip() if isinstance(value, yaml.ScalarNode) else ""
