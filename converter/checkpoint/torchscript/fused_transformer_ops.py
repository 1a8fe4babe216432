"""Replacements for the fused inference operators in traces of `nn.TransformerEncoderLayer`.

Batches come first, and nothing is masked.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def _unmasked(mask: Tensor | None) -> None:
    if mask is not None:
        raise NotImplementedError("a fused attention with a mask: trace the module with torch.enable_grad(), unfused")


def self_attention(
    x: Tensor, heads: int, qkv_weight: Tensor, qkv_bias: Tensor | None, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Compute the self-attention of (batch, length, channels)."""
    parts = F.linear(x, qkv_weight, qkv_bias).chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    joined = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return F.linear(joined, weight, bias)


def native_multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    _unmasked(mask)
    if need_weights or query is not key or key is not value:
        raise NotImplementedError("a fused attention that is not self-attention, or returns its weights")
    return self_attention(query, num_head, qkv_weight, qkv_bias, proj_weight, proj_bias), None


def transformer_encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    _unmasked(mask)

    def attended(x: Tensor) -> Tensor:
        return self_attention(x, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias)

    def fed_forward(x: Tensor) -> Tensor:
        inner = F.linear(x, ffn_weight_1, ffn_bias_1)
        return F.linear(F.gelu(inner) if use_gelu else torch.relu(inner), ffn_weight_2, ffn_bias_2)

    def first_norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def second_norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    if norm_first:
        x = src + attended(first_norm(src))
        return x + fed_forward(second_norm(x))
    x = first_norm(src + attended(src))
    return second_norm(x + fed_forward(x))
