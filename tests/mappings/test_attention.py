"""How often attention, products and recurrent layers move activations: counted in the plan and in the traced graph."""

import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from equivalence import (
    Call,
    Input,
    assert_float32_rounds_alike,
    assert_plan_is_exact,
    assert_same,
    captured,
    examples,
    in_float64,
    run_in_float64,
)
from keras import layers
from keras.saving import load_model
from torch import nn

import converter
from converter.capture.export import capture
from converter.lowering.executor import PlanExecutor
from converter.lowering.planner import make_plan
from converter.plan.builder import PlanBuilder
from converter.rewrites.pipelines import REWRITES
from converter.verification.checked_rewrite import rewrite
from converter.verification.onnx_rnn_weights import recurrent_weights

TOKENS = (2, 9, 24)


class PackedAttention(nn.Module):
    """Queries, keys and values from one Linear, heads split and merged as in most vision transformers."""

    def __init__(self, take, attend):
        super().__init__()
        self.qkv, self.out, self.take, self.attend = nn.Linear(24, 72), nn.Linear(24, 24), take, attend

    def forward(self, x):
        packed = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 4, 6).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(*self.take(packed)).transpose(1, 2).flatten(2))


class SplitAttention(nn.Module):
    """A Linear for each of queries, keys and values."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).view(x.shape[0], x.shape[1], 4, 6).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class WindowAttention(nn.Module):
    """Windows of 3 x 3, shifted, with a trained bias for each pair of positions."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(24, 72), nn.Linear(24, 24), nn.LayerNorm(24)
        self.bias = nn.Parameter(torch.zeros(4, 9, 9))

    def forward(self, x):  # (batch, height, width, channels)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2))
        y = y.view(b, h // 3, 3, w // 3, 3, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, c)
        q, k, v = self.qkv(y).reshape(-1, 9, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * 6**-0.5 @ k.transpose(-2, -1) + self.bias).softmax(-1)
        y = self.out((weights @ v).transpose(1, 2).reshape(-1, 9, c))
        y = y.view(b, h // 3, w // 3, 3, 3, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return x + torch.roll(y, (1, 1), (1, 2))


def by_hand(q, k, v):
    return (q @ k.transpose(-2, -1) * 6**-0.5).softmax(-1) @ v


def multi_head(**how):
    return Call(lambda self, x: self.mha(x, x, x, **how)[0], mha=nn.MultiheadAttention(24, 4, batch_first=True))


ONE_EACH = 4  # queries, keys, values and the result
MOST = {
    "heads of one Linear, unbound": (
        PackedAttention(lambda p: p.unbind(0), F.scaled_dot_product_attention),
        ONE_EACH,
        TOKENS,
    ),
    "heads of one Linear, selected": (
        PackedAttention(lambda p: (p[0], p[1], p[2]), F.scaled_dot_product_attention),
        ONE_EACH,
        TOKENS,
    ),
    "heads of one Linear, multiplied by hand": (PackedAttention(lambda p: p.unbind(0), by_hand), ONE_EACH, TOKENS),
    "heads of three Linears": (SplitAttention(), ONE_EACH, TOKENS),
    "windows: one more for their inverse": (WindowAttention(), ONE_EACH + 2, (2, 6, 9, 24)),
    "multi-head attention": (multi_head(need_weights=False), ONE_EACH, TOKENS),
    "multi-head attention and its weights": (multi_head(), ONE_EACH, TOKENS),
    "an encoder layer": (nn.TransformerEncoderLayer(24, 4, 40, batch_first=True), ONE_EACH, TOKENS),
    "heads that lie in front": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        0,
        (2, 3, 5, 4),
        (2, 3, 7, 4),
        (2, 3, 7, 6),
    ),
    "products of transposed operands": (lambda x: (x @ x.mT, x.mT @ x), 0, (2, 6, 11)),
    "tokens of a convolution": (
        Call(
            lambda self, x: self.linear(self.conv(x).flatten(2).transpose(1, 2)).mean(1),
            conv=nn.Conv2d(3, 8, 2, 2),
            linear=nn.Linear(8, 5),
        ),
        0,
        (2, 3, 8, 6),
    ),
    "a class token and positions": (
        Call(
            lambda self, x: torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places,
            token=nn.Parameter(torch.zeros(1, 1, 24)),
            places=nn.Parameter(torch.zeros(1, 10, 24)),
        ),
        0,
        TOKENS,
    ),
    "softmax over what does not lie last": (lambda x: x.softmax(1), 0, TOKENS),
    "tokens mixed by a matrix": (
        Call(lambda self, x: x + (x.mT @ self.w).mT, w=nn.Parameter(torch.zeros(9, 9))),
        0,
        TOKENS,
    ),
    "embedded words": (
        Call(lambda self, x: self.linear(self.words(x)), words=nn.Embedding(9, 5), linear=nn.Linear(5, 4)),
        0,
        Input((2, 7), torch.int64, 0, 9),
    ),
}
RECURRENT = {  # with the number of Keras' layers, one for each layer and direction
    "GRU between convolutions": (
        Call(
            lambda self, x: self.after(self.gru(self.before(x).transpose(1, 2))[0].transpose(1, 2)),
            before=nn.Conv1d(6, 4, 3),
            gru=nn.GRU(4, 5, 2, batch_first=True, bidirectional=True),
            after=nn.Conv1d(10, 3, 1),
        ),
        4,
        (2, 6, 11),
    ),
    "LSTM with time first": (
        Call(
            lambda self, x: self.linear(self.lstm(x.transpose(0, 1))[0].transpose(0, 1)),
            lstm=nn.LSTM(6, 5),
            linear=nn.Linear(5, 4),
        ),
        1,
        (2, 7, 6),
    ),
}


def transposes(plan: PlanBuilder) -> int:
    """In the graph that is written, while loops left out."""
    lowered = PlanExecutor(plan).prepare()
    traced = tf.function(
        lowered.run_named, input_signature=lowered.signature(), autograph=False
    ).get_concrete_function()
    return sum(op.type == "Transpose" for op in traced.graph.get_operations())


@pytest.mark.slow
@pytest.mark.parametrize("case", MOST)
def test_moves_at_most(case):
    module, most, *inputs = MOST[case]
    plan = assert_plan_is_exact(captured(module, *inputs), inputs)
    assert len(plan.movements) <= most, [(m.kind, m.reason) for m in plan.movements]
    assert transposes(plan) == len(plan.movements), "Keras hides some"


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, name, width",
    [
        pytest.param(MOST["heads of one Linear, unbound"][0], "", 6, id="one Linear"),
        pytest.param(MOST["heads of three Linears"][0], "", 6, id="three Linears"),
        pytest.param(MOST["multi-head attention and its weights"][0], "mha", 6, id="PyTorch's own"),
        pytest.param(nn.TransformerEncoderLayer(32, 4, 40, batch_first=True), "self_attn", 8, id="an encoder layer"),
    ],
)
def test_keras_files_have_keras_own_layer(module, name, width, tmp_path):
    """Its scale of 8 ** -0.5 is no number of float32: in float64 it must be the exact one."""
    shape = (2, 9, 4 * width)
    program = captured(module, shape)
    inputs = examples([shape], 3)
    rewritten, _ = rewrite(program, REWRITES["keras"], inputs)
    plan = make_plan(rewritten)
    double = program.with_dtype(torch.float64).run(*in_float64(inputs))
    assert_same(run_in_float64(plan, inputs)[0], double, "float64")
    assert len(plan.movements) <= ONE_EACH
    PlanExecutor(plan, stock=True).keras_model().save(tmp_path / "model.keras")
    model = load_model(tmp_path / "model.keras")
    (layer,) = (layer for layer in model.layers if isinstance(layer, layers.MultiHeadAttention))
    assert (layer.num_heads, layer.key_dim) == (4, width)
    assert layer.name == name or not name
    results = [model(inputs[0].numpy())]
    assert_float32_rounds_alike(results, program.run(*inputs), double, "Keras file")


