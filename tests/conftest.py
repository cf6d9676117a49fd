"""Puts ``helpers`` on the path of every test, and keeps torch to one thread: tiny networks run faster."""

import torch

torch.set_num_threads(1)
