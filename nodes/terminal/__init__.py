"""The commands of the terminal: a file each, with what it takes and what it does. Looking at one costs nothing: what is heavy is imported when it runs.

A command's module has `add_arguments(parser)` and `execute(args)`, which returns an exit code: 0 done, 1 the input needs a change.
"""

from __future__ import annotations

import keyword
import sys

from ...lora_core.messages.message import Message

DONE, FAILED = 0, 1
STEPPING = ("train", "sweep", "check", "find-lr", "demo", "ui")  # commands that make training steps
COMMANDS = {
    "train": "train from a job file",
    "sweep": "train several variants of a job and compare them on one sheet",
    "check": "look at a job's pictures and captions, and run one step: how long will it take, how much memory",
    "find-lr": "find a learning rate for a job by a short test",
    "import": "turn the settings of another trainer (diffusers, kohya, OneTrainer, ai-toolkit, SimpleTuner) into a job file",
    "recipes": "list the bundled job files a job can start from",
    "sample": "draw pictures with LoRAs, embeddings or the saves of runs, on one sheet beside the base model",
    "blocks": "say which blocks the LoRA of a finished run needs, and write a smaller file without the others",
    "push": "gather the files of a finished run with a model card, and upload them to the Hugging Face Hub",
    "ui": "open the page in a browser: drop pictures, train, watch, and tools for files",
    "demo": "train on the bundled toy model and pictures, and show what it learned",
    "convert": "write LoRAs or embeddings in another program's form",
    "inspect": "say what a file is, what it does and which programs read it",
    "merge": "add LoRAs up",
    "resize": "make a LoRA smaller",
    "extract": "a LoRA for the difference of two checkpoints",
    "bake": "add LoRAs to a checkpoint for good",
}

FLAGS = {  # setting -> the option it is given by
    "approximate": "--approximate", "blocks": "--block", "conv_rank": "--conv-rank", "drop_unknown": "--drop-unknown",
    "energy": "--energy", "family": "--family", "norms_biases": "--norms-biases", "rank": "--rank", "scale": "--scale",
    "target": "--to",
}  # fmt: skip


def module_name(command: str) -> str:
    """The file of a command; that of `import` has a name that Python can import."""
    name = command.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def in_words(line: Message | str) -> str:
    """What the terminal says, with settings as its options."""
    return line if isinstance(line, str) else line.text(names=as_options)


def put(line: Message, end: str = "\n") -> None:
    """Writes a line for people on the terminal."""
    sys.stdout.write(f"{in_words(line)}{end}")


def as_options(name: str, language: str) -> str:
    """A setting as the option it is given by, else as in a job file."""
    return FLAGS.get(name, name)
