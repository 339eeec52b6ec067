"""The inside of an ONNX graph: its tensors by name, and the graph that ends at one of them.

Does not run anything (`onnx_models.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rcdm_fast.doors import door, printable
from rcdm_fast.encoders.errors import EncoderError, need
from rcdm_fast.encoders.layers import near

MAX_BYTES = 2**31 - 1  # of a graph in one piece, with its weights


def cut(file: str, layer: str, where: str, outputs: Sequence[str]) -> tuple[str, bytes]:
    """A graph that gives a tensor inside it, and nothing else.

    Args:
        file: of the graph; weights that lie beside it are read, too.
        layer: name of the tensor, or of a node, whose first output is meant.
        where: what the file is called in messages.
        outputs: what the graph gives by itself.

    Returns:
        The tensor's name, and the graph.

    Raises:
        EncoderError: onnx is missing, nothing in the graph has that name, or it is too large to be cut.
    """
    model = _read(file, where)
    graph = model.graph
    inner = _inner(graph)
    nodes = {node.name: node.output[0] for node in graph.node if node.name and node.output and node.output[0]}
    wanted = layer if layer in inner else nodes.get(layer)
    if wanted is None:
        names = list(dict.fromkeys([*outputs, *inner, *nodes]))
        raise EncoderError(
            f"{where}: no output {printable(repr(layer))}; there are {printable(', '.join(outputs))}, and inside it, "
            f"for example, {near(layer, names)}"
        )
    needed = {wanted}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(_uses(node))
    used = kept[::-1]
    weights = [each for each in graph.initializer if each.name in needed]
    sparse = [each for each in graph.sparse_initializer if each.values.name in needed]
    for place, items in ((graph.node, used), (graph.initializer, weights), (graph.sparse_initializer, sparse)):
        copies = [type(each).FromString(each.SerializeToString()) for each in items]
        del place[:]
        place.extend(copies)
    del graph.output[:]
    graph.output.add().name = wanted
    return wanted, _bytes(model, where)


def opened(file: str, where: str) -> tuple[list[str], bytes]:
    """Every tensor of a graph that can be named, in order, and the graph with all of them as outputs.

    Raises:
        EncoderError: as `cut`.
    """
    model = _read(file, where)
    known = {each.name for each in model.graph.output}
    names = _inner(model.graph)
    for name in names:
        if name not in known:
            model.graph.output.add().name = name
    return names, _bytes(model, where)


def _read(file: str, where: str) -> Any:
    onnx = need("onnx", "onnx")
    with door(EncoderError, f"{where}: its graph cannot be read"):
        return onnx.load(file)


def _bytes(model: Any, where: str) -> bytes:
    if model.ByteSize() > MAX_BYTES:
        raise EncoderError(f"{where}: too large to be cut; export it with the layer as an output")
    found: bytes = model.SerializeToString()
    return found


def _inner(graph: Any) -> list[str]:
    return list(dict.fromkeys(name for node in graph.node for name in node.output if name))


def _uses(node: Any) -> Iterator[str]:
    """What a node reads, in graphs inside it, too."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for inside in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for each in inside.node:
                yield from _uses(each)
            yield from (output.name for output in inside.output)
