"""Places in the host's folders. Widgets offer choices below known roots; no free text ever becomes a path."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
from pathlib import Path
from typing import Any

import folder_paths

from ....lora_core.captioning.shelf import FOLDER, captioners, known_roots
from ....lora_core.compat import parse_toml
from ....lora_core.disk.files import is_folder
from ....lora_core.messages.errors import LoomError, reason_of
from ....lora_core.pictures.reading import EXTENSIONS, FILMS
from ....lora_core.toy.model import set_folder, set_names

log = logging.getLogger(__name__)
TOY_PREFIX = "toy: "
MAX_FOLDERS = 2000
OWNERS_FILE = "lora_loom.toml"  # in ComfyUI's user folder, where no page writes: training_roots = ["/data/sets"]


def training_roots() -> list[Path]:
    """Folders beside the host's input folder whose folders may be trained on, as the server's owner lists them in `OWNERS_FILE`. Raises LoomError."""
    file = Path(folder_paths.get_user_directory()) / OWNERS_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise LoomError("roots.unreadable", file=OWNERS_FILE, reason=reason_of(error)) from error
    try:
        roots = parse_toml(text).get("training_roots", [])
    except ValueError as error:
        raise LoomError("roots.unreadable", file=OWNERS_FILE, reason=reason_of(error)) from error
    if not isinstance(roots, list) or not all(isinstance(root, str) and Path(root).is_absolute() for root in roots):
        raise LoomError("roots.not_absolute", file=OWNERS_FILE)
    return [Path(root) for root in roots if is_folder(Path(root))]


def training_folders() -> list[str]:
    """Folders below the host's input folder that hold pictures (directly, or in sub-folders), those of the owner's further roots, the bundled toy sets."""
    root = Path(folder_paths.get_input_directory())
    try:
        roots = training_roots()
    except LoomError as error:  # a list of choices cannot fail; choosing one of them tells
        log.warning("%s", error)
        roots = []
    further = [
        (further_root / name).as_posix() for further_root in roots for name in ("", *_with_pictures(further_root))
    ]
    return _with_pictures(root) + further + [TOY_PREFIX + name for name in set_names()]


def _with_pictures(root: Path) -> list[str]:
    """Folders below `root` that hold pictures, directly or in sub-folders."""
    folders_below: set[str] = set()
    for branch, folders, files in os.walk(root):  # links are not followed, so loops end
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if branch != str(root) and any(Path(f).suffix.lower() in (*EXTENSIONS, *FILMS, ".parquet") for f in files):
            place = Path(branch).relative_to(root)
            folders_below.update(p.as_posix() for p in (place, *place.parents) if p.as_posix() != ".")
        if len(folders_below) > MAX_FOLDERS:
            break
    return sorted(folders_below)


def training_folder(choice: str) -> Path:
    """The folder behind a choice. Raises LoomError for anything outside the input folder and the owner's further roots."""
    if choice.startswith(TOY_PREFIX) and choice.removeprefix(TOY_PREFIX) in set_names():
        return set_folder(choice.removeprefix(TOY_PREFIX))
    root = Path(folder_paths.get_input_directory()).resolve()
    if "\0" in choice:
        raise _outside(choice)
    folder = (root / choice).resolve()
    allowed = folder.is_relative_to(root) and folder != root
    if not allowed and not any(folder.is_relative_to(further.resolve()) for further in training_roots()):
        raise _outside(choice)
    if not is_folder(folder):
        raise LoomError("folder.missing", field="folder", folder=repr(choice))
    return folder


def _outside(choice: str) -> LoomError:
    place = "/".join(Path(folder_paths.get_input_directory()).parts[-2:])
    return LoomError("folder.outside", field="folder", folder=repr(choice), place=place, file=f"user/{OWNERS_FILE}")


def chosen_place(text: str) -> str:
    """The choice for a folder that somebody typed, as it may be copied from a file manager. Raises LoomError as `training_folder` does."""
    choice = text.strip().strip("\"'")
    folder, root = training_folder(choice), Path(folder_paths.get_input_directory()).resolve()
    if choice.startswith(TOY_PREFIX):
        return choice
    return (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix()


def folder_refused(choice: Any, field: str = "folder") -> bool | str:
    """What a node's `validate_inputs` says of the folder in its widget `field`: True, or why not.

    Of a widget that is wired the host gives nothing before the graph runs; a program may queue whatever JSON holds.
    """
    if choice is None:
        return True
    try:
        training_folder(str(choice))
    except LoomError as error:
        return str(LoomError(dataclasses.replace(error.message, field=field)))
    return True


def is_hub_name(name: str) -> bool:
    """owner/name and nothing that could be a path of this machine."""
    return (
        bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name))
        and ".." not in name
        and not Path(name).exists()
    )


