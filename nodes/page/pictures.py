"""Pictures that were dropped onto the tab: written to a folder of their own, ZIP files opened."""

from __future__ import annotations

import io
import secrets
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ...lora_core.data.metadata import TABLES
from ...lora_core.disk.files import write_bytes
from ...lora_core.messages.errors import LoomError
from ...lora_core.pictures.reading import EXTENSIONS

CAPTIONS = (".txt", ".caption", ".json", ".jsonl", ".csv")
MAX_FILES, MAX_BYTES = 20_000, 8 * 2**30


def pictures_root(data_root: Path) -> Path:
    """Where dropped pictures lie below a host's data."""
    return data_root / "pictures"


def stored(files: Sequence[tuple[str, bytes]], data_root: Path) -> Path:
    """A new folder with these files (name, content), of ZIP files what is in them. Raises LoomError; then nothing is left."""
    folder = pictures_root(data_root) / secrets.token_hex(6)
    try:
        for name, data in files:
            if name.lower().endswith(".zip"):
                _unzip(name, data, folder)
            elif _wanted(name):
                write_bytes(_free(folder / PurePosixPath(name.replace("\\", "/")).name), data)
        if not folder.is_dir():
            raise LoomError("upload.no_pictures", field="data.folder", allowed=" ".join(sorted(EXTENSIONS)))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _wanted(name: str) -> bool:
    place = PurePosixPath(name.replace("\\", "/"))
    hidden = any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in place.parts)
    suffix = place.suffix.lower()
    return not hidden and (suffix in EXTENSIONS or suffix in CAPTIONS or place.name in TABLES)


def _free(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return next(
        p for n in range(1, 10**6) if not (p := path if n == 1 else path.with_stem(f"{path.stem}-{n}")).exists()
    )


def _unzip(name: str, data: bytes, folder: Path) -> None:
    """What of a ZIP file is a picture or a caption, with its folders (12_name counts). Nothing is written outside of `folder`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and _wanted(m.filename)]
            if len(members) > MAX_FILES or sum(m.file_size for m in members) > MAX_BYTES:
                raise LoomError("upload.zip_large", field="data.folder", name=name, files=MAX_FILES)
            for member in members:
                parts = [
                    p for p in PurePosixPath(member.filename.replace("\\", "/")).parts if p not in ("/", "..", ".")
                ]
                target = folder.joinpath(*parts)
                if not target.resolve().is_relative_to(folder.resolve()):
                    continue
                write_bytes(_free(target), archive.read(member))
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise LoomError("upload.zip_unreadable", field="data.folder", name=name, reason=error) from error
