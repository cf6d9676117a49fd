"""Networks of libraries that people train with Lightning, with random weights and small where that can be chosen."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Build = Callable[[], tuple[nn.Module, Any]]  # a network and an example of its input

VOCABULARY, TOKENS = 99, 12
SMALL_FIRST = (  # words in names of timm, for the smaller networks of a family
    "atto", "femto", "pico", "nano", "zepto", "xxs", "xxtiny", "tiny", "xs", "_0", "b0", "_t0", "_s0", "small", "18",
    "lite0", "a0", "_s", "_ti", "c1", "test",
)  # fmt: skip
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = TEXT | {"num_key_value_heads": 2}
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
STAGES = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
SEQUENCES = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip


def networks() -> dict[str, dict[str, Build]]:
    """Builders by name, by library; libraries that are not installed are left out."""
    found = {"timm": timm, "transformers": transformers, "segmentation_models_pytorch": segmentation, "monai": monai}
    return {name: builders() for name, builders in found.items() if importlib.util.find_spec(name)}


def tokens() -> Tensor:
    return torch.randint(3, VOCABULARY, (2, TOKENS))


def pixels(size: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, size, size)}


# ---- timm


def timm() -> dict[str, Build]:
    """A small network of each of its modules."""
    from timm import list_models
    from timm.models import model_entrypoint

    families = defaultdict(list)
    for name in list_models():
        families[model_entrypoint(name).__module__].append(name)
    return {
        name: partial(timm_network, name) for name in sorted(min(names, key=smallness) for names in families.values())
    }


def smallness(name: str) -> tuple[int, int, str]:
    """What names sort by, the smaller networks first."""
    rank = next((rank for rank, word in enumerate(SMALL_FIRST) if word in name), len(SMALL_FIRST))
    return rank, len(name), name


def timm_network(name: str) -> tuple[nn.Module, Tensor]:
    """On images of 128 pixels, where it takes them."""
    from timm import create_model

    network = create_model(name, pretrained=False, num_classes=10).eval()
    default: int = network.pretrained_cfg["input_size"][-1]
    for size in (min(default, 128), default):
        try:
            with torch.no_grad():
                network(torch.randn(1, 3, size, size))
        except Exception:
            continue
        return network, torch.randn(2, 3, size, size)
    raise ValueError(f"{name} runs on no images of {default} pixels")


# ---- transformers


def transformers() -> dict[str, Build]:
    """Encoders, decoders and both, of text, images and sound, in two layers."""
    return {
        **{f"{kind} classifier": partial(of_transformers, kind, "ForSequenceClassification", config, text_input)
           for kind, config in CLASSIFIERS.items()},
        **{f"{kind} language model": partial(of_transformers, kind, "ForCausalLM", config, text_input)
           for kind, config in LANGUAGE_MODELS.items()},
        **{kind: partial(of_transformers, kind, head, config, inputs)
           for kind, (head, config, inputs) in OTHERS.items()},
    }  # fmt: skip


def of_transformers(
    kind: str, head: str, config: dict[str, Any], inputs: Callable[[], dict[str, Tensor]]
) -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers

    cls = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(kind, kind + head))
    own = {name: value() if callable(value) else value for name, value in config.items()}
    return cls(getattr(transformers, f"{kind}Config")(**own)), inputs()


def text_input() -> dict[str, Tensor]:
    return {"input_ids": tokens()}


def both_inputs() -> dict[str, Tensor]:
    return {"input_ids": tokens(), "decoder_input_ids": tokens()}


def resnet_stages() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(**STAGES, out_features=["stage4"])


CLASSIFIERS: dict[str, dict[str, Any]] = {
    "Bert": TEXT, "Roberta": TEXT, "DebertaV2": TEXT, "Albert": {"embedding_size": 16, **TEXT},
    "Electra": {"embedding_size": 16, **TEXT},
    "DistilBert": {
        "vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
        "max_position_embeddings": 64,
    },
}  # fmt: skip
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "GPT2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "GPTNeoX": TEXT, "Phi": TEXT, "Llama": GROUPED, "Mistral": GROUPED, "Qwen2": GROUPED,
    "Qwen3": {"head_dim": 8, **GROUPED}, "Gemma": {"head_dim": 8, **GROUPED},
    "Mixtral": {"num_local_experts": 4, **GROUPED},
    "OPT": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32,
    },
    "Mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
}  # fmt: skip
OTHERS: dict[str, tuple[str, dict[str, Any], Callable[[], dict[str, Tensor]]]] = {
    "T5": (
        "ForConditionalGeneration",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}, both_inputs,
    ),
    "Bart": ("ForConditionalGeneration", SEQUENCES | {"max_position_embeddings": 64}, both_inputs),
    "Whisper": (
        "ForConditionalGeneration",
        SEQUENCES | {"num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": 64, "pad_token_id": 0,
                     "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        lambda: {"input_features": torch.randn(2, 16, 100), "decoder_input_ids": tokens()},
    ),
    "ViT": ("ForImageClassification", VISION | {"num_labels": 10}, partial(pixels, 32)),
    "DeiT": ("ForImageClassification", VISION | {"num_labels": 10}, partial(pixels, 32)),
    "Swin": (
        "ForImageClassification",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        partial(pixels, 32),
    ),
    "ConvNext": (
        "ForImageClassification", {name: STAGES[name] for name in ("hidden_sizes", "depths")}, partial(pixels, 64)
    ),
    "ResNet": ("ForImageClassification", STAGES, partial(pixels, 64)),
    "MobileViT": (
        "ForImageClassification",
        {"hidden_sizes": [24, 32, 48], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 64], "image_size": 64},
        partial(pixels, 64),
    ),
    "Segformer": (
        "ForSemanticSegmentation",
        {"hidden_sizes": [16, 32, 40, 48], "depths": [1, 1, 1, 1], "num_labels": 5, "decoder_hidden_size": 32},
        partial(pixels, 64),
    ),
    "CLIP": (
        "Model", {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16},
        lambda: {"input_ids": tokens(), **pixels(32)},
    ),
    "Wav2Vec2": (
        "ForSequenceClassification",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3,
         "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
        lambda: {"input_values": torch.randn(2, 2000)},
    ),
    "Detr": (
        "ForObjectDetection",
        {"backbone_config": resnet_stages, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
         "num_queries": 5},
        partial(pixels, 64),
    ),
}  # fmt: skip


# ---- segmentation


def segmentation() -> dict[str, Build]:
    """Every decoder on a ResNet-18, and U-Nets on other encoders."""
    decoders = (
        "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet",
        "Segformer",
    )  # fmt: skip
    encoders = "mobilenet_v2", "efficientnet-b0", "timm-mobilenetv3_small_075", "mit_b0", "vgg11_bn", "densenet121"
    kinds = [*((decoder, "resnet18", 128) for decoder in decoders), *(("Unet", encoder, 64) for encoder in encoders)]
    return {f"{decoder} on {encoder}": partial(segmenter, decoder, encoder, size) for decoder, encoder, size in kinds}


def segmenter(decoder: str, encoder: str, size: int) -> tuple[nn.Module, Tensor]:
    import segmentation_models_pytorch

    cls = getattr(segmentation_models_pytorch, decoder)
    return cls(encoder, encoder_weights=None, classes=3), torch.randn(2, 3, size, size)


def monai() -> dict[str, Build]:
    """U-Nets and their kin, of images and volumes."""
    kinds: dict[str, tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
        "UNet": ((3, 1, 2, (8, 16, 32), (2, 2)), {"num_res_units": 2}, (32, 32, 32)),
        "BasicUNet": ((2, 1, 2, (8, 8, 16, 32, 64, 8)), {}, (64, 64)),
        "DynUNet": ((2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2]), {"filters": [8, 16, 32]}, (64, 64)),
        "SegResNet": ((2, 8, 1, 2), {}, (64, 64)),
        "UNETR": (
            (1, 2, (32, 32, 32)),
            {"feature_size": 8, "hidden_size": 48, "mlp_dim": 64, "num_heads": 4},
            (32,) * 3,
        ),
        "SwinUNETR": ((), {"in_channels": 1, "out_channels": 2, "feature_size": 12, "spatial_dims": 2}, (64, 64)),
        "VNet": ((2, 1, 2), {}, (64, 64)),
        "AttentionUnet": ((2, 1, 2, (8, 16, 32), (2, 2)), {}, (64, 64)),
        "DenseNet121": ((2, 1, 2), {}, (64, 64)),
        "AutoEncoder": ((2, 1, 1, (8, 16), (2, 2)), {}, (32, 32)),
    }
    return {name: partial(medical, name, *kind) for name, kind in kinds.items()}


def medical(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], size: tuple[int, ...]
) -> tuple[nn.Module, Tensor]:
    from monai.networks import nets

    return getattr(nets, name)(*args, **kwargs), torch.randn(2, 1, *size)
