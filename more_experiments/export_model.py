"""Export a saved model for deployment: a SavedModel for servers, a LiteRT (TFLite) file for phones.

The end of the tutorial of five_conv_300.py ("Classifying cats and dogs: deep learning hello world",
Nerd For Tech), which only names these formats. Both files are opened again and must give a photo
the probability that the model gives it.
"""

import argparse
import os
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away

import keras
import numpy as np
import tensorflow as tf
from keras.applications.vgg16 import preprocess_input

PHOTO = "sample/train/dog.0.jpg"


@contextmanager
def silence():
    """Keep away what the converter and LiteRT log from C++, past every setting."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def load_model(filename):
    """Return the model in `filename`: photos (n, height, width, 3) in, P(dog) (n, 1) out.

    It computes in float32, whatever the precision that it was trained at.
    Raises ValueError where the file is damaged, or holds another model, or code.
    """
    try:
        model = keras.models.load_model(filename, compile=False, safe_mode=True)
        shapes = model.input_shape, model.output_shape
    except Exception as error:  # noqa: BLE001, every sort, from HDF5 and from Keras
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot load the model {filename}: {reason}") from None
    if len(shapes[0]) != 4 or shapes[0][3] != 3 or shapes[1] != (None, 1):
        raise ValueError(f"{filename} takes {shapes[0]} and gives {shapes[1]}, not photos and "
                         "P(dog)")
    for layer in model.layers:  # LiteRT has no bfloat16; the weights are float32 in any case
        layer.dtype_policy = "float32"
    return model


def load_image(filename, model):
    """Return one sample for `model`, float32 (1, height, width, 3), and its values in words.

    Raises OSError where `filename` cannot be read as a photo.
    """
    try:
        photo = keras.utils.load_img(
            filename, target_size=model.input_shape[1:3], interpolation="bilinear")
    except OSError as error:
        raise OSError(f"cannot read {filename}: {error.strerror or 'not a photo'}") from None
    sample = np.asarray(photo, dtype=np.float32)[np.newaxis]
    if any(isinstance(layer, keras.layers.Rescaling) for layer in model.layers):
        return sample, "RGB in 0..255"
    # The experiments without Rescaling are those on VGG-16, prepared before the network.
    return preprocess_input(sample), "B - 103.939, G - 116.779, R - 123.68"


def export_saved_model(model, directory):
    """Write `model` to `directory`, the form that TensorFlow Serving loads."""
    inputs = keras.Input(model.input_shape[1:])
    # Called as it is, an exported model would also augment the photos that it is asked about.
    inference = keras.Model(inputs, model(inputs, training=False))
    part = directory.with_name("part")
    try:
        inference.export(part, verbose=False)
        shutil.rmtree(directory, ignore_errors=True)
        part.rename(directory)  # a server never sees half of it
    finally:
        shutil.rmtree(part, ignore_errors=True)


def export_litert(directory, filename):
    """Write the SavedModel in `directory` to `filename`, the form that LiteRT loads.

    model.export(format="litert") does the same, but for Python 3.10 there is no Keras that has it.
    """
    with silence():
        data = tf.lite.TFLiteConverter.from_saved_model(str(directory)).convert()
    part = filename.with_suffix(".part")
    part.write_bytes(data)
    part.replace(filename)


def predict_saved_model(directory, sample):
    """Return P(dog) of `sample` from the signature that a server calls."""
    serve = tf.saved_model.load(directory).signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    (output,) = serve(**{name: tf.constant(sample)}).values()
    return float(output[0, 0])


def predict_litert(filename, sample):
    """Return P(dog) of `sample` as a phone computes it."""
    with silence():
        interpreter = tf.lite.Interpreter(str(filename))
        interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample)
    interpreter.invoke()
    return float(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0, 0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")  # one line
    parser.add_argument("model", nargs="?", type=Path, default="five_conv_300.keras",
                        metavar="MODEL", help=".keras or .h5 (%(default)s)")
    parser.add_argument("--photo", type=Path, default=PHOTO,
                        help="to compare the probabilities on (%(default)s)")
    parser.add_argument("--output", type=Path, default="exported", help="folder (%(default)s)")
    args = parser.parse_args()
    if not args.model.is_file():
        parser.error(f"there is no {args.model}: run more_experiments/five_conv_300.py")
    warnings.simplefilter("ignore")  # TensorFlow's, on LiteRT's move to a package of its own
    name = args.model.stem
    try:
        model = load_model(args.model)
        sample, values = load_image(args.photo, model)
        directory, lite = args.output / name / "1", args.output / f"{name}.tflite"
        export_saved_model(model, directory)
        export_litert(directory, lite)
        expected = float(model.predict_on_batch(sample)[0, 0])
        print(f"P(dog) of {args.photo}: {expected:.6f}")
        for path, predict in ((directory, predict_saved_model), (lite, predict_litert)):
            probability = predict(path, sample)
            print(f"{path}: {probability:.6f}")
            if abs(probability - expected) > 1e-4:
                raise ValueError(f"{path} does not give what {args.model} gives")
        height, width = model.input_shape[1:3]
        url = f"http://localhost:8501/v1/models/{name}:predict"
        print(f"""
A server, with TensorFlow Serving:
    docker run -p 8501:8501 -v "{args.output.resolve() / name}:/models/{name}" \\
        -e MODEL_NAME={name} tensorflow/serving
    POST {{"instances": [PHOTO]}} to {url}
A phone: put {lite} into the app and open it with LiteRT (https://ai.google.dev/edge/litert).
PHOTO is float32, {height} rows of {width} pixels of 3 values: {values}. The answer is P(dog).""")
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: stopped\n")
    except tf.errors.OpError as error:  # a full disk among them
        parser.error(f"cannot write to {args.output}: {error.message.rpartition('; ')[2]}")
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
