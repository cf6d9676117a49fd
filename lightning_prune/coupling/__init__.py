"""Dependency groups: which channels must be removed together, found by following channel ids through a forward pass.

How ``find_coupling`` works:

1. Every index of every dimension of every parameter and buffer gets a number, its *channel id* (``symbols``).
2. A copy of the network, on the meta device where possible, runs a forward pass under a ``TorchDispatchMode``
   (``tracing``).
3. Each dimension of each tensor of the pass carries the ids of its channels as a *label*, or None for batch, space and
   tokens.
4. After every ATen operation the operation's *rule* labels the result, and ties ids that must be removed together
   (``rules``).
5. Channels that cannot be removed are *frozen* with a reason: outputs of the network, indexed channels, operations
   without a rule.
6. Integers of the code (shapes, attributes such as ``num_heads``) are traced as well, so that sizes which must stay
   equal and attributes which must follow a width are known as equations.
7. If train mode runs other operations than eval mode, a second pass in train mode adds its ties.
8. Connected components of the ties are *units*; units in the same dimensions of the same tensors are interchangeable
   and form a *group* (``grouping``).
9. Groups whose sizes the equations couple form a *bundle*, which shrinks in fixed proportions.
10. The result, a ``Coupling``, also expresses every size, parameter count and MAC count as a function of the removed
    units.

Packages import one way: ``symbols`` ← ``tracing`` ← ``rules``, ``grouping`` ← ``analysis``.
"""

from lightning_prune.coupling.analysis import find_coupling
from lightning_prune.coupling.groups import Activation, Bundle, Coupling, Group, Member, Passes, PredictedShape
from lightning_prune.coupling.symbols.sizes import LinearDim

__all__ = [
    "Activation",
    "Bundle",
    "Coupling",
    "Group",
    "LinearDim",
    "Member",
    "Passes",
    "PredictedShape",
    "find_coupling",
]