def runs_root() -> Path:
    """Where run folders go. Not below `loras`: the host lists every safetensors file there."""
    return Path(folder_paths.get_output_directory()) / "lora_loom"


def lora_folders() -> dict[str, Path]:
    """Label -> folder for every place the host reads LoRAs from, the output folder's own first."""
    return _folders("loras")


def embedding_folders() -> dict[str, Path]:
    """Label -> folder for every place the host reads embeddings from."""
    return _folders("embeddings", with_output=False)


def checkpoint_folders() -> dict[str, Path]:
    """Label -> folder for every place the host reads checkpoints and diffusion models from."""
    return _folders("checkpoints") | _folders("diffusion_models", with_output=False)


def _folders(kind: str, with_output: bool = True) -> dict[str, Path]:
    first = Path(folder_paths.get_output_directory()) / kind
    places = {f"output/{kind}": first} if with_output else {}
    for path in map(Path, folder_paths.get_folder_paths(kind)):
        if path.resolve() != first.resolve():
            label = "/".join(path.parts[-2:])
            places[label if label not in places else f"{len(places)}: {label}"] = path
    return places


def captioner_places() -> dict[str, Path]:
    """Name -> place of the taggers and captioners in the host's folders of models: models/captioners, those that extra_model_paths.yaml names so, and where
    other packs put theirs."""
    models = Path(folder_paths.models_dir)
    try:
        folders = [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]
    except KeyError:  # nobody has named the kind yet
        folder_paths.add_model_folder_path(FOLDER, str(models / FOLDER))
        folders = [models / FOLDER]
    roots = dict.fromkeys([*(folder for folder in folders if is_folder(folder)), *known_roots([models])])
    return captioners(list(roots))


_SEES = re.compile(r"(?:^|\.)(?:visual|vision_tower|vision_model|multi_modal_projector|embed_vision)\.")


def vision_text_encoders() -> list[str]:
    """The host's text encoders that look at pictures, by the names of the tensors in their headers: the text-generating ones among them caption."""
    out = []
    for name in folder_paths.get_filename_list("text_encoders"):
        path = folder_paths.get_full_path("text_encoders", name)
        if path and path.endswith((".safetensors", ".sft")) and _sees(path, os.stat(path).st_mtime_ns):
            out.append(name)
    return out


@functools.lru_cache(maxsize=256)
def _sees(path: str, changed: int) -> bool:
    """`changed`: when the file was, so that another one of its name is read anew."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError):
        return False
    return any(_SEES.search(name) for name in names) and any(".layers." in name for name in names)


def file_names_in(kind: str) -> list[str]:
    """The files of a kind the host lists, as its own loaders offer them."""
    return list(folder_paths.get_filename_list(kind))


def model_file(kind: str, choice: str) -> Path:
    """The file behind a choice of `file_names_in`. Raises LoomError for anything the host does not list."""
    if choice not in file_names_in(kind):
        raise LoomError("file.unlisted", field="file", file=repr(choice), kind=kind)
    path = folder_paths.get_full_path(kind, choice)
    if path is None:
        raise LoomError("file.gone", field="file", file=repr(choice), kind=kind)
    return Path(path)


_CHECKPOINT_FOLDERS = ("checkpoints", "diffusion_models")


def checkpoint_names() -> list[str]:
    """Every model file as `<kind>/<name>`."""
    return [f"{kind}/{name}" for kind in _CHECKPOINT_FOLDERS for name in file_names_in(kind)]


def checkpoint_file(choice: str) -> Path:
    """The file behind a choice of `checkpoint_names`."""
    kind, _, name = choice.partition("/")
    if kind not in _CHECKPOINT_FOLDERS:
        raise LoomError("checkpoint.unlisted", field="checkpoint", checkpoint=repr(choice))
    return model_file(kind, name)
