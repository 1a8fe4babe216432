"""Folders and architectures of Hugging Face's `transformers`: config.json and weights, from local files only."""

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from converter.checkpoint.confinement import confined_to
from converter.checkpoint.import_isolation import installed_code
from converter.checkpoint.model_folder import CONFIG, homes
from converter.checkpoint.shards import Weights, read_json, refuse_links
from converter.checkpoint.state_dict import LARGEST_EXPANSION, changed_to_float32, dropped_prefix, unfit, unused_note
from converter.checkpoint.state_dict_prefixes import best_names
from converter.compat.replaced import replaced
from converter.errors import CheckpointError, ConversionError, Note, UsageError

TRUST_KEYWORD = "hf"  # --trust hf
HOME = "hf"  # --model hf:FOLDER
COUNTS = re.compile(r"layers?|depths?|blocks?|heads?|experts?|stages?|repeats?|modules?|scales?|levels?")
HIGHEST_COUNT = 4096
# Entries of a config that would download something, or change how the model computes but not its result.
DROPPED = re.compile(
    r"_?_?attn_implementation.*|_?_?experts_implementation.*|_name_or_path|name_or_path|torch_dtype|dtype|"
    r"transformers_version|trust_remote_code|use_pretrained_backbone|_commit_hash|transformers_weights|__.*"
)

# What a library looks up by its name: an architecture, never a place.
NAMES = ("architecture", "backbone", "backbone_model_type", "timm_model_name", "timm_backbone")
NAME = re.compile(r"[A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")
OF_BACKBONES = ("model_args", "backbone_kwargs", "timm_model_args")  # keyword arguments of timm.create_model
_ARGUMENTS = """
    aa_layer act_layer always_partition attn_drop_rate attn_mlp_ratio attn_ratio avg_down base_width bias block_args
    cardinality channels class_token conv_bias conv_ratio depth depths dim dim_mul dims distillation
    down_kernel_size down_patch_size down_stride downsample_expand_ratios downsamples drop drop_block_rate
    drop_path_rate drop_rate dropout dynamic_img_pad dynamic_img_size embed_dim embed_dims encoder_pool
    expand_groups expand_ratio fc_norm features_only final_norm fix_init fix_stem fused_conv global_pool
    global_pos_size groups head_dim head_hidden_size head_init_scale head_mul head_norm_first head_widths heads
    img_size in_channels in_chans in_features init_values kernel_size kernel_sizes key_dim layer_scale_init_value
    layers ls_init_value merge_size mlp_ratio mlp_ratios no_embed_class norm_eps norm_layer num_classes num_features
    num_heads num_init_features num_kv_heads out_features out_indices output_stride pad_type patch_drop_rate
    patch_kernel patch_padding patch_size patch_stride pool_type pos_drop_rate pre_norm pretrained_window_sizes
    proj_drop_rate q_pool q_stride qk_norm qkv_bias ref_feat_shape reg_tokens rope_temperature scale_mlp se_from_exp
    se_layer sr_ratios stages stem_chs stem_expand_ratio stem_norm stem_size stem_type strict_img_size swiglu_mlp
    token_mixers use_abs_pos_emb use_fc_norm use_lab use_pos_embed use_post_norm weight_init width width_factor
    widths window_ratio window_size zero_init_last
"""
DESCRIBES = frozenset(_ARGUMENTS.split())


def build_from_config(folder: Path, *, trusted: bool = False) -> nn.Module:
    """Build the architecture that a folder's config.json names, with random weights.

    Raises:
        CheckpointError: config.json is damaged, requires code, or names a model that cannot be built.
        UsageError: `transformers` is not installed.
    """
    kind, config, _ = _architecture(folder, trusted)
    with _offline(folder), _confined(folder, trusted):
        module: nn.Module = kind(config)
    return module


def load_folder(folder: Path, weights: Weights, size: int, *, trusted: bool = False) -> tuple[nn.Module, list[Note]]:
    """Return the model of a folder with its weights, and notes.

    transformers itself loads the weights, because it knows their older names, tied weights, and the prefix of a class
    with a head. Weights that the class does not use are noted.

    Args:
        weights: of the folder's files.
        size: of these files, in bytes.

    Raises:
        CheckpointError: as for `build_from_config`; or weights are missing, or have other shapes.
        UsageError: `transformers` is not installed.
    """
    module, notes, missing, mismatched = _with_weights(folder, weights, size, trusted)
    if missing or mismatched:
        name = type(module).__name__
        fix = f"Check that config.json belongs to these weights. Its architecture is {name}; name another with --model."
        raise unfit(missing, [], mismatched, where=str(folder), fix=fix)
    return module, [Note(f"Built {type(module).__name__} from {CONFIG}.", code="PTC1512"), *notes]


