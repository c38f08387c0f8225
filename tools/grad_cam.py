"""See where in a photo a network finds its dog or its cat: Grad-CAM.

    python tools/grad_cam.py my_photo.jpg
    python tools/grad_cam.py --model models/baseline_vgg3.keras my_photo.jpg my_folder

Draws <output>/<photo>_grad_cam.png: red is what speaks for the answer. Without --model it is the
same network as in predict.py. Source: Selvaraju and others, Grad-CAM: Visual Explanations from Deep
Networks via Gradient-based Localization, 2017, https://arxiv.org/abs/1610.02391
"""

import argparse
import glob
import io
import json
import os
import sys
import warnings
import zipfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "agg"  # draw into files, not into windows
import h5py
import keras
import matplotlib.pyplot as plt
import numpy as np
import pillow_heif
import tensorflow as tf
from keras import layers
from PIL import Image, ImageChops, ImageOps

TOP = Path(__file__).resolve().parent.parent  # the repository's folder
# What looks like a photo, by its name.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif",
            ".heic", ".heif")
# What decode_photo reads. Pillow would start a program for some other formats: Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF", "HEIF")
pillow_heif.register_heif_opener()  # lets Pillow read HEIC, too, as iPhones save it
Image.MAX_IMAGE_PIXELS = None  # decode_photo has a limit of its own
# What may give the last feature map: a convolution, or a layer after it that keeps its shape.
MAPS = (layers.Conv2D, layers.Add, layers.BatchNormalization, layers.Activation, layers.ReLU)


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


def find_keras_version(filename):
    """Return which Keras has saved the model `filename`, as "3.15.1"; "" if it does not say."""
    try:
        if zipfile.is_zipfile(filename):  # .keras
            with zipfile.ZipFile(filename) as file:
                metadata = json.loads(file.read("metadata.json"))
            return metadata["keras_version"]
        with h5py.File(filename) as file:  # .h5
            version = file.attrs["keras_version"]
        if isinstance(version, bytes):
            version = version.decode()
        return version
    except Exception:  # noqa: BLE001, damaged, or not a model
        return ""


def is_newer(version, other):
    """Return whether `version`, as "3.15.1", is newer than `other` in its first two numbers."""
    numbers = [int(number) for number in version.split(".")[:2]]
    other_numbers = [int(number) for number in other.split(".")[:2]]
    return numbers > other_numbers


def load_model(filename):
    """Return the model in `filename`: photos (n, height, width, 3) in, P(second class) (n, 1) out.

    It may have a second output (n, 1), a score: below 0.5 it means neither class. Raises
    FileNotFoundError, and ValueError where the file is damaged, or holds another kind of model, or
    a Lambda layer: that is a piece of program, which loading would run.
    """
    if not Path(filename).exists():
        raise FileNotFoundError(f"there is no model {filename}: has the script run that saves it?")
    try:
        model = keras.models.load_model(filename, compile=False, safe_mode=True)
        takes = model.input_shape
        gives = [output.shape for output in model.outputs]
    except Exception as error:  # noqa: BLE001, Keras and HDF5 raise all sorts
        saved_by = find_keras_version(filename)
        if not saved_by:
            reason = "damaged, or not a model that Keras has saved"
        elif is_newer(saved_by, keras.__version__):
            reason = (f"saved by Keras {saved_by}, this is {keras.__version__}: "
                      "update Keras, or train it anew")
        else:
            reason = str(error).split("Exception encountered: ")[-1]  # the innermost reason
            reason = " ".join(reason.split()).split(". ")[0]  # its first sentence, in one line
        raise ValueError(f"cannot use the model {filename}: {reason}") from None
    takes_photos = len(takes) == 4 and None not in takes[1:] and takes[3] == 3
    if not takes_photos or gives not in ([(None, 1)], [(None, 1), (None, 1)]):
        raise ValueError(f"cannot use the model {filename}: it takes {takes} and gives "
                         f"{model.output_shape}, instead of (None, height, width, 3) and (None, 1)")
    return model


def find_model(paths):
    """Return the first of `paths` that exists. Raises FileNotFoundError where none does."""
    for path in paths:
        if path.exists():
            return path
    raise FileNotFoundError("there is no final_model.h5: run finalize_model.py, or name a model "
                            "with --model")


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


class LastMap:
    """Keeps as `map` the last feature map (1, height, width, channels) that it was called with.

    It is given to layers as their activity regularizer. Keras calls that with the layer's output
    whenever a photo passes, also in a network inside a network, and adds to the loss what it
    returns: nothing here.
    """

    def __call__(self, output):
        if len(output.shape) == 4:
            self.map = output
        return tf.zeros(())


def find_layers(network):
    """Return all layers of `network`; those of a network that is a layer in it, too."""
    found = []
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            found.extend(find_layers(layer))
        else:
            found.append(layer)
    return found


