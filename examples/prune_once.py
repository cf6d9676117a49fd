"""Prune any network once, without a Trainer: python examples/prune_once.py."""

import torch
from torchvision.models import resnet18

from lightning_prune import Channels, Scope, prune_once
from lightning_prune.budgets import MACs
from lightning_prune.criteria import Magnitude


def main() -> None:
    model = resnet18(weights=None)
    images = torch.randn(1, 3, 224, 224)
    report = prune_once(
        model,
        images,
        granularity=Channels(round_to=8),
        criterion=Magnitude(p=2),
        budget=MACs(keep=0.5),
        scope=Scope(exclude=["conv1"]),
    )
    print(report)
    for group, (before, after) in report.widths.items():
        print(f"{group}: {before} -> {after}")
    for name, reason in report.frozen.items():
        print(f"left alone: {name} ({reason})")
    print(model(images).shape)


if __name__ == "__main__":
    main()
