"""Trained weights that come with the package, by name, each with a card that says what it is good for."""

from dio_lightning.models.card import Card, card_of
from dio_lightning.models.catalogue import model_paths, weights_path

__all__ = ["Card", "card_of", "model_paths", "weights_path"]
