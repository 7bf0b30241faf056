"""What the gateway adds to a call of the router, next to nginx doing nothing but passing on (the floor).

    python benchmarks/door.py [--seconds 3] [--rounds 3]

Three ways to one router daemon on the same machine in the same run, taken in turns: directly; through nginx (one
worker, connections kept, no buffering, no authentication, no log); through the gateway with everything on (a key from
SQLite, scopes, a limit counted, the signed principal, a row of usage for each request). The router's provider is
scripted and answers at once. Added p50 is the difference of medians; CPU is the proxy's own, per request. Ratios and
CPU hold up on a busy machine; absolute times do not.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log /dev/null crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream router {{ server 127.0.0.1:{router}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://router; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_request_buffering off;
    }}
  }}
}}
"""


def parts() -> ModuleType:
    """The load, the scripted provider and the processes of the router's own benchmark."""
    spec = importlib.util.spec_from_file_location("router_benchmark", HERE / "gateway.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def start(bench: Any, folder: Path, upstream: int) -> tuple[Any, list[Any]]:
    """The router, and the ways to it."""
    ports = [bench.free_port() for _ in range(3)]
    config = folder / "avyay.yaml"
    provider = f"{{name: up, kind: openai, endpoint: 'http://127.0.0.1:{upstream}/v1', api_key_env: UPKEY, models: [gpt-4o-mini]}}"  # noqa: E501
    config.write_text(
        f"marga:\n  discover: false\n  providers:\n    - {provider}\n"
        f"gateway:\n  upstreams: {{marga: {{url: 'http://127.0.0.1:{ports[0]}'}}}}\n"
        "  limits: [{requests: 100000000}]\n"
    )
    home = {"AVYAY_HOME": str(folder / "home"), "UPKEY": "k"}
    avyay = [sys.executable, "-m", "avyay"]
    made = subprocess.run(
        [*avyay, "keys", "create", "bench", "--config", str(config), "-q"],
        env={**os.environ, **home},
        capture_output=True,
        text=True,
        check=True,
    )
    key = made.stdout.strip()
    plain = bench.request
    bench.request = lambda port, *, stream=False: plain(port, stream=stream).replace(b"sk-bench", key.encode())
    options = ["-q", "--config", str(config), "--port"]
    router = bench.Target("router", [*avyay, "serve", "marga", *options, str(ports[0])], home, ports[0])
    router.start()
    ways = []
    if shutil.which("nginx"):
        conf = folder / "nginx.conf"
        conf.write_text(NGINX.format(folder=folder, router=ports[0], port=ports[1]))
        ways.append(bench.Target("nginx (floor)", ["nginx", "-c", str(conf), "-p", str(folder)], {}, ports[1]))
    ways.append(
        bench.Target("avyay serve gateway", [*avyay, "serve", "gateway", *options, str(ports[2])], home, ports[2])
    )
    for way in ways:
        way.start()
    return router, ways


def children_cpu(bench: Any, target: Any) -> float:
    """CPU seconds of a process and its children (nginx works in one)."""
    total = 0.0
    pids = [target.process.pid]
    listed = Path(f"/proc/{target.process.pid}/task/{target.process.pid}/children")
    if listed.exists():
        pids += [int(pid) for pid in listed.read_text().split()]
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / bench.TICK
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bench = parts()
    upstream = bench.free_port()
    code = f"import importlib.util as u; s = u.spec_from_file_location('b', {str(HERE / 'gateway.py')!r}); "
    code += (
        f"m = u.module_from_spec(s); import sys; sys.modules['b'] = m; s.loader.exec_module(m); m.provide({upstream})"
    )
    provider = subprocess.Popen([sys.executable, "-c", code], preexec_fn=bench.pin(1))
    with tempfile.TemporaryDirectory(prefix="avyay-door-") as name:
        while not bench.answers(upstream):
            pass
        router, ways = start(bench, Path(name), upstream)
        try:
            bench.pin(1)()
            measure(bench, router, ways, options.rounds, options.seconds)
        finally:
            for way in [*ways, router]:
                way.stop()
            provider.kill()


def measure(bench: Any, router: Any, ways: list[Any], rounds: int, seconds: float) -> None:
    every = [router, *ways]
    for one in every:
        bench.run_load(one.port, 4, 1.0)
    for connections, stream in ((1, False), (1, True), (16, False)):
        medians: dict[str, list[float]] = {one.name: [] for one in every}
        cpu: dict[str, list[float]] = {one.name: [] for one in every}
        rates: dict[str, list[float]] = {one.name: [] for one in every}
        for _ in range(rounds):
            for one in every:
                before = children_cpu(bench, one)
                load = bench.run_load(one.port, connections, seconds, stream=stream)
                assert not load.errors, f"{one.name}: {load.errors} errors"
                cpu[one.name].append((children_cpu(bench, one) - before) / len(load.latencies) * 1e6)
                medians[one.name].append(load.p50)
                rates[one.name].append(load.rate)
        direct = statistics.median(medians[router.name])
        what = "first token of a stream" if stream else "whole answer"
        print(f"\n{connections} at a time, {what}: router directly p50 {direct:.3f} ms")
        for one in ways:
            added = statistics.median(m - d for m, d in zip(medians[one.name], medians[router.name], strict=True))
            print(
                f"  {one.name:22} added p50 {added:6.3f} ms   {statistics.median(cpu[one.name]):5.0f} us CPU a request"
                f"   {statistics.median(rates[one.name]):6.0f} requests/s"
            )
    gateway = ways[-1]
    print(f"\n{gateway.name}: cold start {gateway.cold:.2f} s, {gateway.memory():.0f} MiB resident")


if __name__ == "__main__":
    main()
