"""Classify photos: the five most probable of ImageNet's 1,000 classes.

    python more_experiments/classify_photo.py my_photo.jpg my_folder
    python more_experiments/classify_photo.py --model xception my_photo.jpg

Seven networks that come with Keras, each with its input size and preprocessing ("Keras in Chinese",
chapter 5, which prints the first class only, and one of its figures for another photo).
"""

import argparse
import glob
import io
import os
import sys
import warnings
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can calculate with other libraries, too
import keras
import numpy as np
import pillow_heif
from keras import applications
from PIL import Image, ImageChops, ImageOps

# module with preprocess_input, network, (height, width) of its photos
NETWORKS = {
    "vgg16": (applications.vgg16, applications.VGG16, (224, 224)),
    "vgg19": (applications.vgg19, applications.VGG19, (224, 224)),
    "resnet50": (applications.resnet50, applications.ResNet50, (224, 224)),
    "inception_v3": (applications.inception_v3, applications.InceptionV3, (299, 299)),
    "inception_resnet_v2": (applications.inception_resnet_v2, applications.InceptionResNetV2,
                            (299, 299)),
    "xception": (applications.xception, applications.Xception, (299, 299)),
    "mobilenet": (applications.mobilenet, applications.MobileNet, (224, 224)),
}
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


def load_image(filename, size):
    """Return the photo as the networks take it: float32 (1, height, width, 3), RGB, 0 to 255.

    `size` is (height, width). The largest part in the middle with these proportions is kept, as of
    the test photos. Raises OSError where the file cannot be read, ValueError where it is not a
    photo, or is damaged.
    """
    photo = decode_photo(Path(filename).read_bytes())
    pixels = keras.preprocessing.image.smart_resize(np.asarray(photo), size)
    return pixels[np.newaxis]


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


def check_photos(photos, size):
    """Return those of the paths `photos` that load_image can read; print why the others fail."""
    good = []
    for path in photos:
        try:
            load_image(path, size)
            good.append(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error  # without the path: it stands here
            print(f"{path}: {reason}", file=sys.stderr)
    return good


def load_network(name, weights):
    """Return the network `name`: photos (n, height, width, 3), preprocessed, in; (n, 1000) out.

    `weights` is "imagenet", to download them, or a file's path. Raises ValueError where they cannot
    be had.
    """
    _, define_model, _ = NETWORKS[name]
    warnings.simplefilter("ignore")  # Keras's, about each layer that has no weights: see below
    try:
        return define_model(weights=weights)
    except Exception as error:  # noqa: BLE001, no network, no such file, or another network's
        reason = str(error).splitlines()[0]
        raise ValueError(f"no weights {weights} of {name} (--weights takes a file): "
                         f"{reason}") from None


def name_classes(module, probabilities):
    """Return the five most probable classes as [(ImageNet's number, name, probability)].

    Raises ValueError where their names, which Keras downloads, cannot be had.
    """
    try:
        return module.decode_predictions(probabilities, top=5)[0]
    except Exception as error:  # noqa: BLE001, the download raises bare Exception
        raise ValueError("no names of the classes, imagenet_class_index.json (a browser can get "
                         f"it into ~/.keras/models): {error}") from None


def parse_args():
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="file or folder")
    parser.add_argument("--model", choices=NETWORKS, default="vgg16", help="(%(default)s)")
    parser.add_argument("--weights", default="imagenet", help="or the path of a file of the "
                        "model's weights, .weights.h5 or the older .h5 (%(default)s)")
    return parser.parse_args()


def main():
    """Print five classes for each photo; return the exit status, 1 if a file is not a photo."""
    args = parse_args()
    keras.config.set_image_data_format("channels_last")  # (height, width, colours)
    module, _, size = NETWORKS[args.model]
    status = 0
    photos = []
    for path in args.photos:
        found = find_photos(path)
        photos.extend(found)
        if not found:
            print(f"no photos in {path}", file=sys.stderr)
            status = 1
    good = check_photos(photos, size)  # before up to 574 MB of weights are downloaded
    if len(good) < len(photos):
        status = 1
    if not good:
        return status
    model = load_network(args.model, args.weights)
    for path in good:
        photo = module.preprocess_input(load_image(path, size))
        probabilities = model.predict_on_batch(photo)
        print(f"{path}:")
        for _, name, probability in name_classes(module, probabilities):
            print(f"{probability * 100:8.2f} %  {name}", flush=True)
    return status


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for names that the console cannot print
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (OSError, ValueError) as error:
        sys.exit(f"classify_photo.py: {error}")
