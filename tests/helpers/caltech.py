"""A folder as torchvision unpacks Caltech-101: small random images, which it takes for a finished download."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_caltech(root: Path, classes: Sequence[str], count: int, side: int = 8) -> Path:
    """``count`` images of each class, the first one grey, and one of no class as in the original; wider than high."""
    random = np.random.default_rng(0)
    for name in [*classes, "BACKGROUND_Google"]:
        folder = root / "caltech101" / "101_ObjectCategories" / name
        folder.mkdir(parents=True)
        for number in range(1, 2 if name.startswith("BACKGROUND") else count + 1):
            pixels = random.integers(0, 256, (side, side * 3 // 2, 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            (image.convert("L") if number == 1 else image).save(folder / f"image_{number:04}.jpg", quality=95)
    return root
