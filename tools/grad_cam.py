"""See where in a photo a network finds its dog or its cat: Grad-CAM.

Source: Selvaraju and others, Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization, 2017. Draws <output>/<photo>_grad_cam.png.
"""
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
    from keras import layers
    from matplotlib.figure import Figure
    from PIL import Image, ImageOps
except KeyboardInterrupt:  # Ctrl-C during the imports, which take seconds
    sys.exit("stopped")
# Formats that photos come in. Pillow would also run programs for some: Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF")
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


def plot_heat(photo, heat, title, filename):
    """Draw `photo`, as the network sees it, and beside it under `heat`; save PNG `filename`."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    figure.suptitle(title)
    for axes in (pair := figure.subplots(1, 2)):
        image = axes.imshow(photo[0] / 255)
        axes.axis("off")
    pair[1].imshow(heat, cmap="jet", alpha=0.5, vmin=0, vmax=1, interpolation="bilinear",
                   extent=image.get_extent())
    figure.savefig(filename)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--model", type=Path, help="(the one in models/reference/)")
    parser.add_argument("--output", type=Path, default="plots", help="folder for the pictures")
    args = parser.parse_args()
    path = args.model or next(iter(sorted(Path("models/reference").glob("*.keras"))), None)
    if not path:
        raise FileNotFoundError("no model in models/reference: name one with --model")
    model, last = load_model(path)
    if len({path.stem for path in args.photos}) < len(args.photos):
        raise ValueError("photos of the same name would overwrite each other's picture")
    os.makedirs(args.output, exist_ok=True)
    for path in args.photos:
        try:
            photo = load_image(path, model.input_shape[1:3])
        except Exception as error:  # noqa: BLE001, decoders raise all sorts on damaged files
            raise OSError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        probabilities, heat = grad_cam(model, last, tf.constant(photo))
        dog, *animal = probabilities.tolist()
        answer = f"{'dog' if dog >= 0.5 else 'cat'} ({max(dog, 1 - dog) * 100:.2f} %)"
        answer += ", or neither, it seems" if animal and animal[0] < 0.5 else ""
        plot_heat(photo, heat, f"{path.name}: {answer}", args.output / f"{path.stem}_grad_cam.png")
        print(f"{path}: {answer}, drawn: {args.output / path.stem}_grad_cam.png")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Pillow's, about photos that it can still read
    try:
        main()
    except (KeyboardInterrupt, OSError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split()) or 'stopped'}")
