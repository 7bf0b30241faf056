"""Daemons on a tailnet: a stand-in `tailscale` on PATH, connections that are and are not tailscaled's, two hosts."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from avyay.cli.app import run as avyay
from avyay.config import Environment
from avyay.errors import AuthError, DependencyError, PolicyError, UsageError
from avyay.serve.app import Kit, Report, daemon_key
from avyay.serve.gateway.daemon import serve_gateway
from avyay.serve.identity import is_tailscaled, require_user
from avyay.serve.launch import Launch
from avyay.serve.marga import serve_marga
from avyay.tailnet import find_peer, probe_peers, publish, read_tailnet, tailnet_address, unpublish
from avyay.wiring import Services, open_services

STATUS: dict[str, Any] = {
    "BackendState": "Running",
    "Self": {"DNSName": "laptop.tail1.ts.net.", "TailscaleIPs": ["100.64.0.1", "fd7a::1"], "Online": True},
    "Peer": {
        "a": {"DNSName": "server.tail1.ts.net.", "TailscaleIPs": ["100.64.0.2"], "Online": False},
        "b": {"DNSName": "twin.tail1.ts.net.", "TailscaleIPs": ["100.64.0.3"], "Online": True},
        "c": {"DNSName": "twin.tail2.ts.net.", "TailscaleIPs": ["100.64.0.4"], "Online": True},
    },
}
PROGRAM = """#!/bin/sh
echo "$@" >> {folder}/calls
case "$1 $2" in
  "status --json") cat {folder}/status.json ;;
  "ip -4") cat {folder}/ip ;;
  serve*) if [ -e {folder}/refuses ]; then echo "HTTPS is not enabled" >&2; exit 1; fi ;;
esac
"""


@pytest.fixture
def tailscale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in: `status.json`, `ip`, `refuses`, and the `calls` it got."""
    folder = tmp_path / "tailscale"
    folder.mkdir()
    (folder / "status.json").write_text(json.dumps(STATUS))
    (folder / "ip").write_text("100.64.0.1\n")
    program = folder / "tailscale"
    program.write_text(PROGRAM.format(folder=folder))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def services(home: Path, **variables: str) -> Services:
    values = {"AVYAY_HOME": str(home / "avyay"), "PATH": "/usr/bin:/bin", "HOME": str(home), **variables}
    return open_services(directory=home, environment=Environment(values))


# ---------------------------------------------------------------- the command


def test_the_address(tailscale: Path) -> None:
    assert tailnet_address() == "100.64.0.1"
    assert calls(tailscale) == ["status --json", "ip -4"]


@pytest.mark.parametrize("said", ["", "nonsense", "192.168.0.1", "127.0.0.1"])
def test_an_address_that_is_none_of_a_tailnet(tailscale: Path, said: str) -> None:
    (tailscale / "ip").write_text(said)
    with pytest.raises(DependencyError, match="no address of a tailnet"):
        tailnet_address()


@pytest.mark.parametrize("state", ["Stopped", "NeedsLogin"])
def test_a_tailnet_that_is_down(tailscale: Path, state: str) -> None:
    (tailscale / "status.json").write_text(json.dumps({**STATUS, "BackendState": state}))
    for work in (tailnet_address, lambda: publish(8080)):
        with pytest.raises(DependencyError, match=state):
            work()


def test_no_tailscale_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match="not installed"):
        tailnet_address()
    assert not unpublish(8080)


def test_publishing(tailscale: Path) -> None:
    assert publish(8082) == "https://laptop.tail1.ts.net:8082"
    assert unpublish(8082)
    assert calls(tailscale)[1:] == ["serve --bg --https=8082 http://127.0.0.1:8082", "serve --https=8082 off"]
    (tailscale / "refuses").touch()
    with pytest.raises(DependencyError, match="HTTPS is not enabled"):
        publish(8082)
    assert not unpublish(8082)


def test_peers_by_name(tailscale: Path) -> None:
    tailnet = read_tailnet()
    assert find_peer("server", tailnet).address == find_peer("SERVER.tail1.ts.net.", tailnet).address == "100.64.0.2"
    assert find_peer("twin.tail2.ts.net", tailnet).address == "100.64.0.4"
    with pytest.raises(UsageError, match="several"):
        find_peer("twin", tailnet)
    with pytest.raises(UsageError, match="no peer"):
        find_peer("nobody", tailnet)


