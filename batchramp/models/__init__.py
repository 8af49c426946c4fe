"""Models: plain modules."""

from batchramp.models.classifiers import MLP, SmallCNN
from batchramp.models.quadratic import Quadratic
from batchramp.models.resnet import ResNet, resnet18, small_resnet
from batchramp.models.vit import ViT, vit_micro, vit_tiny

__all__ = [
    "MLP",
    "Quadratic",
    "ResNet",
    "SmallCNN",
    "ViT",
    "resnet18",
    "small_resnet",
    "vit_micro",
    "vit_tiny",
]
