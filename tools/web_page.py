"""A page in the browser: drop a photo, or take one; see whether it shows a dog or a cat, and where.

The page is for this computer alone, http://127.0.0.1:7860. Gradio (https://gradio.app) draws it.
Where the network sees its dog or its cat is shown by grad_cam.py's heat map.
"""

import argparse
import base64
import io
import os
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
FOLDER = tempfile.TemporaryDirectory(prefix="web_page_")  # for this user's eyes, gone at exit
UPLOADS = Path(FOLDER.name).resolve()
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS)  # Gradio reads both while it is imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
try:
    import gradio as gr
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers
    from matplotlib import colormaps
    from PIL import Image, ImageOps
except (KeyboardInterrupt, ModuleNotFoundError) as error:  # Ctrl-C, or Gradio is not installed
    sys.exit(f"{error}: pip install -r beyond/requirements.txt" if str(error) else "stopped")

# Formats that photos come in. Pillow would also run programs for some: Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF")
SAMPLE = Path(__file__).resolve().parent.parent / "sample"
# What may give the last feature map: a convolution, or a layer after it that keeps its shape.
MAPS = (layers.Conv2D, layers.Add, layers.BatchNormalization, layers.Activation, layers.ReLU)


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


class LastMap:
    """Keeps as `map` the last feature map (1, height, width, channels) it was called with.

    Keras calls a layer's activity regularizer with its output, in nested models, too.
    """

    def __call__(self, output):
        if len(output.shape) == 4:
            self.map = output
        return tf.zeros(())  # the penalty that Keras asks for


def load_model(filename):
    """Return the model in `filename`, photos (n, height, width, 3) in, logits (n, 1) out; its map.

    The map is a LastMap: that of the last convolution, after skip connection and activation.
    Raises ValueError where the file is damaged, or holds another kind of model, or a Lambda layer.
    """
    try:
        model = keras.models.load_model(filename, compile=False, safe_mode=True)
        _, *size, channels = model.input_shape
        photos = len(size) == 2 and all(size) and channels == 3
        outputs = [output.shape for output in model.outputs]
        if not (photos and outputs in ([(None, 1)], [(None, 1)] * 2)):
            raise ValueError(f"it takes {model.input_shape} and gives {model.output_shape}")
        parts, last, ends = [model], LastMap(), 0
        for layer in parts:
            parts += getattr(layer, "layers", [])  # of a nested model
            if isinstance(layer, MAPS):
                layer.activity_regularizer = last
            # A confident P(dog) rounds to 1, and its gradient to 0: the logit's gradient does not.
            if isinstance(layer, layers.Dense) and layer.activation is keras.activations.sigmoid:
                layer.activation, ends = None, ends + layer.units
        if ends != len(outputs) or not any(isinstance(part, layers.Conv2D) for part in parts):
            raise ValueError("it lacks a convolution, or Dense(1, activation='sigmoid')")
    except Exception as error:  # noqa: BLE001, HDF5 and Keras raise all sorts
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot use the model {filename}: {reason}") from None
    return model, last


def describe(dog, animal=1):
    """Return in words what P(dog) and P(dog or cat) mean: unsure from 20 to 80 %."""
    label, probability = ("dog", dog) if dog >= 0.5 else ("cat", 1 - dog)
    if animal < 0.5:
        return f"neither a dog nor a cat, it seems ({label} {probability * 100:.1f} %)"
    unsure = "unsure, rather a " if probability < 0.8 else ""
    return f"{unsure}{label} ({probability * 100:.2f} %)"


def grad_cam(model, last, photo):
    """Return the model's probabilities, (1,) or (2,), and the heat map for its answer.

    `photo` is (1, height, width, 3), 0 to 255; the map is (rows, columns) of the last convolution,
    0 where nothing supports the answer, dog or cat, to 1 where most does.
    """
    with tf.GradientTape() as tape:
        tape.watch(photo)
        logits = [tf.cast(logit, tf.float32) for logit in tf.nest.flatten(model(photo))]
        answer = tf.abs(logits[0])  # the answer's score: a cat's logit is below 0
    gradient = tf.cast(tape.gradient(answer, last.map), tf.float32)  # exact in any precision
    weights = tf.reduce_mean(gradient, axis=(0, 1, 2))  # of the channels: equation 1
    heat = tf.nn.relu(tf.reduce_sum(weights * tf.cast(last.map, tf.float32), axis=-1))[0]  # 2
    return tf.sigmoid(logits).numpy().ravel(), heat / max(tf.reduce_max(heat), 1e-12)


