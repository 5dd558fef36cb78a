"""Networks read whole: a weight that a folder or a file lacks would be a random number, without a word of the libraries that read it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import nn

from ..compat import needed
from ..messages.blame import blamed
from ..messages.errors import LoomError
from .layout import LOCAL, config_of, variant_of

LIBRARIES = ("diffusers", "transformers")  # whose classes a folder may name
WEIGHTS = (".safetensors", ".bin")  # kinds of files a folder has its weights in
_COMPUTED = ("position_ids",)  # buffers that older files hold and newer classes make anew
Shapes = Mapping[str, Sequence[int]]


def read_whole(kind: Any, place: Path, dtype: torch.dtype, field: str = "base") -> Any:
    """A network of this class of diffusers or transformers from its folder, which `field` names.

    Raises LoomError where weights are missing or of other shapes than the folder's config says, and for whatever else keeps it from being read.
    """
    if not any(file.suffix in WEIGHTS for file in place.iterdir()):
        raise LoomError("base.no_weights", field=field, file=short_name(place))
    options = {"torch_dtype": dtype, "output_loading_info": True, **variant_of(place), **LOCAL}
    with blamed("base.unreadable", field, memory="base.no_memory", file=short_name(place)):
        try:
            model, info = kind.from_pretrained(place, **options)
        except (
            ValueError,
            RuntimeError,
        ):  # diffusers before 0.33 raises where weights are missing, both where shapes differ
            _refuse_misfits(kind, place, field)
            raise
        missing = _not_under_old_names(model, place, info["missing_keys"])
    require_none(missing, place, field)
    return model


def read_file(kind: Any, file: Path, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """A network of this class of diffusers from a single file of whichever naming, by the config that `folder` has for this part. Raises LoomError."""
    needed("accelerate")  # without it diffusers leaves random numbers where the file has none
    with safetensors.safe_open(file, "pt") as opened:
        require_names(kind, folder / part, file, opened.keys())
    with filling(file, kind.__name__):
        model = kind.from_single_file(str(file), torch_dtype=dtype, config=str(folder), subfolder=part, **LOCAL)
    require_filled(model, file)
    return model


@contextlib.contextmanager
def filling(file: Path, kind: str) -> Iterator[None]:
    """Inside, diffusers reads networks from a single file. What it lacks is refused by name: diffusers leaves such weights without values,

    and stops when it moves them, or looks for one by its name.
    """
    try:
        yield
    except NotImplementedError as error:
        require_none(_unfilled(error), file)
        raise
    except KeyError as error:
        key = str(error.args[0]) if error.args else ""
        raise LoomError("base.no_weight", field="base", file=file.name, key=key, kind=kind) from error


def _unfilled(error: BaseException) -> list[str]:
    """The weights without values of the network that was at hand when the error came."""
    traceback = error.__traceback__
    names: list[str] = []
    while traceback is not None and not names:
        modules = [value for value in traceback.tb_frame.f_locals.values() if isinstance(value, nn.Module)]
        names = [name for module in modules for name, p in module.named_parameters() if p.device.type == "meta"]
        traceback = traceback.tb_next
    return names


def read_configured(kind: Any, place: Path, field: str = "base") -> Any:
    """A part without weights, such as a tokenizer or a scheduler. Raises LoomError, with the library's own words, that names its folder."""
    with blamed("base.unreadable", field, memory="base.no_memory", file=short_name(place)):
        return kind.from_pretrained(place, **LOCAL)


def require_whole(kind: Any, place: Path, field: str = "base") -> None:
    """The same as `read_whole` refuses, by the names and shapes of the folder's safetensors files alone: for what is read later. Raises LoomError."""
    with blamed("base.unreadable", field, memory="base.no_memory", file=short_name(place)):
        _refuse_misfits(kind, place, field)


def require_none(missing: Iterable[str], place: Path, field: str = "base") -> None:
    """Refuses what lacks these weights. Raises LoomError."""
    names = sorted(name for name in missing if not name.endswith(_COMPUTED))
    if names:
        raise LoomError("base.weights_missing", field=field, file=place, count=len(names), key=names[0])


def require_filled(model: nn.Module, file: Path, field: str = "base") -> None:
    """Refuses a network that was read from a single file and has weights left without values. Raises LoomError."""
    require_none((name for name, p in model.named_parameters() if p.device.type == "meta"), file, field)


def require_names(kind: Any, folder: Path, file: Path, names: Iterable[str], field: str = "base") -> None:
    """The same before a file is read whose weights have the names of this class; one with other names is left to who knows them.

    `folder`: that of the network's config.
    """
    expected, present = set(_shapes_of_config(kind, folder)), set(names)
    if len(expected & present) > len(expected) / 2:
        require_none(expected - present, file, field)


def class_named(folder: Path, part: str) -> Any:
    """The class that model_index.json names for a part; None for no network. Raises LoomError for one the installed library does not have."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    library, name = (*index.get(part, ()), None, None)[:2]
    if library not in LIBRARIES or not isinstance(name, str):
        return None
    kind = getattr(needed(library), name, None)
    if kind is None:
        raise LoomError("base.part_unknown", field="base", file=folder.name, part=part, kind=name, package=library)
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def short_name(place: Path) -> str:
    """A part by the model's folder and its own."""
    return f"{place.parent.name}/{place.name}"


def _refuse_misfits(kind: Any, place: Path, field: str) -> None:
    """Says what is wrong with a folder's weights that were refused by their library. Raises LoomError where anything is."""
    if "quantization_config" in config_of(place):  # packed weights have shapes of their own
        return
    stored, expected = _shapes_on_disk(place), _shapes_of_config(kind, place)
    if not stored or not expected:
        return
    misfit = next(
        (name for name in sorted(expected) if list(stored.get(name, expected[name])) != list(expected[name])), ""
    )
    if misfit:
        shapes = {"shape": "x".join(map(str, stored[misfit])), "wanted": "x".join(map(str, expected[misfit]))}
        raise LoomError("base.other_shape", field=field, file=short_name(place), key=misfit, **shapes)
    require_none(set(expected) - set(stored), place, field)


def _shapes_of_config(kind: Any, place: Path) -> Shapes:
    """Shapes of this class's weights by name, as the folder's config makes it; nothing for a class that cannot be made without weights."""
    with torch.device("meta"):
        if hasattr(kind, "load_config"):
            model = kind.from_config(kind.load_config(place, **LOCAL))
        elif getattr(kind, "config_class", None) is not None:
            model = kind(kind.config_class.from_pretrained(place, **LOCAL))
        else:
            return {}
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _shapes_on_disk(place: Path) -> Shapes:
    shapes: dict[str, Sequence[int]] = {}
    for file in sorted(place.glob("*.safetensors")):
        with safetensors.safe_open(file, "pt") as opened:
            shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 - no dict
    return shapes


def _not_under_old_names(model: nn.Module, place: Path, missing: Iterable[str]) -> list[str]:
    """Of the missing weights of a CLIP those the folder has under no name. Newer transformers write the names without `text_model.`."""
    missing = [name for name in missing if not name.endswith(_COMPUTED)]
    if not any(name.startswith("text_model.") for name in missing):
        return missing
    weights = {name: tensor for file in place.glob("*.safetensors") for name, tensor in load_file(file).items()}
    full = {name if name.startswith("text_") else f"text_model.{name}": w for name, w in weights.items()}
    state = model.state_dict()
    model.load_state_dict({name: w.to(state[name].dtype) for name, w in full.items() if name in state}, strict=False)
    return [name for name in missing if name not in full]
