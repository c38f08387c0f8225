"""Copy 2,000 cats and 2,000 dogs into cats_and_dogs_small/{train,validation,test}/{cats,dogs}/.

Of each class, photos 0 to 999 are to train on, 1000 to 1499 to validate, 1500 to 1999 to test:
the split of "Keras in Chinese", chapter 6. Its text says 100 photos to train on at one place;
its code and its output say 1,000. Photos are checked and mended as in prepare_dataset.py.
"""

import argparse
import hashlib
import io
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter
from contextlib import suppress
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps
from rich.progress import track

# Kaggle's train/cat.0.jpg, Microsoft's PetImages/Cat/0.jpg
PHOTO = re.compile(r"(?:^|/)(cat|dog)(?:\.|s?/)(\d+)\.jpe?g$", re.IGNORECASE)


def list_files(source):
    """Return {name: (size in bytes, function that reads it)} of `source`, a folder or a zip file.

    Raises OSError or zipfile.BadZipFile where it cannot be read, or an entry is not safe.
    """
    if isinstance(source, Path) and source.is_dir():
        paths = [path for path in source.rglob("*") if path.is_file()]
        return {p.relative_to(source).as_posix(): (p.stat().st_size, p.read_bytes) for p in paths}
    files, archive = {}, zipfile.ZipFile(source)
    for entry in archive.infolist():
        name = entry.filename.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/"):
            raise zipfile.BadZipFile(f"entry {name} points outside")
        if entry.flag_bits & 1:
            raise zipfile.BadZipFile("it is encrypted")
        files[name] = (entry.file_size, partial(archive.read, entry))
    return files


def list_photos(source):
    """Return [(class, number, size in bytes, function that reads it)] in natural order.

    `source` is a folder or a zip file with Kaggle's or Microsoft's names, or one with Kaggle's
    train.zip in it. Raises ValueError where it has no cats, no dogs, or a photo twice.
    """
    files = list_files(source)
    inner = next((name for name in files if f"/{name}".endswith("/train.zip")), None)
    if inner and not any(map(PHOTO.search, files)):
        files = list_files(io.BytesIO(files[inner][1]()))
    photos = {}
    for name, (size, read) in files.items():
        if match := PHOTO.search(name):
            key = match[1].lower(), int(match[2])
            if key in photos:
                raise ValueError(f"{source} holds {key[0]}.{key[1]} more than once")
            photos[key] = size, read
    for label in ("cat", "dog"):
        if not any(key[0] == label for key in photos):
            raise ValueError(f"no photos of {label}s in {source}: expected {label}.0.jpg, ... "
                             f"or {label.title()}/0.jpg, ... as Kaggle and Microsoft name them")
    return [(*key, *photos[key]) for key in sorted(photos)]


def prepare_photo(data):
    """Return `data`, an image file, as it is or, where TensorFlow needs it, as another JPEG file.

    Raises ValueError where it cannot be decoded, or less than half of it.
    """
    try:
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except OSError:  # a JPEG that was cut off: with an end marker, the rows before decode
            image = Image.open(io.BytesIO(data + b"\xff\xd9"))
            rows = np.flatnonzero(np.ptp(np.asarray(image.convert("RGB")), axis=1).any(axis=-1))
            if rows.size == 0 or rows[-1] < image.height // 2:
                raise ValueError("more than half is missing") from None
            image = image.crop((0, 0, image.width, rows[-1] + 1))
        upright = image
        with suppress(Exception):  # damaged EXIF data says nothing of the photo
            upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        if upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        upright = upright.convert("RGB")
    except Image.UnidentifiedImageError:
        raise ValueError("not an image" if data else "empty") from None
    except Exception as error:  # noqa: BLE001, decoders raise all sorts on damaged files
        raise ValueError(str(error)) from None
    plain = image.mode in ("RGB", "L") and not image.has_transparency_data
    if plain and image.format in ("JPEG", "MPO", "PNG", "BMP"):
        try:
            pixels = tf.io.decode_image(data, channels=3, expand_animations=False).numpy()
            expected = np.asarray(upright, dtype=np.int16)
            # Decoders differ by a level or two; every eighth pixel shows whether it is more.
            if np.abs(pixels[::8, ::8] - expected[::8, ::8]).mean() < 8:
                return data
        except (tf.errors.InvalidArgumentError, ValueError):  # refused, or of another shape
            pass
    file = io.BytesIO()
    upright.save(file, "JPEG", quality=95)
    return file.getvalue()


