from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from helpers.onnx_texts import assert_same, kinds, model, norm, run, written
from refold import blocks
from refold.errors import InputError, NotEquivalentError
from refold.onnx_files import fold_onnx, proof, read
from refold.onnx_files.folding import Writer

IMAGE = "(float[n, 3, h, w] x) => (float[n, c, i, j] y)"


def folded(tmp_path: Path, made: Any, **shapes: tuple[int, ...]) -> list[str]:
    """Fold a model, compare it on more inputs of our own, and return its operators."""
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    fold_onnx(source, out)
    for each in shapes and [shapes, {k: (s[0] + 1, *s[1:]) for k, s in shapes.items()}]:
        assert_same(source, out, **each)
    onnx.checker.check_model(onnx.load(out), full_check=True)
    return kinds(out)


def test_a_model_in_memory(tmp_path: Path) -> None:
    text = IMAGE + "{ a = Conv(x, w) y = BatchNormalization(a, gn, bn, mn, vn) }"
    made = model(text, {"w": (8, 3, 3, 3), **norm("n", 8)})
    before = made.SerializeToString()
    report = fold_onnx(made, tmp_path / "out.onnx")
    assert len(report.steps) == 1
    assert made.SerializeToString() == before
    assert_same(written(tmp_path, made), tmp_path / "out.onnx", x=(2, 3, 8, 9))
    with pytest.raises(InputError, match=r"or an onnx\.ModelProto, got Conv2d"):
        fold_onnx(nn.Conv2d(3, 4, 1))


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 18, 21])
def test_a_norm_after_a_convolution(tmp_path: Path, opset: int) -> None:
    text = (
        IMAGE
        + "{ a = Conv<pads=[1,1,1,1], group=1>(x, w) b = BatchNormalization(a, gn, bn, mn, vn)"
    )
    weights = {"w": (8, 3, 3, 3), **norm("n", 8)}
    made = model(text + " y = Relu(b) }", weights, opset)
    assert folded(tmp_path, made, x=(2, 3, 8, 9)) == ["Conv", "Relu"]


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13])
def test_two_products_of_rows(tmp_path: Path, opset: int) -> None:
    """Gemm may do without a bias from opset 11 on."""
    text = "(float[n, 3] x) => (float[n, 5] y) { a = MatMul(x, w) b = MatMul(a, v) y = Relu(b) }"
    made = model(text, {"w": (3, 8), "v": (8, 5)}, opset)
    assert len(folded(tmp_path, made, x=(2, 3))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_parallel_branches_of_every_rank(tmp_path: Path, rank: int) -> None:
    sizes, ones = ", ".join(["s"] * rank), (1,) * rank
    pads = ",".join("1" * 2 * rank)
    text = f"""(float[n, 4, {sizes}] x) => (float[n, 4, {sizes}] y) {{
      a = Conv<pads=[{pads}], group=2>(x, wa) b = BatchNormalization(a, ga, ba, ma, va)
      c = Conv<group=2>(x, wc) d = BatchNormalization(c, gc, bc, mc, vc)
      e = BatchNormalization(x, ge, be, me, ve) f = Add(b, d) g = Add(f, e) y = Relu(g) }}"""
    weights = {"wa": (4, 2, *(3,) * rank), "wc": (4, 2, *ones)}
    for name in "ace":
        weights |= norm(name, 4)
    assert folded(tmp_path, model(text, weights), x=(2, 4, *(7,) * rank)) == ["Conv", "Relu"]


def test_scales_and_shifts_in_every_form(tmp_path: Path) -> None:
    text = (
        IMAGE
        + """{ a = Conv(x, w) b = Mul(s, a) c = Sub(b, t) d = Div(c, u) e = Sub(o, d)
      f = Add(e, r) y = Relu(f) }"""
    )
    shapes = {
        "w": (8, 3, 1, 1),
        "s": (8, 1, 1),
        "t": (1, 8, 1, 1),
        "u": (1,),
        "o": (),
        "r": (8, 1, 1),
    }
    assert folded(tmp_path, model(text, shapes), x=(2, 3, 5, 5)) == ["Conv", "Relu"]


@pytest.mark.parametrize("zero", [False, True])
def test_a_scale_goes_into_the_layers_behind_its_shift(tmp_path: Path, zero: bool) -> None:
    text = """(float[n, 3, h, w] x) => (float[n, 4, h, w] y, float[n, 2, h, w] z) {
      a = Relu(x) b = Mul(a, s) c = Add(b, t)
      y = Conv<pads=[1,1,1,1]>(c, w) z = Conv<pads=[1,1,1,1]>(c, k, o) }"""
    shapes = {"s": (3, 1, 1), "t": (3, 1, 1), "w": (4, 3, 3, 3), "k": (2, 3, 3, 3), "o": (2,)}
    made = model(text, shapes)
    if zero:
        [scale] = [t for t in made.graph.initializer if t.name == "s"]
        scale.raw_data = scale.raw_data[:-4] + bytes(4)
    found = folded(tmp_path, made, x=(2, 3, 6, 5))
    assert found == ["Relu", *(["Mul"] if zero else []), "Add", "Conv", "Conv"]


def test_a_reshape_by_computed_sizes_takes_numbers_where_one_is_free(tmp_path: Path) -> None:
    text = """(float[n, 3, h, w] x) => (float[n, 5] y) { a = GlobalAveragePool(x)
      s = Shape(x) zero = Constant<value_int=0>() b = Gather(s, zero)
      axis = Constant<value_ints=[0]>() c = Unsqueeze(b, axis)
      more = Constant<value_ints=[3]>() d = Concat<axis=0>(c, more) e = Reshape(a, d)
      y = Gemm(e, w) }"""
    made = model(text, {"w": (3, 5)})
    assert folded(tmp_path, made, x=(2, 3, 4, 4)) == ["GlobalAveragePool", "Reshape", "Gemm"]


def test_matrices(tmp_path: Path) -> None:
    text = """(float[n, t, 6] x, float[n, 6] z) => (float[n, t, 8] y, float[n, 8] q) {
      a = MatMul(x, w) b = Add(a, c) d = Mul(b, s) y = Add(d, s)
      k = Gemm<transB=1>(z, o, c) q = BatchNormalization(k, g, b2, m, v) }"""
    shapes = {"w": (6, 8), "c": (8,), "s": (8,), "o": (8, 6)} | dict.fromkeys(
        ("g", "b2", "m", "v"), (8,)
    )
    found = folded(tmp_path, model(text, shapes), x=(2, 5, 6), z=(2, 6))
    assert found == ["MatMul", "Add", "Gemm"]


@pytest.mark.parametrize("shape", ["", ", kernel_shape=[3,3]"])
def test_a_padding_that_sizes_decide_stays_and_the_norm_goes(tmp_path: Path, shape: str) -> None:
    text = (
        IMAGE
        + f"""{{ a = Conv<auto_pad="SAME_UPPER", strides=[2,2]{shape}>(x, w)
      y = BatchNormalization(a, gn, bn, mn, vn) }}"""
    )
    made = model(text, {"w": (8, 3, 3, 3), **norm("n", 8)})
    assert folded(tmp_path, made, x=(2, 3, 8, 9)) == ["Conv"]
    [node] = onnx.load(tmp_path / "out.onnx").graph.node
    assert "SAME_UPPER" in str(node)
    assert node.output == ["y"]


def test_a_bias_that_would_meet_the_border_is_not_folded(tmp_path: Path) -> None:
    text = (
        IMAGE
        + """{ a = Conv(x, w, b) c = Conv<pads=[1,1,1,1]>(a, k)
      d = BatchNormalization(c, gn, bn, mn, vn) y = Relu(d) }"""
    )
    made = model(text, {"w": (2, 3, 1, 1), "b": (2,), "k": (4, 2, 3, 3), **norm("n", 4)})
    source = written(tmp_path, made)
    assert folded(tmp_path, made, x=(2, 3, 5, 5)) == ["Conv", "Conv", "Relu"]
    assert any("border" in k.reason or "padding" in k.reason for k in fold_onnx(source).kept)


def test_weights_that_several_nodes_share_are_folded_apart(tmp_path: Path) -> None:
    text = """(float[n, 3, h, w] x) => (float[n, 4, h, w] y, float[n, 4, h, w] z) {
      a = Conv(x, w) y = BatchNormalization(a, g, bn, m, vn)
      r = Relu(x) c = Conv(r, w) z = BatchNormalization(c, bn, g, m, vn) }"""
    shapes = {"w": (4, 3, 1, 1)} | dict.fromkeys(("g", "bn", "m", "vn"), (4,))
    assert folded(tmp_path, model(text, shapes), x=(2, 3, 5, 5)) == ["Conv", "Relu", "Conv"]


@pytest.mark.parametrize("ir", [3, 8])
def test_constants_in_whatever_form(tmp_path: Path, ir: int) -> None:
    text = (
        IMAGE
        + """{ k = Identity(w) a = Conv(x, k) shape = Constant<value_ints=[1, 8, 1, 1]>()
      s = Reshape(r, shape) q = Sqrt(v) f = Reshape(q, shape) b = Mul(a, s) y = Div(b, f) }"""
    )
    made = model(text, {"w": (8, 3, 3, 3), "r": (8,), "v": (8,)}, 13, ir)
    assert folded(tmp_path, made, x=(2, 3, 5, 5)) == ["Conv"]
    names = {t.name for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert not names.intersection({"r", "v"})


def test_what_is_unknown_passes_through_untouched(tmp_path: Path) -> None:
    text = (
        IMAGE
        + """{ a = com.microsoft.Gelu(x) b = Softmax<axis=1>(a) c = Conv(b, w)
      d = BatchNormalization(c, gn, bn, mn, vn) y = com.microsoft.QuickGelu<alpha=1.5>(d) }"""
    )
    made = model(text, {"w": (8, 3, 1, 1), **norm("n", 8)})
    made.metadata_props.add(key="author", value="somebody")
    made.doc_string = "kept"
    assert folded(tmp_path, made, x=(2, 3, 4, 4)) == ["Gelu", "Softmax", "Conv", "QuickGelu"]
    out = onnx.load(tmp_path / "out.onnx")
    assert out.doc_string == "kept"
    assert out.metadata_props[0].value == "somebody"
    kept = [n for n in made.graph.node if n.op_type in ("Softmax", "Gelu")]
    assert [n for n in out.graph.node if n.op_type in ("Softmax", "Gelu")] == kept
    assert [d.dim_param for d in out.graph.input[0].type.tensor_type.shape.dim] == [
        "n",
        "",
        "h",
        "w",
    ]


def test_a_file_where_nothing_folds_is_copied(tmp_path: Path) -> None:
    made = model(IMAGE + "{ a = Conv(x, w) y = Relu(a) }", {"w": (8, 3, 1, 1)})
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    report = fold_onnx(source, out)
    assert not report.changed
    assert out.read_bytes() == source.read_bytes()


def test_an_output_that_is_a_copy_keeps_its_node(tmp_path: Path) -> None:
    source = written(tmp_path, model("(float[n, 2] x) => (float[n, 2] y) { y = Identity(x) }", {}))
    assert not fold_onnx(source, tmp_path / "out.onnx").changed


def test_copies_of_large_weights_are_read_as_the_weights(tmp_path: Path) -> None:
    text = """(float[n, 600] x) => (float[n, 600] y) { v = Identity(w) u = Identity(v)
      a = MatMul(x, u) r = Relu(a) b = MatMul(r, v) y = Dropout(b) }"""
    made = model(text, {"w": (600, 600)})
    assert folded(tmp_path, made, x=(2, 600)) == ["MatMul", "Relu", "MatMul"]


def test_a_computed_constant_that_several_read_is_folded_for_each(tmp_path: Path) -> None:
    text = """(float[n, 4] x) => (float[n, 4] y, float[n, 4] z) { t = Transpose<perm=[1,0]>(w)
      a = MatMul(x, t) y = Mul(a, s) b = Sin(x) c = MatMul(b, t) z = Mul(c, s) }"""
    made = model(text, {"w": (4, 4), "s": (4,)})
    assert folded(tmp_path, made, x=(2, 4)) == ["Gemm", "Sin", "Gemm"]


def test_a_product_with_ones_may_be_written_ones_first(tmp_path: Path) -> None:
    text = """(float[n, 4] x) => (float[n, 4] y) { a = Sin(x) b = Mul(ones, a) c = Cos(a)
      d = Add(b, c) y = MatMul(d, w) }"""
    made = model(text, {"w": (4, 4)})
    made.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "ones"))
    source = written(tmp_path, made)
    assert not any("defect" in kept.reason for kept in fold_onnx(source).kept)
    assert folded(tmp_path, made, x=(2, 4)) == ["Sin", "Mul", "Cos", "Add", "MatMul"]