@pytest.mark.slow
@pytest.mark.parametrize("case", RECURRENT)
def test_nothing_moves_between_recurrent_layers_and_their_neighbors(case):
    """Keras' layers transpose what they read and write step by step; that is all there is."""
    module, layers, *inputs = RECURRENT[case]
    plan = assert_plan_is_exact(captured(module, *inputs), inputs)
    assert not plan.movements
    assert transposes(plan) == 2 * layers


@pytest.mark.slow
def test_recurrent_layers_are_captured_whole():
    """Traced step by step, as torch.export does by itself, this takes minutes."""
    program = capture(nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True).eval(), [torch.randn(2, 300, 6)])
    assert program.fixed_batch is None
    assert len(program.graph.find_nodes(op="call_function", target=torch.ops.aten.lstm.input)) == 1


class EveryCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.gru, self.rnn = nn.GRU(10, 4, batch_first=True), nn.RNN(4, 3, bias=False, batch_first=True)

    def forward(self, x):
        return self.rnn(self.gru(self.lstm(x)[0])[0])[0]


@pytest.mark.slow
def test_onnx_weights_of_recurrent_layers_are_accounted_for(tmp_path):
    """The exporter joins, reorders and renames them."""
    report = converter.convert(EveryCell().eval(), to=["onnx"], output=tmp_path / "m.onnx", input_shapes=["1,7,6"])
    assert report.status == "verified"


def test_a_weight_with_two_gates_exchanged_is_not_explained():
    program = captured(nn.LSTM(6, 5, batch_first=True), (2, 3, 6))
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.lstm.input)
    i, f, g, o = program.tensor(node.args[2][0]).detach().numpy().reshape(4, 5, 6)
    right, wrong = np.concatenate([i, o, f, g])[None], np.concatenate([i, f, g, o])[None]
    found = recurrent_weights(program, {"right": right, "wrong": wrong})
    assert list(found) == ["right"]
    assert found["right"].sources == (node.args[2][0].target,)
