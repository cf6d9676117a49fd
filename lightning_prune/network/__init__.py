"""Helpers for any ``nn.Module``, unrelated to pruning: named tensors, copies, example inputs, sizes and timing."""

from lightning_prune.network.averages import attribute_values, averages_in, copies_held_by, frozen_copies, source_of
from lightning_prune.network.copies import copy_of
from lightning_prune.network.example_input import Example, isolated_forward, run_on_copy, without_garbage_collection
from lightning_prune.network.layer_attributes import sync_attributes, sync_changed_layers
from lightning_prune.network.layer_outputs import channel_dim, has_packed_projection, is_recurrent
from lightning_prune.network.module_calls import ModuleCall, record_module_calls, shapes_of
from lightning_prune.network.module_modes import eval_mode
from lightning_prune.network.names import is_inside
from lightning_prune.network.pass_latency import compare_latency, latency
from lightning_prune.network.sharded import FullTensors, full_tensor, is_sharded, local_tensor, reshard, shard_like
from lightning_prune.network.size import Size, count_macs, measure, nonzero_in
from lightning_prune.network.tensors import named_modules, named_tensors, tensors_in
from lightning_prune.network.timing import Clock, device_of, time_network, time_ratio, timed_layers

__all__ = [
    "Clock",
    "Example",
    "FullTensors",
    "ModuleCall",
    "Size",
    "attribute_values",
    "averages_in",
    "channel_dim",
    "compare_latency",
    "copies_held_by",
    "copy_of",
    "count_macs",
    "device_of",
    "eval_mode",
    "frozen_copies",
    "full_tensor",
    "has_packed_projection",
    "is_inside",
    "is_recurrent",
    "is_sharded",
    "isolated_forward",
    "latency",
    "local_tensor",
    "measure",
    "named_modules",
    "named_tensors",
    "nonzero_in",
    "record_module_calls",
    "reshard",
    "run_on_copy",
    "shapes_of",
    "shard_like",
    "source_of",
    "sync_attributes",
    "sync_changed_layers",
    "tensors_in",
    "time_network",
    "time_ratio",
    "timed_layers",
    "without_garbage_collection",
]
