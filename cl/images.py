"""Images from a folder or zip of class folders: find them, decode them into one tensor."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cl.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first that exists is the test split
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
MEMORY_SHARE = 0.6  # of the memory that is free may be taken by decoded images


@dataclass
class ImageFolder:
    """What `scan` found. files: paths inside `path`; labels, is_test: one per file."""

    path: Path
    files: list[str]
    labels: list[int]
    is_test: list[bool]
    classes: list[str]

    def splits(self) -> tuple[Tensor, Tensor | None]:
        """(train, test) row indices; test is None where the folder has no test split."""
        held = torch.tensor(self.is_test)
        rows = torch.arange(len(self.files))
        return (rows[~held], rows[held]) if held.any() else (rows, None)


def scan(path: Path) -> ImageFolder:
    """Find the images of each class without opening them. Raises DataError in one line."""
    if not (path.is_dir() or path.is_file()):
        raise DataError(f"stream.path: no file or folder {path}")
    files = _listed(path)
    if not files:
        raise DataError(
            f"{path} holds no image; expected CLASS/IMAGE with one of {', '.join(sorted(SUFFIXES))}"
        )
    parts = [PurePosixPath(f).parts for f in files]
    depth = 0
    while (
        all(len(p) > depth + 2 for p in parts)
        and len({p[depth] for p in parts}) == 1
        and parts[0][depth].lower() not in ("train", *TEST_FOLDERS)
    ):
        depth += 1  # a wrapping folder
    tops = {p[depth].lower() for p in parts}
    split = "train" in tops
    if len(tops) == 1 and tops <= set(TEST_FOLDERS) and len(parts[0]) > depth + 2:
        raise DataError(f"{path} holds {parts[0][depth]}/ alone; expected train/ and test/")
    test = next((name for name in TEST_FOLDERS if name in tops), None) if split else None
    names, is_test = [], []
    for file, p in zip(files, parts, strict=True):
        inner, top = p[depth + split :], p[depth].lower()
        if len(inner) < 2:
            raise DataError(f"{path}: image {file} lies outside the class folders")
        if split and top not in ("train", *TEST_FOLDERS):
            raise DataError(f"{path} has {p[depth]!r} beside train/; expected train/, test/")
        names.append("/".join(inner[:-1]))
        is_test.append(split and top == test)
    classes = sorted(set(names))
    if len(classes) < 2:
        raise DataError(
            f"{path} holds one class only ({classes[0]!r}); a class-incremental stream needs 2 or "
            "more folders with images"
        )
    label = {name: k for k, name in enumerate(classes)}
    return ImageFolder(path, files, [label[name] for name in names], is_test, classes)


def decode(folder: ImageFolder, rows: list[int], size: int | None) -> Tensor:
    """Images at positions `rows` as uint8 [n, C, H, W]; C is 1 if all are grey, else 3.

    size: fit the shorter side and cut the centre; None keeps the images' own common size.
    Raises DataError naming the first image that can't be read or has another size.
    """
    files = [folder.files[r] for r in rows]
    with _reader(folder.path) as read:
        with _open(read, files[0]) as first:
            side = (size, size) if size else first.size[::-1]
        grey = all(_is_grey(read, f) for f in _one_per_class(folder, rows))
        _check_memory(len(files), side, 1 if grey else 3)
        images = _decode_all(read, files, side, size, grey)
        if images is None:  # a colour image among grey ones
            images = _decode_all(read, files, side, size, False)
    return torch.from_numpy(images)


def _decode_all(read, files: list[str], side, size, grey: bool) -> np.ndarray | None:
    images = np.empty((len(files), 1 if grey else 3, *side), np.uint8)

    def fill(k: int) -> bool:
        with _open(read, files[k]) as image:
            if grey and image.mode not in GREY:
                return False
            image = _eight_bits(image, files[k]).convert("L" if grey else "RGB")
            if size:
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            elif image.size[::-1] != side:
                raise DataError(
                    f"{files[k]} is {image.width}x{image.height}, {files[0]} is "
                    f"{side[1]}x{side[0]}; give stream.size to fit all to one size"
                )
            array = np.asarray(image)
            images[k] = array[None] if grey else array.transpose(2, 0, 1)
            return True

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunk = 256
        starts = range(0, len(files), chunk)
        for done in pool.map(
            lambda s: all(fill(k) for k in range(s, min(s + chunk, len(files)))), starts
        ):
            if not done:
                pool.shutdown(cancel_futures=True)
                return None
    return images


@contextmanager
def _open(read, name: str) -> Iterator[Image.Image]:
    """A decoded image; whatever is wrong with it is said with its name."""
    try:
        with Image.open(BytesIO(read(name))) as image:
            image.load()
            yield image
    except DataError:
        raise
    except (
        OSError,
        ValueError,
        SyntaxError,
        zipfile.BadZipFile,
        Image.DecompressionBombError,
        EOFError,
        RuntimeError,
    ) as error:
        reason = "not an image" if "cannot identify" in str(error) else str(error)
        raise DataError(f"image {name} can't be read: {reason}") from error


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey scaled to 8 (PIL's own conversion would cut everything above 255 to white)."""
    if image.mode == "F":
        raise DataError(f"image {name} holds floats; convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image


def _is_grey(read, name: str) -> bool:
    with _open(read, name) as image:
        return image.mode in GREY


def _one_per_class(folder: ImageFolder, rows: list[int]) -> list[str]:
    first = {folder.labels[r]: folder.files[r] for r in reversed(rows)}
    return list(first.values())


def _check_memory(n: int, side: tuple[int, int], channels: int) -> None:
    need, free = n * channels * side[0] * side[1], psutil.virtual_memory().available
    if need > MEMORY_SHARE * free:
        raise DataError(
            f"{n:,} images of {side[1]}x{side[0]} take {need / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free; give a smaller stream.size or stream.per_class"
        )


@contextmanager
def _reader(path: Path):
    """A function name -> bytes over a folder or an open zip."""
    if path.is_dir():
        yield lambda name: (path / name).read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        yield archive.read


def _listed(path: Path) -> list[str]:
    if path.is_dir():
        names = _walk(path)
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [i.filename for i in archive.infolist() if not i.is_dir()]
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"stream.path: {path} is neither a folder nor a zip ({error})"
            ) from error
    return sorted(n for n in names if _is_image(n))


def _walk(path: Path) -> list[str]:
    """Files below a folder, links followed; what can't be read is said, never left out."""

    def refuse(error: OSError) -> None:
        raise DataError(f"stream.path: {error.filename} can't be read: {error.strerror}")

    names, seen = [], set()
    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()  # a link back up
            continue
        seen.add(real)
        for name in files:
            full = Path(folder) / name
            if _is_image(name) and not full.is_file():
                raise DataError(f"stream.path: {full} is a broken link or no file")
            names.append(full.relative_to(path).as_posix())
    return names


def _is_image(name: str) -> bool:
    p = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in p.parts)
    return p.suffix.lower() in SUFFIXES and not hidden
