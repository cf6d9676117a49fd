"""ATen operations by how their output depends on a positive factor of their input."""

from __future__ import annotations

SELECTING = frozenset(("select", "unbind", "slice", "split", "split_with_sizes"))
HOMOGENEOUS = SELECTING | frozenset(  # of degree 1 in their first operand, for factors above 0
    ("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "t", "transpose", "permute", "expand",
     "alias", "clone", "detach", "_to_copy", "contiguous", "lift_fresh", "view_as_complex", "view_as_real", "_conj",
     "neg", "sum", "mean", "cumsum", "flip", "roll", "repeat", "tril", "triu", "index", "index_select", "gather",
     "diagonal", "unfold", "relu", "leaky_relu", "abs", "amax", "amin", "max_pool2d_with_indices", "avg_pool2d",
     "_adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d")
)  # fmt: skip
READ_BY_PYTHON = frozenset(  # their result, or its shape, depends on values
    ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2", "bincount",
     "unique_consecutive", "torchvision::nms")
)  # fmt: skip
LAYERS = {  # operation -> positions of the input if it is linear in it, of the weight and of the bias
    "linear": (0, 1, 2), "addmm": (1, 2, 0), "convolution": (0, 1, 2), "native_layer_norm": (None, 2, 3),
    "native_batch_norm": (None, 1, 2), "_native_batch_norm_legit": (None, 1, 2),
    "_native_batch_norm_legit_no_training": (None, 1, 2), "_batch_norm_with_update": (None, 1, 2),
    "cudnn_batch_norm": (None, 1, 2), "native_group_norm": (None, 1, 2), "_fused_rms_norm": (None, 2, None),
}  # fmt: skip
