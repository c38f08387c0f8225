"""Predict photos without TensorFlow: in a fraction of the time, on a Raspberry Pi, in a shell loop.

    pip install -r tools/requirements_lite.txt
    python tools/predict_lite.py my_photo.jpg my_folder

It needs only LiteRT, NumPy, Pillow and pillow-heif, and a .tflite file, as tools/export_model.py
makes of any model; without --model it is the one that ships in models/reference/.
"""

import argparse
import glob
import io
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image, ImageChops, ImageOps

TOP = Path(__file__).resolve().parent.parent  # the repository's folder
# What looks like a photo, by its name.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif",
            ".heic", ".heif")
# What decode_photo reads. Pillow would start a program for some other formats: Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF", "HEIF")
pillow_heif.register_heif_opener()  # lets Pillow read HEIC, too, as iPhones save it
Image.MAX_IMAGE_PIXELS = None  # decode_photo has a limit of its own


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


def resize(pixels, count, axis):
    """Return `pixels` (height, width, 3) with `count` rows (axis 0) or columns (axis 1), float32.

    Bilinear, without antialiasing, as tf.image.resize does it, and so the networks' training.
    """
    old_count = pixels.shape[axis]
    # Where the middle of each new row falls among the old ones: 0.25 is a quarter of the way from
    # old row 0 to old row 1.
    places = (np.arange(count) + 0.5) * old_count / count - 0.5
    places = np.clip(places, 0, old_count - 1)
    before = np.floor(places).astype(int)
    after = np.minimum(before + 1, old_count - 1)
    share = (places - before).astype(np.float32)  # how much of the old row after it goes in
    if axis == 0:
        share = share[:, np.newaxis, np.newaxis]
    else:
        share = share[np.newaxis, :, np.newaxis]
    pixels_before = pixels.take(before, axis)
    pixels_after = pixels.take(after, axis)
    return pixels_before * (1 - share) + pixels_after * share


def load_photo(filename, size):
    """Return the photo as the networks take it: float32 (1, height, width, 3), RGB, 0 to 255.

    `size` is (height, width). The largest part in the middle with these proportions is kept, as of
    the test photos. Raises OSError where the file cannot be read, ValueError where it is not a
    photo, or is damaged.
    """
    photo = decode_photo(Path(filename).read_bytes())
    height, width = size
    # The part is as high as the photo, or, of a high photo, as high as its width allows; and so its
    # width. It has at least one pixel.
    part_height = min(photo.height, photo.width * height // width)
    part_width = min(photo.width, photo.height * width // height)
    part_height = max(1, part_height)
    part_width = max(1, part_width)
    top = (photo.height - part_height) // 2
    left = (photo.width - part_width) // 2
    photo = photo.crop((left, top, left + part_width, top + part_height))
    pixels = resize(np.asarray(photo), height, axis=0)
    pixels = resize(pixels, width, axis=1)
    return pixels[np.newaxis]


@contextmanager
def silence():
    """Hide what LiteRT logs to standard error from C++, `with silence():`; no setting does it."""
    stderr = os.dup(2)  # a second way to standard error, to come back to
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def load_model(filename):
    """Return the function in `filename`, a .tflite file, and the (height, width) that it takes.

    The function takes photo=(1, height, width, 3), 0 to 255, and returns {"dog": P(dog) (1, 1)},
    and may return {"dog_or_cat": a score (1, 1)}, too: below 0.5 it is neither. The names are those
    that export_model.py was given. Raises FileNotFoundError, or ValueError for another kind of
    file.
    """
    if not Path(filename).exists():
        raise FileNotFoundError(f"there is no model {filename}")
    try:
        with silence():
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(str(filename))
            interpreter.allocate_tensors()
            predict = interpreter.get_signature_runner()
            shape = predict.get_input_details()["photo"]["shape"]
    except ModuleNotFoundError:
        raise ValueError("LiteRT is missing: pip install -r tools/requirements_lite.txt") from None
    except Exception as error:  # noqa: BLE001, LiteRT raises all sorts on other files
        reason = " ".join(str(error).split())  # in one line
        raise ValueError(f"cannot use the model {filename}: {reason}") from None
    return predict, (int(shape[1]), int(shape[2]))


def predict_photo(predict, photo):
    """Return [P(second class)], or [P(second class), a score: below 0.5 it is neither class].

    `predict` is the function that load_model returns, `photo` (1, height, width, 3), 0 to 255.
    """
    answers = predict(photo=photo)
    names = sorted(answers, key=len)  # "dog", and then, where the model has it, "dog_or_cat"
    return [float(answers[name][0, 0]) for name in names]


def find_photos(path):
    """Return the photos below the folder `path`, sorted, without hidden files; or the file `path`.

    A name with a star, *.jpg, which Windows leaves to us, stands for all files that it fits.
    """
    if path.is_dir():
        photos = []
        for file in path.rglob("*"):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.suffix.lower() in SUFFIXES and not hidden:
                photos.append(file)
        return sorted(photos, key=lambda file: (file.parent, len(file.name), file.name))  # 9, 10
    if "*" in path.name and not path.exists():
        return [Path(name) for name in sorted(glob.glob(str(path)))]
    return [path]


def describe(classes, second, known=1.0):
    """Return the answer in words: a class and its probability, or unsure below 80 %, or neither.

    `classes` are the names of both, `second` is P(second class), `known` a score: below
    0.5 the photo shows neither.
    """
    name = classes[0]
    probability = 1 - second
    if second >= 0.5:
        name = classes[1]
        probability = second
    if known < 0.5:
        return f"neither {classes[1]} nor {classes[0]}, it seems ({name} {probability * 100:.1f} %)"
    if probability < 0.8:
        return f"unsure, rather {name} ({probability * 100:.2f} %)"
    return f"{name} ({probability * 100:.2f} %)"


def parse_args():
    """Return the options of the command line; end with status 2 if there is no model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="file or folder")
    parser.add_argument("--model", type=Path, help="(the one in models/reference/)")
    parser.add_argument("--classes", nargs=2, default=["cat", "dog"], metavar=("FIRST", "SECOND"),
                        help="names of the two classes, in alphabetical order of their folders "
                             "(cat dog)")
    args = parser.parse_args()
    if args.model is None:
        reference = sorted(TOP.glob("models/reference/*.tflite"))
        if not reference:
            parser.error("no model: tools/export_model.py makes one to name with --model")
        args.model = reference[0]
    return args


def main():
    """Print a line for each photo; return the exit status, 1 if a file is not a photo."""
    args = parse_args()
    predict, size = load_model(args.model)
    status = 0
    photos = []
    for path in args.photos:
        found = find_photos(path)
        photos.extend(found)
        if not found:
            print(f"no photos in {path}", file=sys.stderr)
            status = 1
    for path in photos:
        try:
            photo = load_photo(path, size)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error  # strerror: without the path
            print(f"{path}: {reason}", file=sys.stderr)
            status = 1
            continue
        probabilities = predict_photo(predict, photo)
        print(f"{path}: {describe(args.classes, *probabilities)}", flush=True)
    return status


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of Pillow, on photos that it reads
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for names that the console cannot print
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (OSError, ValueError) as error:
        sys.exit(f"predict_lite.py: {error}")
