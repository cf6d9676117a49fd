"""Import paths of earlier versions, which networks that were pickled as a whole still name.

Such a file is read by ``torch.load(path, weights_only=False)``, which imports the modules that it names. Only the names
that these files can contain are kept; everything else has its new path alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED: Mapping[str, Mapping[str, tuple[str, str]]] = {  # old module -> old name -> new module and name
    "lightning_prune.identity": {"Passthrough": ("lightning_prune.surgery.passthrough", "Passthrough")},
    "lightning_prune.manifest": {
        "_ManifestWriter": ("lightning_prune.checkpoint.state_dict_hooks", "ManifestWriter"),
        "_ShapeLoader": ("lightning_prune.checkpoint.state_dict_hooks", "ShapeLoader"),
    },
    "lightning_prune.dense": {
        "Dense": ("lightning_prune.checkpoint.as_built", "AsBuilt"),
        "Surroundings": ("lightning_prune.checkpoint.as_built", "Surroundings"),
    },
    "lightning_prune.statistics": {},  # a package; hooks of a network that was pickled during training
    "lightning_prune.statistics.activations": {
        "_Observer": ("lightning_prune.criteria.statistics.activation_averages", "_Observer")
    },
    "lightning_prune.statistics.activation_gradient": {
        "_Observer": ("lightning_prune.criteria.statistics.activation_gradient", "_Observer")
    },
    "lightning_prune.statistics.blocks": {
        "_Receiver": ("lightning_prune.criteria.statistics.block_changes", "_Receiver")
    },
}


class OldPaths(MetaPathFinder, Loader):
    """Finds the modules of ``MOVED``, and fills them with the names from their new places."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of an old module; None for all others."""
        is_package = any(name.startswith(f"{fullname}.") for name in MOVED)
        return ModuleSpec(fullname, self, is_package=is_package) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Import the names of an old module from their new places."""
        for name, (place, new_name) in MOVED[module.__name__].items():
            setattr(module, name, getattr(import_module(place), new_name))


def keep_old_paths() -> None:
    """Let Python find the old modules, behind everything else that it finds."""
    if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(OldPaths())
