"""systemd units: what `avyay serve X --print-unit` prints, locked down as far as each daemon's work allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from avyay.paths import Paths
from avyay.serve.watchdog import START

__all__ = ["systemd_unit"]

_HARDENED = """\
NoNewPrivileges=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectSystem=strict
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
LockPersonality=yes
CapabilityBoundingSet=
AmbientCapabilities=
SystemCallArchitectures=native
UMask=0077
"""
# Its agents build and test other people's code, which may need devices, namespaces and old system calls.
_LEAST_START = 90  # seconds, systemd's own
_LOOSER = {"engine", "all"}


def systemd_unit(
    name: str,
    command: Sequence[str],
    paths: Paths,
    *,
    home: str | None,
    user_unit: bool = False,
    patience: float = 30.0,
) -> str:
    """The text of a unit file.

    Args:
        command: What starts the daemon.
        paths: The folders it writes to.
        home: What AVYAY_HOME is to be; None: the user's own places.
        user_unit: For `systemctl --user`, where several of the lock-downs are not to be had.
        patience: Seconds the daemon may be silent; 0: for ever.
    """
    hardened = [line for line in _HARDENED.splitlines() if not (name in _LOOSER and line.startswith(_TOO_TIGHT))]
    writable = sorted({_quote(f"-{path}") for path in (paths.data, paths.cache, paths.state, paths.runtime)})
    lines = [
        "[Unit]",
        f"Description=avyay {name}",
        "Documentation=https://www.freedesktop.org/software/systemd/man/systemd.service.html",
        "After=network-online.target",
        "Wants=network-online.target",
        "StartLimitIntervalSec=300",
        "StartLimitBurst=10",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={' '.join(_quote(word) for word in command)}",
        *(["ExecReload=/bin/kill -HUP $MAINPID"] if "--reload-config" in command else []),
        "Restart=on-failure",
        "RestartSec=2",
        "RestartPreventExitStatus=2 4 5",
        "KillMode=mixed",
        f"TimeoutStartSec={max(_LEAST_START, math.ceil(patience * START))}",
        "TimeoutStopSec=90",
        *([f"WatchdogSec={math.ceil(patience)}", "TimeoutAbortSec=10"] if patience else []),
        "# Its memory holds keys:",
        "LimitCORE=0",
        f"Environment={_quote('AVYAY_LOG_FORMAT=json')}",
        *([f"Environment={_quote(f'AVYAY_HOME={home}')}"] if home else []),
        "# Keys belong into a file of mode 0600, one NAME=value a line:",
        f"EnvironmentFile=-{str(paths.config).replace('%', '%%')}/environment",
        f"ReadWritePaths={' '.join(writable)}",
        *([] if user_unit else hardened),
        "",
        "[Install]",
        f"WantedBy={'default' if user_unit else 'multi-user'}.target",
    ]
    return "\n".join(lines) + "\n"


_TOO_TIGHT = ("PrivateDevices", "RestrictNamespaces", "SystemCallArchitectures")


def _quote(word: str) -> str:
    """A word as systemd reads it: specifiers and variables are taken literally."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(character in word for character in " \t\"'\\;") else escaped
