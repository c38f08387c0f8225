"""Predict photos without TensorFlow: in a fraction of the time, on a Raspberry Pi, in a shell loop.

A .tflite file is what more_experiments/export_model.py makes of a model. Needs only LiteRT, NumPy
and Pillow: pip install -r beyond/requirements_lite.txt
"""
import argparse
import os
import sys
import warnings
from pathlib import Path

try:
    import numpy as np
    from PIL import Image, ImageOps
except KeyboardInterrupt:  # Ctrl-C
    sys.exit("stopped")

# Formats that photos come in. Pillow would also run programs for some: Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF")


def load_image(filename, size):
    """Return the photo, float32 (1, height, width, 3), RGB, 0 to 255; `size` is (height, width).

    Resized as by tf.image.resize: bilinear, without antialiasing. Raises an
    exception of any sort where `filename` cannot be read, is not a photo, or is damaged.
    """
    image = ImageOps.exif_transpose(Image.open(filename, formats=FORMATS))
    image = image.convert("I").point(lambda v: v / 256) if image.mode[0] == "I" else image  # 16 bit
    white = Image.new("RGBA", image.size, "white")  # behind what is transparent
    image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    photo = np.asarray(image, np.float32)
    for axis, count in enumerate(size):
        places = (np.arange(count, dtype=np.float32) + 0.5) * (photo.shape[axis] / count) - 0.5
        places = places.clip(0, photo.shape[axis] - 1)
        before = np.floor(places)
        share = (places - before).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        before = before.astype(int)
        after = np.minimum(before + 1, photo.shape[axis] - 1)
        photo = photo.take(before, axis) * (1 - share) + photo.take(after, axis) * share
    return photo[np.newaxis]


def load_model(filename):
    """Return the file's function, photo=(1, h, w, 3), 0 to 255, to {"dog": P(dog)}, and (h, w).

    It may answer dog_or_cat, P(dog or cat), too. Raises ValueError for another file.
    """
    try:
        # LiteRT logs to standard error from C++; no setting turns it off.
        stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        try:
            from ai_edge_litert.interpreter import Interpreter
            interpreter = Interpreter(str(filename))
            interpreter.allocate_tensors()
            predict = interpreter.get_signature_runner()
            shape = predict.get_input_details()["photo"]["shape"]
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(null)
    except ModuleNotFoundError:
        raise ValueError("no LiteRT: pip install -r beyond/requirements_lite.txt") from None
    except Exception as error:  # noqa: BLE001, LiteRT raises all sorts on other files
        raise ValueError(f"cannot use the model {filename}: {error}") from None
    return predict, (int(shape[1]), int(shape[2]))


def describe(dog, animal=1):
    """Return in words what P(dog) and P(dog or cat) mean: unsure from 20 to 80 %."""
    label, probability = ("dog", dog) if dog >= 0.5 else ("cat", 1 - dog)
    if animal < 0.5:
        return f"neither a dog nor a cat, it seems ({label} {probability * 100:.1f} %)"
    unsure = "unsure, rather a " if probability < 0.8 else ""
    return f"{unsure}{label} ({probability * 100:.2f} %)"


def main():
    """Print a line for each photo; return the exit status, 1 if a file is not a photo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--model", type=Path, help="(the one in models/reference/)")
    args = parser.parse_args()
    if not args.model:
        reference = sorted(Path(__file__).parents[1].glob("models/reference/*.tflite"))
        if not reference:
            raise ValueError("no model: more_experiments/export_model.py writes one for --model")
        args.model = reference[0]
    predict, size = load_model(args.model)
    status = 0
    for path in args.photos:
        try:
            answers = predict(photo=load_image(path, size))
        except Exception as error:  # noqa: BLE001, decoders raise all sorts on damaged files
            print(f"{parser.prog}: {path}: {getattr(error, 'strerror', None) or error}",
                  file=sys.stderr)
            status = 1
            continue
        animal = answers.get("dog_or_cat", np.ones(1)).item()
        print(f"{path}: {describe(answers['dog'].item(), animal)}")
    return status


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Pillow's, about photos that it can still read
    try:
        sys.exit(main())
    except (KeyboardInterrupt, OSError, ValueError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split()) or 'stopped'}")
