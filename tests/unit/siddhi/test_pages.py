"""Landing pages say the truth, in plain accessible HTML, and can be taken back."""

from __future__ import annotations

import asyncio
import json
import re
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import Model

from avyay.errors import DependencyError, UsageError
from avyay.git import GitRepository
from avyay.siddhi.deploy import CommandTarget, DirectoryTarget, GitTarget, open_target
from avyay.siddhi.landing import Copy, Variant, check_copy, page_token, plain_copy, read_token, render, write_copy
from avyay.siddhi.machine import State
from avyay.siddhi.site import Site
from avyay.siddhi.types import Hypothesis

HYPOTHESIS = Hypothesis("h1", "Invoices by hand", "accounting", State.GENERATING)
COPY = Copy(
    "Still matching invoices by hand?",
    "A tool that would match invoices to payments for you.",
    ("It would match them.", "It would ask you when unsure."),
    "Tell me when it exists",
    "test",
)
SECRET = b"s" * 32


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def page(copy: Copy = COPY, **values: str) -> Variant:
    settings = {
        "token": page_token(SECRET, "h1", "a", 1),
        "collector": "https://c.example/x",
        "contact": "Ann, a@b.example",
    }
    return render(HYPOTHESIS, "a", copy, **(settings | values))


def test_a_page_is_honest_and_stands_alone() -> None:
    text = page().files["index.html"]
    assert "This product does not exist yet" in text
    assert "Ann, a@b.example" in text
    reader = Reader()
    reader.feed(text)
    names = [tag for tag, _ in reader.tags]
    assert not {"script", "iframe", "link", "object"} & set(names)
    assert names.count("h1") == 1
    assert ("html", {"lang": "en"}) in reader.tags
    labelled = {values["for"] for tag, values in reader.tags if tag == "label"}
    inputs = [values for tag, values in reader.tags if tag == "input" and values.get("type") != "hidden"]
    assert inputs
    assert all(values["id"] in labelled for values in inputs)
    assert all("alt" in values for tag, values in reader.tags if tag == "img")
    origins = set(re.findall(r"https?://[^/\s\"';]+", text))
    assert origins == {"https://c.example"}
    assert len(text) < 8_000


@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize("words", [(), ("invoice", "bank"), ("x" * 80, "y" * 80, "z" * 80)])
def test_words_without_a_model_may_be_shown(variant: str, words: tuple[str, ...]) -> None:
    assert check_copy(plain_copy(HYPOTHESIS, words, variant)) == []


@pytest.mark.parametrize(
    "bad",
    [
        "Only $9 per month",
        "Trusted by teams everywhere",
        "Join 10,000 users today",
        "“It changed my whole life” — Bob",
        "Save 40% of your time",
        "The best way to do it",
        "Buy now and relax",
        "Hello <script>alert(1)</script>",
    ],
)
def test_inventions_are_refused(bad: str) -> None:
    made = Copy(COPY.headline, f"{bad} and be happy ever after.", COPY.points, COPY.button, "model")
    assert check_copy(made)
    with pytest.raises(UsageError, match="may not be shown"):
        page(made)


def test_somebody_must_be_named() -> None:
    with pytest.raises(UsageError, match="must say who asks"):
        page(contact=" ")
    with pytest.raises(UsageError, match="no address of a collector"):
        page(collector="c.example")


def test_words_cannot_break_out() -> None:
    text = page(contact='Ann & Bob"><script>').files["index.html"]
    assert "<script>" not in text


def words(text: str | Exception) -> tuple[Copy, str]:
    return asyncio.run(write_copy(HYPOTHESIS, [], ("invoice",), "a", Model(text)))


def test_a_models_words() -> None:
    good = {"headline": COPY.headline, "lead": COPY.lead, "points": list(COPY.points), "button": COPY.button}
    made, note = words("```json\n" + json.dumps(good) + "\n```")
    assert (made.by, made.headline) == ("small", COPY.headline)
    assert "written by" in note
    refused, why = words(json.dumps({**good, "lead": "Trusted by 500 teams all over the world."}))
    assert refused.by == "complaints"
    assert "invented users" in why
    assert words("no")[0].by == "complaints"
    assert "no model was asked" in asyncio.run(write_copy(HYPOTHESIS, [], (), "a", None))[1]


@given(st.text(max_size=80))
def test_only_our_tokens_are_read(text: str) -> None:
    assert read_token(SECRET, text) is None
    good = page_token(SECRET, "h1", "b", 3)
    assert read_token(SECRET, good) == ("h1", "b", 3)
    assert read_token(b"other", good) is None
    assert read_token(SECRET, "h2" + good[2:]) is None


# ---------------------------------------------------------------- publishing


def folder(tmp_path: Path, number: int) -> Path:
    place = tmp_path / f"site-{number}"
    (place / "h1" / "b").mkdir(parents=True)
    (place / "h1" / "index.html").write_text(f"<p>{number}</p>")
    (place / "h1" / "b" / "index.html").write_text(f"<b>{number}</b>")
    return place


