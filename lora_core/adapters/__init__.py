"""What a run trains on a lent model: adapters on its layers (base.py), which layers (targets.py), and new tokens. The kinds stand in `algebra`."""

from .base import Adapter, AdapterSet, KindAdapter, Shape, attach
from .targets import choose_targets

__all__ = ["Adapter", "AdapterSet", "KindAdapter", "Shape", "attach", "choose_targets"]
