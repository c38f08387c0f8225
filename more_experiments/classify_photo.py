"""Classify photos: the five most probable of ImageNet's 1,000 classes.

Seven networks that come with Keras, each with its input size and preprocessing ("Keras in Chinese",
chapter 5, which prints the first class only, and one of its figures for another photo).
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
try:
    import numpy as np
    import tensorflow as tf
    from keras import applications
    from PIL import Image, ImageOps
    from rich.console import Console
    from rich.progress import Progress, track
except KeyboardInterrupt:  # Ctrl-C during the imports, which take seconds
    sys.exit("stopped")

NETWORKS = {  # module with preprocess_input, network, (height, width) of its photos
    "vgg16": (applications.vgg16, applications.VGG16, (224, 224)),
    "vgg19": (applications.vgg19, applications.VGG19, (224, 224)),
    "resnet50": (applications.resnet50, applications.ResNet50, (224, 224)),
    "inception_v3": (applications.inception_v3, applications.InceptionV3, (299, 299)),
    "inception_resnet_v2": (applications.inception_resnet_v2, applications.InceptionResNetV2,
                            (299, 299)),
    "xception": (applications.xception, applications.Xception, (299, 299)),
    "mobilenet": (applications.mobilenet, applications.MobileNet, (224, 224)),
}
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


def find_photos(paths):
    """Return the files among `paths`, and in place of each folder the photos below it."""
    photos = []
    for path in paths:
        below = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        photos += sorted(below, key=lambda p: (p.parent, len(p.name), p.name)) or [path]
    return photos


def check_photos(photos, size):
    """Return those of the paths `photos` that load_image can read; print why the others fail."""
    good = []
    for path in photos:
        try:
            load_image(path, size)
            good.append(path)
        except Exception as error:  # noqa: BLE001, decoders raise all sorts on damaged files
            reason = getattr(error, "strerror", None) or error
            print(f"{Path(sys.argv[0]).name}: {path}: {reason}", file=sys.stderr)
    return good


def main():
    """Print five classes for each photo; return the exit status, 1 if a file is not a photo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="file or folder")
    parser.add_argument("--model", choices=NETWORKS, default="vgg16", help="(%(default)s)")
    parser.add_argument("--weights", default="imagenet", help="or the path of a file of the "
                        "model's weights, .weights.h5 or the older .h5 (%(default)s)")
    args = parser.parse_args()
    module, define_model, size = NETWORKS[args.model]
    photos = find_photos(args.photos)
    console, few = Console(stderr=True), len(photos) < 100
    # before up to 574 MB of weights are downloaded
    good = check_photos(track(photos, "checking", console=console, disable=few), size)
    if not good:
        return 1
    try:
        model = define_model(weights=args.weights)  # (n, height, width, 3) in, (n, 1000) out
    except Exception as error:  # noqa: BLE001, no network, no such file, or another network's
        reason = str(error).splitlines()[0]
        raise OSError(f"no weights {args.weights} of {args.model} (--weights takes a file): "
                      f"{reason}") from None
    # Redirecting, rich would print to stderr the lines meant for a file.
    with Progress(console=console, disable=few, redirect_stdout=sys.stdout.isatty()) as bar:
        for path in bar.track(good, description="photos"):
            probabilities = model.predict_on_batch(module.preprocess_input(load_image(path, size)))
            try:
                (classes,) = module.decode_predictions(probabilities, top=5)
            except Exception as error:  # noqa: BLE001, the download raises bare Exception
                raise OSError(f"no names of the classes, imagenet_class_index.json (a browser can "
                              f"get it into ~/.keras/models): {error}") from None
            print(f"{path}:")
            for _, label, probability in classes:
                print(f"{probability * 100:8.2f} %  {label}")
    return int(len(good) < len(photos))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Pillow's, about photos that it can still read
    try:
        sys.exit(main())
    except (KeyboardInterrupt, OSError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split()) or 'stopped'}")
