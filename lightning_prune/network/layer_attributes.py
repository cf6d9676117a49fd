"""Synchronizes the size attributes of PyTorch's layers with the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lightning_prune.network.tensors import named_modules


def sync_changed_layers(module: nn.Module, changed: AbstractSet[int]) -> None:
    """Synchronize the layers that own a changed tensor, or compute a weight from one.

    Args:
        module: The network.
        changed: Ids of the tensors whose shapes have changed.
    """
    for _, owner in named_modules(module):
        if isinstance(owner, torch.jit.ScriptModule):  # its shapes cannot change
            continue
        computed = owner._modules.get("parametrizations")
        below = computed.parameters() if isinstance(computed, nn.ModuleDict) else ()
        tensors = (*owner._parameters.values(), *owner._buffers.values(), *below)
        if not changed.isdisjoint(map(id, tensors)):
            sync_attributes(owner)


def sync_attributes(module: nn.Module) -> None:
    """Set ``in_channels``, ``num_features`` and similar attributes of one layer to the shapes of its tensors."""
    weight = _weight(module)
    if isinstance(module, nn.RNNBase):
        _sync_recurrent(module)
    elif isinstance(module, nn.RNNCellBase):
        module.input_size = module.weight_ih.shape[1]
        module.hidden_size = module.weight_hh.shape[1]
    elif isinstance(module, nn.MultiheadAttention):
        _sync_attention(module)
    elif isinstance(module, _NormBase):
        known = weight if weight is not None else module.running_mean
        if known is not None:
            module.num_features = known.shape[0]
    elif weight is None:
        return
    elif isinstance(module, _ConvNd):
        _sync_convolution(module, weight)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = weight.shape
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:  # a group for each channel
            module.num_groups = weight.shape[0]
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif type(module).__name__ == "DeformConv2d":
        vars(module).update(out_channels=weight.shape[0], in_channels=weight.shape[1] * vars(module)["groups"])


def _weight(module: nn.Module) -> Tensor | None:
    """The weight of a layer, or the tensor from which a hook of ``torch.nn.utils`` will compute it."""
    own = module._parameters
    for name in ("weight", "weight_orig", "weight_v"):
        if own.get(name) is not None:
            return own[name]
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def _sync_attention(module: nn.MultiheadAttention) -> None:
    module.embed_dim = module.out_proj.weight.shape[1]
    module.head_dim = module.embed_dim // module.num_heads
    same = module._qkv_same_embed_dim
    module.kdim = module.embed_dim if same else module.k_proj_weight.shape[1]
    module.vdim = module.embed_dim if same else module.v_proj_weight.shape[1]


def _sync_convolution(module: _ConvNd, weight: Tensor) -> None:
    shape = weight.shape
    read_dim, made_dim = (0, 1) if module.transposed else (1, 0)
    if 1 < module.groups == module.in_channels and (module.transposed or shape[1] == 1):  # depthwise
        multiplier = module.out_channels // module.groups
        module.groups = shape[0] if module.transposed else shape[0] // multiplier
    module.in_channels = shape[read_dim] if module.transposed else shape[read_dim] * module.groups
    module.out_channels = shape[made_dim] * module.groups if module.transposed else shape[made_dim]


_GATES = {"LSTM": 4, "GRU": 3}


def _sync_recurrent(module: nn.RNNBase) -> None:
    weights = module._parameters
    from_input, projection = weights["weight_ih_l0"], weights.get("weight_hr_l0")
    assert from_input is not None
    module.input_size = from_input.shape[1]
    module.hidden_size = from_input.shape[0] // _GATES.get(module.mode, 1)
    if projection is not None:
        module.proj_size = projection.shape[0]
    module.flatten_parameters()  # contiguous memory for cuDNN; no effect elsewhere
