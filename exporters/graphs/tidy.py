"""An exported graph made plain: constants folded, casts that change nothing gone, bytes only at the doors, nodes named by their module,
and nothing in it of the machine it was made on."""

from __future__ import annotations

import ast
from typing import Any

from engine.types import AvatarError
from exporters.graphs.lint import MOVED

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes the modules that a node comes from."""
ROUNDS = 4
"""Of folding, at most; two are usual."""
WRAPPER = "module."
"""Prefix of everything, from the exporter's own wrapper."""
ONE_WAY = MOVED & {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten"}
"""Operators through which a cast can be moved: one tensor in, the same values out."""


def tidy(model: Any) -> None:
    """Clean an onnx_ir model in place. Raises AvatarError where it computes with bytes."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    for _ in range(ROUNDS):  # a known shape is a constant, and with it others are known
        optimizer.fold_constants(model)
        common.RemoveUnusedNodesPass()(model)
        if not any(node.op_type == "Shape" for node in model.graph):
            break
        common.ShapeInferencePass()(model)
    common.ShapeInferencePass()(model)
    _name_nodes(model.graph)
    _plain_casts(model.graph)
    _bytes_in(model.graph)
    _bytes_out(model.graph)
    _plain_casts(model.graph)
    for clean in (common.CommonSubexpressionEliminationPass(), common.IdentityEliminationPass(), common.RemoveUnusedNodesPass()):
        clean(model)
    _forget_origin(model)


def _name_nodes(graph: Any) -> None:
    """denoiser.conv_in/Conv_12: what an error message, a quantiser's list of exceptions and a profile speak of."""
    for index, node in enumerate(graph):
        try:
            scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        except (ValueError, SyntaxError):
            scopes = []
        module = str(scopes[-2]) if len(scopes) > 1 else ""
        node.name = f"{module.removeprefix(WRAPPER)}/{node.op_type}_{index}" if module else f"{node.op_type}_{index}"


def _plain_casts(graph: Any) -> None:
    """CastLike becomes Cast, and a cast to the type that a tensor has already goes."""
    import onnx_ir as ir

    for node in list(graph):
        if node.op_type not in ("Cast", "CastLike"):
            continue
        given, made = node.inputs[0], node.outputs[0]
        to = node.attributes["to"].as_int() if node.op_type == "Cast" else getattr(node.inputs[1].dtype, "value", None)
        if to is None:
            continue
        if given.dtype is not None and given.dtype.value == to and not made.is_graph_output():
            ir.convenience.replace_all_uses_with(made, given)
            graph.remove(node, safe=True)
        elif node.op_type == "CastLike":
            plain = _cast(given, to, node.name, made.name)
            graph.insert_before(node, plain)
            ir.convenience.replace_all_uses_with(made, plain.outputs[0], replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _cast(value: Any, to: int, name: str, made: str) -> Any:
    import onnx_ir as ir

    node = ir.node("Cast", [value], {"to": to}, name=name)
    node.outputs[0].name, node.outputs[0].type = made, ir.TensorType(ir.DataType(to))
    node.outputs[0].shape = None if value.shape is None else ir.Shape(list(value.shape))
    return node


def _bytes_in(graph: Any) -> None:
    """A byte becomes a number as it comes in: TensorRT takes bytes at the door only, and a transposed picture of bytes not at all."""
    import onnx_ir as ir

    for value in graph.inputs:
        if value.dtype != ir.DataType.UINT8:
            continue
        users = list(value.uses())
        cast = _cast(value, ir.DataType.FLOAT.value, f"{value.name}/Cast", f"{value.name}.float")
        graph.insert_before(graph[0], cast)
        for use in users:
            use.node.replace_input_with(use.idx, cast.outputs[0])
        _now_float([use.node for use in users])


def _now_float(nodes: list[Any]) -> None:
    """What these make of a tensor that was bytes is floats, until a cast says what it is to be."""
    import onnx_ir as ir

    while nodes:
        node = nodes.pop()
        if node.op_type in ("Cast", "CastLike", "Shape"):
            continue
        if node.op_type not in MOVED - {"Pad"}:
            raise AvatarError(f"Node '{node.name}' ({node.op_type}) computes with bytes, which engines cannot; make them floats first.")
        for made in node.outputs:
            made.type = ir.TensorType(ir.DataType.FLOAT)  # a new one: values may share theirs
            nodes += [use.node for use in made.uses()]


def _bytes_out(graph: Any) -> None:
    """A number becomes a byte as it leaves."""
    import onnx_ir as ir

    for index, value in enumerate(graph.outputs):
        if value.dtype != ir.DataType.UINT8:
            continue
        chain, node = [], value.producer()
        while node is not None and node.op_type in ONE_WAY and len(node.outputs[0].uses()) + node.outputs[0].is_graph_output() == 1:
            chain.append(node)
            node = node.inputs[0].producer()
        if not chain or node is None or node.op_type != "Cast" or len(node.outputs[0].uses()) != 1:
            continue  # it is a cast already, or nothing that can be turned round: then the engine's builder says so
        numbers = node.inputs[0]
        chain[-1].replace_input_with(0, numbers)
        for moved in chain:
            moved.outputs[0].type = ir.TensorType(numbers.dtype)
        name = value.name
        value.name = f"{name}.float"
        cast = _cast(value, ir.DataType.UINT8.value, f"{name}/Cast", name)
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
        graph.remove(node, safe=True)


def _forget_origin(model: Any) -> None:
    """Stack traces name files and folders of whoever exported; they would also make two equal exports differ."""
    model.metadata_props.clear()
    model.doc_string = None
    graph = model.graph
    graph.metadata_props.clear()
    graph.doc_string = None
    graph.name = "graph"
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None


__all__ = ["tidy"]