def test_a_site_of_several_hypotheses_in_a_directory_and_back(tmp_path: Path) -> None:
    site, target = Site(tmp_path / "kept"), DirectoryTarget(tmp_path / "web" / "site")

    def shown(path: str) -> str:
        return (target.place / path).read_text()

    for number in (1, 2):
        site.add("h1", {"index.html": f"<p>{number}</p>", "b/index.html": f"<b>{number}</b>"})
        site.publish(target)
        assert (shown("h1/index.html"), shown("h1/b/index.html")) == (f"<p>{number}</p>", f"<b>{number}</b>")
    site.add("h2", {"index.html": "<p>other</p>"})
    site.publish(target)
    assert (shown("h1/index.html"), shown("h2/index.html")) == ("<p>2</p>", "<p>other</p>")
    assert stat.S_IMODE(target.place.stat().st_mode) == 0o755
    assert site.undo("h1", target) == site.versions("h1")[0]
    assert (shown("h1/index.html"), shown("h2/index.html")) == ("<p>1</p>", "<p>other</p>")
    assert site.undo("h1", target) is None
    assert "has ended" in shown("h1/b/index.html")
    with pytest.raises(UsageError, match="Nothing of h1 was published"):
        site.undo("h1", target)
    site.end("h2")
    site.publish(target)
    assert "has ended" in shown("h2/index.html")
    assert [path.name for path in target.place.parent.iterdir()] == ["site"]
    assert not list(target.place.rglob(".ended"))


def test_what_cannot_be_undone_is_kept(tmp_path: Path) -> None:
    site = Site(tmp_path / "kept")
    site.add("h1", {"index.html": "x"})
    with pytest.raises(DependencyError):
        site.undo("h1", CommandTarget((sys.executable, "-c", "raise SystemExit(1)", "{folder}")))
    assert [(file.parent.name, file.read_text()) for file in site.place.rglob("*.html")] == [("0001", "x")]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="did not put there"):
        DirectoryTarget(tmp_path / "web").publish(folder(tmp_path, 1))
    assert (tmp_path / "web" / "thesis.tex").exists()


def test_a_git_branch(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "origin"], check=True)
    subprocess.run(["git", "clone", "-q", tmp_path / "origin", tmp_path / "clone"], check=True, capture_output=True)
    target = GitTarget(GitRepository(tmp_path / "clone"), "gh-pages")
    for number in (1, 2):
        site = folder(tmp_path, number)
        target.publish(site)
        target.publish(site)  # twice is once
    show = ["git", "-C", str(tmp_path / "origin"), "show", "gh-pages:h1/index.html"]
    assert subprocess.run(show, capture_output=True, text=True, check=True).stdout == "<p>2</p>"
    count = ["git", "-C", str(tmp_path / "origin"), "rev-list", "--count", "gh-pages"]
    assert subprocess.run(count, capture_output=True, text=True, check=True).stdout.strip() == "2"
    names = ["git", "-C", str(tmp_path / "origin"), "ls-tree", "-r", "--name-only", "gh-pages"]
    assert subprocess.run(names, capture_output=True, text=True, check=True).stdout.split() == [
        "h1/b/index.html",
        "h1/index.html",
    ]
    assert [path.name for path in (tmp_path / "clone").iterdir()] == [".git"]


def test_any_command(tmp_path: Path) -> None:
    script = tmp_path / "publish.py"
    script.write_text("import shutil, sys\nshutil.copy(sys.argv[2] + '/h1/index.html', sys.argv[1])\n")
    target = CommandTarget((sys.executable, str(script), str(tmp_path / "out.html")))
    target.publish(folder(tmp_path, 7))
    assert (tmp_path / "out.html").read_text() == "<p>7</p>"
    failing = CommandTarget((sys.executable, "-c", "import sys; sys.exit('no quota')", "{folder}"))
    with pytest.raises(DependencyError, match="no quota"):
        failing.publish(tmp_path)
    with pytest.raises(DependencyError, match="not on PATH"):
        CommandTarget(("no-such-program-here",)).publish(tmp_path)


@pytest.mark.parametrize("spec", ["", "directory:", "ftp:x"])
def test_unknown_targets(spec: str) -> None:
    with pytest.raises(UsageError, match="no place to publish"):
        open_target(spec)


def test_targets_by_name(tmp_path: Path) -> None:
    assert isinstance(open_target(f"directory:{tmp_path}"), DirectoryTarget)
    git = open_target(f"git:{tmp_path}#pages")
    assert isinstance(git, GitTarget)
    assert git.branch == "pages"
    netlify = open_target("netlify", project="p1")
    assert isinstance(netlify, CommandTarget)
    assert netlify.command[0] == "netlify"
