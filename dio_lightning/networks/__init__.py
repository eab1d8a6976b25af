"""Networks that methods are made of; they know nothing of registration."""

from dio_lightning.networks.cnn import CNN
from dio_lightning.networks.gru import ConvGRU, RecurrentUNet
from dio_lightning.networks.unet import VxmUNet

__all__ = ["CNN", "ConvGRU", "RecurrentUNet", "VxmUNet"]
