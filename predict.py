"""Predict whether photos show a dog or a cat, with the model that finalize_model.py has saved."""

import argparse
import io
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away

import keras
import numpy as np
import tensorflow as tf
from keras.applications.vgg16 import preprocess_input
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress

BATCH = 64
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


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


def load_image(filename):
    """Return one sample, float32 (1, 224, 224, 3), prepared for VGG-16 exactly as in training.

    Raises OSError where `filename` cannot be read, and ValueError where it is not a photo.
    """
    data = prepare_photo(Path(filename).read_bytes())
    photo = tf.io.decode_image(data, channels=3, expand_animations=False)
    return preprocess_input(tf.image.resize(photo, (224, 224)).numpy()[np.newaxis])


def load_model(filename):
    """Return the model in `filename`, prepared photos (n, 224, 224, 3) in, P(dog) (n, 1) out.

    Raises ValueError where the file is damaged, or holds another model, or code.
    """
    try:
        model = keras.models.load_model(filename, compile=False, safe_mode=True)
        shapes = model.input_shape, model.output_shape
    except Exception as error:  # noqa: BLE001, every sort, from HDF5 and from Keras
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot load the model {filename}: {reason}") from None
    if shapes != ((None, 224, 224, 3), (None, 1)):
        raise ValueError(f"{filename} is not the final model: it takes {shapes[0]} and gives "
                         f"{shapes[1]}, not (None, 224, 224, 3) and (None, 1)")
    return model


def find_photos(paths):
    """Return the files among `paths`, and in place of each folder the photos below it."""
    photos = []
    for path in paths:
        below = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        photos += sorted(below, key=lambda p: (p.parent, len(p.name), p.name)) or [path]
    return photos


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")  # one line
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="file or folder")
    parser.add_argument("--model", type=Path, default="final_model.h5", help="(%(default)s)")
    args = parser.parse_args()
    if not args.model.exists():
        parser.error(f"there is no {args.model}: run finalize_model.py")
    warnings.simplefilter("ignore")  # Pillow's, of photos that are readable all the same
    failed = False
    try:
        model = load_model(args.model)
        photos = find_photos(args.photos)
        starts = range(0, len(photos), BATCH)
        bar = Progress(console=Console(stderr=True), disable=len(starts) < 3,
                       redirect_stdout=sys.stdout.isatty())  # the lines may go to a file
        with bar:
            for start in bar.track(starts, description="photos"):
                samples = []
                for path in photos[start : start + BATCH]:
                    try:
                        if path.is_dir():
                            raise ValueError("no photos in this folder")
                        samples.append((path, load_image(path)))
                    except (OSError, ValueError) as error:
                        reason = getattr(error, "strerror", None) or error
                        print(f"{parser.prog}: {path}: {reason}", file=sys.stderr)
                        failed = True
                if samples:
                    paths, arrays = zip(*samples, strict=True)
                    predicted = model.predict_on_batch(np.concatenate(arrays))[:, 0]
                    for path, dog in zip(paths, predicted, strict=True):
                        label, probability = ("dog", dog) if dog >= 0.5 else ("cat", 1 - dog)
                        print(f"{path}: {label} ({probability * 100:.2f} %)")
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: stopped\n")
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
