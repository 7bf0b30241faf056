from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from avyay.config.rag import EmbedderSettings
from avyay.embed.hashing import Hashing
from avyay.embed.minilm import MiniLM
from avyay.embed.registry import configured_embedder, embedder_names, open_embedder
from avyay.embed.service import Service
from avyay.embed.types import EmbedderOptions
from avyay.errors import AuthError, ConfigError, DependencyError

if TYPE_CHECKING:
    from tests.unit.embed.conftest import Endpoint


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A distribution as pip would install it, with three entry points: one good, one broken, one usurping."""
    (tmp_path / "acme_vectors.py").write_text(
        "from avyay.embed.hashing import Hashing\ndef build(options): return Hashing(dimensions=options.dimensions)\n"
    )
    metadata = tmp_path / "acme_vectors-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-vectors\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[avyay.embedders]\nacme = acme_vectors:build\nbroken = acme_vectors:missing\nhashing = acme_vectors:missing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_vectors", raising=False)
    return "acme"


def test_the_bundled_one_is_the_default() -> None:
    embedder = open_embedder(options=EmbedderOptions(threads=1))
    assert isinstance(embedder, MiniLM)
    assert embedder.threads == 1


def test_every_built_in_name_opens() -> None:
    options = EmbedderOptions(model="m", endpoint="http://127.0.0.1:9")
    for name in embedder_names():
        assert open_embedder(name, options).name


def test_options_reach_the_factory() -> None:
    assert open_embedder("hashing", EmbedderOptions(dimensions=7)).dimensions == 7


def test_a_typo_is_answered_with_the_name() -> None:
    with pytest.raises(ConfigError, match="minlm") as caught:
        open_embedder("minlm")
    assert caught.value.hint == "Did you mean 'minilm'?"


def test_an_unknown_name_is_answered_with_the_list() -> None:
    with pytest.raises(ConfigError) as caught:
        open_embedder("qqq")
    assert "hashing, minilm" in str(caught.value.hint)


def test_plug_ins_are_found_and_take_no_built_in_name(plug_in: str) -> None:
    assert plug_in in embedder_names()
    assert open_embedder(plug_in, EmbedderOptions(dimensions=5)).dimensions == 5
    assert isinstance(open_embedder("hashing"), Hashing)


def test_a_broken_plug_in_is_named(plug_in: str) -> None:
    with pytest.raises(DependencyError, match="acme_vectors:missing"):
        open_embedder("broken")


def test_keys_are_not_shown() -> None:
    assert "s3cret" not in repr(EmbedderOptions(api_key="s3cret"))


def test_the_default_configuration_is_the_bundled_model() -> None:
    assert isinstance(configured_embedder(EmbedderSettings(), {}), MiniLM)


def test_a_named_key_must_be_there() -> None:
    settings = EmbedderSettings(name="openai-compatible", model="m", endpoint="http://127.0.0.1:9", api_key_env="KEY")
    with pytest.raises(AuthError, match="KEY"):
        configured_embedder(settings, {"OPENAI_API_KEY": "k"})
    assert configured_embedder(settings, {"KEY": "k"}).name == "openai-compatible/m"


def test_the_key_for_openai_goes_to_openai_alone(endpoint: Endpoint) -> None:
    environment = {"OPENAI_API_KEY": "s3cret"}
    assert configured_embedder(EmbedderSettings(name="openai-compatible", model="m"), environment).name == "openai/m"
    elsewhere = EmbedderSettings(name="openai-compatible", model="m", endpoint=endpoint.url, timeout=5)
    endpoint.answer = lambda body: (200, {"data": [{"embedding": [1.0]}]})
    embedder = configured_embedder(elsewhere, environment)
    assert isinstance(embedder, Service)
    with embedder:
        embedder.embed(["x"])
    assert "s3cret" not in str(endpoint.requests)


def test_ollama_is_where_its_own_variable_says() -> None:
    embedder = configured_embedder(EmbedderSettings(name="ollama", model="m"), {"OLLAMA_HOST": "box:1234"})
    assert isinstance(embedder, Service)
    assert embedder.endpoint == "http://box:1234"
