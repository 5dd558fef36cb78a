"""The kinds of adapter: their parts, their change of a weight, how they train. Pure functions on tensors, asked by the engine and the file formats alike.

A kind is one file here, called like it, and its name in this table. It imports torch and nothing of ours; this table imports not even that.
"""

NAMES = ("lora", "dora", "loha", "lokr", "oft", "boft", "glora", "ia3", "norm", "bias", "full")
