"""Export a saved model for deployment: a SavedModel for servers, a LiteRT (TFLite) file for phones.

The end of the tutorial of five_conv_300.py ("Classifying cats and dogs: deep learning hello world",
Nerd For Tech), which names these uses and saves an .h5 file. Both exports are loaded again and must
give a photo the same probability as the model. A second LiteRT file has weights quantized to 8
bits: a quarter of the size, and nearly the same answers.
"""

import argparse
import os
import re
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
try:
    import keras
    import tensorflow as tf
    from rich.progress import track
except KeyboardInterrupt:  # Ctrl-C during the imports, which take seconds
    sys.exit("stopped")


def load_model(filename):
    """Return the model in `filename`, float32: photos (n, height, width, 3), 0 to 255, in.

    Out: {"dog": P(dog) (n, 1)}, with a second output also {"dog_or_cat": P(dog or cat)}. Raises
    ValueError where the file is damaged, or holds another kind of model, or a Lambda layer.
    """
    try:
        model = keras.models.load_model(filename, compile=False, safe_mode=True)
        outputs = [tuple(output.shape) for output in model.outputs]
        shape = model.input_shape
        if not (len(shape) == 4 and all(shape[1:]) and shape[3] == 3
                and outputs in ([(None, 1)], [(None, 1)] * 2)):
            raise ValueError(f"it takes {shape} and gives {model.output_shape}")
    except Exception as error:  # noqa: BLE001, HDF5 and Keras raise all sorts
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot use the model {filename}: {reason}") from None
    # LiteRT has no bfloat16: the same network in float32, as its weights are in any case.
    network = keras.models.model_from_json(
        re.sub(r"(mixed_)?b?float16", "float32", model.to_json()))
    network.set_weights(model.get_weights())
    photo = keras.Input(shape[1:], name="photo")
    # Without training=False an exported model would augment the photos that it classifies.
    answers = keras.tree.flatten(network(photo, training=False))
    return keras.Model(photo, dict(zip(("dog", "dog_or_cat"), answers, strict=False)))


def load_image(filename, size):
    """Return the photo, float32 (1, height, width, 3), RGB, 0 to 255; `size` is (height, width).

    Raises OSError or ValueError where `filename` cannot be read or is not a photo.
    """
    try:
        photo = tf.io.decode_image(filename.read_bytes(), channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError:
        raise ValueError(f"{filename} is damaged, or not a JPEG, PNG, GIF or BMP") from None
    return tf.image.resize(photo, size)[tf.newaxis]


@contextmanager
def silence():
    """Hide what the converter and LiteRT log from C++; no setting turns it off."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def measure_accuracy(filename, directory, size):
    """Return the accuracy, 0 to 1, of the LiteRT file `filename` on `directory`/{cats,dogs}/."""
    predict = tf.lite.Interpreter(str(filename), num_threads=os.cpu_count()).get_signature_runner()
    photos = sorted(directory.glob("cats/*.jpg")) + sorted(directory.glob("dogs/*.jpg"))
    if not photos:
        raise FileNotFoundError(f"no photos in {directory}: run prepare_dataset.py")
    right = [(predict(photo=load_image(path, size))["dog"].item() > 0.5)
             == (path.parent.name == "dogs") for path in track(photos, filename.name)]
    return sum(right) / len(right)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default="models/five_conv_300.keras",
                        metavar="MODEL", help=".keras or .h5 (%(default)s)")
    parser.add_argument("--photo", type=Path, default="sample/train/dog.0.jpg",
                        help="to compare the probabilities on (%(default)s)")
    parser.add_argument("--output", type=Path, default="exported", help="folder (%(default)s)")
    parser.add_argument("--dataset", type=Path, help="measure the phones' files on its test photos")
    args = parser.parse_args()
    tf.config.set_visible_devices([], "GPU")  # a GPU may round to TF32, and would seem to differ
    if not args.model.exists():
        raise FileNotFoundError(f"there is no {args.model}: run an experiment that saves it first")
    name, model = args.model.stem, load_model(args.model)
    _, height, width, _ = model.input_shape
    photo = load_image(args.photo, (height, width))
    directory, lite = args.output / name / "1", args.output / f"{name}.tflite"
    directory.mkdir(parents=True, exist_ok=True)
    model.export(directory, verbose=False)
    small = args.output / f"{name}_8bit.tflite"
    with silence():
        # model.export(lite, format="litert") does the same, but no Keras for Python 3.10 has it.
        converter = tf.lite.TFLiteConverter.from_saved_model(str(directory))
        lite.write_bytes(converter.convert())
        converter.optimizations = [tf.lite.Optimize.DEFAULT]  # quantizes the weights
        small.write_bytes(converter.convert())
        server, phone = tf.saved_model.load(directory), tf.lite.Interpreter(str(lite))
        served = server.signatures["serving_default"](photo=photo)
        on_phone = phone.get_signature_runner()(photo=photo)
    for answer, expected in model.predict_on_batch(photo).items():
        print(f"P({answer}) of {args.photo}\n    {args.model}: {float(expected[0, 0]):.6f}")
        for path, answers in ((directory, served), (lite, on_phone)):
            print(f"    {path}: {float(answers[answer][0, 0]):.6f}")
            if abs(float(answers[answer][0, 0] - expected[0, 0])) > 1e-4:
                raise ValueError(f"{path} and {args.model} differ by over 1e-4")
    for path in (lite, small):
        accuracy = args.dataset and measure_accuracy(path, args.dataset / "test", (height, width))
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB" +
              (f", accuracy on the test photos {accuracy * 100:.3f} %" if args.dataset else ""))
    print(f"""
A server, with TensorFlow Serving:
    docker run -p 8501:8501 -v "{directory.parent.resolve()}:/models/{name}" \\
        -e MODEL_NAME={name} tensorflow/serving
    POST {{"instances": [PHOTO]}} to http://localhost:8501/v1/models/{name}:predict
A phone: put {lite} into the app and open it with LiteRT (https://ai.google.dev/edge/litert).
PHOTO is {height} rows of {width} pixels of 3 values: R, G, B, float32, 0 to 255.""")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # TensorFlow's, on LiteRT's move to a package of its own
    try:
        main()
    except (KeyboardInterrupt, OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split()) or 'stopped'}")
