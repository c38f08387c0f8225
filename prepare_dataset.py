"""Split the labelled photos of dogs and cats into dataset_dogs_vs_cats/{train,test}/{cats,dogs}/.

One draw per photo, with seed 1, puts a quarter of them into the test split: the same quarter on
every machine. Each photo is decoded on the way, so that none can stop an experiment later.
"""

import argparse
import io
import os
import random
import re
import sys
import warnings
import zipfile
import zlib
from collections import Counter
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
try:
    import keras
    import pillow_heif
    import tensorflow as tf
    from matplotlib.figure import Figure
    from PIL import Image, ImageChops, ImageOps
    from rich.progress import track
except KeyboardInterrupt:  # Ctrl-C during the imports, which take seconds
    sys.exit("stopped")

# Microsoft's copy of the photos: the same as Kaggle's, numbered anew.
URL = ("https://download.microsoft.com/download/3/E/1/"
       "3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip")
SHA256 = "b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9"
# Kaggle's train/cat.0.jpg, Microsoft's PetImages/Cat/0.jpg
PHOTO = re.compile(r"(?:^|/)(cat|dog)(?:\.|s?/)(\d+)\.jpe?g$", re.IGNORECASE)
# What decode_photo reads. Pillow would start a program for some other formats: Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF", "HEIF")
pillow_heif.register_heif_opener()  # lets Pillow read HEIC, too, as iPhones save it
Image.MAX_IMAGE_PIXELS = None  # decode_photo has a limit of its own

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")  # what Keras takes for a photo


def download_photos():
    """Return the path of Microsoft's zip file, downloaded to ~/.keras/datasets the first time.

    Raises OSError without a network.
    """
    try:
        return Path(keras.utils.get_file(origin=URL, file_hash=SHA256))
    except Exception as error:  # noqa: BLE001, get_file raises bare Exception
        raise OSError(f"{error}; or download it in a browser and pass it as SOURCE") from None


def list_photos(source):
    """Return {(class, number): function that reads the photo} in the order cat.0 ... dog.12499.

    `source` is a folder or a zip file with Kaggle's or Microsoft's names, or one with Kaggle's
    train.zip in it. Raises ValueError where it has no cats, no dogs, or a photo twice.
    """
    if source.is_dir():
        files = {path.as_posix(): path.read_bytes for path in source.rglob("*")}
    else:
        archive = zipfile.ZipFile(source)
        if "train.zip" in archive.namelist():
            archive = zipfile.ZipFile(io.BytesIO(archive.read("train.zip")))
        files = {name: partial(archive.read, name) for name in archive.namelist()}
    photos = {}
    for name, read in files.items():
        if match := PHOTO.search(name.replace("\\", "/")):
            key = match[1].lower(), int(match[2])
            if key in photos:
                raise ValueError(f"{source} holds {key[0]}.{key[1]} more than once")
            photos[key] = read
    if len({label for label, _ in photos}) < 2:
        raise ValueError(f"no cats or no dogs in {source}: expected cat.0.jpg, dog.0.jpg, ... or "
                         "Cat/0.jpg, Dog/0.jpg, ... as Kaggle and Microsoft name them")
    return dict(sorted(photos.items()))


def decode_photo(data):
    """Return the photo in `data`, the bytes of an image file, as a Pillow image in mode RGB.

    It is upright, has 8 bits a colour, and is white where it was transparent. Of an animation it
    is the first frame. Raises ValueError, with a short reason, where this is not possible.
    """
    try:
        photo = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # noqa: BLE001, decoders raise all sorts on what is no photo
        if data.startswith(b"version https://git-lfs"):
            raise ValueError("a Git LFS pointer, not the photo itself") from None
        raise ValueError("not a photo") from None
    kind = photo.format.replace("MPO", "JPEG")  # MPO: a JPEG with further photos behind the first
    million_pixels = photo.width * photo.height / 1e6
    if million_pixels > 100:
        photo.draft(None, (2000, 2000))  # a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size
    if photo.width * photo.height > 178e6:
        raise ValueError(f"too large ({million_pixels:.0f} million pixels, limit 178)")
    try:
        photo.load()
        try:
            orientation = photo.getexif().get(0x0112, 1)  # how the camera was held
        except Exception:  # noqa: BLE001, a photo with damaged EXIF data is still a photo
            orientation = 1
        if photo.mode.startswith("I"):  # 16 bits, grey
            photo = photo.convert("I").point(lambda value: value / 256).convert("L")
        if photo.has_transparency_data:
            photo = photo.convert("RGBA")
            white = Image.new("RGBA", photo.size, "white")
            photo = Image.alpha_composite(white, photo)
        photo = photo.convert("RGB")
    except MemoryError:
        raise ValueError(f"too large ({million_pixels:.0f} million pixels) for memory") from None
    except Exception:  # noqa: BLE001
        end = b"\xff\xd9"  # the last two bytes of a whole JPEG
        if kind != "JPEG" or data.endswith(end):
            raise ValueError(f"damaged {kind}") from None
        # Cut off. With an end, what is there can be decoded, and what is missing becomes grey.
        photo = decode_photo(data + end)
        grey = Image.new("RGB", photo.size, (128, 128, 128))
        box = ImageChops.difference(photo, grey).getbbox()
        left, top, right, bottom = box or (0, 0, 0, 0)  # no box: all is grey
        if (right - left) * (bottom - top) < photo.width * photo.height / 2:
            raise ValueError("damaged JPEG, more than half is missing") from None
        return photo.crop(box)
    # Of all EXIF data only the orientation is carried over: Pillow cannot rewrite some of it.
    photo.info = {}
    photo.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(photo)