def draw_heat(photo, heat):
    """Return as HTML `photo` (1, height, width, 3), 0 to 255, under `heat`: blue is 0, red is 1."""
    photo, file = Image.fromarray(np.uint8(photo[0])), io.BytesIO()
    heat = Image.fromarray(np.uint8(heat * 255)).resize(photo.size)
    colours = Image.fromarray(colormaps["jet"](np.asarray(heat), bytes=True)).convert("RGB")
    Image.blend(photo, colours, 0.5).save(file, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<img src="{source}" alt="heat map" height="240"> Red is what supports the answer.'


def answer(model, last, upload):
    """Return what the page shows next: photo, words, probabilities {of what: 0 to 1}, heat map.

    `upload` is Gradio's description of a file, {"path": ...}, or None where the photo was removed.
    """
    if not upload:
        return None, "", None, None
    try:
        path = Path(upload["path"]).resolve()
        if not {UPLOADS, SAMPLE} & {*path.parents}:  # Gradio lets programs ask for any file
            raise ValueError("no file of this page")
        photo = load_image(path, model.input_shape[1:3])
    except Exception:  # noqa: BLE001, decoders raise all sorts on damaged files
        words = f"This is not a photo, or it is damaged. I can read {', '.join(FORMATS)}."
        return None, words, None, None
    answers, heat = grad_cam(model, last, tf.constant(photo))
    dog, *animal = answers.tolist()
    probabilities = {"dog": dog, "cat": 1 - dog}
    if animal:
        probabilities["a dog or a cat at all"] = animal[0]
    return gr.skip(), f"## {describe(dog, *animal)}", probabilities, draw_heat(photo, heat)


def define_page(model, last):
    """Return the page: the photo on the left, the answer on the right, photos to try below."""
    gr.set_static_paths([SAMPLE])  # Gradio shows these where they are, and copies none
    # Every second, uploads older than ten seconds are deleted. Not at once: two people may ask
    # about the same photo, and Gradio keeps one copy of it.
    with gr.Blocks(title="Dog or cat?", analytics_enabled=False, delete_cache=(1, 10)) as page:
        gr.Markdown("# Dog or cat?\nYour photo does not leave this computer.")
        with gr.Row():
            photo = gr.Image(label="Photo", height=360)
            with gr.Column():
                words = gr.Markdown()
                probabilities = gr.Label(label="Probabilities", show_heading=False)
                heat = gr.HTML()  # which, unlike an image, Gradio keeps in no file
        examples = gr.Examples([SAMPLE / "chelsea.jpg", *sorted(SAMPLE.glob("test/*.jpg"))], photo,
                               label="To try: a photo, and drawings")
        # Without preprocess=False Gradio decodes the file, in any format that Pillow knows.
        # One photo at a time passes through the model: `last` remembers the map of one.
        ask = {"fn": partial(answer, model, last), "inputs": photo, "preprocess": False,
               "outputs": [photo, words, probabilities, heat], "concurrency_id": "one by one"}
        photo.input(**ask, api_name="answer")
        examples.load_input_event.then(**ask, api_visibility="private")
    return page


def main():
    """Show the page until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="(final_model.h5, or models/reference/)")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    args = parser.parse_args()
    if not args.model:
        reference = sorted(Path("models/reference").glob("*.keras"))
        args.model = next(filter(Path.exists, [Path("final_model.h5"), *reference]), None)
        if not args.model:
            raise FileNotFoundError("there is no final_model.h5: run finalize_model.py, or name a "
                                    "model with --model")
    page = define_page(*load_model(args.model))
    print(f"{args.model} answers at http://127.0.0.1:{args.port} until Ctrl-C", flush=True)
    page.launch(server_name="127.0.0.1", server_port=args.port, share=False, quiet=True,
                max_file_size="20mb", footer_links=[], run_history=False, enable_monitoring=False)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Pillow's, about photos that it can still read
    try:
        main()
    except (KeyboardInterrupt, OSError, OverflowError, ValueError) as error:
        sys.exit(f"{sys.argv[0]}: {str(error) or 'stopped'}")
