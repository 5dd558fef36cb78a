"""The settings of pictures and captions."""

from __future__ import annotations

import dataclasses

from .settings import path_setting, setting

PROMPT_START = "<Prompt Start>"  # between the system prompt of Lumina 2 and a caption
AUTO, NEVER, HALF, ALWAYS = FIRST_FRAME = ("auto", "never", "half of the time", "always")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    folder: str = path_setting(
        "", "Folder with pictures and captions. Kohya trees with sub-folders named 12_name are understood."
    )
    trigger: str = setting(
        "",
        "Word that stands for the concept. Put in front of captions that lack it; the caption of pictures without one.",
    )
    captions: str = setting(
        "auto",
        "Where captions come from; auto: a .txt, .caption or .json beside the picture, else a metadata file, else the Kohya folder's name.",
        choices=("auto", ".txt", ".caption", "metadata", "file name", "none"),
    )
    recursive: bool = setting(True, "Look into sub-folders too.")
    repeats: int = setting(
        0,
        "How often each picture counts per epoch; 0 takes the number in front of a Kohya folder name, else 1.",
        low=0,
        high=1000,
        zero="auto",
    )
    limit: int = setting(
        0,
        "Use only so many of the pictures, always the same ones; 0 takes all.",
        low=0,
        high=1_000_000,
        zero="all",
    )
    resolution: int = setting(
        512,
        "Pictures are scaled down to about this many pixels squared; smaller ones are never scaled up.",
        low=16,
        high=4096,
    )
    bucket_step_px: int = setting(64, "Sides of a bucket are multiples of this.", low=8, high=256)
    flip: bool = setting(
        False, "Mirror pictures left to right half of the time. Leave off for faces, text and anything with a side."
    )
    shuffle_tags: bool = setting(False, "Shuffle the comma-separated parts of a caption anew each time.")
    keep_tokens: int = setting(
        1, "How many leading parts of a caption stay in place when tags are shuffled.", low=0, high=100
    )
    masks: str = setting(
        "none",
        "Where the loss looks: everywhere, at what is opaque (alpha), or at what is white in <name>.mask.png, <name>-masklabel.png or mask/<name>.png (file).",
        choices=("none", "alpha", "file"),
    )
    mask_floor: float = setting(0.1, "Weight of what a mask leaves out, relative to the rest.", low=0.0, high=1.0)
    caption_dropout: float = setting(
        0.0, "Share of steps in which a picture is trained with an empty caption.", low=0.0, high=1.0
    )
    caption_column: str = setting(
        "",
        "Column of a metadata file or key of a .json that holds the captions; empty: text, caption, prompt, tags ...",
    )
    caption_lines: str = setting(
        "joined",
        "What the lines of a caption file are: one caption, alternatives of which one is drawn each time (0.5::text gives a weight), or only the first counts.",
        choices=("joined", "alternatives", "first"),
    )
    caption_encoding: str = setting(
        "auto",
        "Encoding of caption files; auto knows Unicode in all its forms and takes anything else as Windows-1252.",
        choices=("auto", "utf-8", "cp1252", "cp932", "gb18030", "big5", "euc-kr", "cp1251"),
    )
    prefix: str = setting("", "Put in front of every caption that is there, as it stands.")
    suffix: str = setting("", "Put behind every caption that is there, as it stands.")
    replace: str = setting(
        "", "Words to replace in captions, one rule a line: old => new, or /regular expression/ => new."
    )
    tag_dropout: float = setting(
        0.0, "Share of the comma-separated parts left out each time, those kept in place excepted.", low=0.0, high=1.0
    )
    wildcards: bool = setting(False, "Read {red|blue|2::green} in captions as a choice made anew each time.")
    background: str = setting("white", "Colour under what is transparent: a name or #rrggbb.")
    also_resolutions: str = setting(
        "", "More resolutions to train every picture at, separated by commas, such as 768, 1024."
    )
    aspect_buckets: bool = setting(True, "Keep the shape of pictures, in batches of one shape; off: squares.")
    min_side_px: int = setting(0, "Smallest side of a bucket; 0: one step.", low=0, high=8192, zero="auto")
    max_side_px: int = setting(
        0, "Largest side of a bucket; 0: no limit but the area.", low=0, high=8192, zero="no_limit"
    )
    upscale: bool = setting(False, "Scale pictures up that are smaller than the resolution.")
    crop: str = setting(
        "centre",
        "What is kept of a picture longer than its bucket: the centre, places drawn anew each time, or where most is to be seen (or the mask is).",
        choices=("centre", "random", "salient"),
    )
    crops: int = setting(4, "How many places random draws from; each is encoded once.", low=1, high=64)
    loss_weight: float = setting(1.0, "Weight of this set's pictures in the loss.", low=0.0, high=100.0)
    regularization: bool = setting(
        False, "Pictures of the class beside the subject (prior preservation); their loss counts by prior.weight."
    )
    latents: str = setting(
        "mean",
        "What is trained of the VAE's answer: its mean, or a sample drawn anew each time.",
        choices=("mean", "sampled"),
    )
    split: str = setting("train", "Split of a Hugging Face dataset (folder = hf:owner/name).")
    image_column: str = setting(
        "", "Column of a Hugging Face dataset that holds the pictures; empty: the first one that does."
    )
    allow_empty_captions: bool = setting(
        False, "Train pictures on empty text where none has a caption and there is no trigger; off: they are refused."
    )
    controls: str = setting(
        "none",
        "Control pictures, which an edit or control model is shown beside each target. auto: <name>.png or <name>_0.png, <name>_1.png in a folder control or "
        "conditioning, or a column such as control_path; none: they are left out.",
        choices=("none", "auto"),
    )
    control_path: str = path_setting(
        "", "Folder of control pictures with the names of their targets; several, one a line, give each target several."
    )
    control_resolution: int = setting(
        0,
        "Control pictures are scaled to about this many pixels squared; 0: as large as their target.",
        low=0,
        high=4096,
        zero="target",
    )
    frames: str = setting(
        "",
        "Lengths of clips in frames, separated by commas, such as 17, 33, as the model's VAE allows; empty: pictures alone, films are left out.",
    )
    clip_lengths: str = setting(
        "longest",
        "Which of these lengths a film is trained at: the longest that it is long enough for, or every one.",
        choices=("longest", "every"),
    )
    frame_rate: float = setting(
        0.0,
        "Frames a second that films are read at, such as 16 for Wan and 24 for HunyuanVideo; 0: all frames of each.",
        low=0.0,
        high=240.0,
        zero="all",
    )
    clips: str = setting(
        "head",
        "Which clips are taken of a film: its beginning (head), some spread evenly over it, one every few frames (sliding), or one behind the other (all).",
        choices=("head", "spread", "sliding", "all"),
    )
    clip_count: int = setting(4, "How many clips spread takes of a film.", low=1, high=1000)
    clip_stride: int = setting(
        0,
        "Frames from the beginning of one sliding clip to that of the next; 0: half a clip.",
        low=0,
        high=10_000,
        zero="half",
    )
    scene_change: float = setting(
        0.15,
        "Films longer than 10 seconds are cut where two frames differ by more than this (0 to 1, on average); 0: never.",
        zero="off",
        low=0.0,
        high=1.0,
    )
    first_frame: str = setting(
        "auto",
        "How often a clip is trained as what follows its first frame, where the model films from text and from a picture. auto: always for a model that "
        "is named or made for it, else never.",
        choices=FIRST_FRAME,
    )
    last_frame: bool = setting(
        False,
        "Show the last frame of each clip too, so that a film from one picture to another is learnt (Wan image to video).",
    )

    input_mask: str = setting(
        "none",
        "What an inpainting model is asked to fill: what is transparent (alpha), what is white in <name>.mask.png or mask/<name>.png (file), or shapes "
        "drawn at random as such models were trained. It is no loss mask.",
        choices=("none", "random", "file", "alpha"),
    )
    input_masks: int = setting(
        8, "How many masks random draws for each picture; each is encoded once.", low=1, high=256
    )

    @property
    def shows_controls(self) -> bool:
        """Whether control pictures are read."""
        return self.controls != "none" or bool(self.control_path.strip())

    @property
    def control_folders(self) -> list[str]:
        return [line.strip() for line in self.control_path.splitlines() if line.strip()]
