"""The shell around the commands: help, versions, typos, completion, exit codes; as a user meets them, in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from avyay import __version__
from avyay.cli.main import COMMANDS, help_text
from avyay.config.template import TEMPLATE

HEAVY = (
    "typer",
    "pydantic",
    "pydantic_settings",
    "httpx",
    "httpx2",
    "aiohttp",
    "numpy",
    "lancedb",
    "pyarrow",
    "onnxruntime",
    "mcp",
    "starlette",
    "fastapi",
    "rich",
    "asyncio",
    "structlog",
    "yaml",
    "openai",
    "anthropic",
    "ollama",
    "semgrep",
    "bandit",
)


def avyay(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avyay", *arguments],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def modules_after(*arguments: str) -> set[str]:
    """What a command line leaves in `sys.modules`, besides what Python itself starts with."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "from avyay.cli.main import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return set(done.stderr.split())


class TestHelp:
    @pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",), ("help",)])
    def test_help_lists_every_command(self, arguments: tuple[str, ...]) -> None:
        done = avyay(*arguments)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", help_text())
        assert all(f"  {name} " in done.stdout for name in COMMANDS)

    def test_help_followed_by_a_command(self) -> None:
        assert avyay("help", "scan").stdout == avyay("scan", "--help").stdout
        assert avyay("help", "rag", "index").stdout == avyay("rag", "index", "--help").stdout
        assert avyay("help", "scna").returncode == 2

    @pytest.mark.parametrize("group", ["engine", "marga", "rag", "serve", "siddhi"])
    def test_a_group_says_whole_sentences(self, group: str) -> None:
        assert "..." not in avyay(group, "--help").stdout.split("Commands:")[1]

    def test_version(self) -> None:
        assert avyay("--version").stdout == f"avyay {__version__}\n"

    @pytest.mark.parametrize("argument", ["--help", "--version", "-h"])
    def test_nothing_heavy_is_imported(self, argument: str) -> None:
        assert not modules_after(argument) & set(HEAVY)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_has_a_help_page_that_imports_only_typer(self, name: str) -> None:
        loaded = modules_after(name, "--help")
        assert not loaded & (set(HEAVY) - {"typer", "pydantic"}), loaded & set(
            HEAVY
        )  # typer itself reads with pydantic
        done = avyay(name, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"Usage: avyay {name}")


class TestTypos:
    def test_a_misspelt_command_is_an_error_with_a_suggestion(self) -> None:
        done = avyay("scna")
        assert (done.returncode, done.stdout) == (2, "")
        assert "there is no command 'scna'" in done.stderr
        assert "Did you mean: avyay scan" in done.stderr

    def test_it_loads_nothing_and_opens_no_socket(self) -> None:
        assert not modules_after("modles") & {*HEAVY, "socket", "ssl"}

    def test_a_misspelt_option(self) -> None:
        done = avyay("config", "show", "--jsn")
        assert done.returncode == 2
        assert "--json" in done.stderr
        assert "See: avyay config show --help" in done.stderr

    def test_a_misspelt_subcommand(self) -> None:
        done = avyay("config", "shwo")
        assert done.returncode == 2
        assert "'show'" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "hint"),
        [
            (("--verison",), "Did you mean: avyay --version"),
            (("version",), "Did you mean: avyay --version"),
            (("-q", "scan", "."), "Options come after the command: avyay scan -q"),
            (("--json",), "See: avyay --help"),
        ],
    )
    def test_words_in_the_wrong_place(self, arguments: tuple[str, ...], hint: str) -> None:
        done = avyay(*arguments)
        assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (2, "", hint)

    def test_a_wrong_choice_is_told_in_our_words(self) -> None:
        done = avyay("route", "--tier", "big", "hello")
        assert done.returncode == 2
        assert done.stderr.startswith("avyay: Invalid value for '--tier' / '-t': 'big' is not one of 'local'")
        done = avyay("scan", "--fix=everything")
        assert (done.returncode, done.stderr.splitlines()[0]) == (
            2,
            "avyay: --fix takes safe or unsafe, not 'everything'.",
        )


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_a_script_for_each_shell(self, shell: str) -> None:
        done = avyay("completion", shell)
        assert done.returncode == 0
        assert "_AVYAY_COMPLETE" in done.stdout

    def test_bash_completes_commands_and_options(self) -> None:
        done = avyay(_AVYAY_COMPLETE="complete_bash", COMP_WORDS="avyay qu", COMP_CWORD="1")
        assert done.stdout.split() == ["quickstart"]
        done = avyay(_AVYAY_COMPLETE="complete_bash", COMP_WORDS="avyay config show --js", COMP_CWORD="3")
        assert done.stdout.split() == ["--json"]

    def test_an_unknown_shell(self) -> None:
        assert avyay("completion", "tcsh").returncode == 2


