"""The forms a LoRA can be written in, and the number formats of files. Imports nothing, so a terminal shows its help at once."""

TARGETS = ("universal", "kohya", "comfyui", "diffusers", "peft")
DTYPE_NAMES = ("fp32", "fp16", "bf16")
