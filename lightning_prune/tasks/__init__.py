"""LightningModules and LightningDataModules for the recipes."""

from lightning_prune.tasks.caltech101 import Caltech101Data
from lightning_prune.tasks.cifar10 import CIFAR10Data
from lightning_prune.tasks.cifar_resnet import CifarResNet
from lightning_prune.tasks.classifier import ImageClassifier
from lightning_prune.tasks.digits import DigitsData
from lightning_prune.tasks.image_folder import ImageFolderData
from lightning_prune.tasks.mnist import MNISTData
from lightning_prune.tasks.networks import SmallResNet
from lightning_prune.tasks.small_vit import SmallViT

__all__ = [
    "CIFAR10Data",
    "Caltech101Data",
    "CifarResNet",
    "DigitsData",
    "ImageClassifier",
    "ImageFolderData",
    "MNISTData",
    "SmallResNet",
    "SmallViT",
]