class TestConfig:
    def test_show_says_where_each_value_came_from(self, tmp_path: Path) -> None:
        done = avyay("config", "show", "raksha", "--json", cwd=tmp_path, AVYAY_RAKSHA_FAIL_ON="low")
        document = json.loads(done.stdout)
        assert document["schema_version"] == 1
        assert {"key": "raksha.fail_on", "value": "low", "origin": "environment AVYAY_RAKSHA_FAIL_ON"} in document[
            "settings"
        ]

    def test_a_key_that_is_none(self, tmp_path: Path) -> None:
        done = avyay("config", "show", "raksha.fail_onn", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "avyay: There is no key 'raksha.fail_onn'.\nDid you mean 'raksha.fail_on'?\n"
        assert avyay("config", "show", "raksha", cwd=tmp_path).returncode == 0

    def test_schema_is_json_schema(self) -> None:
        assert json.loads(avyay("config", "schema").stdout)["additionalProperties"] is False

    def test_a_broken_file_is_one_sentence_and_exit_2(self, tmp_path: Path) -> None:
        (tmp_path / "broken.yaml").write_text("rag:\n  pasages: 3\n")
        done = avyay("config", "show", "--config", str(tmp_path / "broken.yaml"))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"avyay: {tmp_path}/broken.yaml:2: unknown key 'rag.pasages'.\nDid you mean 'passages'?\n"
        )


class TestInitAndTrust:
    def test_init_writes_once_and_trusts_what_it_wrote(self, tmp_path: Path) -> None:
        assert avyay("init", str(tmp_path)).returncode == 0
        assert (tmp_path / "avyay.yaml").read_text() == TEMPLATE
        shown = avyay("config", "show", cwd=tmp_path)
        assert shown.returncode == 0
        assert "Ignored" not in shown.stderr
        again = avyay("init", str(tmp_path))
        assert again.returncode == 2
        assert "exists already" in again.stderr

    def test_an_edit_asks_for_trust_again(self, tmp_path: Path) -> None:
        avyay("init", str(tmp_path))
        file = tmp_path / "avyay.yaml"
        file.write_text(TEMPLATE.replace("fail_on: high", "fail_on: low"))
        assert f"Ignored until you run `avyay trust`: {file}:" in avyay("config", "show", cwd=tmp_path).stderr
        assert avyay("trust", cwd=tmp_path).returncode == 0
        shown = avyay("config", "show", "raksha.fail_on", "--json", cwd=tmp_path)
        assert json.loads(shown.stdout)["settings"][0]["value"] == "low"
        assert avyay("trust", "--revoke", cwd=tmp_path).returncode == 0
        assert "Ignored" in avyay("config", "show", cwd=tmp_path).stderr

    def test_trust_without_a_file(self, tmp_path: Path) -> None:
        assert avyay("trust", cwd=tmp_path).returncode == 2

    def test_init_for_the_user(self, tmp_path: Path, home: Path) -> None:
        assert avyay("init", "--user").returncode == 0
        assert (home / "avyay" / "config" / "avyay.yaml").is_file()


