"""Pruned networks are plain PyTorch: they export, and the exported program gives the same outputs."""

import pytest
import torch
from torchvision import models

from lightning_prune import prune_once

BUILDERS = {
    "resnet50": lambda: (models.resnet50(), torch.randn(2, 3, 64, 64)),
    "mobilenet_v2": lambda: (models.mobilenet_v2(), torch.randn(2, 3, 64, 64)),
    "vit_b_16": lambda: (models.vit_b_16(image_size=32), torch.randn(2, 3, 32, 32)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_a_pruned_network_exports_and_gives_the_same_outputs(name: str) -> None:
    torch.manual_seed(0)
    network, images = BUILDERS[name]()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() < 3:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)  # heads are built with zeros
    before = sum(parameter.numel() for parameter in network.parameters())
    report = prune_once(network, images)
    network.eval()
    with torch.no_grad():
        expected = network(images)
        program = torch.export.export(network, (images,))
        found = program.module()(images)
    assert report.after.params < 0.35 * before
    assert sum(parameter.numel() for parameter in program.parameters()) == report.after.params
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
