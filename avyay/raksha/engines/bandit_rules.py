"""Which of bandit's tests are run, and what their findings mean in our words.

Left out are the tests that mostly report good code: asserts (B101), every import of subprocess or xml, every use of
`random`, passwords guessed from a variable's name (B105-B107: our own credentials check reads the value), temporary
folder names, swallowed exceptions. Left out as well are those that look at the call and not at the value, where our own
checks follow the value to its source: shells (B601, B602, B604, B605), SQL (B608), evaluation
(B102, B307); and B613, which counts the direction marks of Arabic text as an attack.
"""

from __future__ import annotations

from typing import Literal

from avyay.raksha.repair import kind_of, table
from avyay.raksha.types import Precision, Rule, Severity

__all__ = ["NEEDS", "REPLACEMENTS", "RULES", "may_report"]

# Test code talks to itself: what is unsafe in production is often what is being tested.
NOT_IN_TESTS = frozenset(
    {"B103", "B201", "B202", "B323", "B324", "B501", "B502", "B503", "B505", "B507", "B508", "B701"}
)

Level = Literal[0, 1, 2]  # bandit's LOW, MEDIUM, HIGH: findings below are dropped


def _rule(
    test: str, title: str, severity: Severity, cwe: int, why: str, bad: str, good: str, fix: str, precision: Precision
) -> Rule:
    return Rule(
        id=f"bandit-{test.lower()}", title=title, severity=severity, cwe=(f"CWE-{cwe}",), why=why, bad=bad, good=good,
        fix=fix, precision=precision, languages=("python",), aliases=(f"bandit:{test}",), engine="bandit",
        repair=kind_of(REPLACEMENTS.get(test, ())), tests=test not in NOT_IN_TESTS,
    )  # fmt: skip


def _table() -> dict[str, tuple[Rule, Level, Level]]:
    table: dict[str, tuple[Rule, Level, Level]] = {}

    def add(
        test: str, title: str, severity: Severity, cwe: int, *, why: str, bad: str, good: str, fix: str,
        precision: Precision = "high", at_least: Level = 0, confidence: Level = 0,
    ) -> None:  # fmt: skip
        rule = _rule(test, title, severity, cwe, why, bad, good, fix, precision)
        table[test] = (rule, at_least, confidence)

    add(
        "B103",
        "File made writable for everyone",
        "high",
        732,
        why="Every user of the machine can replace or read the file.",
        bad="os.chmod(path, 0o777)",
        good="os.chmod(path, 0o600)",
        fix="Give the owner only what is needed.",
        at_least=2,  # below that: the group may execute it
    )
    add(
        "B201",
        "Flask debugger on",
        "high",
        94,
        why="The debugger lets anyone who can cause an error run Python in the process.",
        bad="app.run(debug=True)",
        good="app.run()",
        fix="Leave debug off; set it in your own environment only.",
    )
    add(
        "B202",
        "tarfile.extractall without a filter",
        "medium",
        22,
        why="A prepared archive writes outside the target folder.",
        bad="archive.extractall(target)",
        good='archive.extractall(target, filter="data")',
        fix='Pass filter="data".',
        at_least=2,
        precision="medium",
    )
    add(
        "B323",
        "TLS certificates not verified",
        "high",
        295,
        why="Anyone on the path can read and change the traffic.",
        bad="ssl._create_unverified_context()",
        good="ssl.create_default_context()",
        fix="Use the default context; add your own authority with cafile=.",
    )
    add(
        "B324",
        "Weak hash",
        "low",
        327,
        why="Collisions of MD5 and SHA-1 can be made; they protect nothing.",
        bad="hashlib.md5(data)",
        good="hashlib.sha256(data)",
        fix="Use SHA-256, or say usedforsecurity=False when nothing depends on it.",
        precision="medium",
    )
    add(
        "B501",
        "TLS certificates not verified",
        "high",
        295,
        why="Anyone on the path can read and change the traffic.",
        bad="requests.get(url, verify=False)",
        good="requests.get(url)",
        fix="Remove verify=False; pass the authority's file for private certificates.",
    )
    add(
        "B502",
        "Broken TLS version",
        "high",
        327,
        why="SSL 2, SSL 3 and TLS 1.0 can be broken.",
        bad="ssl.wrap_socket(s, ssl_version=ssl.PROTOCOL_SSLv3)",
        good="ssl.create_default_context().wrap_socket(s)",
        fix="Use ssl.create_default_context().",
    )
    add(
        "B503",
        "Broken TLS version as default",
        "medium",
        327,
        why="Callers that pass nothing get a protocol that can be broken.",
        bad="def open(version=ssl.PROTOCOL_SSLv2): ...",
        good="def open(context=None): ...",
        fix="Use ssl.create_default_context().",
    )
    add(
        "B505",
        "Key too short",
        "high",
        326,
        why="Keys this short can be broken.",
        bad="rsa.generate_private_key(65537, 1024)",
        good="rsa.generate_private_key(65537, 3072)",
        fix="Use at least 2048 bits for RSA and DSA, 224 for elliptic curves.",
        at_least=1,
    )
    add(
        "B506",
        "YAML loaded with a loader that makes objects",
        "high",
        502,
        why="A prepared document runs code while it is loaded.",
        bad="yaml.load(text)",
        good="yaml.safe_load(text)",
        fix="Use yaml.safe_load.",
    )
    add(
        "B507",
        "SSH host keys not checked",
        "high",
        295,
        why="Anyone on the path can pretend to be the server.",
        bad="client.set_missing_host_key_policy(paramiko.AutoAddPolicy)",
        good="client.load_system_host_keys()",
        fix="Load known hosts and reject unknown ones.",
    )
    add(
        "B508",
        "SNMP without encryption",
        "medium",
        319,
        why="Versions 1 and 2 send everything in the clear.",
        bad='CommunityData("public", mpModel=0)',
        good="UsmUserData(user, auth, priv)",
        fix="Use SNMP version 3.",
    )
    add(
        "B609",
        "Wildcard in a shell command",
        "high",
        78,
        why="A file whose name starts with a dash becomes an option of the command.",
        bad='os.system("tar cf a.tar *")',
        good='subprocess.run(["tar", "cf", "a.tar", "--", *names])',
        fix="List the files and put -- before them.",
    )
    add(
        "B612",
        "Logging configuration from a socket",
        "high",
        94,
        why="Whoever reaches the port runs code.",
        bad="logging.config.listen(9999)",
        good="logging.config.listen(9999, verify=check)",
        fix="Pass verify=.",
    )
    add(
        "B614",
        "Model loaded with pickle",
        "medium",
        502,
        why="A prepared model file runs code while it is loaded.",
        bad="torch.load(path)",
        good="torch.load(path, weights_only=True)",
        fix="Pass weights_only=True.",
    )
    add(
        "B701",
        "Templates without escaping",
        "medium",
        94,
        why="Text from outside becomes markup and script.",
        bad="jinja2.Environment()",
        good="jinja2.Environment(autoescape=True)",
        fix="Turn autoescape on.",
        at_least=2,
        precision="medium",
    )
    return table