class TestEmptyLists:
    @pytest.mark.parametrize("arguments", ["siddhi ads", "siddhi emails", "events dead", "marga shadow"])
    def test_nothing_to_list_is_said(self, arguments: str, tmp_path: Path) -> None:
        done = avyay(*arguments.split(), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr
        assert avyay(*arguments.split(), "--quiet", cwd=tmp_path).stderr == ""


class TestProcess:
    def test_a_closed_pipe_is_no_error(self) -> None:
        line = f"{sys.executable} -m avyay config schema | head -c 10"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""

    @pytest.mark.parametrize(
        "arguments", ["--help", "scan --help", "config show", "config schema", "scan {folder}", "doctor --json"]
    )
    @pytest.mark.parametrize("stream", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
    def test_a_closed_stream_is_no_error(self, arguments: str, stream: str, tmp_path: Path) -> None:
        (tmp_path / "clean.py").write_text("x = 1\n")
        line = f"{sys.executable} -m avyay {arguments.format(folder=tmp_path)} {stream}"
        done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    @pytest.mark.parametrize(
        "arguments", ["--help", "--version", "help scan", "config show", "config schema", "scan {folder}"]
    )
    def test_output_that_cannot_be_written_is_one_sentence(self, arguments: str, tmp_path: Path) -> None:
        (tmp_path / "clean.py").write_text("x = 1\n")
        for _ in range(2):  # the second scan is an answer recorded by the first
            line = f"{sys.executable} -m avyay {arguments.format(folder=tmp_path)} > /dev/full"
            done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 3
            assert done.stderr.splitlines()[0].endswith("No space left on device.")
            assert len(done.stderr.splitlines()) == 2

    def test_a_terminal_that_knows_no_unicode(self, tmp_path: Path) -> None:
        (tmp_path / "clean.py").write_text("x = 1\n")
        done = avyay("scan", ".", cwd=tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert (done.returncode, done.stderr) == (0, "")
        assert "No findings." in done.stdout

    def test_an_interrupt_while_modules_load(self) -> None:
        code = (
            "import signal, sys\n"
            "class Slow:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name == 'typer': signal.raise_signal(signal.SIGINT)\n"
            "sys.meta_path.insert(0, Slow())\n"
            "from avyay.cli.main import main\n"
            "main(['config', 'show'])\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.strip()) == (130, "avyay: interrupted.")

    def test_pipes_have_no_escape_codes(self) -> None:
        assert "\x1b" not in avyay("config", "show").stdout

    def test_ctrl_c_is_a_word_and_exit_130(self) -> None:
        code = (
            "import avyay.cli.config as c, avyay.cli.main as m\n"
            "from avyay.cli.command import Run, command\n"
            "from avyay.cli.app import command_group\n"
            "app = command_group('x')\n"
            "@command(app)\n"
            "def wait(run: Run) -> None:\n"
            "    import os, signal, time\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    time.sleep(30)\n"
            "app.info.no_args_is_help = False\n"
            "c.app = app\n"
            "m.main(['config'])\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.strip()) == (130, "avyay: interrupted.")

    def test_a_bug_is_one_sentence_and_exit_70(self, tmp_path: Path) -> None:
        code = (
            "import avyay.cli.config as c, avyay.cli.main as m\n"
            "from avyay.cli.command import Run, command\n"
            "from avyay.cli.app import command_group\n"
            "app = command_group('x')\n"
            "@command(app)\n"
            "def boom(run: Run) -> None:\n"
            "    raise ValueError('sk-proj-abcdefghijklmnopqrstuvwxyz')\n"
            "app.info.no_args_is_help = False\n"
            "c.app = app\n"
            "m.main(['config'])\n"
        )
        for debug in ("", "1"):
            done = subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "AVYAY_DEBUG": debug},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 70
            assert "internal error: ValueError" in done.stderr
            assert "sk-proj" not in done.stderr
            assert ("Traceback" in done.stderr) == bool(debug)
