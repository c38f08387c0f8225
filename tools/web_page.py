"""A page in the browser: drop a photo, or take one; see whether it shows a dog or a cat, and where.

    pip install -r tools/requirements.txt
    python tools/web_page.py
    python tools/web_page.py --model models/baseline_vgg3_dataset_mine.keras --classes ants bees

The page is for this computer alone, http://127.0.0.1:7860. Gradio (https://gradio.app) draws it.
Where the network sees its dog or its cat is shown by grad_cam.py's heat map. Without --model it is
the same network as in predict.py.
"""

import argparse
import base64
import io
import json
import os
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "agg"  # for its colours alone: no windows
# Gradio reads these while it is imported. Uploaded photos are kept for seconds, in a folder that
# only this user may read; it is gone at the end.
FOLDER = tempfile.TemporaryDirectory(prefix="web_page_")
UPLOADS = Path(FOLDER.name).resolve()
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS)
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# The page asks nobody but itself, never through the proxy of a university or a company.
os.environ["no_proxy"] = "*"
try:
    import gradio as gr
except ModuleNotFoundError as error:
    sys.exit(f"web_page.py: {error}: pip install -r tools/requirements.txt")
import h5py
import keras
import matplotlib
import numpy as np
import pillow_heif
import tensorflow as tf
from keras import layers
from PIL import Image, ImageChops, ImageOps

TOP = Path(__file__).resolve().parent.parent  # the repository's folder
SAMPLE = TOP / "sample"
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


def draw_heat(photo, heat):
    """Return as HTML `photo` (1, height, width, 3), 0 to 255, under `heat`: blue is 0, red is 1."""
    photo = Image.fromarray(photo[0].astype(np.uint8))
    heat = Image.fromarray((heat * 255).astype(np.uint8)).resize(photo.size)
    colours = matplotlib.colormaps["jet"](np.asarray(heat), bytes=True)
    colours = Image.fromarray(colours).convert("RGB")
    file = io.BytesIO()
    Image.blend(photo, colours, 0.5).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    return (f'<img src="data:image/png;base64,{text}" alt="heat map" height="240"> '
            "Red is what speaks for the answer.")


def answer(model, last_map, classes, upload):
    """Return what the page shows next: photo, words, probabilities {of what: 0 to 1}, heat map.

    `upload` is Gradio's description of a file, {"path": ...}, or None where the photo was removed.
    """
    if not upload:
        return None, "", None, None
    path = Path(upload["path"]).resolve()
    if UPLOADS not in path.parents and SAMPLE not in path.parents:
        # Gradio lets programs that talk to the page ask for any file.
        return None, "This is no file of this page.", None, None
    try:
        photo = load_image(path, model.input_shape[1:3])
    except (OSError, ValueError) as error:
        words = f"I cannot read it: {getattr(error, 'strerror', None) or error}."
        if str(error) == "not a photo":
            words = f"This is not a photo. I read {', '.join(FORMATS)}."
        return None, words, None, None
    answers, heat = grad_cam(model, last_map, photo)
    first, second = classes
    probabilities = {second: answers[0], first: 1 - answers[0]}
    if len(answers) == 2:
        probabilities[f"{second} or {first} at all"] = answers[1]
    # skip: the photo stays as it is
    return gr.skip(), f"## {describe(classes, *answers)}", probabilities, draw_heat(photo, heat)


def define_page(model, last_map, classes):
    """Return the page: the photo on the left, the answer on the right, photos to try below."""

    def answer_upload(upload):
        return answer(model, last_map, classes, upload)

    title = f"{classes[1]} or {classes[0]}?".capitalize()
    gr.set_static_paths([SAMPLE])  # Gradio shows these where they are, and copies none
    # Every second, uploads older than ten seconds are deleted. Not at once: two people may ask
    # about the same photo, and Gradio keeps one copy of it.
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(1, 10)) as page:
        gr.Markdown(f"# {title}\nYour photo does not leave this computer.")
        with gr.Row():
            photo = gr.Image(label="Photo", height=360)
            with gr.Column():
                words = gr.Markdown()
                probabilities = gr.Label(label="Probabilities", show_heading=False)
                heat = gr.HTML()  # which, unlike an image, Gradio keeps in no file
        to_try = [SAMPLE / "chelsea.jpg", *sorted(SAMPLE.glob("test/*.jpg"))]
        examples = gr.Examples(to_try, photo, label="To try: a photo, and drawings")
        # Without preprocess=False Gradio decodes the file, in any format that Pillow knows.
        # One photo at a time passes through the model: `last_map` has room for the map of one.
        photo.input(
            answer_upload, inputs=photo, outputs=[photo, words, probabilities, heat],
            preprocess=False, concurrency_id="one by one", api_name="answer")
        examples.load_input_event.then(
            answer_upload, inputs=photo, outputs=[photo, words, probabilities, heat],
            preprocess=False, concurrency_id="one by one", api_visibility="private")
    return page


def parse_args():
    """Return the options of the command line; end with status 2 if one cannot be right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="(final_model.h5, or models/reference/)")
    parser.add_argument("--classes", nargs=2, default=["cat", "dog"], metavar=("FIRST", "SECOND"),
                        help="names of the two classes, in alphabetical order of their folders "
                             "(cat dog)")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    args = parser.parse_args()
    if not 1 <= args.port <= 65535:
        parser.error("--port must be between 1 and 65535")
    return args


def main():
    """Show the page until Ctrl-C."""
    args = parse_args()
    keras.config.set_image_data_format("channels_last")  # (height, width, colours)
    if not args.model:
        reference = sorted(TOP.glob("models/reference/*.keras"))
        args.model = find_model([Path("final_model.h5"), TOP / "final_model.h5", *reference])
    model = load_model(args.model)
    last_map = watch_last_map(model)
    page = define_page(model, last_map, args.classes)
    try:
        page.launch(server_name="127.0.0.1", server_port=args.port, share=False, quiet=True,
                    max_file_size="100mb", footer_links=[], run_history=False,
                    enable_monitoring=False, prevent_thread_lock=True)
    except OSError:
        raise OSError(f"port {args.port} is in use: name another one with --port") from None
    print(f"{args.model} answers at http://127.0.0.1:{args.port} until Ctrl-C", flush=True)
    page.block_thread()


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of Pillow, on photos that it reads
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for names that the console cannot print
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (OSError, ValueError) as error:
        sys.exit(f"web_page.py: {error}")