REPLACEMENTS = table(
    {
        "B103": [(r"0o?777\b", "0o755", False)],
        "B201": [(r"\bdebug\s*=\s*True", "debug=False", True)],
        "B202": [
            (r"\bextractall\(\s*\)", 'extractall(filter="data")', True),
            (r"\bextractall\(([^()]*[^()\s,])\s*,?\s*\)", r'extractall(\1, filter="data")', True),
        ],
        "B323": [(r"\b_create_unverified_context\b", "create_default_context", True)],
        "B324": [(r"\b(?:md5|sha1)\b", "sha256", False)],
        "B501": [(r"\bverify\s*=\s*False", "verify=True", True)],
        "B502": [(r"\bPROTOCOL_(?:SSLv2|SSLv3|SSLv23|TLSv1|TLSv1_1)\b", "PROTOCOL_TLS_CLIENT", False)],
        "B503": [(r"\bPROTOCOL_(?:SSLv2|SSLv3|SSLv23|TLSv1|TLSv1_1)\b", "PROTOCOL_TLS_CLIENT", False)],
        "B505": [(r"\b(?:512|768|1024)\b", "3072", True)],
        "B506": [
            (r"\byaml\.load\b", "yaml.safe_load", True),
            (r",\s*(?:Loader\s*=\s*)?(?:yaml\.)?(?:C?Loader|UnsafeLoader|FullLoader)\b", "", True),
        ],
        "B507": [(r"\b(?:AutoAddPolicy|WarningPolicy)\b", "RejectPolicy", False)],
        "B614": [(r"\btorch\.load\(([^()]*[^()\s,])\s*,?\s*\)", r"torch.load(\1, weights_only=True)", False)],
        "B701": [
            (r"\bautoescape\s*=\s*False", "autoescape=True", False),
            (r"\bEnvironment\(\s*\)", "Environment(autoescape=True)", False),
        ],
    }
)
RULES = _table()

# Alternatives of texts a file must hold for the test to report something in it; without any, bandit need not read it.
NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "B103": (("chmod",),),
    "B201": (("flask", "debug"),),
    "B202": (("tarfile", "extractall"),),
    "B323": (("_create_unverified_context",),),
    "B324": (("hashlib", "md5"), ("hashlib", "md4"), ("hashlib", "sha1"), ("hashlib", "new"), ("crypt", "METHOD_")),
    "B501": (("verify", "requests"), ("verify", "httpx")),
    "B502": (("SSLv",), ("TLSv1",)),
    "B503": (("SSLv",), ("TLSv1",)),
    "B505": (("generate_private_key",), ("generate", "DSA"), ("generate", "RSA")),
    "B506": (("yaml", "load"),),
    "B507": (("set_missing_host_key_policy",),),
    "B508": (("CommunityData",),),
    "B609": tuple(
        (tool, "*", way)
        for tool in ("chown", "chmod", "tar ", "'tar'", '"tar"', "rsync")
        for way in ("subprocess", "system", "popen", "spawn", "exec", "commands")
    ),
    "B612": (("logging", "listen"),),
    "B614": (("torch", "load"),),
    "B701": (("jinja2", "Environment"),),
}


def may_report(text: str) -> bool:
    """Whether one of the tests could report something in this file."""
    return any(all(word in text for word in words) for ways in NEEDS.values() for words in ways)
