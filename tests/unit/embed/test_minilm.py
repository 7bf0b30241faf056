from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avyay.embed.bundle import BUNDLED, Bundle
from avyay.embed.minilm import MiniLM
from avyay.errors import CorruptError, DependencyError
from avyay.ports import TokenEmbedder

FIXTURES = Path(__file__).parents[2] / "fixtures" / "embed"
TEXTS: list[str] = json.loads((FIXTURES / "texts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(FIXTURES / "minilm-fp32.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The model's directory, to be damaged."""
    return Path(shutil.copytree(BUNDLED, tmp_path / "model"))


def test_satisfies_the_port(minilm: MiniLM) -> None:
    assert isinstance(minilm, TokenEmbedder)
    card = Bundle().card
    assert (minilm.name, minilm.dimensions) == (card["name"], card["dimensions"])
    assert minilm.max_tokens + 2 == card["positions"]


def test_agrees_with_the_float32_model(minilm: MiniLM, recorded: dict[str, Any]) -> None:
    cosines = (minilm.embed(TEXTS) * recorded["vectors"]).sum(axis=1)
    worst = int(cosines.argmin())
    assert cosines.min() > 0.98, TEXTS[worst]
    assert cosines.mean() > 0.99


def test_similarities_agree_with_the_float32_model(minilm: MiniLM, recorded: dict[str, Any]) -> None:
    vectors, reference = minilm.embed(TEXTS), recorded["vectors"]
    assert np.abs(vectors @ vectors.T - reference @ reference.T).max() < 0.06


@pytest.mark.parametrize("index", [0, 1, 2])
def test_token_vectors_agree_with_the_float32_model(minilm: MiniLM, recorded: dict[str, Any], index: int) -> None:
    (rows,) = minilm.embed_tokens([TEXTS[index]])
    reference = recorded[f"tokens_{index}"]
    assert rows.shape == reference.shape == (minilm.count_tokens(TEXTS[index]), 384)
    assert (rows * reference).sum(axis=1).min() > 0.97


def test_reads_as_many_tokens_as_the_float32_model(minilm: MiniLM, recorded: dict[str, Any]) -> None:
    read = [min(minilm.count_tokens(text), minilm.max_tokens) + 2 for text in TEXTS]
    assert read == recorded["positions"].tolist()


def test_rows_are_float32_of_length_one(minilm: MiniLM) -> None:
    vectors = minilm.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_vector_depends_on_its_text_alone(minilm: MiniLM) -> None:
    together = minilm.embed(TEXTS)
    backwards = minilm.embed(TEXTS[::-1])[::-1]
    alone = np.concatenate([minilm.embed([text], kind="query") for text in TEXTS])
    single_thread = MiniLM(threads=1).embed(TEXTS)
    for other in (backwards, alone, single_thread):
        np.testing.assert_array_equal(together, other)


def test_first_use_from_many_threads_at_once(minilm: MiniLM) -> None:
    fresh, start = MiniLM(threads=1), threading.Barrier(4)

    def embed(number: int) -> Any:
        start.wait()
        return fresh.embed([TEXTS[number]])

    with ThreadPoolExecutor(4) as pool:
        rows = np.concatenate(list(pool.map(embed, range(4))))
    np.testing.assert_array_equal(rows, minilm.embed(TEXTS[:4]))


def test_no_texts(minilm: MiniLM) -> None:
    assert minilm.embed([]).shape == (0, 384)
    assert minilm.embed_tokens([]) == []


@pytest.mark.parametrize("text", ["", " \n\t ", "\x00\x01", "\u200b"])
def test_a_text_without_tokens(minilm: MiniLM, text: str) -> None:
    assert minilm.count_tokens(text) == 0
    assert minilm.offsets(text) == []
    np.testing.assert_array_equal(minilm.embed([text]), minilm.embed([""]))
    assert minilm.embed_tokens([text])[0].shape == (0, 384)


def test_text_beyond_the_limit_is_ignored(minilm: MiniLM) -> None:
    words = ["restart"] * minilm.max_tokens
    full, longer = minilm.embed([" ".join(words), " ".join([*words, "and", "panic"])])
    np.testing.assert_array_equal(full, longer)
    assert minilm.count_tokens(" ".join([*words, "and", "panic"])) == minilm.max_tokens + 2
    assert minilm.embed_tokens([" ".join([*words, "and"])])[0].shape == (minilm.max_tokens, 384)


def test_lone_surrogates_and_marker_words_are_ordinary_text(minilm: MiniLM) -> None:
    assert np.isfinite(minilm.embed(["broken \ud800 text"])).all()
    text = "first [SEP] second [CLS] [PAD] [MASK]"
    assert [text[a:b] for a, b in minilm.offsets(text)][:5] == ["first", "[", "sep".upper(), "]", "second"]


def test_meaning_counts_more_than_words(minilm: MiniLM) -> None:
    query, right, wrong = minilm.embed(
        ["the disk is almost full", "Free space on the volume runs out.", "The disk jockey is almost famous."]
    )
    assert query @ right > query @ wrong


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_damaged_file_is_named(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(CorruptError, match="SHA-256") as caught:
        MiniLM(directory=copy).embed(["x"])
    assert name in caught.value.message
    assert caught.value.hint is not None
    assert "einstall" in caught.value.hint


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "model.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CorruptError, match="cannot be read") as caught:
        MiniLM(directory=copy).embed(["x"])
    assert name in caught.value.message


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": {"model.onnx": 3}}'])
def test_a_broken_description_is_refused(copy: Path, content: str) -> None:
    (copy / "model.json").write_text(content)
    with pytest.raises(CorruptError):
        MiniLM(directory=copy).embed(["x"])


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=package) as caught:
        MiniLM().embed(["x"])
    assert caught.value.hint


def test_making_one_loads_nothing() -> None:
    program = (
        "import sys; from avyay.embed.registry import open_embedder; open_embedder();"
        "print([name for name in ('onnxruntime', 'tokenizers', 'httpx2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_needs_a_thread() -> None:
    with pytest.raises(ValueError, match="threads"):
        MiniLM(threads=0)


def test_the_runtime_sends_nothing_home(tmp_path: Path) -> None:
    """ONNX Runtime 1.29 and later keep a device id and queue events for their maker unless they are told not to."""
    program = "from avyay.embed.minilm import MiniLM; MiniLM().embed(['disk full'])"
    suppressing = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")
    environment = {name: value for name, value in os.environ.items() if name not in suppressing}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
