"""Make neural networks smaller while PyTorch Lightning trains them."""
