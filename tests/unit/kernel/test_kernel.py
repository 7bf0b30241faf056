"""The small kernel modules: paths, clock, logging, processes, errors, telemetry."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import structlog

from avyay import errors, telemetry
from avyay.clock import FakeClock, SystemClock
from avyay.errors import AvyayError, DependencyError, ExitCode, UsageError
from avyay.log import configure_logging, get_logger, redact
from avyay.paths import ensure_directory, is_writable, open_paths
from avyay.ports import Passage
from avyay.process import find_program, run

SECRETS = (
    "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789",
    "sk-ant-api03-abcdefghijklmnop",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "AKIAABCDEFGHIJKLMNOP",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
)


class TestPaths:
    def test_home_moves_everything(self, tmp_path: Path) -> None:
        paths = open_paths(str(tmp_path))
        assert {p.parent for p in (paths.config, paths.data, paths.cache, paths.state, paths.runtime)} == {tmp_path}
        assert not paths.data.exists()
        assert paths.component("rag").is_dir()
        assert (paths.component("rag").stat().st_mode & 0o777) == 0o700

    def test_platform_places_without_a_home(self) -> None:
        assert open_paths(None).data.name == "avyay"

    def test_a_home_under_a_file_is_a_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="Cannot create") as caught:
            ensure_directory(tmp_path / "file" / "home")
        assert "AVYAY_HOME" in (caught.value.hint or "")

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="wants a folder that even root cannot write")
    def test_a_read_only_home_is_a_clear_error(self) -> None:
        assert not is_writable(Path("/proc/self/task"))
        with pytest.raises(UsageError, match="cannot be written"):
            ensure_directory(Path("/proc/self/task"))


class TestClock:
    def test_the_fake_moves_only_when_told(self) -> None:
        clock = FakeClock(now=100)
        clock.advance(5)
        asyncio.run(clock.sleep(2))
        assert (clock.now(), clock.monotonic()) == (107, 7)
        clock.jump(-3600)
        assert (clock.now(), clock.monotonic()) == (107 - 3600, 7)
        with pytest.raises(ValueError, match="jump"):
            clock.advance(-1)

    def test_the_system_clock(self) -> None:
        clock = SystemClock()
        before = clock.monotonic()
        asyncio.run(clock.sleep(0))
        assert clock.monotonic() >= before
        assert clock.now() > 1_700_000_000


class TestLog:
    def log(self, json_format: bool) -> str:
        stream = io.StringIO()
        configure_logging("info", json=json_format, stream=stream)
        with structlog.contextvars.bound_contextvars(request_id="r1"):
            get_logger("test").info("key_seen", api_key="hunter2", text=f"using {SECRETS[0]} now", count=3)
            get_logger("test").debug("not_written")
        return stream.getvalue()

    def test_json_lines_carry_component_and_request(self) -> None:
        line = json.loads(self.log(True))
        assert line["event"] == "key_seen"
        assert line["component"] == "test"
        assert line["request_id"] == "r1"
        assert line["count"] == 3

    @pytest.mark.parametrize("json_format", [True, False])
    def test_no_secret_reaches_a_line(self, json_format: bool) -> None:
        text = self.log(json_format)
        assert "hunter2" not in text
        assert SECRETS[0] not in text
        assert "not_written" not in text

    @pytest.mark.parametrize("secret", SECRETS)
    def test_redact(self, secret: str) -> None:
        assert secret not in redact(f"Authorization: {secret}; rest")
        assert redact("https://user:pa55word@host/x") == "https://[redacted]@host/x"
        assert redact("nothing to hide in sk-1") == "nothing to hide in sk-1"


class TestProcess:
    def test_output_and_code(self) -> None:
        done = run([sys.executable, "-c", "import sys; print(sys.stdin.read()); sys.exit(3)"], timeout=20, stdin=b"hi")
        assert (done.code, done.text.strip(), done.timed_out) == (3, "hi", False)

    def test_a_child_that_hangs_is_killed_with_its_children(self, tmp_path: Path) -> None:
        marker = tmp_path / "pid"
        child = (
            "import subprocess, time; p = subprocess.Popen(['sleep', '600']); "
            f"open({str(marker)!r}, 'w').write(str(p.pid)); time.sleep(600)"
        )
        done = run([sys.executable, "-c", child], timeout=1.5)
        assert done.timed_out
        grandchild = int(marker.read_text())
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(grandchild)], capture_output=True, text=True).stdout
        assert state.strip() in ("", "Z") or state.startswith("Z")

    def test_cancelling(self) -> None:
        cancel = threading.Event()
        threading.Timer(0.2, cancel.set).start()
        assert run(["sleep", "30"], timeout=20, cancel=cancel).timed_out

    @pytest.mark.parametrize("cancel", [None, threading.Event()], ids=["plain", "can be cancelled"])
    def test_a_slow_reader_gets_all_of_a_large_input(self, cancel: threading.Event | None) -> None:
        """More than a pipe holds, read later than anybody looks."""
        text = b"x" * 3_000_000
        program = [sys.executable, "-c", "import sys, time; time.sleep(0.3); print(len(sys.stdin.buffer.read()))"]
        done = run(program, timeout=20, stdin=text, cancel=cancel)
        assert (done.code, done.stdout, done.timed_out) == (0, b"3000000\n", False)

    def test_missing_programs(self) -> None:
        with pytest.raises(DependencyError, match="Cannot start"):
            run(["/no/such/program"], timeout=1)
        with pytest.raises(DependencyError, match="not on PATH") as caught:
            find_program("no-such-program", hint="Install it.")
        assert caught.value.hint == "Install it."


class TestErrors:
    def test_every_error_has_an_exit_code_and_a_stable_name(self) -> None:
        public = [getattr(errors, name) for name in errors.__all__]
        classes = [one for one in public if isinstance(one, type) and issubclass(one, AvyayError)]
        assert len({cls.default_code for cls in classes}) == len(classes)
        assert {cls.exit_code for cls in classes} <= set(ExitCode)

    def test_hint_and_code(self) -> None:
        error = AvyayError("It broke.", hint="Mend it.", code="broken")
        assert (str(error), error.hint, error.code) == ("It broke.", "Mend it.", "broken")


def test_spans_cost_nothing_until_enabled() -> None:
    assert not telemetry.tracing_enabled()
    with telemetry.span("x", {"a": 1}) as span:
        span.set_attribute("b", 2)
    code = "import avyay.telemetry, sys; sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ).returncode
        == 0
    )


def test_citation_format() -> None:
    passage = Passage("repo", "docs/etcd.md", "Restore", 3, 9, "0123456789abcdef", "text", 1.0)
    assert passage.citation == "docs/etcd.md:3-9@0123456 (Restore)"
