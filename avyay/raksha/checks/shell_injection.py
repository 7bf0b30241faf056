# ruff: noqa: E501 - long patterns read better whole
"""Commands handed to a shell with text that somebody else chooses."""

from __future__ import annotations

import re
from collections.abc import Iterator

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile
from avyay.raksha.syntax.flow import Flow
from avyay.raksha.syntax.lexer import Token
from avyay.raksha.syntax.module import Call, Module, parse
from avyay.raksha.syntax.tokens import split, text_of

RULE = Rule(
    id="shell-injection",
    title="Shell command built from untrusted text",
    severity="high",
    security_severity=9.0,
    cwe=("CWE-78",),
    owasp=("A03:2021",),
    precision="high",
    languages=("python", "javascript", "typescript", "go"),
    aliases=("bandit:B602", "bandit:B604", "bandit:B605", "bandit:B609", "bandit:B601"),
    why=(
        "A shell reads `;`, `|`, `$(...)` and newlines in its text as syntax. Whoever chooses a part of the text runs"
        " commands of his own with the rights of this process."
    ),
    bad='os.system("ping -c 1 " + host)',
    good='subprocess.run(["ping", "-c", "1", "--", host], check=True)',
    fix="Run the program with a list of arguments and without a shell; where a shell is needed, quote each value.",
)
RULES = (RULE,)
LANGUAGES = frozenset(RULE.languages)
USES_PROJECT = False

WORTH_READING = re.compile(
    r"\bos\.(?:system|popen|exec|spawn)|\bimport\s+system|subprocess|create_subprocess_shell|child_process|shelljs|execa"
    r"|exec\.Command|syscall\.Exec|exec_command|pexpect|fabric|\bimport\s+popen|commands\.get|Deno\.Command|pty\.spawn"
)
WORDS = (
    "system",
    "popen",
    "exec",
    "spawn",
    "subprocess",
    "child_process",
    "shelljs",
    "pexpect",
    "fabric",
    "commands.get",
)
SHELL = re.compile(
    r"(?:^|/)(?:sh|bash|zsh|dash|ksh|ash|fish|cmd|cmd\.exe|powershell|powershell\.exe|pwsh)$", re.IGNORECASE
)
SHELL_FLAG = re.compile(r"^(?:-\w*c|/c|/C|-Command|-command|-lc)$")
PYTHON_SHELLS = frozenset(
    {
        "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput",
        "commands.getstatusoutput", "asyncio.create_subprocess_shell", "asyncio.subprocess.create_subprocess_shell",
        "popen2.popen2", "os.popen2", "os.popen3", "pexpect.run", "pexpect.spawn", "os.popen4",
    }
)  # fmt: skip
PYTHON_RUNS = frozenset(
    f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")
) | {"asyncio.create_subprocess_exec", "os.execvp", "os.execv", "os.execlp", "os.execl", "os.spawnlp", "os.spawnvp", "pty.spawn"}  # fmt: skip
NODE_SHELLS = frozenset({"exec", "execSync"})
NODE_RUNS = frozenset({"spawn", "spawnSync", "execFile", "execFileSync", "fork", "execa", "execaSync"})
IMPORTS = re.compile(
    r"^[ \t]*from[ \t]+(os|subprocess|asyncio|commands|pexpect|pty)[ \t]+import[ \t]+\(?([^)\n]+|[^)]+)\)?", re.M
)
ALIASES = re.compile(r"^[ \t]*import[ \t]+(os|subprocess|asyncio|commands|pexpect)[ \t]+as[ \t]+(\w+)", re.M)
NODE_IMPORT = re.compile(
    r"(?:import\s+(?P<star>\*\s+as\s+)?(?P<what>[\w$]+|\{[^}]*\})\s+from|(?:const|let|var)\s+(?P<required>[\w$]+|\{[^}]*\})\s*=\s*"
    r"(?:await\s+import\(|require\())\s*\(?['\"](?:node:)?(?P<module>child_process|shelljs|execa)['\"]"
)


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    if file.is_test or not file.mentions(*WORDS) or not WORTH_READING.search(file.text):
        return
    module = parse(file.text, file.language)
    flow = Flow(module)
    strict = Flow(module, parameters=False)
    find = {"python": _python, "go": _go}.get(file.language, _node)
    names = _python_names(file.text) if module.python else _node_names(file.text)
    for call in module.calls():
        unsafe = find(module, flow, strict, call, names)
        if unsafe:
            start, end = module.tokens[call.first].start, module.tokens[call.closing].end
            shown = " ".join(unsafe.split())[:60]
            yield file.finding(RULE, start, end, message=f"A shell or program is run with `{shown}` in its command.")


