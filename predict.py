"""Predict whether photos show a dog or a cat, with any model that the experiments have saved."""

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
try:
    import keras
    import numpy as np
    import tensorflow as tf
    from PIL import Image, ImageOps
    from rich.console import Console
    from rich.progress import Progress
except KeyboardInterrupt:  # Ctrl-C during the imports, which take seconds
    sys.exit("stopped")

# Formats that photos come in. Pillow would also run programs for some: Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif")


def load_image(filename, size):
    """Return the photo as the experiments see it, float32 (1, height, width, 3), RGB, 0 to 255.

    `size` is the network's (height, width). Raises an exception of any sort where `filename`
    cannot be read, is not a photo, or is damaged.
    """
    (image := Image.open(filename, formats=FORMATS)).load()
    upright = image.getexif().get(0x0112, 1) == 1
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and upright:
        photo = tf.io.decode_image(Path(filename).read_bytes(), channels=3)  # rounds as in training
    else:  # turned, 16-bit, transparent and the like
        image = ImageOps.exif_transpose(image)
        image = image.convert("I").point(lambda v: v / 256) if image.mode[0] == "I" else image
        white = Image.new("RGBA", image.size, "white")  # behind what is transparent
        photo = np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    return tf.image.resize(photo, size).numpy()[np.newaxis]


def load_model(filename):
    """Return the model in `filename`: photos (n, height, width, 3) in, P(dog) (n, 1) out.

    It may have a second output, P(dog or cat) (n, 1), below 0.5 for other things.
    Raises ValueError where the file is damaged, or holds another kind of model, or a Lambda layer.
    """
    try:
        model = keras.models.load_model(filename, compile=False, safe_mode=True)
        _, *size, channels = model.input_shape
        photos = len(size) == 2 and all(size) and channels == 3
        outputs = [output.shape for output in model.outputs]
        if not (photos and outputs in ([(None, 1)], [(None, 1)] * 2)):
            raise ValueError(f"it takes {model.input_shape} and gives {model.output_shape}")
    except Exception as error:  # noqa: BLE001, HDF5 and Keras raise all sorts
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot use the model {filename}: {reason}") from None
    return model


def find_photos(paths):
    """Return the files among `paths`, and in place of each folder the photos below it."""
    photos = []
    for path in paths:
        below = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        photos += sorted(below, key=lambda p: (p.parent, len(p.name), p.name)) or [path]
    return photos


def describe(dog, animal=1):
    """Return in words what P(dog) and P(dog or cat) mean: unsure from 20 to 80 %."""
    label, probability = ("dog", dog) if dog >= 0.5 else ("cat", 1 - dog)
    if animal < 0.5:
        return f"neither a dog nor a cat, it seems ({label} {probability * 100:.1f} %)"
    unsure = "unsure, rather a " if probability < 0.8 else ""
    return f"{unsure}{label} ({probability * 100:.2f} %)"


def main():
    """Print a line for each photo; return the exit status, 1 if a file is not a photo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="file or folder")
    parser.add_argument("--model", type=Path, help="(final_model.h5, or models/reference/)")
    args = parser.parse_args()
    if not args.model:
        reference = sorted(Path("models/reference").glob("*.keras"))
        args.model = next(filter(Path.exists, [Path("final_model.h5"), *reference]), None)
        if not args.model:
            raise FileNotFoundError("there is no final_model.h5: run finalize_model.py, or name a "
                                    "model with --model")
        if args.model in reference:
            print(f"model: {args.model}", file=sys.stderr)
    model = load_model(args.model)
    photos = find_photos(args.photos)
    status = 0
    bar = Progress(console=Console(stderr=True), disable=len(photos) < 100,
                   redirect_stdout=sys.stdout.isatty())  # else rich prints a file's lines to stderr
    with bar:
        for path in bar.track(photos, description="photos"):
            try:
                photo = load_image(path, model.input_shape[1:3])
            except Exception as error:  # noqa: BLE001, decoders raise all sorts on damaged files
                reason = getattr(error, "strerror", None) or error
                print(f"{parser.prog}: {path}: {reason}", file=sys.stderr)
                status = 1
                continue
            print(f"{path}: {describe(*np.ravel(model.predict_on_batch(photo)).tolist())}")
    return status


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Pillow's, about photos that it can still read
    try:
        sys.exit(main())
    except (KeyboardInterrupt, OSError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split()) or 'stopped'}")
