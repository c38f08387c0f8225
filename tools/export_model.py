"""Export a saved model for deployment: a SavedModel for servers, a LiteRT (TFLite) file for phones.

    python tools/export_model.py models/five_conv_300.keras
    python tools/export_model.py models/baseline_vgg3_dataset_mine.keras --classes ants bees

These uses are named at the end of five_conv_300.py's tutorial ("Classifying cats and dogs: deep
learning hello world", Nerd For Tech), which saves an .h5 file. Both exports are loaded again and
must give a photo the same probability as the model. A second LiteRT file has weights quantized to
8 bits: a quarter of the size, and nearly the same answers.
"""

import argparse
import io
import json
import os
import sys
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "agg"  # Keras imports matplotlib, where it is installed
import h5py
import keras
import numpy as np
import pillow_heif
import tensorflow as tf
from PIL import Image, ImageChops, ImageOps
from rich.progress import track

TOP = Path(__file__).resolve().parent.parent  # the repository's folder
# What decode_photo reads. Pillow would start a program for some other formats: Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF", "HEIF")
pillow_heif.register_heif_opener()  # lets Pillow read HEIC, too, as iPhones save it
Image.MAX_IMAGE_PIXELS = None  # decode_photo has a limit of its own
KERAS_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")  # what Keras takes for a photo


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


def find_classes(folder):
    """Return the names of the folders in `folder`, in alphabetical order, without hidden ones."""
    return sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())


def define_export(model, classes):
    """Return `model` as it is exported: float32 throughout, photo (n, height, width, 3), 0 to 255.

    Its answers have names: with the `classes` cat and dog {"dog": P(dog) (n, 1)} and, where the
    model has a second output, {"dog_or_cat": its score (n, 1)}, too.
    """
    # LiteRT has no bfloat16: the same network in float32, as its weights are in any case.
    description = model.to_json()
    for precision in ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16"):
        description = description.replace(f'"{precision}"', '"float32"')
    network = keras.models.model_from_json(description)
    network.set_weights(model.get_weights())
    first = classes[0].replace(" ", "_")
    second = classes[1].replace(" ", "_")
    photo = keras.Input(model.input_shape[1:], name="photo")
    # Without training=False an exported model would augment the photos that it classifies.
    outputs = keras.tree.flatten(network(photo, training=False))
    answers = {second: outputs[0]}
    if len(outputs) == 2:
        answers[f"{second}_or_{first}"] = outputs[1]
    return keras.Model(photo, answers)


@contextmanager
def silence():
    """Hide what the converter and LiteRT log to standard error from C++; no setting does it."""
    stderr = os.dup(2)  # a second way to standard error, to come back to
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def convert(directory, filename, quantize):
    """Write the SavedModel in `directory` as a LiteRT file; `quantize` rounds weights to 8 bits."""
    # model.export(filename, format="litert") does the same, but no Keras for Python 3.10 has it.
    converter = tf.lite.TFLiteConverter.from_saved_model(str(directory))
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    filename.write_bytes(converter.convert())


def load_lite(filename):
    """Return the function in the LiteRT file `filename`: photo=(1, height, width, 3) in."""
    interpreter = tf.lite.Interpreter(str(filename), num_threads=os.cpu_count())
    return interpreter.get_signature_runner()


def find_test_photos(dataset):
    """Return [(path, class)] of the photos in `dataset`/test, whose two folders are class 0 and 1.

    Raises ValueError where there are not two folders, or no photos.
    """
    names = find_classes(dataset / "test")
    if len(names) != 2:
        raise ValueError(f"{dataset / 'test'} must hold two folders of photos, one for each class: "
                         "run prepare_dataset.py first")
    photos = []
    for number, name in enumerate(names):
        for path in sorted((dataset / "test" / name).iterdir()):
            if path.suffix.lower() in KERAS_SUFFIXES and not path.name.startswith("."):
                photos.append((path, number))
    if not photos:
        raise ValueError(f"there are no photos in {dataset / 'test'}")
    return photos