def load_into_folder(folder: Path, weights: Weights, size: int) -> tuple[nn.Module, list[Note]] | None:
    """Return the architecture of a folder with weights from elsewhere, and notes; None if they do not fit.

    A wrapper's prefix of the keys is dropped if they do not fit otherwise.

    Raises:
        CheckpointError, UsageError: as for `load_folder`.
    """
    module, notes, missing, mismatched = _with_weights(folder, weights, size, trusted=False)
    renamed, dropped = best_names(weights, module.state_dict().keys())
    if missing and dropped:
        module, notes, missing, mismatched = _with_weights(folder, renamed, size, trusted=False)
        notes.insert(0, dropped_prefix(dropped))
    return None if missing or mismatched else (module, notes)


def _with_weights(
    folder: Path, weights: Weights, size: int, trusted: bool
) -> tuple[nn.Module, list[Note], list[str], list[str]]:
    """Return the model, notes, the missing keys, and the keys whose shapes differ."""
    kind, config, name = _architecture(folder, trusted)
    with _offline(folder), _confined(folder, trusted):
        with torch.device("meta"):
            outline = kind(config)
        _check_size(outline, size, folder)
        halves = sorted({value.dtype for value in weights.values() if _is_half(value)}, key=str)
        given = {key: value.float() if _is_half(value) else value for key, value in weights.items()}
        module, told = kind.from_pretrained(
            None,
            config=config,
            state_dict=given,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the caller refuses them
        )
    told = {key: sorted(_told(each) for each in value) for key, value in told.items() if isinstance(value, (set, list))}
    notes = [changed_to_float32(dtype) for dtype in halves]
    if unused := told.get("unexpected_keys"):
        notes.append(unused_note(unused, name))
    return module, notes, told.get("missing_keys", []), told.get("mismatched_keys", [])


def _told(key: Any) -> str:
    """Return a key as text, or the key and both shapes."""
    return key if isinstance(key, str) else " ".join(map(str, key))


def _is_half(value: torch.Tensor) -> bool:
    return value.is_floating_point() and value.dtype.itemsize < 4


def _architecture(folder: Path, trusted: bool) -> tuple[Any, Any, str]:
    """Return the class that config.json names, its config, and its name."""
    path = folder / CONFIG
    if not trusted:
        refuse_links(path)
    content = read_json(path)
    names = content.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        fix = 'Add the class, as in "architectures": ["BertModel"], or name what builds the model with --model.'
        raise CheckpointError("config.json does not name its architecture.", code="PTC1032", where=str(path), fix=fix)
    name = names[0]
    if not trusted:
        _refuse_code(content, path)
        _refuse_sources(content, path)
    if content.get("quantization_config"):
        fix = "Give the folder of the model in float32 or float16."
        raise CheckpointError("The weights are quantized.", code="PTC1033", where=str(path), fix=fix)
    _refuse_counts(content, path)
    transformers = _transformers(folder)
    if trusted and "auto_map" in content:
        return *_of_the_folder(transformers, folder, content), name
    try:
        kind: Any = getattr(transformers, name, None) if name.isidentifier() else None
        base = transformers.PreTrainedModel
    except (ImportError, RuntimeError) as error:  # transformers imports its parts on first use
        raise _unimportable(folder, error) from error
    config_class: Any = getattr(kind, "config_class", None)
    if not (isinstance(kind, type) and issubclass(kind, base) and config_class):
        fix = "Install the version of transformers that wrote it, or name what builds the model with --model."
        what = f"transformers {transformers.__version__} does not have a model {name!r}."
        raise CheckpointError(what, code="PTC1034", where=str(path), fix=fix)
    with _offline(folder), _confined(folder, trusted):
        config = config_class.from_dict(_plain(content))
        config.use_cache = False  # a converted model does not return past keys and values
    return kind, config, name


def _refuse_code(content: Any, path: Path) -> None:
    if any(name == "auto_map" for name, _ in _entries(content)):
        fix = (
            "Name its class, as in --model FOLDER/modeling_net.py:Net; or, if you trust its maker and its "
            f"code, add --trust {TRUST_KEYWORD}."
        )
        raise CheckpointError("config.json requires its own code (auto_map).", code="PTC1035", where=str(path), fix=fix)


def _confined(folder: Path, trusted: bool) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if trusted else confined_to(homes(folder))


