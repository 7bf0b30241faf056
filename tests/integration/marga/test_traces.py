"""Traces reach a collector over OTLP/HTTP, with the conventions' names and our tags."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from upstream import Reply, Upstream


def test_a_call_becomes_a_span(tmp_path: Path) -> None:
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                raw = gzip.decompress(raw)
            received.append(ExportTraceServiceRequest.FromString(raw))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return None

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    with Upstream() as upstream:
        upstream.default = Reply(input=1000, output=500)
        provider = {
            "name": "p",
            "kind": "openai",
            "endpoint": f"{upstream.url}/v1",
            "api_key_env": "K",
            "models": [{"name": "m", "input_price": 1, "output_price": 2}],
        }
        config = {
            "telemetry": {"otlp_endpoint": f"http://127.0.0.1:{collector.server_port}"},
            "marga": {"discover": False, "providers": [provider]},
        }
        (tmp_path / "avyay.yaml").write_text(yaml.safe_dump(config))
        # A process of its own: tracing is switched on once and for good.
        code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2] / "support")!r})
from pathlib import Path
from daemon import Daemon
from avyay.telemetry import enable_tracing
enable_tracing({config["telemetry"]["otlp_endpoint"]!r}, service="marga-router")
with Daemon(Path({str(tmp_path)!r}), {config["marga"]!r}, K="k") as daemon:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert daemon.chat("m", traceparent=trace).status == 200
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ), check=False
        )
    collector.shutdown()
    collector.server_close()
    assert done.returncode == 0, done.stderr
    (span,) = [s for r in received for part in r.resource_spans for scope in part.scope_spans for s in scope.spans]
    values = {a.key: a.value for a in span.attributes}
    assert span.name == "llm.completion"
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert values["gen_ai.usage.input_tokens"].int_value == 1000
    assert values["marga.provider"].string_value == "p"
    assert values["marga.cost_usd"].string_value == "0.002"
    assert values["marga.circuit_state"].string_value == "closed"
    assert values["marga.decision_id"].string_value != "k"
