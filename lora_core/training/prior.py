"""Prior preservation (DreamBooth, Ruiz et al. 2022, arXiv 2208.12242, eq. 2): pictures of the class beside those of the subject.

Pictures that are missing are made by the model itself before anything is trained on it. Each is kept under a name that says everything it
was made from, so it is made once and never taken for another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..adapters.tokens import TokenSet
from ..backends.base import SampleJob
from ..config import DataConfig, PriorConfig, SampleConfig, TrainConfig
from ..data.captions import Caption
from ..data.folder import Dataset, Picture, scan
from ..disk.files import write_bytes
from ..messages.blame import blamed
from ..messages.errors import LoomError
from ..pictures.reading import PictureError, open_rgb
from ..rng import derive
from .job import Job

CLASS_PICTURES = "class_pictures"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A class picture to make: the caption it is trained with, the prompt it is made from, and its seed."""

    caption: str
    prompt: str
    seed: int


def require_class_pictures(prior: PriorConfig, subject: Dataset) -> None:
    """Refuses a job that means class pictures and says nowhere what they are. Raises LoomError."""
    if prior.required and prior.weight and not prior.on and not subject.class_pictures:
        raise LoomError("prior.nothing_given", field="prior.prompt", count=prior.count)


def class_dataset(job: Job, subject: Dataset, tokens: TokenSet) -> Dataset | None:
    """The class pictures of a run, real ones first, the rest made earlier or now; None when prior preservation is off."""
    config, prior, cache = job.config, job.config.prior, job.root / CLASS_PICTURES
    if not prior.on and not (subject.class_pictures and prior.weight):
        return None
    real = subject.class_pictures
    if prior.folder:
        plain = DataConfig(  # nothing that was said about the subject's captions
            folder=prior.folder,
            resolution=config.data.resolution,
            bucket_step_px=config.data.bucket_step_px,
            flip=config.data.flip,
            background=config.data.background,
            aspect_buckets=config.data.aspect_buckets,
            upscale=config.data.upscale,
        )
        dataset = scan(plain, "prior.folder")
        real += (*dataset.pictures, *dataset.class_pictures)
    real = tuple(
        p if p.caption or not prior.prompt else dataclasses.replace(p, captions=(Caption(prior.prompt),)) for p in real
    )
    made = _made(wanted(config, subject, tokens, len(real)), job, cache)
    if not real and not made:
        raise LoomError("prior.count.none", field="prior.count")
    return Dataset(cache, (*real, *made), (), ())


def wanted(config: TrainConfig, subject: Dataset, tokens: TokenSet, have: int) -> list[Wanted]:
    """The pictures to make: `count` less those there are, from the class prompt or from the training captions with the class word for the trigger."""
    prior, missing = config.prior, max(0, config.prior.count - have)
    if not prior.prompt and not prior.class_word:
        return []
    captions = [prior.prompt] if not prior.class_word else matched_captions(subject, tokens, prior.class_word)
    out = []
    for n in range(missing):
        caption, turn = captions[n % len(captions)], n // len(captions)
        prompt = " ".join(tokens.replaced(caption, lambda t: t.token.init).split())
        out.append(Wanted(caption, prompt, derive(config.seed, "class picture", caption, turn)))
    return out


def matched_captions(subject: Dataset, tokens: TokenSet, word: str) -> list[str]:
    """Each training caption with the class word where the trigger or a token stands; those without either are left out."""
    trigger = re.compile(rf"(?<!\w){re.escape(subject.trigger)}(?!\w)", re.IGNORECASE) if subject.trigger else None
    captions: dict[str, None] = {}
    for picture in subject.pictures:
        caption = tokens.replaced(picture.caption, lambda t: word)
        caption = trigger.sub(lambda m: word, caption) if trigger else caption
        if caption != picture.caption:
            captions[caption] = None
    if not captions:
        raise LoomError("prior.class_word.missing", field="prior.class_word")
    return list(captions)


def _made(missing: Sequence[Wanted], job: Job, cache: Path) -> list[Picture]:
    """Each picture from `cache`, or drawn by the model and put there."""
    config, backend = job.config, job.backend
    plain = DataConfig(
        resolution=config.data.resolution, bucket_step_px=config.data.bucket_step_px, flip=config.data.flip
    )
    side, base = config.data.resolution, f"{backend.fingerprint()} {backend.text_fingerprint()}" if missing else ""
    out = []
    for n, picture in enumerate(missing):
        job.listener.on_progress("progress.drawing_class_pictures", n, len(missing))
        sampling = SampleConfig(
            steps=config.prior.steps,
            cfg=config.prior.cfg,
            sampler=config.samples.sampler,
            scheduler=config.samples.scheduler,
            negative=config.samples.negative,
            seed=picture.seed,
        )
        name = hashlib.sha256(f"{base}\x1f{picture.prompt}\x1f{side}\x1f{sampling}".encode()).hexdigest()[:24]
        path = cache / f"{name}.png"
        if not _whole(path):
            cache.mkdir(parents=True, exist_ok=True)
            with blamed("prior.failed", "prior.prompt", prompt=repr(picture.prompt)):
                drawn = backend.sample(SampleJob(picture.prompt, side, side, sampling))[0]
            write_bytes(path, _png(drawn))
        out.append(Picture(path, path.name, side, side, (Caption(picture.caption),), data=plain))
    return out


def _whole(path: Path) -> bool:
    try:
        return path.is_file() and bool(open_rgb(path))
    except PictureError:
        return False


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