def test_indices_of_small_tables_are_made_up(tmp_path: Path) -> None:
    text = """(int64[n, k] kinds, float[n, k, 4] x) => (float y) { a = Gather(two, kinds)
      b = Add(a, x) c = MatMul(b, w) y = Mul(c, s) }"""
    made = model(text, {"two": (2, 4), "w": (4, 4), "s": (4,)})
    report = fold_onnx(written(tmp_path, made), tmp_path / "out.onnx")
    assert len(report.trials) == 2
    assert kinds(tmp_path / "out.onnx") == ["Gather", "Add", "MatMul"]


@pytest.mark.parametrize("layout", ["n,c,h,w", "n,h,w,c"])
def test_channels_that_only_the_weights_fix_are_made_up(tmp_path: Path, layout: str) -> None:
    turn = "t = Transpose<perm=[0,3,1,2]>(x)" if layout.endswith("c") else "t = Identity(x)"
    text = f"(float[{layout}] x) => (float y) {{ {turn} a = Conv(t, w) y = Mul(a, s) }}"
    made = model(text, {"w": (4, 3, 1, 1), "s": (4, 1, 1)})
    report = fold_onnx(written(tmp_path, made), tmp_path / "out.onnx")
    assert "Mul" not in report.nodes_after
    assert len(report.trials) == 2