def _python_names(text: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for match in IMPORTS.finditer(text):
        for part in match.group(2).split(","):
            words = part.split("#")[0].split()
            if words:
                names[words[-1]] = f"{match.group(1)}.{words[0]}"
    for match in ALIASES.finditer(text):
        names[match.group(2)] = match.group(1)
    return names


def _python(module: Module, flow: Flow, strict: Flow, call: Call, names: dict[str, str]) -> str | None:
    root, _, rest = call.callee.partition(".")
    callee = f"{names[root]}.{rest}".rstrip(".") if root in names else call.callee
    arguments = module.arguments(call)
    positional = [tokens for keyword, tokens in arguments if not keyword]
    keywords = {keyword: tokens for keyword, tokens in arguments if keyword}
    command = positional[0] if positional else keywords.get("args") or keywords.get("cmd") or keywords.get("command")
    if command is None:
        return None
    if callee in PYTHON_SHELLS:
        return flow.unsafe(command, call.index)
    if callee in PYTHON_RUNS:
        shell = text_of(keywords.get("shell", []))
        if shell not in ("", "False", "0"):
            return flow.unsafe(command, call.index)
        parts = _list_items(module, command, call.index)
        if parts is None and callee.startswith(("os.", "asyncio.")):
            parts = positional
        if parts:
            return _through_shell(flow, strict, parts, call.index)
        if (parts is None and command[0].text == "shlex") or command[-1].text == ")":
            return strict.unsafe(command, call.index)
        return None
    if (
        call.method in ("exec_command", "sudo", "local")
        and call.receiver
        and re.search(r"(?i)ssh|client|conn|^c$|^ctx$|fabric", call.receiver)
    ):
        return flow.unsafe(command, call.index)
    return None


def _list_items(module: Module, tokens: list[Token], at: int) -> list[list[Token]] | None:
    """The elements of a list literal, through a plain name."""
    if tokens and tokens[0].text in ("[", "(") and tokens[-1].text in ("]", ")"):
        return split(tokens[1:-1], ",")
    if len(tokens) == 1 and tokens[0].kind == "name":
        scope = module.enclosing(at)
        assigned = module.assignments(tokens[0].text, scope, at)
        if assigned and assigned[-1].how == "plain":
            return (
                _list_items(module, list(assigned[-1].tokens), assigned[-1].index)
                if len(assigned[-1].tokens) > 1
                else None
            )
    return None


def _through_shell(flow: Flow, strict: Flow, parts: list[list[Token]], at: int) -> str | None:
    """`["sh", "-c", text]`, or a program whose name comes from a request."""
    parts = [part for part in parts if part]
    if not parts:
        return None
    words = [part[0].value if len(part) == 1 and part[0].kind == "string" else "" for part in parts]
    for number, word in enumerate(words[:2]):
        if SHELL.search(word) and number + 2 < len(words) + 1:
            for flag in range(number + 1, len(words)):
                if SHELL_FLAG.match(words[flag]) and flag + 1 < len(parts):
                    text = parts[flag + 1]
                    found = flow.unsafe(text, at)
                    if found:
                        return found
            return None
    return None if words[0] else strict.unsafe(parts[0], at)


def _node_names(text: str) -> dict[str, str]:
    """Local name -> function of child_process (or the module's own name for a whole-module import)."""
    names: dict[str, str] = {}
    for match in NODE_IMPORT.finditer(text):
        what = match.group("what") or match.group("required") or ""
        if what.startswith("{"):
            for part in what.strip("{}").split(","):
                words = re.split(r"\s+as\s+|\s*:\s*", part.strip())
                if words[0]:
                    names[words[-1].strip()] = words[0].strip()
        else:
            names[what] = f"{match.group('module')}.*"
    for match in re.finditer(
        r"(?:const|let|var)\s+([\w$]+)\s*=\s*(?:[\w$]+\.)?promisify\(\s*(?:require\([^)]*\)\.|[\w$]+\.)?(exec|execFile)\b",
        text,
    ):
        names[match.group(1)] = match.group(2)
    return names


def _node(module: Module, flow: Flow, strict: Flow, call: Call, names: dict[str, str]) -> str | None:
    receiver, method = call.receiver, call.method
    if not receiver:
        function = names.get(method, "")
        if function.endswith(".*"):  # shell = require('shelljs'); execa(...)
            function = method
    elif (
        names.get(receiver.split(".")[0], "").endswith(".*") or "require(" in receiver or receiver.startswith("require")
    ):
        function = method
    else:
        return None
    arguments = [tokens for _, tokens in module.arguments(call)]
    if not arguments:
        return None
    if function in NODE_SHELLS or function in ("command", "commandSync", "execaCommand", "execaCommandSync"):
        return flow.unsafe(arguments[0], call.index)
    if function not in NODE_RUNS:
        return None
    options = "".join(text_of(tokens) for tokens in arguments[1:])
    if re.search(r"\bshell:(?!false|undefined|null)", options):
        return flow.unsafe(arguments[0], call.index) or (
            flow.unsafe(arguments[1], call.index) if len(arguments) > 1 else None
        )
    items = _list_items(module, arguments[1], call.index) if len(arguments) > 1 else None
    return _through_shell(flow, strict, [arguments[0], *(items or [])], call.index)


def _go(module: Module, flow: Flow, strict: Flow, call: Call, names: dict[str, str]) -> str | None:
    if call.callee not in ("exec.Command", "exec.CommandContext", "syscall.Exec", "os.StartProcess"):
        return None
    arguments = [tokens for _, tokens in module.arguments(call)]
    if call.method == "CommandContext":
        arguments = arguments[1:]
    return _through_shell(flow, strict, arguments, call.index) if arguments else None
