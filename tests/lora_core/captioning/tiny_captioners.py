"""Captioners of our own making, small enough for tests: a WD14 tagger as ONNX that knows colours, and a transformers model that was taught to name them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 30)}
SIDE = 16
TAGS = (
    ("general", "9"), ("red_background", "0"), ("green_background", "0"), ("blue_background", "0"), ("long_hair", "0"), ("^_^", "0"), ("colour_chan", "4"),
)  # fmt: skip


def picture(colour: str, size: tuple[int, int] = (48, 48)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour])


def colour_tagger(folder: Path, name: str = "model", tags=TAGS, outside: str = "") -> Path:
    """An ONNX tagger whose answers are how much red, green and blue a picture has, above half; long hair, a face and a character always.

    `outside`: where its weights are said to lie, for a file that reaches out of its folder.
    """
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    weights = np.zeros((3, len(TAGS)), np.float32)  # blue first
    weights[2, 1] = weights[1, 2] = weights[0, 3] = 12 / 255
    bias = np.full(len(TAGS), -6, np.float32)
    bias[4:] = 5
    tensors = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")]
    if outside:
        tensors[0] = TensorProto(
            name="w", data_type=TensorProto.FLOAT, dims=weights.shape, data_location=TensorProto.EXTERNAL
        )
        tensors[0].external_data.add(key="location", value=outside)
    nodes = [
        helper.make_node("ReduceMean", ["picture"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["mean", "w", "b"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["shares"]),
    ]
    ins = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["N", SIDE, SIDE, 3])]
    outs = [helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["N", len(TAGS)])]
    graph = helper.make_graph(nodes, "tagger", ins, outs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    file = folder / f"{name}.onnx"
    file.write_bytes(model.SerializeToString())
    table(folder / "selected_tags.csv", tags)
    return file


def random_tagger(folder: Path, tags: int = 300, seed: int = 0) -> Path:
    """A tagger with random weights and a convolution, of the shape WD14's have."""
    import onnx  # noqa: F401
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0, 0.02, (8, 3, 3, 3)).astype(np.float32)
    weights = rng.normal(0, 0.6, (8, tags)).astype(np.float32)
    tensors = [numpy_helper.from_array(kernel, "k"), numpy_helper.from_array(weights, "w")]
    nodes = [
        helper.make_node("Transpose", ["picture"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "k"], ["seen"], strides=[2, 2]),
        helper.make_node("Relu", ["seen"], ["bright"]),
        helper.make_node("ReduceMean", ["bright"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["shares"]),
    ]
    ins = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 32, 32, 3])]
    outs = [helper.make_tensor_value_info("shares", TensorProto.FLOAT, [1, tags])]
    model = helper.make_model(
        helper.make_graph(nodes, "tagger", ins, outs, tensors), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    table(folder / "selected_tags.csv", [(f"tag_{n:03}_word", "0") for n in range(tags)])
    return file


def table(file: Path, tags) -> None:
    with file.open("w", newline="", encoding="utf-8") as lines:
        rows = csv.writer(lines)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows([n, name, category, 1] for n, (name, category) in enumerate(tags))


def taught_captioner(folder: Path, steps: int = 120) -> Path:
    """A transformers model in its own layout, taught to say which colour a plain picture has: a ViT that looks and a GPT-2 that writes, both tiny."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GPT2Config,
        PreTrainedTokenizerFast,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    words = ["<pad>", "<start>", "<end>", "a", "plain", "picture", *COLOURS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<pad>"
    )
    prepares = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        looks = ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=SIDE,
            patch_size=8,
        )
        writes = GPT2Config(
            vocab_size=len(words),
            n_positions=16,
            n_embd=32,
            n_layer=1,
            n_head=2,
            add_cross_attention=True,
            is_decoder=True,
        )
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(looks, writes)
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
        model = VisionEncoderDecoderModel(config)
        model.generation_config.decoder_start_token_id = 1
        model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
        pixels = torch.stack([prepares(images=picture(c), return_tensors="pt")["pixel_values"][0] for c in COLOURS])
        asked = torch.tensor([[1, 3, 4, words.index(colour), 5] for colour in COLOURS])
        answers = torch.tensor([[3, 4, words.index(colour), 5, 2] for colour in COLOURS])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(steps):
            logits = model(pixel_values=pixels, decoder_input_ids=asked).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    prepares.save_pretrained(folder)
    return folder
