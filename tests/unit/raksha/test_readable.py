"""What semgrep's parsers refuse for its form alone is read all the same, and findings keep their places."""

from __future__ import annotations

import codecs
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.raksha.engines.base import FileResult
from avyay.raksha.engines.readable import readable
from avyay.raksha.engines.semgrep import SemgrepEngine
from avyay.raksha.project import Project
from avyay.raksha.registry import PatternRules
from avyay.raksha.source import SourceFile

DOCKERFILE = """\
FROM python:3.12-slim
{}
RUN curl -fsSL https://get.acme.dev | bash
USER app
"""
FORMS = {
    "an empty default": "ARG VITE_API_URL=",
    "two names": "ARG TARGETOS TARGETARCH",
    "two defaults": "ARG A=1 B=2",
    "continued": "ARG A \\\n    B",
    "old ENV": "ENV KEY some value with spaces",
    "a comment inside": "ENV A=1 \\\n    # why\n    B=2",
    "old LABEL": "LABEL maintainer Jane Doe",
    "an empty label": "LABEL a=",
    "linked": "COPY --link --chown=1:1 a b",
    "parents": "COPY --parents a b",
}
HELM = """\
{{- if .Values.enabled }}
apiVersion: v1
kind: Pod
metadata:
  name: {{ include "chart.name" . }}
  labels:
    {{- include "chart.labels" . | nindent 4 }}
  {{- with .Values.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- /* about
  this pod */}}
  containers:
    - name: "{{ .Chart.Name }}-{{ .Release.Name }}"
      image: {{ .Values.image }}:{{ .Values.tag }}
      securityContext:
        privileged: true
{{- end }}
"""


def scan(*files: SourceFile) -> dict[str, FileResult]:
    engine = SemgrepEngine(PatternRules())
    return engine.run(files, Project(Path("/")), step=lambda _: None, cancel=threading.Event()).results


def test_dockerfiles_are_read_whole() -> None:
    files = {
        name: SourceFile(f"{number}/Dockerfile", DOCKERFILE.format(form).encode(), "dockerfile")
        for number, (name, form) in enumerate(FORMS.items())
    }
    files["Windows line ends"] = SourceFile(
        "x/Dockerfile", DOCKERFILE.format("RUN a \\\n  && b").replace("\n", "\r\n").encode(), "dockerfile"
    )
    results = scan(*files.values())
    for name, file in files.items():
        result = results[file.name]
        assert (name, result.problem, result.parsed) == (name, "", True)
        wanted = file.text[: file.text.index("RUN curl")].count("\n") + 1
        assert [(f.rule, f.line) for f in result.findings] == [("dockerfile-pipe-to-shell", wanted)], name


@pytest.mark.parametrize("form", ["ARG A", "ARG A=1", 'ENV A="x y" B=2', "LABEL a=b c='d e'", "ENV A=1 \\\n    B=2"])
def test_what_the_parser_knows_is_left_alone(form: str) -> None:
    assert readable(SourceFile("Dockerfile", DOCKERFILE.format(form).encode(), "dockerfile")) is None


def test_a_broken_dockerfile_stays_broken() -> None:
    file = SourceFile("Dockerfile", b"FROM python\nRUM x\n", "dockerfile")
    assert scan(file)[file.name].problem


def test_a_chart_is_read_around_its_actions() -> None:
    file = SourceFile("chart/templates/pod.yaml", HELM.encode(), "yaml")
    result = scan(file)[file.name]
    assert result.problem == ""
    assert [(f.rule, f.line) for f in result.findings] == [("container-privileged", 19)]


def test_a_chart_that_is_no_yaml_around_its_actions_is_still_told_of() -> None:
    file = SourceFile("pod.yaml", b"a: {{ x }}\n  b: [\n", "yaml")
    assert scan(file)[file.name].problem


def test_yaml_with_braces_in_it_is_left_alone() -> None:
    assert readable(SourceFile("w.yaml", b'run: echo "${{ inputs.x }}"\n', "yaml")) is None


def test_a_byte_order_mark_hides_nothing() -> None:
    texts = {"a.py": (b"eval(input())\n", "python"), "a.js": (b"eval(location.hash)\n", "javascript")}
    plain = scan(*(SourceFile(name, text, language) for name, (text, language) in texts.items()))
    marked = scan(*(SourceFile(name, codecs.BOM_UTF8 + text, language) for name, (text, language) in texts.items()))
    assert marked == plain
    assert all(result.findings for result in plain.values())


@given(st.text(alphabet='{}x a:\n\t#-"', max_size=200))
def test_lines_and_columns_stay(text: str) -> None:
    for language in ("yaml", "dockerfile"):
        file = SourceFile("f", text.encode(), language)
        copy = readable(file)
        if copy is not None:
            assert [len(line) for line in copy.decode().split("\n")] == [len(line) for line in text.split("\n")]
