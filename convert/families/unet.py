"""The UNets of Stable Diffusion: diffusers block names and the SGM names of the original code (`input_blocks`, `middle_block`, `output_blocks`)."""

from __future__ import annotations

from ..patterns import Row

_RESNET = {
    "conv1": ("in_layers.2", (3, 3)),
    "conv2": ("out_layers.3", (3, 3)),
    "time_emb_proj": ("emb_layers.1", ()),
    "conv_shortcut": ("skip_connection", (1, 1)),
    "norm1": ("in_layers.0", None),
    "norm2": ("out_layers.0", None),
}
_LINEAR = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
)


def unet_rows(
    levels: int,
    attention: tuple[int, ...],
    layers: int = 2,
    conv_proj: bool = False,
    pooled: bool = False,
    depth: int = 1,
) -> list[Row]:
    """Rows of a UNet with `levels` resolutions, `layers` resnets in each, and attention at the given levels (0 is the finest).

    `conv_proj`: the projections around a transformer are 1x1 convolutions (SD1), not linear layers (SD2, SDXL). `pooled`: the
    model also reads a pooled text vector and the picture's size (SDXL). `depth`: most transformer blocks in one place.
    """
    rows = [
        Row("conv_in", "input_blocks.0.0", kernel=(3, 3)),
        Row("conv_out", "out.2", kernel=(3, 3)),
        Row("conv_norm_out", "out.0", kernel=None),
        *(Row(f"time_embedding.linear_{n}", f"time_embed.{2 * n - 2}") for n in (1, 2)),
    ]
    if pooled:
        rows += [Row(f"add_embedding.linear_{n}", f"label_emb.0.{2 * n - 2}") for n in (1, 2)]
    proj = (1, 1) if conv_proj else ()

    def resnet(ours: str, theirs: str) -> None:
        rows.extend(Row(f"{ours}.{a}", f"{theirs}.{b}", kernel=kernel) for a, (b, kernel) in _RESNET.items())

    def transformer(ours: str, theirs: str) -> None:
        rows.append(Row(f"{ours}.norm", f"{theirs}.norm", kernel=None))
        rows.extend(Row(f"{ours}.{p}", f"{theirs}.{p}", kernel=proj) for p in ("proj_in", "proj_out"))
        blocks = "transformer_blocks.*"
        rows.extend(Row(f"{ours}.{blocks}.{p}", f"{theirs}.{blocks}.{p}", limit=depth) for p in _LINEAR)
        rows.extend(Row(f"{ours}.{blocks}.norm{n}", f"{theirs}.{blocks}.norm{n}", kernel=None) for n in (1, 2, 3))

    span = layers + 1
    for level in range(levels):
        for i in range(layers):
            n = 1 + span * level + i
            resnet(f"down_blocks.{level}.resnets.{i}", f"input_blocks.{n}.0")
            if level in attention:
                transformer(f"down_blocks.{level}.attentions.{i}", f"input_blocks.{n}.1")
        if level < levels - 1:
            rows.append(
                Row(
                    f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{span * (level + 1)}.0.op", kernel=(3, 3)
                )
            )
        up = levels - 1 - level  # the decoder counts from the coarsest level
        for i in range(span):
            resnet(f"up_blocks.{up}.resnets.{i}", f"output_blocks.{span * up + i}.0")
            if level in attention:
                transformer(f"up_blocks.{up}.attentions.{i}", f"output_blocks.{span * up + i}.1")
        if up < levels - 1:
            place = 2 if level in attention else 1
            rows.append(
                Row(
                    f"up_blocks.{up}.upsamplers.0.conv",
                    f"output_blocks.{span * up + layers}.{place}.conv",
                    kernel=(3, 3),
                )
            )
    for i in range(2):
        resnet(f"mid_block.resnets.{i}", f"middle_block.{2 * i}")
    transformer("mid_block.attentions.0", "middle_block.1")
    return rows
