"""One trace from the caller through the gateway and the router, as a collector sees it."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from upstream import Upstream

_CODE = """
import sys
sys.path.insert(0, {support!r})
from pathlib import Path
from daemon import Daemon
from gate import Gate, make_key
from avyay.telemetry import enable_tracing, flush_tracing
folder = Path({folder!r})
enable_tracing({collector!r}, service="test")
key = make_key(folder, "app", scopes=["marga"])
provider = {{"name": "p", "kind": "openai", "endpoint": {upstream!r}, "api_key_env": "K",
            "models": [{{"name": "m", "input_price": 1, "output_price": 2}}]}}
with Daemon(folder, {{"providers": [provider]}}, K="k") as router, Gate(folder, {{"marga": router.url}}) as gate:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert gate.chat("m", authorization=f"Bearer {{key}}", traceparent=trace).status == 200
    assert gate.chat("m", authorization="Bearer avy_wrong", traceparent=trace).status == 401
flush_tracing()
"""


def test_from_the_caller_to_the_provider(tmp_path: Path) -> None:
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            raw = gzip.decompress(raw) if self.headers.get("content-encoding") == "gzip" else raw
            received.append(ExportTraceServiceRequest.FromString(raw))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return None

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    with Upstream() as upstream:
        # A process of its own: tracing is switched on once and for good.
        code = _CODE.format(
            support=str(Path(__file__).parents[1] / "support"),
            folder=str(tmp_path),
            collector=f"http://127.0.0.1:{collector.server_port}",
            upstream=f"{upstream.url}/v1",
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ), check=False
        )
    collector.shutdown()
    collector.server_close()
    assert done.returncode == 0, done.stderr
    spans = [s for r in received for part in r.resource_spans for scope in part.scope_spans for s in scope.spans]
    spans = [span for span in spans if span.name != "marga GET"]  # the gateway follows the router's events for itself
    assert {span.trace_id.hex() for span in spans} == {"0af7651916cd43dd8448eb211c80319c"}
    call = next(span for span in spans if span.name == "llm.completion")
    passed, refused = sorted(
        (span for span in spans if span.name == "gateway marga:chat"), key=lambda span: span.start_time_unix_nano
    )
    assert call.parent_span_id == passed.span_id
    assert passed.parent_span_id.hex() == refused.parent_span_id.hex() == "b7ad6b7169203331"
    values = {a.key: a.value for a in passed.attributes}
    assert values["http.response.status_code"].int_value == 200
    assert values["marga.decision_id"].string_value.startswith("dec_")
    everything = str(spans)
    assert "avy_" not in everything
    assert "Bearer" not in everything