def test_what_no_made_up_input_fits_names_the_file(tmp_path: Path) -> None:
    text = "(float[n,c] x) => (float y) { a = MatMul(x, w) y = Mul(a, s) }"
    source = written(tmp_path, model(text, {"w": (7, 5), "s": (5,)}))
    with pytest.raises(InputError, match=r"net\.onnx: it runs on none .* example_inputs"):
        fold_onnx(source, tmp_path / "out.onnx")
    given = {"x": np.ones((2, 7), np.float32)}
    assert fold_onnx(source, tmp_path / "out.onnx", example_inputs=given).nodes_after == {"Gemm": 1}


def test_outputs_in_half_precision_without_weights_may_round(tmp_path: Path) -> None:
    text = """(float16[n, 64] x) => (float16[n, 64] y)
      { p = Mul(x, a) y = Mul(p, b) }"""
    made = model(text, {})
    for name, value in (("a", 0.3), ("b", 0.7)):
        made.graph.initializer.append(numpy_helper.from_array(np.float16([value]), name))
    report = fold_onnx(written(tmp_path, made), tmp_path / "out.onnx")
    assert report.nodes_after == {"Mul": 1}
    assert 1e-5 < report.trials[0].error <= report.trials[0].bound < 1e-2


def test_a_file_of_other_domains_alone_passes_through(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["ai.onnx.ml" : 3]> net (float[1, 2] x) =>
      (float[1, 2] y) { y = ai.onnx.ml.Binarizer<threshold = 0.5>(x) }"""
    source = written(tmp_path, onnx.parser.parse_model(text))
    assert not fold_onnx(source, tmp_path / "out.onnx").changed


def test_a_function_of_another_opset_stays_with_the_reason(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]> net
      (float[n, 3, h, w] x) => (float y) { y = own.layer(x, w, gn, bn, mn, vn) }
      <domain: "own", opset_import: ["" : 9]> layer (x, w, g, b, m, v) => (y) {
      a = Conv(x, w) y = BatchNormalization(a, g, b, m, v) }"""
    for opset, count in ((9, 1), (17, 0)):
        made = onnx.parser.parse_model(text.replace('"" : 9', f'"" : {opset}'))
        made.graph.initializer.extend(
            model(IMAGE + "{ y = Relu(x) }", {"w": (8, 3, 3, 3), **norm("n", 8)}).graph.initializer
        )
        report = fold_onnx(written(tmp_path, made), tmp_path / "out.onnx")
        assert len(report.kept) == count
        assert all("another opset" in kept.reason for kept in report.kept)
        assert_same(tmp_path / "net.onnx", tmp_path / "out.onnx", x=(2, 3, 5, 6))


def test_branches_that_capture_a_value_read_it_under_its_new_name(tmp_path: Path) -> None:
    made = model(IMAGE + """{ i = Identity(x) a = Conv(i, w)
      b = BatchNormalization(a, gn, bn, mn, vn)
      r = Relu(b) z = Dropout(r) q = ReduceSum<keepdims=0>(x) o = Greater(q, zero) }""",
      {"w": (4, 3, 1, 1), "zero": (), **norm("n", 4)})  # fmt: skip
    ends = [helper.make_tensor_value_info(f"{k}_out", 1, [None] * 4) for k in ("Neg", "Exp")]
    graphs = [
        helper.make_graph(
            [
                helper.make_node(k, ["z"], [f"{k}_in"]),
                helper.make_node("Add", [f"{k}_in", "b"], [f"{k}_out"]),
            ],
            k, [], [end],
        ) for k, end in zip(("Neg", "Exp"), ends, strict=True)
    ]  # fmt: skip
    node = helper.make_node(
        "If", ["o"], ["y"], "choice", then_branch=graphs[0], else_branch=graphs[1]
    )
    made.graph.node.append(node)
    assert folded(tmp_path, made, x=(2, 3, 4, 4)) == ["Conv", "Relu", "ReduceSum", "Greater", "If"]


def test_half_precision_is_folded_in_double_and_rounded_once(tmp_path: Path) -> None:
    text = IMAGE.replace("float", "float16") + "{ a = Conv(x, w) y = Mul(a, s) }"
    draw = np.random.default_rng(0)
    weight, scale = draw.standard_normal((4, 3, 1, 1)), draw.standard_normal((4, 1, 1))
    made = model(text, {})
    for name, array in (("w", weight), ("s", scale)):
        made.graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), name))
    assert folded(tmp_path, made) == ["Conv"]
    [stored] = onnx.load(tmp_path / "out.onnx").graph.initializer
    wide = (
        weight.astype(np.float16).astype(float) * scale.astype(np.float16).astype(float)[..., None]
    )
    assert (numpy_helper.to_array(stored) == wide.astype(np.float16)).all()