def measure_accuracy(filename, photos, size, answer):
    """Return the accuracy, 0 to 1, of the LiteRT file `filename` on `photos`, [(path, class)].

    `answer` is the name of P(second class). Raises OSError or ValueError where a file is no photo.
    """
    predict = load_lite(filename)
    right = 0
    for path, true_class in track(photos, filename.name):
        try:
            photo = load_image(path, size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        probability = float(predict(photo=photo)[answer][0, 0])
        if int(probability >= 0.5) == true_class:
            right += 1
    return right / len(photos)


def parse_args():
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default="models/five_conv_300.keras",
                        metavar="MODEL", help=".keras or .h5 (%(default)s)")
    parser.add_argument("--photo", type=Path, default=TOP / "sample/train/dog.0.jpg",
                        help="to compare the probabilities on (a dog of the sample)")
    parser.add_argument("--output", type=Path, default="exported", help="folder (%(default)s)")
    parser.add_argument("--dataset", type=Path, help="measure the phones' files on its test photos")
    parser.add_argument("--classes", nargs=2, default=["cat", "dog"], metavar=("FIRST", "SECOND"),
                        help="names of the two classes, in alphabetical order of their folders "
                             "(cat dog)")
    return parser.parse_args()


def main():
    args = parse_args()
    keras.config.set_image_data_format("channels_last")  # (height, width, colours)
    tf.config.set_visible_devices([], "GPU")  # a GPU may round to TF32, and would seem to differ
    loaded = load_model(args.model)
    _, height, width, _ = loaded.input_shape
    size = (height, width)
    try:
        photo = load_image(args.photo, size)
    except ValueError as error:
        raise ValueError(f"{args.photo}: {error}") from None
    photos = []
    if args.dataset:
        photos = find_test_photos(args.dataset)
    model = define_export(loaded, args.classes)

    name = args.model.stem
    directory = args.output / name / "1"  # TensorFlow Serving wants a version's number
    lite = args.output / f"{name}.tflite"
    small = args.output / f"{name}_8bit.tflite"
    directory.mkdir(parents=True, exist_ok=True)
    with silence():
        model.export(directory, verbose=False)
        convert(directory, lite, quantize=False)
        convert(directory, small, quantize=True)
        server = tf.saved_model.load(directory).signatures["serving_default"]
        on_server = server(photo=tf.constant(photo))
        phone = load_lite(lite)
        on_phone = phone(photo=photo)

    in_keras = model.predict_on_batch(photo)
    for answer in in_keras:
        expected = float(in_keras[answer][0, 0])
        print(f"P({answer}) of {args.photo}")
        print(f"    {args.model}: {expected:.6f}")
        for path, answers in ((directory, on_server), (lite, on_phone)):
            probability = float(answers[answer][0, 0])
            print(f"    {path}: {probability:.6f}")
            if abs(probability - expected) > 1e-4:
                raise ValueError(f"{path} and {args.model} differ by over 1e-4")
    second = min(in_keras, key=len)  # "dog"; the other answer's name is longer
    for path in (lite, small):
        line = f"{path}: {path.stat().st_size / 1e6:.1f} MB"
        if photos:
            accuracy = measure_accuracy(path, photos, size, second)
            line += f", accuracy on the test photos {accuracy * 100:.3f} %"
        print(line)
    print(f"""
A server, with TensorFlow Serving:
    docker run -p 8501:8501 -v "{directory.parent.resolve()}:/models/{name}" \\
        -e MODEL_NAME={name} tensorflow/serving
    POST {{"instances": [PHOTO]}} to http://localhost:8501/v1/models/{name}:predict
A phone: put {lite} into the app and open it with LiteRT (https://ai.google.dev/edge/litert).
PHOTO is {height} rows of {width} pixels of 3 values: R, G, B, float32, 0 to 255.""")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # TensorFlow's, on LiteRT's move to a package of its own
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for names that the console cannot print
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())  # in one line
        sys.exit(f"export_model.py: {reason}")
