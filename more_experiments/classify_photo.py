"""Say what is in photos: the five most probable of ImageNet's 1,000 classes.

Seven networks that Keras brings, each with its own photo size and preparation ("Keras in Chinese",
chapter 5, which prints the first class only, and one of its figures for another photo).
"""

import argparse
import io
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away

import numpy as np
import tensorflow as tf
from keras import applications
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress

MODELS = {  # its module, its function, the width and height of its photos
    "vgg16": (applications.vgg16, "VGG16", 224),
    "vgg19": (applications.vgg19, "VGG19", 224),
    "resnet50": (applications.resnet50, "ResNet50", 224),
    "inception_v3": (applications.inception_v3, "InceptionV3", 299),
    "inception_resnet_v2": (applications.inception_resnet_v2, "InceptionResNetV2", 299),
    "xception": (applications.xception, "Xception", 299),
    "mobilenet": (applications.mobilenet, "MobileNet", 224),
}
BATCH = 16
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


def load_image(filename, size):
    """Return one sample, float32 (1, `size`, `size`, 3), RGB in 0..255.

    Raises OSError where `filename` cannot be read, and ValueError where it is not a photo.
    """
    data = prepare_photo(Path(filename).read_bytes())
    photo = tf.io.decode_image(data, channels=3, expand_animations=False)
    return tf.image.resize(photo, (size, size)).numpy()[np.newaxis]


def define_model(name, weights):
    """Return the network `name`: photos (n, size, size, 3), prepared, to probabilities (n, 1000).

    `weights` is "imagenet" or the path of a file of weights. Raises OSError where they cannot be
    had.
    """
    warnings.simplefilter("ignore")  # Keras's, where another version saved the weights
    module, function, _ = MODELS[name]
    try:
        return getattr(module, function)(weights=weights)
    except Exception as error:  # noqa: BLE001, no network, no such file, or another network's
        raise OSError(f"cannot load the weights {weights} of {name} "
                      f"({str(error).splitlines()[0]}); give the path of a file with --weights"
                      ) from None


def decode(module, predicted):
    """Return for each row of probabilities (n, 1000) its top five as (id, name, probability).

    Raises OSError where the names, which Keras downloads once (35 kB), cannot be had.
    """
    try:
        return module.decode_predictions(predicted, top=5)
    except Exception as error:  # noqa: BLE001, a bare one is what get_file raises without network
        raise OSError(f"cannot get the names of the classes: {error}; a browser can: put the file "
                      "into ~/.keras/models") from None


def find_photos(paths):
    """Return the files among `paths`, and in place of each folder the photos below it."""
    photos = []
    for path in paths:
        below = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        photos += sorted(below, key=lambda p: (p.parent, len(p.name), p.name)) or [path]
    return photos


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")  # one line
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="file or folder")
    parser.add_argument("--model", choices=MODELS, default="vgg16", help="(%(default)s)")
    parser.add_argument("--weights", default="imagenet", help="or the path of a file of the "
                        "model's weights, .weights.h5 or the older .h5 (%(default)s)")
    args = parser.parse_args()
    module, _, size = MODELS[args.model]
    warnings.simplefilter("ignore")  # Pillow's, of photos that are readable all the same
    failed = False
    try:
        photos = find_photos(args.photos)
        model = define_model(args.model, args.weights)
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
                        samples.append((path, load_image(path, size)))
                    except (OSError, ValueError) as error:
                        reason = getattr(error, "strerror", None) or error
                        print(f"{parser.prog}: {path}: {reason}", file=sys.stderr)
                        failed = True
                if samples:
                    paths, arrays = zip(*samples, strict=True)
                    prepared = module.preprocess_input(np.concatenate(arrays))
                    predicted = model.predict_on_batch(prepared)
                    for path, classes in zip(paths, decode(module, predicted), strict=True):
                        print(f"{path}:")
                        for _, label, probability in classes:
                            print(f"{probability * 100:8.2f} %  {label}")
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: stopped\n")
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