def test_a_fold_that_overflows_float16_is_left_with_the_reason(tmp_path: Path) -> None:
    made = model(IMAGE.replace("float", "float16") + "{ a = Conv(x, w) y = Mul(a, s) }", {})
    for name, shape in (("w", (4, 3, 1, 1)), ("s", (4, 1, 1))):
        made.graph.initializer.append(
            numpy_helper.from_array(np.full(shape, 300, np.float16), name)
        )
    report = fold_onnx(written(tmp_path, made))
    assert not report.changed
    assert "beyond the largest" in report.kept[0].reason


def test_a_quantized_file_is_left_alone(tmp_path: Path) -> None:
    text = (
        IMAGE
        + """{ q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) a = Conv(d, w)
      y = BatchNormalization(a, gn, bn, mn, vn) }"""
    )
    made = model(text, {"s": (), "w": (4, 3, 1, 1), **norm("n", 4)}, 21, 10)
    report = fold_onnx(written(tmp_path, made))
    assert not report.changed
    assert "it is quantized" in report.kept[0].reason


def test_names_stand_for_the_same_numbers(tmp_path: Path) -> None:
    text = """(float[n, 3, h, w] x) => (float[n, 4, h, w] y, float[n, 4, h, w] z) {
      a = Conv(x, w) b = BatchNormalization(a, gn, bn, mn, vn) y = Relu(b) z = Identity(b) }"""
    made = model(text, {"w": (4, 3, 1, 1), **norm("n", 4)})
    assert folded(tmp_path, made, x=(2, 3, 4, 4)) == ["Conv", "Relu"]
    conv, relu = onnx.load(tmp_path / "out.onnx").graph.node
    assert list(conv.output) == ["z"]
    assert list(relu.output) == ["y"]


