"""Vectors in an object store: a local S3 server, its absence, and two machines that share a bucket."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from avyay.embed.hashing import Hashing
from avyay.errors import UnreachableError
from avyay.rag.places import IndexPlaces
from avyay.rag.service import RagService
from avyay.rag.stores.lance import LanceStore

OPTIONS = {
    "aws_access_key_id": "test",
    "aws_secret_access_key": "test",
    "aws_region": "us-east-1",
    "aws_allow_http": "true",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        ["moto_server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with httpx2.Client() as http:
            while True:
                try:
                    if http.put(f"{url}/runbooks", headers={"Authorization": "AWS test"}).status_code == 200:
                        break
                except httpx2.TransportError:
                    assert server.poll() is None
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


def store(endpoint: str) -> LanceStore:
    embedder = Hashing()
    options = {**OPTIONS, "aws_endpoint": endpoint}
    return LanceStore("s3://runbooks/vectors", embedder=embedder.name, dimensions=embedder.dimensions, options=options)


@pytest.mark.needs("moto_server")
def test_two_machines_share_a_bucket(endpoint: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(5):
        (docs / f"{number}.md").write_text(f"# Runbook {number}\n\nword{number} and more\n")
    embedded = []
    for machine in ("one", "two"):
        places = IndexPlaces.under(tmp_path / machine, "s3://runbooks/vectors")
        rag = RagService(places, Hashing(), open_store=lambda: store(endpoint))
        embedded.append(rag.index(str(docs)).embedded)
        assert rag.search("word3")[0].path == "3.md"
        assert rag.reconcile().sound
        rag.close()
    assert embedded == [5, 0]  # the second machine finds the vectors of the first
    assert len(store(endpoint).keys()) == 5


def test_an_object_store_that_does_not_answer() -> None:
    options = {**OPTIONS, "aws_endpoint": f"http://127.0.0.1:{free_port()}", "client_max_retries": "0"}
    options |= {"client_retry_timeout": "1", "connect_timeout": "1s", "timeout": "2s"}
    with pytest.raises(UnreachableError, match="does not answer"):
        LanceStore("s3://runbooks/vectors", embedder="x", dimensions=4, options=options)