def prepare_photo(data):
    """Return `data`, an image file, if it is an upright RGB or grey JPEG, or else as an RGB JPEG.

    Raises ValueError, with a short reason, where it cannot be decoded.
    """
    photo = decode_photo(data)
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    upright = image.getexif().get(0x0112, 1) == 1
    whole = image.size == photo.size
    if jpeg and upright and whole:
        try:
            tf.io.decode_jpeg(data)  # the experiments read with TensorFlow: it refuses some damage
            return data
        except tf.errors.InvalidArgumentError:
            pass  # saved anew, below
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=95)
    return file.getvalue()


def save_photo(job):
    """Prepare one photo and write it. Returns None or, where it cannot be decoded, why not.

    `job` is the path to write and the function that reads the photo.
    """
    target, read = job
    try:
        data = prepare_photo(read())
    except Exception as error:  # noqa: BLE001, decoders raise all sorts on damaged files
        target.unlink(missing_ok=True)
        return "not an image" if isinstance(error, Image.UnidentifiedImageError) else error
    if not target.exists() or target.read_bytes() != data:
        target.write_bytes(data)
    return None


def copy_photos(photos):
    """Prepare `photos`, {path to write: function that reads}, and return the paths written.

    What cannot be decoded is left out and named. Uses all cores: decoding releases the GIL.
    """
    for folder in {target.parent for target in photos}:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPool() as pool:
        reasons = track(pool.imap(save_photo, photos.items()), "photos", len(photos))
        left_out = {t: reason for t, reason in zip(photos, reasons, strict=True) if reason}
    for target, reason in left_out.items():
        print(f"left out: {target.name} ({reason})")
    return [target for target in photos if target not in left_out]


def plot_photos(paths, filename):
    """Draw the photos `paths`, at most nine, in a 3x3 grid and save it as PNG `filename`."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    for axes, path in zip(figure.subplots(3, 3).flat, paths, strict=False):
        with Image.open(path) as photo:
            axes.imshow(photo.convert("RGB"))
            axes.set_title(f"{path.name}, {photo.width}x{photo.height}")
    figure.savefig(filename)
    print(f"first photos: {filename}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("source", nargs="?", type=Path, default=Path("train"), metavar="SOURCE",
                        help="Kaggle's train/, train.zip or dogs-vs-cats.zip, or Microsoft's "
                             "PetImages/ or kagglecatsanddogs_5340.zip (train)")
    origin.add_argument("--download", action="store_true", help="get Microsoft's copy, 825 MB")
    parser.add_argument("--output", type=Path, default="dataset_dogs_vs_cats",
                        help="the folder to build (%(default)s)")
    parser.add_argument("--test-ratio", type=float, default=0.25,
                        help="fraction for the test split (%(default)s)")
    args = parser.parse_args()
    if not 0 < args.test_ratio < 1:
        parser.error("--test-ratio must be between 0 and 1")
    if args.download:
        args.source = download_photos()
    if not args.source.exists():
        raise FileNotFoundError(f"there is no {args.source}: give the path of Kaggle's train "
                                "folder or train.zip, or let --download get the photos")
    photos = {}
    random.seed(1)
    for (label, number), read in list_photos(args.source).items():
        split = "test" if random.random() < args.test_ratio else "train"
        photos[args.output / split / f"{label}s" / f"{label}.{number}.jpg"] = read
    # Photos of another source would mix in, and test photos end up in the training split.
    if strangers := {path for path in args.output.rglob("*")
                     if path.suffix.lower() in SUFFIXES} - set(photos):
        raise ValueError(f"{min(strangers)} is not one of these photos: delete {args.output} or "
                         "name another folder with --output")
    copied = copy_photos(photos)
    for folder, count in sorted(Counter(path.parent for path in copied).items()):
        print(f"{folder}: {count} photos")
    Path("plots").mkdir(exist_ok=True)
    for label in ("dogs", "cats"):
        first = [path for path in copied if path.parent.name == label][:9]
        plot_photos(first, f"plots/{label}.png")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Pillow's, about photos that it can still read
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f"{sys.argv[0]}: stopped; the same command completes it")
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
