"""The trained deltas: one contract (base.py), one file per method, one table of methods."""

from .base import Adapter, AdapterSet, attach
from .lora import LoraAdapter
from .targets import choose_targets

__all__ = ["Adapter", "AdapterSet", "LoraAdapter", "attach", "choose_targets"]
