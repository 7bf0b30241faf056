"""The avyay.yaml that `avyay init` writes: valid as it stands, every line explained."""

from __future__ import annotations

from pathlib import Path

from avyay.errors import UsageError

__all__ = ["TEMPLATE", "write_template"]

TEMPLATE = """\
# Settings of avyay. Everything here is optional; what stands commented out is the default or an example.
# Each value can also be given as AVYAY_<SECTION>_<KEY> (for example AVYAY_RAKSHA_FAIL_ON=critical).
# See all keys: avyay config schema     What is set, and where: avyay config show     What is wrong: avyay config check

log:
  level: warning            # debug | info | warning | error
  format: auto              # auto | text | json

marga:                      # the router
  # Providers are also found by OPENAI_API_KEY, ANTHROPIC_API_KEY, AZURE_OPENAI_* and a running Ollama.
  discover: true
  # url: http://127.0.0.1:8081        # use a router daemon instead of one in this process
  # providers:
  #   - name: openai
  #     endpoint: https://api.openai.com/v1
  #     api_key_env: OPENAI_API_KEY   # keys live in the environment, never in this file
  #     circuit_breaker:
  #       failure_threshold: 5        # trip after 5 failures in a row
  #       recovery_timeout: 30s       # then test recovery after 30 s
  #   - name: ollama
  #     endpoint: http://127.0.0.1:11434
  #     priority: 3                   # lower is preferred
  routing:
    local_below: 0.3        # less complex than this: the local tier
    premium_from: 0.7       # this complex or more: the premium tier
  health_check:
    interval: 30s
    timeout: 5s
  # aliases:
  #   fast: gpt-4o-mini

rag:                        # runbook retrieval
  # include: ["docs/**/*.md"]
  # exclude: ["**/node_modules/**"]
  passages: 5
  embedder:
    name: minilm            # bundled; or ollama, openai-compatible

raksha:                     # the scanner
  fail_on: high             # findings at this severity or above make `avyay scan` exit 1
  # exclude: ["third_party/**"]
"""


def write_template(file: Path) -> None:
    """Write the template to `file`, which must not exist.

    Raises:
        UsageError: the file exists, or its folder is missing or not writable.
    """
    try:
        with file.open("x", encoding="utf-8") as handle:
            handle.write(TEMPLATE)
    except FileExistsError:
        raise UsageError(
            f"{file} exists already; nothing was changed.", hint="Edit it, or remove it and run this again."
        ) from None
    except OSError as error:
        raise UsageError(
            f"Cannot write {file}: {error.strerror}.", hint="Name a folder that exists and that you can write to."
        ) from error