def test_an_output_that_is_an_input_keeps_both_names(tmp_path: Path) -> None:
    made = model(
        "(float[n, 2] x) => (float[n, 2] y, float[n, 2] z) "
        "{ a = Dropout(x) y = Identity(a) z = Relu(x) }",
        {},
    )
    assert folded(tmp_path, made, x=(3, 2)) == ["Relu", "Identity"]


def test_a_wrong_fold_writes_nothing_and_names_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = IMAGE + "{ a = Conv(x, w) b = Mul(a, s) c = Sigmoid(b) y = Add(c, c) }"
    source, out = (
        written(tmp_path, model(text, {"w": (4, 3, 1, 1), "s": (4, 1, 1)})),
        tmp_path / "out.onnx",
    )
    write = Writer.write

    def spoil(self: Writer) -> Any:
        made = write(self)
        for tensor in made.tensors:
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * 1.001).tobytes()
        return made

    monkeypatch.setattr(Writer, "write", spoil)
    with pytest.raises(NotEquivalentError, match="first at the Mul 'Mul_1', in 'b'"):
        fold_onnx(source, out)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


class Net(nn.Module):
    def __init__(self, *blocks_of: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*blocks_of)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)).flatten(1))


def training_form() -> nn.Module:
    torch.manual_seed(0)
    net = Net(
        blocks.RepVGGBlock(3, 8, 3, padding=1, stride=2), nn.ReLU(),
        blocks.MobileOneBlock(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        blocks.ACBlock(8, 8, 3, padding=1), nn.ReLU(),
        blocks.DiverseBranchBlock(8, 8, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_training_forms_become_plain(tmp_path: Path, dynamo: bool) -> None:
    net, x = training_form(), torch.randn(2, 3, 16, 16)
    if dynamo:
        program: Any = torch.onnx.export(net, (x,), dynamo=True, optimize=False, verbose=False)
        program.save(tmp_path / "net.onnx")
    else:
        torch.onnx.export(
            net, (x,), tmp_path / "net.onnx", dynamo=False, input_names=["x"],
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
            dynamic_axes={"x": {0: "n"}},
        )  # fmt: skip
    fold_onnx(tmp_path / "net.onnx", tmp_path / "out.onnx")
    found = kinds(tmp_path / "out.onnx")
    assert found[:8] == ["Conv", "Relu"] * 4
    assert len(found) <= 11
    [name] = [v.name for v in onnx.load(tmp_path / "out.onnx").graph.input]
    [got] = run(tmp_path / "out.onnx", **{name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), net(x).detach(), rtol=1e-3, atol=1e-4)


def test_bfloat16_weights(tmp_path: Path) -> None:
    made = model(
        IMAGE.replace("float[", "bfloat16[") + "{ a = Conv(x, w) y = Mul(a, s) }", {}, 22, 10
    )
    for name, shape in (("w", [4, 3, 1, 1]), ("s", [4, 1, 1])):
        values = torch.randn(shape).bfloat16()
        raw = values.view(torch.int16).numpy().tobytes()
        tensor = TensorProto(name=name, data_type=TensorProto.BFLOAT16, dims=shape, raw_data=raw)
        made.graph.initializer.append(tensor)
    source = written(tmp_path, made)
    report = fold_onnx(source, tmp_path / "out.onnx", check=False)  # no CPU kernel
    assert report.nodes_after == {"Conv": 1}
    [stored] = onnx.load(tmp_path / "out.onnx").graph.initializer
    assert stored.data_type == TensorProto.BFLOAT16


def test_pools_of_large_maps_round_more(tmp_path: Path) -> None:
    """A norm passes the pool; float32 loses more in a sum of two million numbers than in layers."""
    text = """(float[n, 2, h, w] x) => (float[n, 3] y) {
      a = BatchNormalization(x, gn, bn, mn, vn) b = GlobalAveragePool(a) c = Flatten(b)
      y = MatMul(c, w) }"""
    source = read(written(tmp_path, model(text, {"w": (2, 3), **norm("n", 2)})))
    arrays = {"x": np.ones((2, 2, 6, 7), np.float32)}
    assert proof._longest_sum(source, arrays) == 42
    assert proof.bound_of(source, 1 << 21) > 100 * proof.bound_of(source)
    no_pool = read(written(tmp_path, model(IMAGE + "{ y = Relu(x) }", {}), "relu.onnx"))
    assert proof._longest_sum(no_pool, arrays) == 1


def test_volumes_are_tried_at_sizes_that_float32_can_sum_up(tmp_path: Path) -> None:
    """The mean of 64 x 96 x 64 positive numbers loses a thousandth in ONNX Runtime."""
    text = """(float[n, 3, d, h, w] x) => (float[n, 5] y) {
      a = Relu(x) b = BatchNormalization(a, gn, bn, mn, vn) c = GlobalAveragePool(b)
      f = Flatten(c) y = MatMul(f, m) }"""
    source = written(tmp_path, model(text, {"m": (3, 5), **norm("n", 3)}))
    report = fold_onnx(source, tmp_path / "out.onnx")
    shapes = [trial.shapes["x"] for trial in report.trials]
    assert len(shapes) == 2
    assert all(np.prod(shape[2:]) < 50_000 for shape in shapes)


@pytest.mark.parametrize("bend", ["Relu(p)", "LeakyRelu(p)"])
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_a_scale_behind_a_max_pool_goes_in_front_of_it_if_positive(
    tmp_path: Path, scale: float, bend: str
) -> None:
    text = """(float[n, 3, 8, 8] x) => (float[n, 4, 4, 4] y) {
      a = Conv(x, w) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) b = BEND y = Mul(b, s) }"""
    text = text.replace("BEND", bend)
    made, out = model(text, {"w": (4, 3, 1, 1)}), tmp_path / "out.onnx"
    factor = np.array([scale, 2.0, 0.5, 0.0], np.float32).reshape(4, 1, 1)
    made.graph.initializer.append(onnx.numpy_helper.from_array(factor, "s"))
    source = written(tmp_path, made)
    fold_onnx(source, out)
    assert kinds(out)[:2] == ["Conv", "MaxPool"]
    assert kinds(out)[3:] == (["Mul"] if scale < 0 else [])
    assert_same(source, out, x=(2, 3, 8, 8))
