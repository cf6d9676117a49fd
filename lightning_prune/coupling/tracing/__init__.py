"""The traced forward pass: dispatch and function modes, and the information they keep for each tensor.

Imports ``symbols``, but not ``rules``: the tracer is given a function that returns the rule of an operation.
"""

from lightning_prune.coupling.tracing.python_calls import CallRecorder, Literals, WithoutDropout
from lightning_prune.coupling.tracing.trace import ActivationSite, Labels, Part, Trace
from lightning_prune.coupling.tracing.tracer import Tracer

__all__ = ["ActivationSite", "CallRecorder", "Labels", "Literals", "Part", "Trace", "Tracer", "WithoutDropout"]
