"""What a run trains on a lent model: adapters on its layers, which layers (targets.py), and new tokens. The kinds stand in `algebra`."""

from .attach import attach
from .base import Adapter, KindAdapter, Shape
from .set import AdapterSet
from .targets import choose_targets

__all__ = ["Adapter", "AdapterSet", "KindAdapter", "Shape", "attach", "choose_targets"]
