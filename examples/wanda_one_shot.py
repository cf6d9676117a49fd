# Wanda: masks the smallest |weight| x input norm, without training
# Granularity: weights
# Paper: Sun et al., 'A simple and effective pruning approach for large language models', ICLR 2024
#
#   python examples/wanda_one_shot.py
"""Prune a trained network in one shot, by weights and their inputs: python examples/wanda_one_shot.py."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_prune import Scope, Weights, prune_once
from lightning_prune.budgets import Sparsity
from lightning_prune.criteria import Magnitude, Wanda
from lightning_prune.tasks import DigitsData, SmallResNet


def train(model: nn.Module, data: DigitsData, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for images, labels in data.train_dataloader():
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()


def accuracy(model: nn.Module, data: DigitsData) -> float:
    images, labels = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).float().mean())


def main() -> None:
    torch.manual_seed(0)
    data = DigitsData()
    data.setup("fit")
    dense = SmallResNet()
    train(dense, data, epochs=6)
    print(f"dense: accuracy {accuracy(dense, data):.4f}")
    images = torch.cat([images for images, _ in data.train_dataloader()])
    dense.eval()  # so that batch norms stay as they are while the network looks at the images
    for criterion in (Wanda(), Wanda(by_output=False), Magnitude()):
        pruned = copy.deepcopy(dense)
        report = prune_once(
            pruned,
            images[:1],
            granularity=Weights(),
            criterion=criterion,
            budget=Sparsity(0.5),
            scope=Scope(exclude=["conv1", "fc"]),
            calibrate=lambda network: network(images),  # forward passes are enough for Wanda
        )
        print(f"{criterion}: sparsity {report.sparsity:.4f}, accuracy {accuracy(pruned, data):.4f}")


if __name__ == "__main__":
    main()
