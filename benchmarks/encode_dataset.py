"""Times what happens to pictures before the first step: decoding, cutting, encoding, keeping, and finding them again.

    python benchmarks/encode_dataset.py [--pictures 1000] [--rounds 5] [--out benchmarks/results]

vae        pictures/s of the whole way (file -> thread -> full-size SD1.5 VAE of random weights -> disk) over the bare VAE on tensors in memory,
           alternating in one process, 512 px.
memory     peak of anonymous memory over what was held before, for a quarter, half and all of the pictures (a VAE of no weight, so only our own counts).
restart    seconds until the cache of a second start is ready, every file read and hashed again.
decode     pictures/s of decode + crop + flip against a loop of Pillow and one of torchvision (where it is installed), with the same antialiased scaling.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data.buckets import apply, fits
from lora_loom.lora_core.data.encoder import Encoder
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.latents import LatentCache, ahead
from lora_loom.lora_core.data.store import Disk
from lora_loom.lora_core.pictures.reading import open_picture
from PIL import Image

PHOTO = (1600, 1200)
BIG = 10**12


def photo(seed: int, size: tuple[int, int] = PHOTO) -> Image.Image:
    """A picture with the detail of a photograph: smooth noise of several scales."""
    rng, out = np.random.default_rng(seed), np.zeros((size[1], size[0], 3), np.float32)
    for cells in (8, 32, 128, 400):
        noise = (rng.random((cells * size[1] // size[0] + 1, cells, 3)) * 255).astype(np.uint8)
        out += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), np.float32) / 4
    return Image.fromarray(out.astype(np.uint8))


def write(folder: Path, count: int, size: tuple[int, int] = PHOTO) -> Path:
    """`count` different JPEG files; ten paintings, each file made unique by a comment."""
    folder.mkdir(parents=True)
    paintings = [photo(n, size) for n in range(10)]
    for n in range(count):
        paintings[n % 10].save(folder / f"{n:05}.jpg", quality=90, comment=f"{folder.name} {n}".encode())
    return folder


def settings(folder: Path) -> DataConfig:
    return DataConfig(folder=str(folder), resolution=512, bucket_step_px=64, aspect_buckets=False)


def cached(folder: Path, encoder: Encoder, place: Path) -> LatentCache:
    return LatentCache(scan(settings(folder)), encoder, lambda n, of: None, Disk(place, BIG))


def vae_ratio(folder: Path, place: Path, rounds: int, each: int) -> dict[str, Any]:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        layers_per_block=2,
        block_out_channels=(128, 256, 512, 512),
        **blocks,
    ).eval()

    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return vae.encode(pixels.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mean

    tensors = [torch.rand(1, 512, 512, 3) for _ in range(each)]
    encode(tensors[0])
    bare, whole = [], []
    for n in range(rounds):
        write(folder / str(n), each)
        began = time.perf_counter()
        for tensor in tensors:
            encode(tensor)
        bare.append(each / (time.perf_counter() - began))
        began = time.perf_counter()
        cached(folder / str(n), Encoder(encode, "vae"), place)
        whole.append(each / (time.perf_counter() - began))
    ratio = statistics.median(w / b for w, b in zip(whole, bare, strict=True))
    return {
        "bare_per_s": round(statistics.median(bare), 3),
        "whole_per_s": round(statistics.median(whole), 3),
        "ratio": round(ratio, 3),
    }


def anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_of(work: Callable[[], Any]) -> float:
    """MB of anonymous memory that `work` takes above what there was."""
    gc.collect()
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return round((peak[0] - before) / 1e6, 1)


def light(pixels: torch.Tensor) -> torch.Tensor:
    """(1, 4, 64, 64) of a picture of 512 px."""
    small = torch.nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2), 8)
    return torch.cat([small, small[:, :1]], 1)


def memory(folder: Path, place: Path, counts: list[int]) -> dict[str, float]:
    write(folder, counts[-1])
    out = {}
    cached_first = folder.with_name("warm")
    write(cached_first, 20)
    cached(cached_first, Encoder(light, "light"), place / "warm")  # threads, codecs and allocator have what they keep
    for count in counts:
        data = settings(folder)
        dataset = scan(DataConfig(**{**vars(data), "limit": count}))
        work = lambda dataset=dataset, count=count: LatentCache(
            dataset, Encoder(light, "light"), lambda n, of: None, Disk(place / str(count), BIG)
        )  # noqa: E731
        out[str(count)] = peak_of(work)
    return out


def restart(folder: Path, place: Path) -> float:
    cached(folder, Encoder(light, "light"), place)
    began = time.perf_counter()
    cached(folder, Encoder(light, "light"), place)
    return round(time.perf_counter() - began, 2)


def decode(folder: Path, rounds: int, each: int) -> dict[str, Any]:
    """The same cut of 512 x 512, mirrored, as float tensors."""
    write(folder, each)
    pictures = scan(settings(folder)).pictures

    def ours() -> None:
        def one(picture: Any) -> np.ndarray:
            opened = open_picture(picture.path)
            how = fits(picture.width_px, picture.height_px, picture.data)[0]
            return np.asarray(apply(opened.rgb, how).transpose(Image.Transpose.FLIP_LEFT_RIGHT))

        for _, pixels in ahead(one, pictures):
            torch.from_numpy(pixels.astype(np.float32) / 255.0)

    def pillow() -> None:
        for picture in pictures:
            with Image.open(picture.path) as image:
                how = fits(*image.size, picture.data)[0]
                left, top = how.crop
                scaled = image.convert("RGB").resize(how.scaled, Image.Resampling.LANCZOS)
                cut = scaled.crop((left, top, left + how.bucket[0], top + how.bucket[1])).transpose(
                    Image.Transpose.FLIP_LEFT_RIGHT
                )
            torch.from_numpy(np.asarray(cut, np.float32) / 255.0)

    loops = {"ours": ours, "pillow": pillow}
    try:
        from torchvision.io import decode_jpeg, read_file
        from torchvision.transforms.v2 import functional as F

        def vision() -> None:
            for picture in pictures:
                pixels = decode_jpeg(read_file(str(picture.path)))
                how = fits(pixels.shape[2], pixels.shape[1], picture.data)[0]
                pixels = F.resize(pixels, list(how.scaled[::-1]), F.InterpolationMode.BICUBIC, antialias=True)
                F.horizontal_flip(F.crop(pixels, how.crop[1], how.crop[0], *how.bucket[::-1])).float().div(255)

        loops["torchvision"] = vision
    except ImportError:
        pass
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for loop in loops.values():
        loop()
    for _ in range(rounds):
        for name, loop in loops.items():
            began = time.perf_counter()
            loop()
            speeds[name].append(each / (time.perf_counter() - began))
    out: dict[str, Any] = {f"{name}_per_s": round(statistics.median(values), 1) for name, values in speeds.items()}
    for name in loops.keys() - {"ours"}:
        out[f"over_{name}"] = round(
            statistics.median(a / b for a, b in zip(speeds["ours"], speeds[name], strict=True)), 2
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=4, help="pictures in one round of the full-size VAE")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        n = args.pictures
        result = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "pictures": f"{n} JPEG of {PHOTO[0]} x {PHOTO[1]} px, cut to 512 px",
            "memory_mb": memory(place / "memory", place / "cache", [n // 4, n // 2, n]),
            "restart_s": restart(place / "memory", place / "cache" / str(n)),
            "decode": decode(place / "decode", args.rounds, 40),
            "vae": vae_ratio(place / "vae", place / "vae_cache", args.rounds, args.each),
        }
    text = json.dumps(result, indent=1)
    print(text)
    (args.out / "encode_dataset.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
