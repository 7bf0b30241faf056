"""The readers of git and tailscale, with the real git and a stand-in tailscale."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from avyay.errors import DependencyError
from avyay.git import GitRepository, find_repository, git_version
from avyay.tailnet import read_tailnet, tailscale_installed


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.needs("git")
class TestGit:
    def test_a_repository_is_found_from_inside(self, tmp_path: Path) -> None:
        git(tmp_path, "init", "-q")
        (tmp_path / "deep").mkdir()
        assert find_repository(tmp_path / "deep") == GitRepository(tmp_path.resolve())
        assert GitRepository(tmp_path).head() is None
        (tmp_path / "a.md").write_text("# A\n")
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", "first")
        assert len(GitRepository(tmp_path).head() or "") == 40
        assert GitRepository(tmp_path).output("show", "HEAD:a.md") == "# A\n"

    def test_a_plain_folder_is_none(self, tmp_path: Path) -> None:
        assert find_repository(tmp_path) is None

    def test_a_bare_repository(self, tmp_path: Path) -> None:
        git(tmp_path, "init", "-q", "--bare")
        assert find_repository(tmp_path) == GitRepository(tmp_path)

    def test_hooks_of_the_repository_do_not_run(self, tmp_path: Path) -> None:
        git(tmp_path, "init", "-q")
        git(tmp_path, "config", "core.fsmonitor", f"touch {tmp_path}/ran; false")
        GitRepository(tmp_path).output("status", "--porcelain")
        assert not (tmp_path / "ran").exists()

    def test_a_failing_command_carries_gits_message(self, tmp_path: Path) -> None:
        git(tmp_path, "init", "-q")
        with pytest.raises(DependencyError, match="git show failed"):
            GitRepository(tmp_path).output("show", "nothing")

    def test_version(self) -> None:
        assert git_version().count(".") >= 1


def test_no_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match="'git' is not on PATH") as caught:
        find_repository(tmp_path)
    assert "Install git" in (caught.value.hint or "")


class TestTailnet:
    def install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        program = tmp_path / "tailscale"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def test_status_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        status = {
            "BackendState": "Running",
            "Self": {
                "DNSName": "box.example.ts.net.",
                "TailscaleIPs": ["fd7a::1", "100.64.0.1"],
                "OS": "linux",
                "Online": True,
            },
            "Peer": {
                "k1": {"HostName": "mac", "TailscaleIPs": ["100.64.0.7"], "OS": "macOS", "Online": False},
                "k2": {"HostName": "no address", "TailscaleIPs": None},
            },
        }
        (tmp_path / "status.json").write_text(json.dumps(status))
        self.install(tmp_path, monkeypatch, f"cat {tmp_path}/status.json")
        tailnet = read_tailnet()
        assert tailnet.running
        assert tailnet.this is not None
        assert (tailnet.this.name, tailnet.this.address) == ("box.example.ts.net", "100.64.0.1")
        assert [(peer.name, peer.online) for peer in tailnet.peers] == [("mac", False)]

    @pytest.mark.parametrize("script", ["echo 'is tailscaled running?' >&2; exit 1", "echo garbage", "echo '[]'"])
    def test_no_usable_answer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        self.install(tmp_path, monkeypatch, script)
        with pytest.raises(DependencyError, match="could not be read"):
            read_tailnet()

    def test_stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.install(tmp_path, monkeypatch, """echo '{"BackendState": "Stopped", "Self": null}'""")
        assert not read_tailnet().running

    def test_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert not tailscale_installed()
        with pytest.raises(DependencyError, match="not installed"):
            read_tailnet()
