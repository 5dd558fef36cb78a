"""The settings of what is measured, drawn and kept on the way."""

from __future__ import annotations

import dataclasses

from .settings import path_setting, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    every: int = setting(
        0,
        "Steps between validations on pictures that are not trained; 0 turns it off.",
        low=0,
        high=1_000_000,
        zero="off",
    )
    share: float = setting(0.1, "Share of the pictures set aside for it, at least one.", low=0.01, high=0.5)
    folder: str = path_setting("", "Folder of pictures to validate on instead; then no others are set aside.")
    pictures: int = setting(
        16, "Pictures measured: so many validation pictures and as many training pictures.", low=1, high=1000
    )
    levels: int = setting(4, "Noise levels each picture is measured at.", low=1, high=100)
    patience: int = setting(
        0,
        "End the run after so many validations without a new best one; 0 never does.",
        low=0,
        high=10_000,
        zero="off",
    )
    restore_best: bool = setting(False, "Write the best step's weights as the result instead of the last step's.")
    calibrate: bool = setting(
        False,
        "After training, measure the loss at strengths from 0.4 to 1.4 and write the best one into the file and its card, as the strength to start from.",
    )
    concepts: bool = setting(
        False,
        "With several triggers: at each validation measure pictures of each set under every trigger and under none, and say when concepts bleed.",
    )
    each_picture: bool = setting(
        False,
        "At each validation measure every training picture, not only as many as there are validation pictures, to see which are hard and which are memorised.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig:
    disk: bool = setting(
        True, "Keep encoded pictures and captions on disk, for the next run too; off: in memory, for this run."
    )
    limit_gb: float = setting(
        20.0, "Size above which what was not used for longest is removed.", low=0.1, high=100_000.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveConfig:
    every: int = setting(250, "Steps between checkpoints.", low=1, high=1_000_000)
    keep: int = setting(
        2, "Checkpoints kept. At least 2: the last one may be in the process of being written.", low=2, high=1000
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    prompt: str = setting(
        "", "Prompt of the sample pictures; several separated by new lines. Empty: the trigger or the first caption."
    )
    negative: str = setting("", "Negative prompt of the sample pictures.")
    every: int = setting(250, "Steps between sample pictures; 0 generates none.", low=0, high=1_000_000, zero="off")
    steps: int = setting(20, "Sampler steps.", low=1, high=200)
    cfg: float = setting(7.0, "Guidance scale.", low=0.0, high=100.0)
    sampler: str = setting("euler", "Sampler, by the host's name.")
    scheduler: str = setting("simple", "Noise schedule, by the host's name.")
    width_px: int = setting(0, "Width; 0 takes the training resolution.", low=0, high=8192, zero="training")
    height_px: int = setting(0, "Height; 0 takes the training resolution.", low=0, high=8192, zero="training")
    seed: int = setting(1, "Seed of the sample noise, the same every time.", low=0, high=2**63 - 1)
    frames: int = setting(
        0,
        "Frames of a sample of a video model, which then plays; 0: as many as the longest clip that is trained, 1 for pictures.",
        low=0,
        high=1024,
        zero="auto",
    )