def watch_last_map(model):
    """Prepare `model` for grad_cam, and return the LastMap that will have its last feature map.

    This is the map of the last convolution, after skip connection and activation. From here on the
    model gives logits instead of probabilities. Raises ValueError where it has no convolution, or
    ends in another way than with Dense(1, activation="sigmoid").
    """
    last_map = LastMap()
    convolutions = 0
    sigmoids = 0
    for layer in find_layers(model):
        if isinstance(layer, layers.Conv2D):
            convolutions += 1
        if isinstance(layer, MAPS):
            layer.activity_regularizer = last_map
        # A network that is sure rounds its probability to 1, and the gradient of this is 0. The
        # logit, the number before the sigmoid, has a gradient at all times.
        if isinstance(layer, layers.Dense) and layer.activation is keras.activations.sigmoid:
            layer.activation = None
            sigmoids += layer.units
    if convolutions == 0 or sigmoids != len(model.outputs):
        raise ValueError("the model lacks a convolution, or Dense(1, activation='sigmoid')")
    return last_map


def grad_cam(model, last_map, photo):
    """Return the model's probabilities, a list of one or two, and the heat map for its answer.

    `photo` is (1, height, width, 3), 0 to 255. The heat (rows, columns), of the size of the last
    feature map, is 0 where nothing speaks for the answer, to 1 where most does. It is that of the
    likelier of the two classes, also where the second probability says that it is neither.
    """
    photo = tf.constant(photo)
    with tf.GradientTape() as tape:
        tape.watch(photo)  # all that is computed from it is recorded, also in frozen layers
        outputs = keras.tree.flatten(model(photo))  # one or two
        logits = [tf.cast(output, tf.float32) for output in outputs]
        score = tf.abs(logits[0])  # of the answer: for the first class the logit is below 0
    # How much does the answer's score grow with each number of the last feature map?
    gradient = tf.cast(tape.gradient(score, last_map.map), tf.float32)
    feature_map = tf.cast(last_map.map, tf.float32)
    # A channel counts as much as the score grows with it, on average (the paper's equation 1).
    weights = tf.reduce_mean(gradient, axis=(0, 1, 2))
    # The channels' weighted sum in each place; what is below 0 speaks for the other class
    # (equation 2).
    heat = tf.reduce_sum(weights * feature_map, axis=-1)
    heat = tf.nn.relu(heat)
    heat = heat[0].numpy()  # of the only photo
    if heat.max() > 0:
        heat = heat / heat.max()
    probabilities = []
    for logit in logits:
        probability = tf.sigmoid(logit)[0, 0]
        probabilities.append(float(probability))
    return probabilities, heat


def plot_heat(photo, heat, title, filename):
    """Draw `photo`, as the network sees it, and beside it under `heat`; save PNG `filename`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.4), layout="constrained")
    figure.suptitle(title, parse_math=False)
    left.imshow(photo[0] / 255)
    left.axis("off")
    shown = right.imshow(photo[0] / 255)
    right.imshow(heat, cmap="jet", alpha=0.5, vmin=0, vmax=1, interpolation="bilinear",
                 extent=shown.get_extent())
    right.axis("off")
    figure.savefig(filename)
    plt.close(figure)


def parse_args():
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="file or folder")
    parser.add_argument("--model", type=Path, help="(final_model.h5, or models/reference/)")
    parser.add_argument("--classes", nargs=2, default=["cat", "dog"], metavar=("FIRST", "SECOND"),
                        help="names of the two classes, in alphabetical order of their folders "
                             "(cat dog)")
    parser.add_argument("--output", type=Path, default="plots",
                        help="folder for the pictures (%(default)s)")
    return parser.parse_args()


def main():
    """Draw a picture for each photo; return the exit status, 1 if a file is not a photo."""
    args = parse_args()
    keras.config.set_image_data_format("channels_last")  # (height, width, colours)
    if not args.model:
        reference = sorted(TOP.glob("models/reference/*.keras"))
        args.model = find_model([Path("final_model.h5"), TOP / "final_model.h5", *reference])
    status = 0
    photos = []
    for path in args.photos:
        found = find_photos(path)
        photos.extend(found)
        if not found:
            print(f"no photos in {path}", file=sys.stderr)
            status = 1
    names = set()
    for path in photos:
        if path.stem in names:
            raise ValueError(f"two photos are called {path.stem}, and would overwrite each other's "
                             "picture: give one folder at a time, each with another --output")
        names.add(path.stem)
    model = load_model(args.model)
    size = model.input_shape[1:3]
    last_map = watch_last_map(model)
    args.output.mkdir(parents=True, exist_ok=True)
    for path in photos:
        try:
            photo = load_image(path, size)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error  # strerror: without the path
            print(f"{path}: {reason}", file=sys.stderr)
            status = 1
            continue
        probabilities, heat = grad_cam(model, last_map, photo)
        answer = describe(args.classes, *probabilities)
        picture = args.output / f"{path.stem}_grad_cam.png"
        plot_heat(photo, heat, f"{path.name}: {answer}", picture)
        print(f"{path}: {answer}, drawn: {picture}", flush=True)
    return status


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of Pillow, on photos that it reads, of matplotlib, on names
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for names that the console cannot print
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (OSError, ValueError) as error:
        sys.exit(f"grad_cam.py: {error}")
