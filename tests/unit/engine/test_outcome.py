"""What came of an attempt: against what the real CLIs said and did in each scenario, recorded with a scripted provider.

Recorded on 2026-11-21 with claude 2.1.197, codex 0.169.0, opencode 1.18.33, gemini 0.61.0, aider 0.86.2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.config.engine import EngineAgentSettings
from avyay.engine.agents.base import Terminal, Transcript, failed, status_of
from avyay.engine.agents.outcome import EndedBy, Ending, GitEvidence, Kind, Outcome, classify
from avyay.engine.agents.registry import KINDS, make_agent
from avyay.engine.nodes.listen import Listener

FIXTURES = Path(__file__).parents[2] / "fixtures" / "agents"
CHANGED = GitEvidence(("hello.txt",), 1)
UNCHANGED = GitEvidence()


def agent(kind: str):
    command = ("true",) if kind == "command" else ()
    return make_agent(EngineAgentSettings(name=kind, command=command))


def judge(transcript: Transcript, line: str, turns: int) -> tuple[EndedBy, str] | None:
    return Listener(transcript, turns).line(line)


@dataclass(frozen=True)
class Case:
    """A scenario: exit code or signal, whether it changed something, and what it is to be taken for."""

    agent: str
    scenario: str
    kind: Kind
    code: int | None = 0
    signal: int | None = None
    changed: bool = False
    limited: bool = False
    turns: int = 100
    ended: EndedBy | None = None  # what the engine itself must have ended it for

    def __str__(self) -> str:
        return f"{self.agent}-{self.scenario}"


def fine(name: str) -> list[Case]:
    """One fault, then the provider answers: all of them come through."""
    scenarios = ("edit", "f429x1", "f529x1", "f500x1", "reset_x1", "cut_x1", "sse_error_x1")
    return [Case(name, scenario, "done", changed=True) for scenario in scenarios]


CASES = [
    *fine("claude"),
    Case("claude", "f400", "provider-permanent", code=1),  # subtype "success", is_error true
    Case("claude", "f401", "provider-permanent", code=None, signal=9, ended="provider"),  # it would retry for minutes
    # A router whose own key is refused answers 502, and says whose key it was.
    Case("claude", "router_key", "provider-permanent", code=1),
    Case("codex", "router_key", "provider-permanent", code=None, signal=9, ended="provider"),
    Case("opencode", "router_key", "provider-permanent", code=1),
    Case("claude", "f429_ever", "provider-transient", code=None, signal=9, limited=True, ended="provider"),
    Case("claude", "loop_turns", "capped", code=1),
    Case("claude", "loop_turns", "capped", code=None, signal=9, turns=2, ended="turns"),
    Case("claude", "loop_budget", "capped", code=1),
    Case("claude", "denied", "no change"),
    Case("claude", "permission", "refused"),
    Case("claude", "sigterm", "crashed", code=143),
    Case("claude", "sigint", "crashed", code=0),  # exit 0, and nothing said
    *fine("codex"),
    Case("codex", "f400", "provider-permanent", code=1),
    Case("codex", "f401", "provider-permanent", code=None, signal=9, ended="provider"),
    Case("codex", "f429_ever", "provider-transient", code=None, signal=9, limited=True, ended="provider"),
    Case("codex", "loop_turns", "capped", code=None, signal=9, turns=5, ended="turns"),
    Case("codex", "loop_budget", "capped", code=None, signal=9, turns=5, ended="turns"),
    Case("codex", "denied", "no change"),
    Case("codex", "sigterm", "crashed", code=None, signal=15),
    Case("codex", "sigint", "crashed", code=1),
    *fine("gemini"),
    Case("gemini", "f400", "provider-permanent", code=144),
    Case("gemini", "f401", "provider-permanent", code=145),
    Case("gemini", "loop_turns", "capped", code=None, signal=9, turns=5, ended="turns"),
    Case("gemini", "loop_budget", "capped", code=None, signal=9, turns=5, ended="turns"),
    Case("gemini", "denied", "done", changed=True),  # it was not denied anything
    Case("gemini", "sigterm", "crashed", code=None, signal=9),  # cut off: its launcher takes no signal but this
    Case("gemini", "sigint", "crashed", code=None, signal=9),
    # The launcher ignores both signals and its worker goes on to the end: what it says and did is whole.
    Case("gemini", "sigterm_launcher", "done", changed=True),
    Case("gemini", "sigint_launcher", "done", changed=True),
    # The worker ends at once, with exit 0 and no last word, whatever it had done by then.
    Case("gemini", "sigterm_stream", "crashed"),
    Case("gemini", "sigint_tool", "crashed", changed=True),
    Case("gemini", "sigterm_between", "crashed", changed=True),
    Case("gemini", "sigterm_late", "done", changed=True),  # the last answer was there already
    *fine("opencode"),
    Case("opencode", "f400", "provider-permanent", code=1),
    Case("opencode", "f401", "provider-permanent", code=1),
    Case("opencode", "f429_ever", "provider-transient", code=1, limited=True),
    Case("opencode", "loop_turns", "capped", code=None, signal=9, turns=3, ended="turns"),
    # No cap was reached: a step larger than its context made it sum up, and the summary held nothing more to do.
    Case("opencode", "loop_budget", "no change", code=0),
    Case("opencode", "denied", "done", changed=True),
    Case("opencode", "sigterm", "crashed", code=None, signal=15),
    Case("opencode", "sigint", "crashed", code=None, signal=2),
    *fine("aider"),
    Case("aider", "refused400", "provider-permanent"),  # exit 0 for all three
    Case("aider", "refused401", "provider-permanent"),
    Case("aider", "refused429", "provider-transient", code=None, signal=9, limited=True, ended="provider"),
    Case("aider", "loop_turns", "no change"),
    Case("aider", "loop_budget", "no change"),
    Case("aider", "sigterm", "crashed", code=None, signal=15),
    Case("aider", "sigint", "crashed", code=None, signal=2),
    Case("aider", "interrupted", "crashed", code=0),  # the same signal while it waits for its model
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{case.turns}")
def test_every_recorded_scenario(case: Case) -> None:
    (file,) = [file for file in (FIXTURES / case.agent).glob(f"{case.scenario}.*") if "stderr" not in file.name]
    transcript = agent(case.agent).transcript()
    ended: tuple[EndedBy, str] | None = None
    for line in file.read_text(encoding="utf-8").splitlines():
        ended = judge(transcript, line, case.turns)
        if ended is not None:
            break
    assert (ended and ended[0]) == case.ended
    ending = Ending(case.code, case.signal, *(ended or (None, "")))
    outcome = classify(ending, transcript, CHANGED if case.changed else UNCHANGED)
    assert (outcome.kind, outcome.limited) == (case.kind, case.limited), outcome.reason
    assert outcome.reason
    if case.ended == "turns":
        assert transcript.turns <= case.turns


def test_gemini_says_only_on_standard_error_that_it_is_turned_away() -> None:
    transcript = agent("gemini").transcript()
    for line in (FIXTURES / "gemini" / "f429_ever.jsonl").read_text().splitlines():
        assert judge(transcript, line, 100) is None
    complaints = (FIXTURES / "gemini" / "f429_ever.stderr.txt").read_text().splitlines()
    verdicts = [Listener(transcript, 100).error_line(line) for line in complaints]
    assert verdicts[:2] == [None] * 2
    assert verdicts[2] is not None
    outcome = classify(Ending(None, 9, *verdicts[2]), transcript, UNCHANGED)
    assert (outcome.kind, outcome.limited) == ("provider-transient", True)


def test_gemini_says_only_on_standard_error_which_status_it_was() -> None:
    listener = Listener(agent("gemini").transcript(), 100)
    complaints = (FIXTURES / "gemini" / "f404.stderr.txt").read_text().splitlines()
    words = (FIXTURES / "gemini" / "f404.jsonl").read_text().splitlines()
    for line in words:
        listener.line(line)
    for line in complaints:
        listener.error_line(line)
    assert classify(Ending(144), listener.transcript, UNCHANGED).kind == "provider-permanent"
    early = Listener(agent("gemini").transcript(), 100)
    for line in complaints:
        early.error_line(line)
    for line in words:
        early.line(line)
    assert classify(Ending(144), early.transcript, UNCHANGED).kind == "provider-permanent"


ENDS = ["success", "error", "capped", "unreachable"]


class TestWitnesses:
    """No witness is believed alone."""

    def success(self) -> Transcript:
        transcript = agent("claude").transcript()
        transcript.terminal = Terminal("success", "all done")
        return transcript

    def test_done_needs_all_four(self) -> None:
        well = Ending(0)
        assert classify(well, self.success(), CHANGED, True).kind == "done"
        assert classify(well, self.success(), CHANGED, False, verdict="red") == Outcome("refused", "red")
        assert classify(well, self.success(), UNCHANGED, True).kind == "no change"
        assert classify(Ending(1), self.success(), CHANGED, True).kind == "crashed"
        assert classify(well, agent("claude").transcript(), CHANGED, True).kind == "crashed"

    @pytest.mark.parametrize(
        ("by", "kind"),
        [
            ("cancel", "cancelled"),
            ("lease", "cancelled"),
            ("dollars", "capped"),
            ("wall", "capped"),
            ("turns", "capped"),
            ("stall", "capped"),
            ("start", "crashed"),
            ("abandoned", "crashed"),
        ],
    )
    def test_who_ended_it_counts_more_than_what_it_says(self, by: EndedBy, kind: Kind) -> None:
        assert classify(Ending(0, None, by), self.success(), CHANGED, True).kind == kind

    def test_silence_after_the_provider_turned_it_away_is_the_providers(self) -> None:
        transcript = agent("claude").transcript()
        transcript.hopeless = failed("rate_limit", 429)
        assert classify(Ending(None, 9, "stall"), transcript, UNCHANGED).limited

    def test_asking_for_the_same_thing_over_and_over_is_no_progress(self) -> None:
        transcript = agent("codex").transcript()
        item = {"id": "1", "type": "command_execution", "command": "make", "status": "in_progress"}
        verdicts = [judge(transcript, json.dumps({"type": "item.started", "item": item}), 1000) for _ in range(20)]
        assert verdicts[:19] == [None] * 19
        assert verdicts[19] == ("stall", "asked for the same thing 20 times in a row")
        other = {**item, "command": "make test"}
        assert judge(transcript, json.dumps({"type": "item.started", "item": other}), 1000) is None

    def test_a_command_has_its_exit_code_alone(self) -> None:
        transcript = agent("command").transcript()
        transcript.feed("cannot")
        assert classify(Ending(0), transcript, CHANGED).kind == "done"
        assert classify(Ending(3), transcript, CHANGED) == Outcome("crashed", "exit 3: cannot")

    @given(
        code=st.integers(0, 255) | st.none(),
        signal=st.integers(1, 31) | st.none(),
        by=st.sampled_from(
            [None, "cancel", "lease", "dollars", "wall", "turns", "stall", "provider", "abandoned", "start"]
        ),
        terminal=st.none()
        | st.builds(Terminal, st.sampled_from(["success", "error", "capped", "unreachable"]), st.text()),
        changed=st.booleans(),
        verified=st.sampled_from([None, True, False]),
    )
    def test_done_is_never_said_lightly(self, code, signal, by, terminal, changed, verified) -> None:
        transcript = agent("claude").transcript()
        transcript.terminal = terminal
        outcome = classify(Ending(code, signal, by), transcript, CHANGED if changed else UNCHANGED, verified)
        everything = code == 0 and signal is None and by is None and changed and verified is not False
        assert (outcome.kind == "done") == (everything and terminal is not None and terminal.kind == "success")
        assert outcome.reason


TYPES = [
    "assistant", "result", "system", "item.started", "item.completed", "error", "turn.failed", "turn.completed",
    "tool_use", "step_finish", "text", "message", "tool_result",
]  # fmt: skip
FIELDS = ["message", "item", "error", "usage", "part", "stats", "subtype", "result", "permission_denials"]
VALUES = st.none() | st.text() | st.integers() | st.lists(st.integers()) | st.dictionaries(st.text(), st.integers())


class TestReaders:
    @pytest.mark.parametrize("kind", sorted(KINDS))
    @given(lines=st.lists(st.text() | st.from_type(dict).map(lambda value: json.dumps(value, default=str)), max_size=5))
    def test_read_anything(self, kind: str, lines: list[str]) -> None:
        transcript = agent(kind).transcript()
        for line in lines:
            judge(transcript, line, 10)

    @pytest.mark.parametrize("kind", ["claude", "codex", "gemini", "opencode"])
    @given(event=st.fixed_dictionaries({"type": st.sampled_from(TYPES)}, optional=dict.fromkeys(FIELDS, VALUES)))
    def test_events_of_a_shape_nobody_has_seen(self, kind: str, event: dict[str, object]) -> None:
        transcript = agent(kind).transcript()
        judge(transcript, json.dumps(event), 10)
        assert classify(Ending(1), transcript, UNCHANGED).kind != "done"

    @pytest.mark.parametrize(
        ("message", "status"),
        [
            ("unexpected status 401 Unauthorized: x, url: http://h/v1/responses", 401),
            ("exceeded retry limit, last status: 429 Too Many Requests", 429),
            ('{"error": {"message": "x", "type": "invalid_request_error", "code": null}}', 400),
            ('[API Error: {"error":{"code":503,"message":"x"}}]', 503),
            ("API Error: 529 overloaded", 529),
            (
                "API Error: 502 one refused the router's key (HTTP 401): set a valid one.",
                401,
            ),
            ('{"error": {"type": "server_error", "code": "provider_key_refused"}}', 401),
            ("I changed 404 lines", None),
        ],
    )
    def test_statuses_in_words(self, message: str, status: int | None) -> None:
        assert status_of(message) == status