def save_photo(job):
    """Prepare one photo and write it whole. Returns why it is left out, or None.

    `job` is its path and its entry in list_photos().
    """
    target, (*_, read) = job
    try:
        data = prepare_photo(read())
    except ValueError as error:
        return str(error)
    if not target.exists() or target.read_bytes() != data:
        part = target.with_suffix(".part")
        part.write_bytes(data)
        os.replace(part, target)
    return None


def copy_photos(photos, targets, output):
    """Prepare the `photos` into `targets`, paths below `output`; return the targets it holds then.

    Raises ValueError, before it writes anything, where `output` holds photos of another source.
    """
    mark = output / ".source"
    source = hashlib.sha256(repr([photo[:3] for photo in photos]).encode()).hexdigest()
    suffixes = {".bmp", ".gif", ".jpeg", ".jpg", ".png"}  # what Keras takes for a photo
    present = {path for path in output.rglob("*") if path.suffix.lower() in suffixes}
    if present and not (mark.exists() and mark.read_text() == source):
        raise ValueError(f"{output} holds photos of another source: delete that folder, or name "
                         "another with --output (mixed, test photos would leak into training)")
    if strangers := present - set(targets):
        raise ValueError(f"{min(strangers)} is not one of these photos: move it elsewhere")
    for folder in {target.parent for target in targets}:
        folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(source)
    copied = []
    with ThreadPool() as pool:  # decoding lets go of Python's lock, so threads use all cores
        reasons = pool.imap(save_photo, zip(targets, photos, strict=True))
        for target, reason in zip(targets, track(reasons, "photos", len(targets)), strict=True):
            if reason:
                print(f"left out: {target.name} ({reason})")
            else:
                copied.append(target)
    return copied


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")  # one line
    parser.add_argument("source", nargs="?", type=Path, metavar="SOURCE", default="train",
                        help="Kaggle's train/, train.zip or dogs-vs-cats.zip, or Microsoft's "
                             "PetImages/ or kagglecatsanddogs_5340.zip (%(default)s)")
    parser.add_argument("--output", type=Path, default="cats_and_dogs_small",
                        help="the folder to build (%(default)s)")
    parser.add_argument("--counts", type=int, nargs=3, default=(1000, 500, 500),
                        metavar=("TRAIN", "VALIDATION", "TEST"),
                        help="photos of each class (1000 500 500)")
    args = parser.parse_args()
    if min(args.counts) < 1:
        parser.error("--counts must be 1 or more")
    warnings.simplefilter("ignore")  # Pillow's, of photos that are readable all the same
    try:
        if not args.source.exists():
            parser.error(f"there is no {args.source}: give the path of Kaggle's train folder or "
                         "train.zip, or Microsoft's zip file")
        found = {photo[:2]: photo for photo in list_photos(args.source)}
        photos, targets = [], []
        for label in ("cat", "dog"):
            first = 0
            for split, count in zip(("train", "validation", "test"), args.counts, strict=True):
                folder = args.output / split / f"{label}s"
                numbers = [n for n in range(first, first + count) if (label, n) in found]
                if not numbers:
                    parser.error(f"{args.source} has no {label}s {first} to {first + count - 1}, "
                                 f"which {folder} takes: --counts sets how many of each class")
                photos += [found[label, n] for n in numbers]
                targets += [folder / f"{label}.{n}.jpg" for n in numbers]
                first += count
        copied = copy_photos(photos, targets, args.output)
        for folder, count in sorted(Counter(path.parent for path in copied).items()):
            print(f"{folder}: {count} photos")
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: stopped; the same command completes it\n")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        parser.error(f"cannot read {args.source}: {error}")
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