def _refuse_sources(content: Any, path: Path, key: str = "") -> None:
    """Refuse what would make a library look for a model elsewhere: names that are places, other arguments of timm's."""
    if isinstance(content, dict):
        for name, value in content.items():
            if key in OF_BACKBONES and name not in DESCRIBES:
                raise _looks_elsewhere(path, f"{key}.{name}")
            _refuse_sources(value, path, key if key in OF_BACKBONES else name)
    elif isinstance(content, list):
        for value in content:
            _refuse_sources(value, path, key)
    elif isinstance(content, str) and key in (*OF_BACKBONES, *NAMES) and not NAME.fullmatch(content):
        raise _looks_elsewhere(path, f"{key} = {content!r:.80}")


def _looks_elsewhere(path: Path, what: str) -> CheckpointError:
    fix = f"Keep only entries that describe the architecture; or, if you trust its maker, add --trust {TRUST_KEYWORD}."
    what = f"config.json refers to something outside the folder: {what}."
    return CheckpointError(what, code="PTC1091", where=str(path), fix=fix)


def _entries(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value in a config with its key; items of a list have the key of the list."""
    for name, value in content.items() if isinstance(content, dict) else ((key, item) for item in content):
        yield name, value
        if isinstance(value, dict | list):
            yield from _entries(value, name)


def _refuse_counts(content: Any, path: Path) -> None:
    """Refuse excessive counts of the model's parts, which decide how long it takes to build."""
    for key, value in _entries(content):
        if isinstance(value, list) and len(value) > HIGHEST_COUNT:
            absurd = any(not isinstance(item, int | str | list) for item in value)
        else:
            absurd = isinstance(value, int | float) and bool(COUNTS.search(key)) and abs(value) > HIGHEST_COUNT
        if absurd:
            shown = f"a list of {len(value)}" if isinstance(value, list) else value
            raise CheckpointError(
                f"config.json has an invalid value: {key} = {shown}.",
                code="PTC1036",
                where=str(path),
                fix="Copy or download it again.",
            )


def _plain(content: Any) -> Any:
    """Return a config without entries that would download something or are chosen at load."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items() if not DROPPED.fullmatch(key)} | (
            {"use_pretrained_backbone": False} if "use_pretrained_backbone" in content else {}
        )
    return [_plain(value) for value in content] if isinstance(content, list) else content


def _check_size(outline: nn.Module, size: int, folder: Path) -> None:
    elements = sum(tensor.numel() for tensor in (*outline.parameters(), *outline.buffers()))
    if elements > LARGEST_EXPANSION * size:
        what = f"config.json describes {elements} elements, but the files have {size} bytes."
        raise CheckpointError(what, code="PTC1037", where=str(folder), fix="Copy or download the folder again.")


def _transformers(folder: Path) -> ModuleType:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with _offline(folder), installed_code():
            return importlib.import_module("transformers")
    except (ImportError, RuntimeError) as error:
        raise _unimportable(folder, error) from error


def _unimportable(folder: Path, error: Exception) -> UsageError:
    missing = isinstance(error, ModuleNotFoundError) and error.name == "transformers"
    fix = (
        "Run pip install transformers."
        if missing
        else ("Install a transformers and a torchvision that match this torch.")
    )
    return UsageError(f"transformers cannot be imported: {error}", code="PTC1038", where=str(folder), fix=fix)


def _of_the_folder(transformers: ModuleType, folder: Path, content: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the class and config from the folder's own Python files, which the user trusts."""
    table = content["auto_map"]
    names = [name for name in table if name != "AutoConfig"] if isinstance(table, dict) else []
    if not names:
        raise CheckpointError(
            "auto_map does not name a model.", code="PTC1039", where=str(folder / CONFIG), fix="Name it with --model."
        )
    dynamic = importlib.import_module("transformers.dynamic_module_utils")
    with _offline(folder):
        options = {"trust_remote_code": True, "local_files_only": True}
        config = transformers.AutoConfig.from_pretrained(str(folder), **options)
        config.use_cache = False
        return dynamic.get_class_from_dynamic_module(table[names[0]], str(folder), local_files_only=True), config


@contextlib.contextmanager
def _offline(folder: Path) -> Iterator[None]:
    """Prevent downloads, and turn errors of transformers into errors that name the folder."""
    if "transformers" in sys.modules:
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
    logger = logging.getLogger("transformers")
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(patch.dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1"))
            if importlib.util.find_spec("huggingface_hub") is not None:
                constants = importlib.import_module("huggingface_hub.constants")
                stack.enter_context(replaced(constants, HF_HUB_OFFLINE=True))
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
            yield
    except (ConversionError, ImportError):
        raise
    except Exception as error:  # an untrusted config can make any class raise anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:300] if lines else "without a message"
        what = f"transformers cannot build the model: {type(error).__name__}: {reason}"
        fix = "Check that config.json is complete and matches the installed version of transformers."
        raise CheckpointError(what, code="PTC1040", where=str(folder / CONFIG), fix=fix) from error
