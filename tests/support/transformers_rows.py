"""Encoders of Hugging Face's transformers, small and random: a name, what builds it, and its inputs by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WORDS, LENGTH = 50, 9
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
TEXT = SMALL | {"vocab_size": WORDS, "max_position_embeddings": 16}
IMAGES = SMALL | {"image_size": 32, "patch_size": 8}
T5 = {"vocab_size": WORDS, "d_model": 24, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_heads": 2}
CLIP_TEXT = TEXT | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": WORDS - 1}
WAVES = {"conv_dim": [12, 12, 12], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3], "num_feat_extract_layers": 3}
WAVES |= SMALL | {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0}
WHISPER = {
    "vocab_size": WORDS, "d_model": 24, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "num_mel_bins": 10,
    "max_source_positions": 20, "max_target_positions": 8, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
    "decoder_start_token_id": 2,
}  # fmt: skip
SEGFORMER = {
    "depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 20], "num_attention_heads": [1, 2, 2, 2],
    "sr_ratios": [4, 2, 1, 1], "decoder_hidden_size": 16, "num_labels": 3,
}  # fmt: skip
DETR = {
    "use_pretrained_backbone": False, "use_timm_backbone": False, "backbone": None, "d_model": 24, "encoder_layers": 1,
    "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "num_queries": 5, "num_labels": 3,
}  # fmt: skip
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}


class Named(nn.Module):
    """A model called by the names of its inputs, which stand in another order in its own forward."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(**dict(zip(self.names, inputs, strict=True)))


def made(model: str, config: str, **options: Any) -> Callable:
    return lambda package: getattr(package, model)(getattr(package, config)(**options))


def tokens() -> Tensor:
    return torch.randint(3, WORDS, (2, LENGTH))


def mask() -> Tensor:
    """Of 0 and 1: what stands behind the end of the second example is not attended to."""
    return (torch.arange(LENGTH) < torch.tensor([[LENGTH], [6]])).long()


def image(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size)


def read(names: str = "input_ids attention_mask") -> dict[str, Callable[[], Tensor]]:
    return {name: {"input_ids": tokens, "attention_mask": mask, "pixel_values": image}[name] for name in names.split()}


def whisper_encoder(package: Any) -> nn.Module:
    return package.WhisperModel(package.WhisperConfig(**WHISPER)).get_encoder()


def detr(package: Any) -> nn.Module:
    backbone = package.ResNetConfig(out_features=["stage4"], **RESNET)
    return package.DetrForObjectDetection(package.DetrConfig(backbone_config=backbone, **DETR))


ENCODERS: dict[str, tuple[Callable, dict[str, Callable[[], Tensor]]]] = {
    "BERT": (made("BertModel", "BertConfig", **TEXT), read()),
    "BERT, words masked": (made("BertForMaskedLM", "BertConfig", **TEXT), read()),
    "RoBERTa": (made("RobertaModel", "RobertaConfig", **TEXT | {"max_position_embeddings": 20}), read()),
    "ALBERT": (made("AlbertModel", "AlbertConfig", embedding_size=12, **TEXT), read()),
    "DeBERTa v2": (
        made(
            "DebertaV2Model", "DebertaV2Config", relative_attention=True, pos_att_type=["p2c", "c2p"],
            position_buckets=4, **TEXT,
        ),
        read(),
    ),
    "ModernBERT": (
        made(
            "ModernBertModel", "ModernBertConfig", pad_token_id=0, local_attention=4, global_attn_every_n_layers=2,
            **TEXT | {"max_position_embeddings": 32},
        ),
        read(),
    ),
    "T5": (made("T5EncoderModel", "T5Config", relative_attention_num_buckets=8, **T5), read()),
    "T5, gated": (made("T5EncoderModel", "T5Config", feed_forward_proj="gated-gelu", **T5), read("input_ids")),
    "ViT": (made("ViTModel", "ViTConfig", **IMAGES), read("pixel_values")),
    "BEiT": (made("BeitModel", "BeitConfig", use_relative_position_bias=True, **IMAGES), read("pixel_values")),
    "DINOv2": (
        made(
            "Dinov2Model", "Dinov2Config", image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2,
            num_attention_heads=2, mlp_ratio=2,
        ),
        read("pixel_values"),
    ),
    "CLIP": (
        made("CLIPModel", "CLIPConfig", text_config=CLIP_TEXT, vision_config=IMAGES, projection_dim=16),
        read("input_ids pixel_values"),
    ),
    "CLIP, text": (
        made("CLIPTextModelWithProjection", "CLIPTextConfig", projection_dim=16, **CLIP_TEXT), read(),
    ),
    "Segformer": (
        made("SegformerForSemanticSegmentation", "SegformerConfig", **SEGFORMER), {"pixel_values": lambda: image(64)},
    ),
    "DETR": (detr, {"pixel_values": lambda: image(64)}),
    "Whisper, encoder": (whisper_encoder, {"input_features": lambda: torch.randn(2, 10, 40)}),
    "wav2vec 2": (made("Wav2Vec2Model", "Wav2Vec2Config", **WAVES), {"input_values": lambda: torch.randn(2, 400)}),
    "GPT-2": (
        made(
            "GPT2LMHeadModel", "GPT2Config", vocab_size=WORDS, n_positions=16, n_embd=24, n_layer=2, n_head=2,
            use_cache=False,
        ),
        read("input_ids"),
    ),
}  # fmt: skip


def encoder(package: Any, name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """One of them, its weights random and large enough for every part to matter, and example inputs."""
    from sample_models.calibration import calibrate

    torch.manual_seed(0)
    build, inputs = ENCODERS[name]
    drawn = {name: draw() for name, draw in inputs.items()}
    model = Named(build(package).eval(), tuple(drawn))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.6 * parameter[0].numel() ** -0.5)
    return calibrate(model, *drawn.values()), drawn
