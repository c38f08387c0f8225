"""Split the labelled photos of dogs and cats into dataset_dogs_vs_cats/{train,test}/{cats,dogs}/.

Every photo is decoded on the way: one that cannot be is left out and named, and one that
TensorFlow would refuse or misread is saved anew as an upright RGB JPEG; all others are copied
byte for byte. The split (seed 1, one draw per photo) is the same on every machine.
"""

import argparse
import hashlib
import io
import os
import random
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

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from rich.progress import track

# Microsoft's copy of the photos: the same as Kaggle's, numbered anew.
URL = ("https://download.microsoft.com/download/3/E/1/"
       "3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip")
SHA256 = "b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9"
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


def plot_photos(paths, filename):
    """Draw the photos `paths`, at most nine, in a 3x3 grid and save it as PNG `filename`."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    for axes, path in zip(figure.subplots(3, 3).flat, paths, strict=False):
        with Image.open(path) as photo:
            axes.imshow(photo.convert("RGB"))
            axes.set_title(f"{path.name}, {photo.width}x{photo.height}")
    Path("plots").mkdir(exist_ok=True)
    figure.savefig(f"{filename}.part", format="png")
    os.replace(f"{filename}.part", filename)
    print(f"first photos: {filename}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")  # one line
    parser.add_argument("source", nargs="?", type=Path, metavar="SOURCE",
                        help="Kaggle's train/, train.zip or dogs-vs-cats.zip, or Microsoft's "
                             "PetImages/ or kagglecatsanddogs_5340.zip (train)")
    parser.add_argument("--output", type=Path, default="dataset_dogs_vs_cats",
                        help="the folder to build (%(default)s)")
    parser.add_argument("--download", action="store_true",
                        help="get Microsoft's copy, 825 MB, instead of giving a SOURCE")
    args = parser.parse_args()
    if args.source and args.download:
        parser.error("give a SOURCE or --download, not both")
    warnings.simplefilter("ignore")  # Pillow's, of photos that are readable all the same
    source = args.source or Path("train")
    try:
        if args.download:
            source = Path(keras.utils.get_file(origin=URL, file_hash=SHA256))
            print(f"downloaded: {source}")
        if not source.exists():
            parser.error(f"there is no {source}: give the path of Kaggle's train folder or "
                         "train.zip, or let --download get the photos")
        photos = list_photos(source)
        random.seed(1)
        targets = []
        for label, number, *_ in photos:
            split = "test" if random.random() < 0.25 else "train"
            targets.append(args.output / split / f"{label}s" / f"{label}.{number}.jpg")
        copied = copy_photos(photos, targets, args.output)
        for folder, count in sorted(Counter(path.parent for path in copied).items()):
            print(f"{folder}: {count} photos")
        for label in ("dogs", "cats"):
            first = [path for path in copied if path.parent.name == label][:9]
            plot_photos(first, f"plots/{label}.png")
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: stopped; the same command completes it\n")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        parser.error(f"cannot read {source}: {error}")
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    except Exception as error:  # a bare one is what get_file raises without network
        if not args.download:
            raise
        parser.error(f"{error}; a browser can get the file too: give its path as SOURCE")


if __name__ == "__main__":
    main()
