"""Record what the unconverted model answers, for the tests to compare the bundled one with.

    python scripts/record_embedder_vectors.py    # writes tests/fixtures/embed/minilm-fp32.npz

The reference shares nothing with the conversion: upstream's float32 weights and tokenizer, and the encoder written
out in plain numpy from its definition (BERT: post-norm blocks, exact Gelu, mean over all positions).
Texts come from tests/fixtures/embed/texts.json. Needs numpy, safetensors, tokenizers and the weights' package.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from convert_embedder import EPSILON, HEADS, LAYERS, POSITIONS, find_upstream
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures" / "embed"
TOKEN_TEXTS = 3  # for so many of the first texts the vectors of the single tokens are recorded too

erf = np.vectorize(math.erf, otypes=[np.float32])


class Reference:
    """The encoder in float32, one text at a time."""

    def __init__(self, upstream: Path) -> None:
        weights = load_file(upstream / "model.safetensors")
        self.weights = {key.removeprefix("bert."): value for key, value in weights.items()}
        self.tokenizer = Tokenizer.from_file(str(upstream / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(POSITIONS)

    def hidden_states(self, text: str) -> NDArray[np.float32]:
        ids = self.tokenizer.encode(text).ids
        table = self.weights
        state = table["embeddings.word_embeddings.weight"][ids]
        state = state + table["embeddings.position_embeddings.weight"][: len(ids)]
        state = self.norm(state + table["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(LAYERS):
            state = self.block(state, f"encoder.layer.{i}")
        return state

    def block(self, state: NDArray[np.float32], layer: str) -> NDArray[np.float32]:
        query, key, value = (
            self.linear(state, f"{layer}.attention.self.{kind}").reshape(len(state), HEADS, -1).swapaxes(0, 1)
            for kind in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        context = (weights @ value).swapaxes(0, 1).reshape(state.shape)
        attended = self.linear(context, f"{layer}.attention.output.dense") + state
        state = self.norm(attended, f"{layer}.attention.output.LayerNorm")
        wide = self.linear(state, f"{layer}.intermediate.dense")
        wide = wide * (1 + erf(wide / math.sqrt(2))) / 2
        return self.norm(self.linear(wide, f"{layer}.output.dense") + state, f"{layer}.output.LayerNorm")

    def linear(self, state: NDArray[np.float32], key: str) -> NDArray[np.float32]:
        return state @ self.weights[f"{key}.weight"].T + self.weights[f"{key}.bias"]

    def norm(self, state: NDArray[np.float32], key: str) -> NDArray[np.float32]:
        centred = state - state.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        return centred / spread * self.weights[f"{key}.weight"] + self.weights[f"{key}.bias"]


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def main() -> None:
    texts = json.loads((FIXTURES / "texts.json").read_text(encoding="utf-8"))
    reference = Reference(find_upstream())
    states = [reference.hidden_states(text) for text in texts]
    arrays = {
        "vectors": unit(np.stack([state.mean(axis=0) for state in states])),
        "positions": np.array([len(state) for state in states]),
    }
    arrays |= {f"tokens_{i}": unit(states[i][1:-1]) for i in range(TOKEN_TEXTS)}
    np.savez_compressed(FIXTURES / "minilm-fp32.npz", **arrays)
    print(f"{len(texts)} texts, {sum(map(len, states))} positions")


if __name__ == "__main__":
    main()
