"""Helpers for any ``nn.Module``, unrelated to pruning: named tensors, copies, example inputs, sizes and timing."""

from lightning_prune.network.averages import averages_in, copies_held_by, frozen_copies, held_by, source_of
from lightning_prune.network.copies import copy_of
from lightning_prune.network.example_input import Example, collecting_later, quiet_pass, run_on_copy
from lightning_prune.network.layer_attributes import sync_attributes, sync_changed
from lightning_prune.network.layer_outputs import channel_dim, is_recurrent, projects_in_one
from lightning_prune.network.module_calls import ModuleCall, shapes_of, watch
from lightning_prune.network.names import is_inside
from lightning_prune.network.sharded import Whole, is_sharded, own_part, part_like, reshard, whole
from lightning_prune.network.size import Size, compare_latency, count_macs, evaluating, measure, nonzero_in
from lightning_prune.network.tensors import named_modules, named_tensors, tensors_in
from lightning_prune.network.timing import Clock, device_of, time_network, time_ratio, timed_layers

__all__ = [
    "Clock",
    "Example",
    "ModuleCall",
    "Size",
    "Whole",
    "averages_in",
    "channel_dim",
    "collecting_later",
    "compare_latency",
    "copies_held_by",
    "copy_of",
    "count_macs",
    "device_of",
    "evaluating",
    "frozen_copies",
    "held_by",
    "is_inside",
    "is_recurrent",
    "is_sharded",
    "measure",
    "named_modules",
    "named_tensors",
    "nonzero_in",
    "own_part",
    "part_like",
    "projects_in_one",
    "quiet_pass",
    "reshard",
    "run_on_copy",
    "shapes_of",
    "source_of",
    "sync_attributes",
    "sync_changed",
    "tensors_in",
    "time_network",
    "time_ratio",
    "timed_layers",
    "watch",
    "whole",
]
