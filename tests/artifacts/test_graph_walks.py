"""What looks through a graph takes each of its parts once: nodes, branches, loops, functions, weights."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from converter.artifacts.runtime.graph_ops import behind
from converter.artifacts.runtime.onnx import Reader
from converter.capture.export import capture
from converter.rewrites.pipelines import REWRITES
from converter.rewrites.run import apply_rewrites
from converter.verification import onnx_rearranged, onnx_weights

OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]


def reader_of(path: Path, nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto] | None = None) -> Reader:
    """Return a reader of a file that need not run."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    weight = numpy_helper.from_array(np.arange(3, dtype=np.float32), "weight")
    graph = helper.make_graph(nodes, "g", [value], [value], [weight])
    onnx.save(helper.make_model(graph, functions=functions or [], opset_imports=OPSETS), path)
    reader = Reader()
    reader._path = path
    return reader


def constant(name: str, **value: object) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], **value)


def graph_of(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.GraphProto:
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return helper.make_graph(list(nodes), "inner", [], [], held)


def test_constants_of_every_spelling_and_place_are_held(tmp_path):
    inner = graph_of(
        constant("deep", value_floats=[0.5, -0.25]),
        helper.make_node("If", ["c"], ["z"], then_branch=graph_of(deepest=np.float32([7]))),
    )
    local = helper.make_function("own", "F", ["x"], ["y"], [constant("y", value_ints=[4, 5])], OPSETS[:1])
    local.node.add(op_type="Constant", output=["z"]).attribute.add(
        name="value_float", type=onnx.AttributeProto.FLOAT, ref_attr_name="alpha"
    )
    reader = reader_of(
        tmp_path / "a.onnx",
        [
            constant("tensor", value=numpy_helper.from_array(np.float64([1.5]))),
            constant("number", value_float=0.1),
            constant("whole", value_int=3),
            constant("text", value_string="no number"),
            constant("texts", value_strings=["a", "b"]),
            helper.make_node("Loop", ["", "", "x"], ["y"], body=inner),
            helper.make_node("F", ["x"], ["y"], domain="own"),
        ],
        [local],
    )
    held = reader.held()
    assert {name: (array.dtype.name, array.tolist()) for name, array in held.items()} == {
        "weight": ("float32", [0.0, 1.0, 2.0]),
        "tensor": ("float64", [1.5]),
        "number": ("float32", np.float32(0.1).item()),
        "whole": ("int64", 3),
        "deep": ("float32", [0.5, -0.25]),
        "deepest": ("float32", [7.0]),
        "y": ("int64", [4, 5]),
    }


def test_functions_that_call_each_other_twice_are_counted_once_each(tmp_path):
    """Forty of them make 2^40 operators, as many as no loop over each could count."""
    calls = [helper.make_node("Relu", ["x"], ["y"])]
    functions = []
    for level in range(40):
        functions.append(helper.make_function("own", f"F{level}", ["x"], ["y"], calls, OPSETS))
        calls = [helper.make_node(f"F{level}", ["x"], ["y"], domain="own") for _ in range(2)]
    reader = reader_of(tmp_path / "a.onnx", [*calls, helper.make_node("Identity", ["x"], ["y"])], functions)
    assert reader.operators() == {"Relu": 2**40}


def test_an_export_is_given_only_the_tensors_that_it_reads():
    """PyTorch's exporter takes time for each tensor with each other one."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)).eval()
    inputs = [torch.randn(2, 3, 6, 5)]
    program = apply_rewrites(capture(net, inputs), REWRITES["onnx"])[0]
    for dtype, count in ((torch.float32, 4), (torch.float64, 0)):  # folded tensors in float64 are computed when read
        module = program.with_dtype(dtype).graph_module
        read = {node.target for node in module.graph.find_nodes(op="get_attr")}
        assert {name for name, _ in (*module.named_parameters(), *module.named_buffers())} == read
        assert len(read) == count
    torch.testing.assert_close(program.run(*inputs)[0], net(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [6, 12])
def test_each_tensor_of_an_onnx_file_is_looked_at_once(monkeypatch, layers):
    """Of fresh norms the exporter keeps one weight and one bias; matrices it transposes and renames."""
    torch.manual_seed(0)
    net = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(4, 4), nn.LayerNorm(4)))).eval()
    program = capture(net, [torch.randn(3, 4)])
    tensors = {f"val_{i}": net[2 * i].weight.detach().numpy().T.copy() for i in range(layers)}
    tensors |= {
        name: p.detach().numpy() for name, p in net.named_parameters() if p.ndim == 1 and name in ("1.weight", "1.bias")
    }
    tensors |= {f"slope_{i}": net[2 * i].bias.detach().numpy().reshape(4, 1) for i in range(layers)}
    count = 0

    def counted(function):
        def call(array):
            nonlocal count
            count += 1
            return function(array)

        return call

    monkeypatch.setattr(onnx_weights, "_content", counted(onnx_weights._content))
    monkeypatch.setattr(onnx_rearranged, "digest", counted(onnx_rearranged.digest))
    expected = onnx_weights.refillable(program, tensors, {})
    assert expected is None  # other weights may differ where these are equal
    known = onnx_weights.expected_initializers(program, tensors, lambda: pytest.fail("everything is explained"))
    assert known.keys() == tensors.keys()
    assert {source for one in known.values() for source in one.sources} == set(dict(net.named_parameters()))
    assert count < 30 * layers


@pytest.mark.parametrize("backwards", [False, True])
def test_nodes_behind_an_input_are_found_by_reading_each_once(backwards):
    read = []

    class Node:
        def __init__(self, name: str, *inputs: str):
            self.name, self.inputs = name, inputs

        @property
        def input(self) -> tuple[str, ...]:
            read.append(self.name)
            return self.inputs

    chain = [Node("0", "x"), *(Node(str(i), f"{i - 1}:0", f"w{i}", "^x") for i in range(1, 200))]
    weights = [Node(f"w{i}", "v") for i in range(1, 200)]
    nodes = [*chain, *weights][:: -1 if backwards else 1]
    assert sorted(node.name for node in behind(nodes, ["x"])) == sorted(node.name for node in chain)
    assert sorted(read) == sorted(node.name for node in nodes)
