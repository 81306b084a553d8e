"""The packaged sentence encoder as an ONNX graph, written directly from its safetensors weights (no torch).

The encoder is BERT (post-norm), mean-pooled over the real tokens and scaled to unit length. Its attention, GELU and
layer norms use onnxruntime's own fused operators (domain `com.microsoft`), which is what its optimizer would make
of an exported graph anyway. The file holds no weights: they are handed to the session from the safetensors file,
so the cache costs kilobytes.

For queries there is a second form with linear weights of 8 bits (`quantized`), which processors with instructions for
8-bit products run faster: a query is over in the time it takes to read the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    Weights = dict[str, npt.NDArray[np.float32]]
    Arrays = Mapping[str, npt.NDArray[Any]]

GRAPH_VERSION = 2  # part of the cached file's name: raise it when anything below changes
OPSET = 18
MICROSOFT = "com.microsoft"
BLOCK = 128  # inputs of an output's weights that share one scale
IN_CODES = 4  # the accuracy level at which inputs are quantized as well, and codes are multiplied


@dataclass(frozen=True)
class Shape:
    """The sizes of a BERT encoder, from its `config.json`."""

    layers: int
    hidden: int
    heads: int
    epsilon: float

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """Raises ValueError for an encoder this graph does not describe."""
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise ValueError("not a BERT encoder with GELU")
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise ValueError("not a BERT encoder with absolute positions")
        return cls(
            int(config["num_hidden_layers"]),
            int(config["hidden_size"]),
            int(config["num_attention_heads"]),
            float(config["layer_norm_eps"]),
        )


def arrange(tensors: Weights, shape: Shape) -> Weights:
    """The checkpoint's tensors under the graph's names, laid out as its operators want them.

    Linear weights are transposed to (in, out); query, key and value are joined to (hidden, 3 * hidden); the one
    token type is added to the positions.
    """
    import numpy as np

    def take(name: str) -> npt.NDArray[np.float32]:
        return tensors[name if name in tensors else f"bert.{name}"].astype(np.float32, copy=False)

    positions = take("embeddings.position_embeddings.weight") + take("embeddings.token_type_embeddings.weight")[0]
    weights = {
        "words": take("embeddings.word_embeddings.weight"),
        "positions": positions,
        "norm.gamma": take("embeddings.LayerNorm.weight"),
        "norm.beta": take("embeddings.LayerNorm.bias"),
    }
    for n in range(shape.layers):
        source = f"encoder.layer.{n}."
        parts = [source + f"attention.self.{part}." for part in ("query", "key", "value")]
        weights[f"{n}.qkv.weight"] = np.concatenate([take(part + "weight").T for part in parts], axis=1)
        weights[f"{n}.qkv.bias"] = np.concatenate([take(part + "bias") for part in parts])
        for name, place in (("out", "attention.output"), ("up", "intermediate"), ("down", "output")):
            weights[f"{n}.{name}.weight"] = np.ascontiguousarray(take(f"{source}{place}.dense.weight").T)
            weights[f"{n}.{name}.bias"] = take(f"{source}{place}.dense.bias")
        for name, place in (("norm1", "attention.output"), ("norm2", "output")):
            weights[f"{n}.{name}.gamma"] = take(f"{source}{place}.LayerNorm.weight")
            weights[f"{n}.{name}.beta"] = take(f"{source}{place}.LayerNorm.bias")
    return weights


def quantized(weights: Weights) -> Arrays:
    """What `arrange` gave, its (in, out) matrices as codes (out, in / BLOCK, BLOCK), of which 128 stands for zero, and
    scales (out, in / BLOCK).

    Raises ValueError for an encoder whose layers do not divide into blocks.
    """
    import numpy as np

    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, value in weights.items():
        if name.count(".") != 2 or not name.endswith(".weight"):
            arrays[name] = value
            continue
        if len(value) % BLOCK:
            raise ValueError(f"{name} has {len(value)} inputs, which is not a multiple of {BLOCK}")
        blocks = np.ascontiguousarray(value.T).reshape(value.shape[1], -1, BLOCK)
        scales = np.maximum(np.abs(blocks).max(axis=-1), 1e-12) / 127
        arrays[f"{name}.codes"] = (np.rint(blocks / scales[..., None]) + 128).astype(np.uint8)
        arrays[f"{name}.scales"] = scales.astype(np.float32)
    return arrays


def build(shape: Shape, weights: Arrays) -> bytes:
    """The serialized graph: `ids`, `mask` (batch, tokens) int32 -> `vectors` (batch, hidden) float32 of length 1.

    `mask` is 1 for a token and 0 for padding. `weights`, from `arrange` or `quantized`, are declared only, as external
    data.
    """
    from onnx import TensorProto, helper

    nodes: list[Any] = []

    def node(operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def linear(x: str, name: str, output: str) -> str:
        """Without its bias, which the next operator adds."""
        if name in weights:
            return node("MatMul", [x, name], output)
        outputs, blocks, _ = weights[f"{name}.codes"].shape
        about = {"N": outputs, "K": blocks * BLOCK, "bits": 8, "block_size": BLOCK, "accuracy_level": IN_CODES}
        return node("MatMulNBits", [x, f"{name}.codes", f"{name}.scales"], output, MICROSOFT, **about)

    def attention(x: str, n: int) -> str:
        if f"{n}.qkv.weight" in weights:
            inputs = [x, f"{n}.qkv.weight", f"{n}.qkv.bias", "mask"]
            return node("Attention", inputs, f"{n}.mixed", MICROSOFT, num_heads=shape.heads)
        parts = [f"{n}.query", f"{n}.key", f"{n}.value"]
        joined = linear(x, f"{n}.qkv.weight", f"{n}.qkv")
        nodes.append(helper.make_node("Split", [joined], parts, name=f"{n}.split", axis=-1, num_outputs=len(parts)))
        inputs = [*parts, f"{n}.qkv.bias", "mask"]
        return node("MultiHeadAttention", inputs, f"{n}.mixed", MICROSOFT, num_heads=shape.heads)

    node("Shape", ["ids"], "length", start=1, end=2)
    node("Slice", ["positions", "zero", "length"], "places")
    node("Gather", ["words", "ids"], "embedded")
    node("Add", ["embedded", "places"], "placed")
    x = node("LayerNormalization", ["placed", "norm.gamma", "norm.beta"], "x", epsilon=shape.epsilon)
    for n in range(shape.layers):
        out = linear(attention(x, n), f"{n}.out.weight", f"{n}.out")
        inputs = [out, x, f"{n}.norm1.gamma", f"{n}.norm1.beta", f"{n}.out.bias"]
        x = node("SkipLayerNormalization", inputs, f"{n}.x1", MICROSOFT, epsilon=shape.epsilon)
        up = linear(x, f"{n}.up.weight", f"{n}.up")
        bent = node("BiasGelu", [up, f"{n}.up.bias"], f"{n}.bent", MICROSOFT)
        down = linear(bent, f"{n}.down.weight", f"{n}.down")
        inputs = [down, x, f"{n}.norm2.gamma", f"{n}.norm2.beta", f"{n}.down.bias"]
        x = node("SkipLayerNormalization", inputs, f"{n}.x2", MICROSOFT, epsilon=shape.epsilon)
    node("Cast", ["mask"], "real", to=TensorProto.FLOAT)
    node("Unsqueeze", ["real", "one"], "row")  # (batch, 1, tokens)
    node("MatMul", ["row", x], "sum")  # (batch, 1, hidden); the mean's divisor cancels in the normalisation
    node("Squeeze", ["sum", "one"], "pooled")
    node("LpNormalization", ["pooled"], "vectors", axis=-1, p=2)

    constants = [helper.make_tensor("zero", TensorProto.INT64, [1], [0])]
    constants.append(helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    declared = [_declare(name, value) for name, value in weights.items()]
    graph = helper.make_graph(
        nodes,
        "sentence-encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"]) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", shape.hidden])],
        [*constants, *declared],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="lab-mcp")
    serialized: bytes = model.SerializeToString()
    return serialized


def _declare(name: str, value: npt.NDArray[Any]) -> Any:
    """An initializer whose data comes from outside the file (the session is given it by name)."""
    from onnx import TensorProto, helper

    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=value.shape, data_location=TensorProto.EXTERNAL)
    for key, content in (("location", "weights"), ("offset", "0"), ("length", str(value.nbytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, content
    return tensor
