"""Prior preservation (DreamBooth, Ruiz et al. 2022, arXiv 2208.12242, eq. 2): pictures of the class beside those of the subject.

Pictures that are missing are made by the model itself before anything is trained on it. Each is kept under a name that says everything it
was made from, so it is made once and never taken for another.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..adapters.tokens import TokenSet
from ..backends.base import SampleJob
from ..config import DataConfig, PriorConfig, SampleConfig, TrainConfig
from ..data.batches import Batch
from ..data.captions import Caption, with_word
from ..data.dataset import Dataset, Picture
from ..data.folder import scan
from ..disk.files import write_bytes
from ..losses import mean, mse
from ..messages.blame import blamed
from ..messages.errors import LoomError
from ..objectives import Objective
from ..pictures.encoded import as_png
from ..pictures.reading import PictureError, open_rgb
from ..rng import derive
from ..transfer import sent
from .frozen import captioned, frozen, on_device
from .job import Job
from .run import Run

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
    if prior.without_pictures and not subject.class_pictures:
        return None
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
    made = _made(pictures_to_make(config, subject, tokens, len(real)), job, cache)
    if not real and not made:
        raise LoomError("prior.count.none", field="prior.count")
    return Dataset(cache, (*real, *made), (), ())


def pictures_to_make(config: TrainConfig, subject: Dataset, tokens: TokenSet, have: int) -> list[Wanted]:
    """The pictures to make: `count` less those there are, from the class prompt or from the training captions with the class word for the trigger."""
    prior, missing = config.prior, max(0, config.prior.count - have)
    if prior.without_pictures or not prior.prompt and not prior.class_word:
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
    captions: dict[str, None] = {}
    for picture in subject.pictures:
        caption = in_class(picture.caption, subject.trigger, tokens, word)
        if caption != picture.caption:
            captions[caption] = None
    if not captions:
        raise LoomError("prior.class_word.missing", field="prior.class_word")
    return list(captions)


def in_class(caption: str, trigger: str, tokens: TokenSet, word: str) -> str:
    """The caption with the class word where the trigger or a token stands."""
    caption = tokens.replaced(caption, lambda t: word)
    return with_word(caption, trigger, word) if trigger else caption


@dataclasses.dataclass(frozen=True)
class Held:
    """The class held without pictures of it: by class captions the network goes on to say of noisy training pictures what it said before training.

    The loss is the mean squared error to the frozen model's answer for the same latents. In place of the picture it is the term of DreamBooth; as
    learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282) holds old tasks on the new one's data.
    """

    prompt: str
    word: str
    trigger: str
    tokens: TokenSet

    @staticmethod
    def of(prior: PriorConfig, subject: Dataset, tokens: TokenSet) -> Held:
        """Raises LoomError where no caption has what the class word would replace."""
        if prior.class_word:
            matched_captions(subject, tokens, prior.class_word)
        return Held(prior.prompt, prior.class_word, subject.trigger, tokens)

    def captions(self, drawn: Sequence[str]) -> list[str]:
        if not self.word:
            return [self.prompt for _ in drawn]
        return [in_class(caption, self.trigger, self.tokens, self.word) for caption in drawn]

    def losses(self, run: Run, objective: Objective, batch: Batch, rng: torch.Generator) -> Iterator[torch.Tensor]:
        of_class = captioned(batch, self.captions(batch.captions))
        x0 = batch.latents
        drawn = objective.draw_sigma(len(x0), rng)
        sigma = on_device(drawn, x0)
        x_t = batch.as_given(objective.corrupt(x0, objective.draw_noise(x0, rng), sigma))
        with frozen(run):
            goal = run.backend.predict(x_t, sigma, of_class).float()
        weight = sent(objective.weight(drawn).float(), x0.device)
        yield weight * mean(mse(run.backend.predict(x_t, sigma, of_class), goal, None), batch.learnt)


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
            write_bytes(path, as_png(drawn))
        out.append(Picture(path, path.name, side, side, (Caption(picture.caption),), data=plain))
    return out


def _whole(path: Path) -> bool:
    try:
        return path.is_file() and bool(open_rgb(path))
    except PictureError:
        return False