def test_peers_are_asked_whatever_tailscale_says(tailscale: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that counts as offline answers, one that counts as online does not."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"status": "ok", "component": "gateway"}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        local = {"DNSName": "here.tail1.ts.net.", "TailscaleIPs": ["127.0.0.1"], "Online": False}
        (tailscale / "status.json").write_text(json.dumps({**STATUS, "Peer": {"x": local}}))
        good, bad = probe_peers(read_tailnet().peers, [server.server_address[1], closed])
        code = avyay(["tailnet", "peers", "here", "--port", str(server.server_address[1]), "--json"])
        server.shutdown()
        thread.join()
    assert (good.status, good.component, good.problem, good.peer.online) == ("ok", "gateway", "", False)
    assert (bad.status, bad.problem) == ("", "ConnectError")
    assert (code, json.loads(capsys.readouterr().out)["peers"][0]["answers"]) == (0, True)
    assert avyay(["tailnet", "peers", "here", "--port", str(closed)]) == 3


# ---------------------------------------------------------------- who calls


def scope(**headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"headers": pairs, "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 6)}


def test_identity_headers() -> None:
    users = ["ann@example.com", "*@ops.example.com"]
    for login in ("ann@example.com", "Ann@Example.com", "bob@ops.example.com"):
        assert require_user(scope(tailscale_user_login=login), users, lambda peer, here: True)
    assert not require_user(scope(), users, lambda peer, here: True)
    for headers in ({"tailscale_user_login": "eve@evil.com"}, {"x_forwarded_for": "100.64.0.9"}):
        with pytest.raises(AuthError, match="not among"):
            require_user(scope(**headers), users, lambda peer, here: True)
    with pytest.raises(AuthError, match="Only the local tailscaled"):
        require_user(scope(tailscale_user_login="ann@example.com"), users, lambda peer, here: False)


def test_a_connection_of_ours_is_not_tailscaleds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, peer = server.accept()
        accepted.close()
        assert not is_tailscaled(peer, server.getsockname())
        assert client.getsockname() == peer
    assert not is_tailscaled(("127.0.0.1", 1), ("127.0.0.1", 2))


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs Linux and root")
def test_a_connection_of_tailscaled_is_told_by_its_user(tmp_path: Path) -> None:
    program = tmp_path / "tailscaled"
    shutil.copy("/bin/sleep", program)
    daemon = subprocess.Popen([str(program), "60"])
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            accepted, peer = server.accept()
            accepted.close()
            while Path(f"/proc/{daemon.pid}/comm").read_text().strip() != "tailscaled":
                time.sleep(0.01)
            assert is_tailscaled(peer, server.getsockname())  # ours, and the stand-in runs as us
    finally:
        daemon.kill()
        daemon.wait()


def test_a_published_daemon_asks_who_calls(home: Path) -> None:
    users = '["ann@example.com"]'
    (home / "avyay.yaml").write_text(f"serve: {{tailscale_serve: true, tailnet_users: {users}}}\n")
    values = {"AVYAY_HOME": str(home / "avyay"), "HOME": str(home)}
    made = open_services(config_file=home / "avyay.yaml", environment=Environment(values))
    believed = [True]
    kit = Kit(made, "rag", Report(lambda: {"status": "ok"}), is_tailscaled=lambda peer, here: believed[0])
    with TestClient(kit.app, base_url="https://laptop.tail1.ts.net") as client:
        ann, eve = {"tailscale-user-login": "ann@example.com"}, {"tailscale-user-login": "eve@evil.com"}
        assert client.get("/v1/events?limit=1", headers=ann).status_code == 200
        assert client.get("/v1/events?limit=1", headers=eve).status_code == 401
        assert client.get("/v1/events?limit=1", headers={"x-forwarded-for": "100.64.0.9"}).status_code == 401
        believed[0] = False
        assert client.get("/v1/events?limit=1", headers=ann).status_code == 401


def test_publishing_needs_a_key_or_names(home: Path) -> None:
    made = services(home, AVYAY_SERVE_TAILSCALE_SERVE="true")
    with pytest.raises(PolicyError, match="Everybody on your tailnet"):
        daemon_key(made, "rag", "127.0.0.1", None, "")


def test_a_published_router_needs_a_key_whoever_is_named(home: Path) -> None:
    """Its model endpoints know keys only: with names alone the whole tailnet could spend."""
    (home / "avyay.yaml").write_text("serve: {tailscale_serve: true, tailnet_users: [ann@example.com]}\n")
    made = open_services(
        config_file=home / "avyay.yaml", environment=Environment({"AVYAY_HOME": str(home / "avyay"), "HOME": str(home)})
    )
    with made, pytest.raises(PolicyError, match="Everybody on your tailnet"):
        serve_marga(made, Launch(port=0))
    with made, pytest.raises(PolicyError, match="The gateway would answer anyone"):
        serve_gateway(made, Launch(port=0))


def test_binding_the_tailnet_needs_a_key(
    tailscale: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tailscale / "ip").write_text("100.64.0.1\n")
    assert avyay(["serve", "raksha", "--tailnet", "--port", "0"]) == 5
    assert "Anyone who reaches 100.64.0.1" in capsys.readouterr().err
    monkeypatch.setenv("AVYAY_RAKSHA_API_KEY_ENV", "RAKSHA_KEY")
    monkeypatch.setenv("RAKSHA_KEY", "k3y")
    assert avyay(["serve", "raksha", "--tailnet", "--port", "0"]) == 2  # no such address on this machine
    assert "100.64.0.1" in capsys.readouterr().err
    assert avyay(["serve", "raksha", "--tailnet", "--tailscale-serve"]) == 2
    assert avyay(["serve", "raksha", "--tailnet", "--host", "127.0.0.1"]) == 2
    (tailscale / "status.json").write_text(json.dumps({**STATUS, "BackendState": "Stopped"}))
    assert avyay(["serve", "raksha", "--tailnet"]) == 3


# ---------------------------------------------------------------- two hosts


def _namespaces() -> bool:
    if sys.platform != "linux" or os.getuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "avyay-probe"], capture_output=True)
    subprocess.run(["ip", "netns", "del", "avyay-probe"], capture_output=True)
    return made.returncode == 0


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two hosts with addresses of a tailnet, joined by a wire; the first also has one of another network."""
    if not _namespaces():
        pytest.skip("needs root and network namespaces")
    names = (f"avyay-a{os.getpid()}", f"avyay-b{os.getpid()}")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", names[1])
        for number, name in enumerate(names, 1):
            for address in (f"100.64.0.{number}/24", f"192.168.77.{number}/24"):
                ip("-n", name, "addr", "add", address, "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


ASK = """
import sys, urllib.request, urllib.error
request = urllib.request.Request(sys.argv[1], headers={"authorization": f"Bearer {sys.argv[2]}"})
try:
    print(urllib.request.urlopen(request, timeout=60).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError as error:
    print(0)
"""


def test_two_hosts(hosts: tuple[str, str], tailscale: Path, home: Path) -> None:
    """A daemon with --tailnet answers the other host at its tailnet address, with its key, and nowhere else."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "KEY": "k3y", "AVYAY_RAKSHA_API_KEY_ENV": "KEY"}
    command = ["ip", "netns", "exec", hosts[0], sys.executable, "-m", "avyay", "serve", "raksha", "--tailnet"]
    process = subprocess.Popen(command, env=environment, cwd=home, stderr=subprocess.PIPE, text=True)

    def ask(host: str, address: str, path: str, key: str = "") -> int:
        words = ["ip", "netns", "exec", host, sys.executable, "-c", ASK, f"http://{address}:8083{path}", key]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    try:
        assert process.stderr is not None
        assert "http://100.64.0.1:8083" in process.stderr.readline()
        end = time.monotonic() + 60
        while ask(hosts[1], "100.64.0.1", "/health") != 200:
            assert time.monotonic() < end, "it does not come up"
        assert ask(hosts[1], "100.64.0.1", "/v1/rules") == 401
        assert ask(hosts[1], "100.64.0.1", "/v1/rules", "k3y") == 200
        assert ask(hosts[1], "192.168.77.1", "/health") == 0
        assert ask(hosts[0], "127.0.0.1", "/health") == 0
    finally:
        process.terminate()
        process.wait(60)
        if process.stderr is not None:
            process.stderr.close()
