"""Numbers that a known layer keeps about its own tensors, brought in line with their shapes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def sync_attributes(module: nn.Module) -> None:
    """Set ``in_channels``, ``num_features`` and the like of one layer to what its tensors now say."""
    weight = getattr(module, "weight", None)
    if isinstance(module, _ConvNd):
        _sync_convolution(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        known = weight if weight is not None else module.running_mean
        if known is not None:
            module.num_features = known.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and isinstance(weight, Tensor):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and isinstance(weight, Tensor):
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.MultiheadAttention):
        _sync_attention(module)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = module.weight.shape


def _sync_attention(module: nn.MultiheadAttention) -> None:
    module.embed_dim = module.out_proj.weight.shape[1]
    module.head_dim = module.embed_dim // module.num_heads
    same = module._qkv_same_embed_dim
    module.kdim = module.embed_dim if same else module.k_proj_weight.shape[1]
    module.vdim = module.embed_dim if same else module.v_proj_weight.shape[1]


def _sync_convolution(module: _ConvNd) -> None:
    shape = module.weight.shape
    read_dim, made_dim = (0, 1) if module.transposed else (1, 0)
    if 1 < module.groups == module.in_channels and (module.transposed or shape[1] == 1):  # one group a channel
        multiplier = module.out_channels // module.groups
        module.groups = shape[0] if module.transposed else shape[0] // multiplier
    module.in_channels = shape[read_dim] if module.transposed else shape[read_dim] * module.groups
    module.out_channels = shape[made_dim] * module.groups if module.transposed else shape[made_dim]
