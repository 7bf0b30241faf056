"""Our own router as the gateway under test: the real command in a process of its own, with a home that goes with it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

import avyay
from avyay.errors import UnreachableError
from avyay.http import async_client
from avyay.marga.conformance.kit import DEFAULT_MODELS
from avyay.marga.conformance.traps_avyay import PRICES
from avyay.marga.wire.model import Dialect

__all__ = ["own_configuration", "own_gateway"]

_SOURCE = str(Path(avyay.__file__).parents[1])  # for a source tree that is not installed
_KEY = "CONFORMANCE_UPSTREAM_KEY"
_START = 30.0  # seconds until the gateway must answer
_KINDS: dict[Dialect, tuple[str, str]] = {
    "openai_chat": ("openai-compatible", "/v1"),
    "openai_responses": ("openai", "/v1"),
    "anthropic_messages": ("anthropic", ""),
    "ollama_chat": ("ollama", ""),
}


# Models of one tier stand in for each other when a provider fails, which would hide what is to be seen: in each process
# every model is alone in its tier.
_PROCESSES: tuple[dict[Dialect, str], ...] = (
    {"openai_chat": "local", "anthropic_messages": "medium", "ollama_chat": "premium"},
    {"openai_responses": "medium"},
)


def own_configuration(upstream_url: str, tiers: Mapping[Dialect, str]) -> dict[str, Any]:
    """The settings of our router for the kit's upstream: a provider and a model for each dialect in `tiers`."""
    providers = []
    for dialect, tier in tiers.items():
        name = DEFAULT_MODELS[dialect]
        kind, path = _KINDS[dialect]
        model: dict[str, Any] = {
            "name": name,
            "tier": tier,
            "context": 200_000,
            "input_price": PRICES["input"],
            "output_price": PRICES["output"],
            "cached_price": PRICES["cached"],
            "capabilities": ["tools", "vision", "json_schema", "reasoning", "prompt_cache"],
        }
        if dialect == "openai_responses":
            model["mode"] = "responses"
        providers.append(
            {
                "name": f"upstream-{name.removeprefix('conformance-')}",
                "kind": kind,
                "endpoint": upstream_url + path,
                "api_key_env": _KEY,
                "models": [model],
            }
        )
    return {"marga": {"discover": False, "providers": providers}}


@asynccontextmanager
async def own_gateway(upstream_url: str, environment: Mapping[str, str]) -> AsyncIterator[dict[Dialect, str]]:
    """Run `avyay serve marga` against the upstream; yields its URL for each upstream dialect.

    Args:
        environment: Of this process; nothing that configures avyay or names a provider is passed on.

    Raises:
        UnreachableError: it does not come up.
    """
    async with AsyncExitStack() as stack:
        running = [_process(own_configuration(upstream_url, tiers), environment) for tiers in _PROCESSES]
        started = await asyncio.gather(*(stack.enter_async_context(process) for process in running))
        yield {dialect: url for tiers, url in zip(_PROCESSES, started, strict=True) for dialect in tiers}


@asynccontextmanager
async def _process(configuration: dict[str, Any], environment: Mapping[str, str]) -> AsyncIterator[str]:
    kept = {name: environment[name] for name in ("PATH", "LANG", "SYSTEMROOT") if name in environment}
    kept["PYTHONPATH"] = os.pathsep.join([*(p for p in [environment.get("PYTHONPATH")] if p), _SOURCE])
    with tempfile.TemporaryDirectory(prefix="avyay-conformance-") as folder:
        config = Path(folder) / "avyay.yaml"
        config.write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML too
        port = _free_port()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "avyay", "serve", "marga", "--config", str(config), "--port", str(port)),
            cwd=folder,
            env={**kept, "HOME": folder, "AVYAY_HOME": str(Path(folder) / "home"), _KEY: "sk-upstream"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        said = bytearray()
        assert process.stderr is not None
        drain = asyncio.ensure_future(_drain(process.stderr, said))
        url = f"http://127.0.0.1:{port}"
        try:
            await _until_ready(process, url, said)
            yield url
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 15)
            except TimeoutError:
                process.kill()
                await process.wait()
            await drain


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _drain(stream: asyncio.StreamReader, said: bytearray) -> None:
    """Read what the gateway logs, so that it never waits for a reader; the last of it explains a failed start."""
    while piece := await stream.read(65536):
        said += piece
        del said[:-4000]


async def _until_ready(process: asyncio.subprocess.Process, url: str, said: bytearray) -> None:
    async with async_client(read=5.0) as http:
        try:
            async with asyncio.timeout(_START):
                while True:
                    if process.returncode is not None:
                        break
                    try:
                        if (await http.get(f"{url}/health")).status_code == 200:
                            return
                    except httpx2.TransportError:
                        pass
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pass
    raise UnreachableError(
        f"`avyay serve marga` did not come up: {said.decode('utf-8', 'replace')[-500:]}",
        hint="Does `avyay serve marga` start by hand?",
    )
