"""Every error a user can meet, and the exit code each one becomes.

    AvyayError
    ├── UsageError            2   what was asked cannot be understood
    │   └── ConfigError       2   a configuration value, with the file and line it came from
    ├── DependencyError       3   something needed is missing
    │   └── UnreachableError  3   something needed does not answer, or answers nonsense
    ├── AuthError             4   no key, or not authorised
    ├── PolicyError           5   refused by a budget, a PII rule or a rate limit
    ├── CorruptError         70   our own data is damaged
    └── InternalError        70   a bug in avyay

Only `avyay.cli.main` turns one into a process exit, only `avyay.serve.errors` into an HTTP answer.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

__all__ = [
    "AuthError",
    "AvyayError",
    "ConfigError",
    "CorruptError",
    "DependencyError",
    "ExitCode",
    "InternalError",
    "PolicyError",
    "UnreachableError",
    "UsageError",
    "why_unreadable",
]


class ExitCode(IntEnum):
    """What the process returns; scripts may rely on these numbers."""

    OK = 0
    FINDINGS = 1  # findings at the threshold, or a negative answer
    USAGE = 2
    DEPENDENCY = 3
    AUTH = 4
    POLICY = 5
    INTERNAL = 70
    INTERRUPTED = 130


class AvyayError(Exception):
    """An error with a way forward.

    Args:
        message: What went wrong, one sentence, no secrets.
        hint: What the user can do next; printed after the message.
        code: A stable snake_case identifier for programs, by default the class's own.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code

    def __str__(self) -> str:
        return self.message


class UsageError(AvyayError):
    """The request itself is wrong: a missing path, a bad value, an unknown name."""

    exit_code = ExitCode.USAGE
    default_code = "usage"


class ConfigError(UsageError):
    """A configuration value cannot be used; the message names its origin."""

    default_code = "config"


class DependencyError(AvyayError):
    """A program, file or service that this needs is missing."""

    exit_code = ExitCode.DEPENDENCY
    default_code = "dependency_missing"


class UnreachableError(DependencyError):
    """The other side refused, timed out, or answered something that is no answer."""

    default_code = "unreachable"


class AuthError(AvyayError):
    """No key, an expired key, or a key that may not do this."""

    exit_code = ExitCode.AUTH
    default_code = "unauthorised"


class PolicyError(AvyayError):
    """Refused on purpose: a budget, a PII rule, a rate limit."""

    exit_code = ExitCode.POLICY
    default_code = "refused"


class CorruptError(AvyayError):
    """Data that avyay itself wrote does not read back."""

    default_code = "corrupt"


class InternalError(AvyayError):
    """A bug in avyay."""

    default_code = "internal"


def why_unreadable(error: OSError | UnicodeDecodeError) -> str:
    """Why a text file could not be read, in words that do not name it again."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is no {error.encoding.upper()} text (byte {error.start})"
    return error.strerror or type(error).__name__
