"""Rows for the tables of rewrites: attention between projections, which Keras has a layer for, and what is none."""

import torch
import torch.nn.functional as F
from equivalence import Call
from torch import nn

TOKENS = (2, 5, 12)
attend = F.scaled_dot_product_attention


def parts(attended, **bias):
    """Four Linears on tokens of 12 features, 3 heads of 4; `attended` takes them and three tensors with heads."""
    linears = {name: nn.Linear(12, 12, **bias) for name in ("q", "k", "v")}
    return Call(attended, **linears, o=nn.Linear(12, 12, **bias), drop=nn.Dropout(0.25), norm=nn.LayerNorm(4))


def heads(x):
    return x.unflatten(-1, (3, 4)).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


def three(self, x):
    return heads(self.q(x)), heads(self.k(x)), heads(self.v(x))


def one_linear(self, x):
    q, k, v = self.qkv(x).reshape(x.shape[0], 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return self.proj(joined(attend(q, k, v)))


def heads_inside(self, x):
    """Features of one Linear in another order: width, then heads; and so is what the last one takes."""
    q, k, v = self.qkv(x).reshape(x.shape[0], 5, 4, 3, 3).permute(4, 0, 3, 1, 2)
    return self.proj(attend(q, k, v).permute(0, 2, 3, 1).flatten(2))


def by_hand(self, x):
    q, k, v = three(self, x)
    scores = self.drop((q @ k.mT / 2).softmax(-1))
    return self.o(joined(scores @ v))


def read(self, x):
    q, k, v = three(self, x)
    scores = (q * 0.5 @ k.mT).softmax(-1)
    return self.o(joined(scores @ v)) + scores.mean()


def heads_read(self, x):
    q, k, v = three(self, x)
    return self.o(joined(attend(q, k, v))) + q.mean()


def multi_head(**how):
    module = nn.MultiheadAttention(12, 3, batch_first=True)
    return Call(lambda self, x: self.mha(x[:, :3] * 2, x, x + 1, **how)[0], mha=module)


def packed(function):
    return Call(function, qkv=nn.Linear(12, 36), proj=nn.Linear(12, 12))


ATTENTION = "multi_head_attention"
# PyTorch turns and flattens what its own layer returns, which the plan has for nothing.
MULTI_HEAD_FIRES = {
    "three Linears": (parts(lambda self, x: self.o(joined(attend(*three(self, x))))), TOKENS, ATTENTION),
    "three Linears without bias": (
        parts(lambda self, x: self.o(joined(attend(*three(self, x)))), bias=False), TOKENS, ATTENTION,
    ),
    "one Linear": (packed(one_linear), TOKENS, ATTENTION),
    "one Linear, the heads its minor features": (packed(heads_inside), TOKENS, ATTENTION),
    "by hand, scaled behind, dropped in training": (parts(by_hand), TOKENS, ATTENTION),
    "by hand, scores that are read": (parts(read), TOKENS, f"{ATTENTION} mean add"),
    "called twice": (
        packed(lambda self, x: one_linear(self, one_linear(self, x) * 0.5)), TOKENS, f"{ATTENTION} mul {ATTENTION}",
    ),
    "on its own result": (
        packed(lambda self, x: one_linear(self, one_linear(self, x))), TOKENS, f"{ATTENTION} {ATTENTION}",
    ),
    "PyTorch's own layer on three tensors": (
        multi_head(need_weights=False), TOKENS,
        f"slice mul add {ATTENTION} transpose reshape reshape transpose",
    ),
    "PyTorch's own layer, which also returns its scores": (
        Call(lambda self, x: self.mha(x, x, x), mha=nn.MultiheadAttention(12, 3, batch_first=True)), TOKENS,
        f"{ATTENTION} transpose reshape reshape reshape reshape mean transpose",
    ),
}  # fmt: skip
MULTI_HEAD_LEAVES = {
    "a mask": (
        parts(lambda self, x: self.o(joined(attend(*three(self, x), torch.ones(5, 5).tril() > 0)))), TOKENS,
    ),
    "a causal one": (parts(lambda self, x: self.o(joined(attend(*three(self, x), is_causal=True)))), TOKENS),
    "another scale": (parts(lambda self, x: self.o(joined(attend(*three(self, x), scale=0.3)))), TOKENS),
    "as many heads of one feature as tokens, for whose biases Keras takes those of the tokens": (
        Call(
            lambda self, x: self.proj(joined(attend(*self.qkv(x).unflatten(-1, (3, 5, 1)).permute(2, 0, 3, 1, 4)))),
            qkv=nn.Linear(5, 15), proj=nn.Linear(5, 5),
        ),
        (2, 5, 5),
    ),
    "heads that are normalized": (
        parts(lambda self, x: self.o(joined(attend(self.norm(heads(self.q(x))), *three(self, x)[1:])))), TOKENS,
    ),
    "heads that are read": (parts(heads_read), TOKENS),
    "a Linear that is called elsewhere too": (packed(lambda self, x: one_linear(self, x) + self.proj(x)), TOKENS),
    "a Linear of two attentions": (
        parts(lambda self, x: self.o(joined(attend(*three(self, x)))) + self.v(joined(attend(*three(self, x))))),
        TOKENS,
    ),
    "keys that are values": (
        parts(lambda self, x: self.o(joined(attend(heads(self.q(x)), heads(self.k(x)), heads(self.k(x)))))), TOKENS,
    ),
    "a bias for some only": (
        Call(
            lambda self, x: self.o(joined(attend(*three(self, x)))), q=nn.Linear(12, 12, bias=False),
            k=nn.Linear(12, 12), v=nn.Linear(12, 12), o=nn.Linear(12, 12),
        ),
        TOKENS,
    ),
    "the softmax over queries": (
        parts(lambda self, x: self.o(joined((lambda q, k, v: (q @ k.mT / 2).softmax(-2) @ v)(*three(self, x))))),
        TOKENS,
    ),
    "tokens among themselves turned round": (
        parts(lambda self, x: self.o(joined(attend(*(h.flip(2) for h in three(self, x)))))), TOKENS,
    ),
    "time first": (Call(lambda self, x: self.mha(x, x, x)[0], mha=nn.MultiheadAttention(12, 3)), TOKENS),
    "the result not projected": (parts(lambda self, x: joined(attend(*three(self, x)))), TOKENS),
}  # fmt: skip
