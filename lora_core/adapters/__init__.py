"""The trained deltas: one contract (base.py), one file per method, one table of methods."""

from .base import Adapter, AdapterSet, Shape, attach
from .dora import DoraAdapter
from .loha import LohaAdapter
from .lokr import LokrAdapter
from .lora import LoraAdapter
from .targets import choose_targets

ADAPTERS = {"lora": LoraAdapter, "dora": DoraAdapter, "loha": LohaAdapter, "lokr": LokrAdapter}

__all__ = ["ADAPTERS", "Adapter", "AdapterSet", "LoraAdapter", "Shape", "attach", "choose_targets"]
