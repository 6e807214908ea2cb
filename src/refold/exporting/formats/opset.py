"""An ONNX graph in an older opset than the exporter can write, where its nodes have older forms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refold.errors import ExportError
from refold.exporting.libraries import require

_STANDARD = ("", "ai.onnx")  # both name ONNX's own operators
_EVEN = "num_outputs"  # of Split: its older form cuts evenly where it is told no sizes


def lower(model: Any, opset: int) -> None:
    """Rewrite the nodes of a graph in the form that they had in an older opset.

    An input that was an attribute then becomes one, if it is constant, and attributes that say
    what older nodes did anyway go.

    Args:
        model: the exporter's (`onnx_ir`); changed in place.
        opset: the one to write.

    Raises:
        ExportError: naming the first operator that has no older form.
    """
    written = int(model.opset_imports[""])
    for node in _nodes(model):
        _lower_node(node, written, opset)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in model.graph.outputs:
            del model.graph.initializers[name]
    model.opset_imports[""] = opset


def limit_ir(model: Any, opset: int) -> None:
    """Write the file's own format as old as an opset allows: older runtimes refuse a newer one."""
    helper: Any = require("onnx", "onnx").helper
    if not model.functions:  # which newer formats brought
        row = helper.make_opsetid("", opset)
        model.ir_version = min(model.ir_version, int(helper.find_min_ir_version_for([row])))


def _nodes(model: Any) -> Iterator[Any]:
    for graph in (model.graph, *model.functions.values()):
        yield from (node for node in graph.all_nodes() if node.domain in _STANDARD)


def _lower_node(node: Any, written: int, opset: int) -> None:
    defs: Any = require("onnx", "onnx").defs
    new = defs.get_schema(node.op_type, written)
    try:
        old = defs.get_schema(node.op_type, opset)
    except defs.SchemaError as error:
        raise _no_form(node, opset, f"came with opset {_first(defs, node.op_type)}") from error
    if old.since_version == new.since_version:
        return
    for name in [name for name in node.attributes if name not in old.attributes]:
        if name != _EVEN and node.attributes[name].value != _usual(new.attributes[name]):
            raise _no_form(node, opset, f"has no {name} there")
        del node.attributes[name]
    if len(old.inputs) < len(new.inputs):
        _inputs_to_attributes(node, old, new, opset)


def _inputs_to_attributes(node: Any, old: Any, new: Any, opset: int) -> None:
    ir = require("onnx_ir", "onnx")
    for at in range(len(old.inputs), len(node.inputs)):
        name, value = new.inputs[at].name, node.inputs[at]
        if value is None:
            continue
        constant = ir.convenience.get_const_tensor(value)
        if name not in old.attributes or constant is None:
            raise _no_form(node, opset, f"takes no {name} there")
        numbers = [int(number) for number in constant.numpy().reshape(-1)]
        node.attributes[name] = ir.AttrInt64s(name, numbers)
    node.resize_inputs(min(len(node.inputs), len(old.inputs)))


def _usual(attribute: Any) -> Any:
    """Return what an attribute is where a node does not say; None where it must."""
    if not attribute.default_value.type:
        return None
    value = require("onnx", "onnx").helper.get_attribute_value(attribute.default_value)
    return value.decode() if isinstance(value, bytes) else value


def _first(defs: Any, kind: str) -> int:
    rows = defs.get_all_schemas_with_history()
    return min(row.since_version for row in rows if row.name == kind and not row.domain)


def _no_form(node: Any, opset: int, why: str) -> ExportError:
    return ExportError(
        f"the network cannot be written with opset {opset}: its {node.op_type} {why}; leave opset "
        "out, or give a newer one"
    )
