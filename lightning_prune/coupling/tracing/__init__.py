"""The traced forward pass: dispatch and function modes, and the information they keep for each tensor."""

from lightning_prune.coupling.tracing.python_calls import Calls, Literals, WithoutDropout
from lightning_prune.coupling.tracing.trace import ActivationSite, Labels, Part, Trace
from lightning_prune.coupling.tracing.tracer import Tracer

__all__ = ["ActivationSite", "Calls", "Labels", "Literals", "Part", "Trace", "Tracer", "WithoutDropout"]
