import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune import Channels, Scope, prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.tasks import ImageClassifier, SmallViT


@pytest.mark.parametrize(("size", "patch", "channels"), [(8, 2, 1), (28, 7, 1), (32, 4, 3)])
def test_it_takes_every_image_size(size: int, patch: int, channels: int) -> None:
    network = SmallViT(channels, 7, size, patch, width=12, heads=3, depth=2)
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_a_block_equals_that_of_pytorch() -> None:
    torch.manual_seed(0)
    block = SmallViT(1, width=12, heads=3, depth=1).blocks[0].eval()
    theirs = nn.TransformerEncoderLayer(12, 3, 24, 0.0, F.gelu, batch_first=True, norm_first=True).eval()
    mapped = {
        "attention.qkv.weight": "self_attn.in_proj_weight", "attention.qkv.bias": "self_attn.in_proj_bias",
        "attention.out": "self_attn.out_proj", "mlp.0": "linear1", "mlp.2": "linear2",
    }  # fmt: skip
    weights = dict(block.state_dict())
    for own, name in mapped.items():
        weights = {key.replace(own, name): value for key, value in weights.items()}
    theirs.load_state_dict(weights)
    tokens = torch.randn(2, 16, 12)
    torch.testing.assert_close(block(tokens), theirs(tokens))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "SmallViT depth=0 must be an integer of at least 1"),
        ({"in_channels": 0}, "SmallViT in_channels=0 must be an integer"),
        ({"num_classes": 0}, "SmallViT num_classes=0 must be an integer"),
        ({"image_size": 9}, "image_size=9, patch_size=2"),
        ({"heads": 5}, "width=64 and heads=5"),
    ],
)
def test_numbers_that_do_not_fit(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmallViT(**arguments)


def test_heads_and_neurons_go_without_the_stream() -> None:
    classifier = ImageClassifier("small_vit", model_args={"width": 12, "heads": 3, "depth": 2})
    granularity, scope = Channels(attention="heads"), Scope(include=["*.attention.qkv", "*.mlp.0"])
    prune_once(classifier, torch.zeros(1, 1, 8, 8), granularity=granularity, budget=Ratio(0.5), scope=scope)
    for block in classifier.network.blocks:
        assert block.attention.qkv.weight.shape == (3 * 2 * 4, 12)  # one of three heads is gone
        assert block.attention.out.weight.shape == (12, 2 * 4)
        assert block.mlp[0].weight.shape == (12, 12)
        assert block.attention.head_dim == 4
    assert classifier(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
