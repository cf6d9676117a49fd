"""A small vision transformer for small images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.network.argument_checks import check_integer


class SmallViT(nn.Module):
    """Pre-norm encoder blocks on patches of an image; the mean over patches is classified.

    Projections write into a residual stream of their own width, so that single heads and single neurons can go without
    it.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of outputs.
        image_size: Height and width of the images, a multiple of ``patch_size``.
        patch_size: Height and width of a patch.
        width: Numbers per token, a multiple of ``heads``.
        heads: Attention heads in each block.
        depth: Number of blocks.

    Raises:
        ValueError: If a number is below 1, or one is not a multiple of the other as it has to be.

    Shape:
        Input ``(batch, in_channels, image_size, image_size)``, output ``(batch, num_classes)``.

    Example:
        >>> SmallViT()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int = 8,
        patch_size: int = 2,
        width: int = 64,
        heads: int = 8,
        depth: int = 4,
    ) -> None:
        super().__init__()
        numbers = {
            "in_channels": in_channels, "num_classes": num_classes, "image_size": image_size, "patch_size": patch_size,
            "width": width, "heads": heads, "depth": depth,
        }  # fmt: skip
        for name, number in numbers.items():
            check_integer(self, name, number, minimum=1)
        if image_size % patch_size or width % heads:
            raise ValueError(
                "SmallViT needs an image_size that is a multiple of patch_size, and a width that is one of heads, got "
                f"image_size={image_size}, patch_size={patch_size}, width={width} and heads={heads}."
            )
        self.patches = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // patch_size) ** 2, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.fc(self.norm(self.blocks(tokens)).mean(1))


class EncoderBlock(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class SelfAttention(nn.Module):
    """Scaled dot-product attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        shape = (*tokens.shape[:2], -1, self.head_dim)
        query, key, value = (x.reshape(shape).transpose(1, 2) for x in self.qkv(tokens).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
