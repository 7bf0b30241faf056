"""The console at the gateway's `/`: who may look, what is shown, and that it stands without its components."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from chromium import Tab, browse
from daemon import Daemon, Got, Served, services_in
from gate import Gate, keys_in, make_key
from upstream import Upstream

from avyay.engine.types import NewTask
from avyay.ports import Event
from avyay.serve.console.chart import Bar, bar_chart
from avyay.serve.engine import build_app as engine_app
from avyay.serve.rag import build_app as rag_app
from avyay.serve.raksha import build_app as raksha_app

PAGE = "text/html,application/xhtml+xml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("console")


@pytest.fixture(scope="module")
def admin(folder: Path) -> str:
    return make_key(folder, "console", scopes=["admin", "marga"])


@pytest.fixture(scope="module")
def gate(folder: Path, admin: str) -> Iterator[Gate]:
    """In front of a router, a scanner and an engine; rag and siddhi do not run."""
    with Upstream() as upstream:
        provider = {
            "name": "scripted",
            "kind": "openai-compatible",
            "endpoint": f"{upstream.url}/v1",
            "models": [
                {"name": "test-model", "input_price": "1", "output_price": "2"},
                {"name": "dear-model", "tier": "premium", "input_price": "10", "output_price": "40"},
            ],
        }
        with services_in(folder, {}) as services:
            services.engine.add([NewTask("Mend the <roof>")])
        engine = services_in(folder, {})
        scanner = services_in(folder, {})
        finding = {"rule": "sql-injection", "severity": "high", "path": "a.py", "line": 3, "message": "<b>SQL</b>"}
        scanner.events.publish(Event("raksha.finding.found", finding, once="1"))
        scanner.events.flush()
        nowhere = "http://127.0.0.1:9"
        with (
            Daemon(folder, {"providers": [provider]}) as router,
            Served(scanner, raksha_app(scanner)) as raksha,
            Served(engine, engine_app(engine)) as engine_daemon,
        ):
            places = {"marga": router.url, "raksha": raksha.url, "engine": engine_daemon.url}
            with Gate(folder, {**places, "rag": nowhere, "siddhi": nowhere}) as gate:
                for _ in range(3):
                    assert gate.chat(authorization=f"Bearer {admin}").status == 200
                router.calls(3)
                yield gate


def send(gate: Gate, method: str, path: str, form: dict[str, str] | None = None, **headers: str) -> Got:
    """Without following redirects."""
    connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=60)
    names = {"accept": PAGE, **{name.replace("_", "-"): value for name, value in headers.items()}}
    if form is not None:
        names["content-type"] = "application/x-www-form-urlencoded"
    connection.request(method, path, urlencode(form) if form is not None else None, names)
    answer = connection.getresponse()
    got = Got(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    connection.close()
    return got


def sign_in(gate: Gate, key: str, **headers: str) -> Got:
    return send(gate, "POST", "/console/sign-in", {"key": key}, **headers)


def test_programs_get_json_and_browsers_a_form(gate: Gate) -> None:
    assert gate.get("/").body["name"] == "avyay gateway"
    page = send(gate, "GET", "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b'action="/console/sign-in"' in page.raw
    assert b"<script" not in page.raw
    assert b'http-equiv="refresh"' not in page.raw  # it would throw away what is being typed
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "form-action 'self'" in policy


def test_signed_in_it_shows_every_component_or_why_not(gate: Gate, admin: str) -> None:
    begun = sign_in(gate, admin)
    assert (begun.status, begun.headers["location"]) == (303, "/")
    cookie = begun.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert admin not in cookie
    page = send(gate, "GET", "/", cookie=cookie.split(";")[0]).raw.decode()
    assert "signed in with the key console" in page
    assert "for 3 calls in 14 days" in page
    assert "less</strong> than dear-model alone" in page
    assert "<svg" in page
    assert "scripted" in page
    assert "test-model" in page
    assert "&lt;b&gt;SQL&lt;/b&gt;" in page
    assert page.count("cannot be reached") == 2
    assert "avyay serve siddhi" in page
    assert '<th scope="row">ready</th>' in page


def test_who_may_not_look(gate: Gate, folder: Path) -> None:
    weak = make_key(folder, "weak", scopes=["marga"])
    for key, words in ((weak, "scope `admin`"), ("nonsense", "begin with avy_"), (weak[:-1] + "x", "not one of")):
        answer = sign_in(gate, key)
        assert answer.status == 401
        assert words in answer.raw.decode().replace("&#39;", "'")
        assert "set-cookie" not in answer.headers
    for cookie in ("avyay_console=a.9999999999.b", "avyay_console=", 'avyay_console="', "other=1"):
        assert b"sign-in" in send(gate, "GET", "/", cookie=cookie).raw


def test_a_session_ends_with_its_key_and_by_signing_out(gate: Gate, folder: Path) -> None:
    key = make_key(folder, "guest", scopes=["*"])
    cookie = sign_in(gate, key).headers["set-cookie"].split(";")[0]
    assert b"with the key guest" in send(gate, "GET", "/", cookie=cookie).raw
    out = send(gate, "POST", "/console/sign-out", {}, cookie=cookie)
    assert (out.status, "Max-Age=0" in out.headers["set-cookie"]) == (303, True)
    changed = cookie[:-2] + ("AA" if not cookie.endswith("AA") else "BB")
    assert b"sign-in" in send(gate, "GET", "/", cookie=changed).raw
    book = keys_in(folder)
    book.revoke("guest")
    book.close()
    assert b"sign-in" in send(gate, "GET", "/", cookie=cookie).raw


def test_forms_of_other_sites_are_refused(gate: Gate, admin: str) -> None:
    assert sign_in(gate, admin, origin="https://evil.example").status == 403
    assert sign_in(gate, admin, sec_fetch_site="cross-site").status == 403
    assert sign_in(gate, admin, origin=gate.url).status == 303
    assert send(gate, "POST", "/console/sign-in", {"key": "x" * 5_000}).status == 413
    assert send(gate, "GET", "/console/sign-in").headers["location"] == "/"
    assert send(gate, "PUT", "/console/sign-in").status == 405


def test_a_gateway_without_keys_shows_itself_to_this_machine(tmp_path: Path) -> None:
    with Gate(tmp_path, {}) as gate:
        assert b"open to this machine" in send(gate, "GET", "/").raw
        assert send(gate, "GET", "/", host="evil.example").status == 403


def test_runbooks_say_when_they_were_checked(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "disk.md").write_text("# Disk full\n\nDelete old logs.\n")
    made = services_in(tmp_path, {}, AVYAY_RAG_EMBEDDER_NAME="hashing", AVYAY_RAG_POLL_INTERVAL="0")
    made.rag.index(str(tmp_path / "docs"))
    with Served(made, rag_app(made)) as rag, Gate(tmp_path, {"rag": rag.url}) as gate:
        page = send(gate, "GET", "/").raw.decode()
    row = page[page.index("<td>docs</td>") :]
    assert re.search(r'<td class="number">\d+ s ago</td>', row[: row.index("</tr>")])


def test_charts() -> None:
    drawn = bar_chart([Bar("a<b", 1.5, 3.0, "<told>"), Bar("c", 0.0)], unit="$", title="Spend")
    assert "&lt;told&gt;" in drawn
    assert "$5" in drawn  # the axis ends above the highest bar
    assert "<svg" in bar_chart([])
    assert bar_chart([Bar("c", 0.0)], unit="$").count("$0</text>") == 1  # of nothing there is no scale
    small = bar_chart([Bar("c", 0.0002)], unit="$")
    assert "$0.00005<" in small
    assert "e-" not in small


@pytest.mark.needs("chromium")
def test_in_a_browser(gate: Gate, admin: str, tmp_path: Path) -> None:
    async def look(tab: Tab) -> None:
        await tab.open(gate.url)
        await tab.type("#key", admin)
        await tab.press("button")
        await tab.until("document.body.innerText.includes('Recent decisions')")
        assert await tab.value("document.querySelectorAll('svg rect.part').length") == 14
        assert await tab.value("document.documentElement.scrollWidth <= window.innerWidth")
        await tab.call("Emulation.setDeviceMetricsOverride", width=380, height=800, deviceScaleFactor=1, mobile=True)
        assert await tab.value("document.documentElement.scrollWidth <= window.innerWidth")
        newest = "document.querySelector('svg g:last-of-type rect').getBoundingClientRect().right"
        assert await tab.value(f"{newest} <= window.innerWidth"), "on a narrow screen the newest day is in sight"
        rows = "[...document.querySelectorAll('section:has(.why) tbody tr')].map(row => row.offsetHeight)"
        assert max(await tab.value(rows)) < 200, "on a narrow screen the reasons stay readable"
        await tab.picture(tmp_path / "console.png")
        assert (tmp_path / "console.png").stat().st_size > 20_000
        await tab.press(".sign-out button")
        await tab.until("document.querySelector('#key') !== null")

    browse(look)
