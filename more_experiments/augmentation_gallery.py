"""Look at augmentation: a picture per method, with the original photo and nine variants of it.

Chapter 2 of "Keras in Chinese", which shows MNIST's digits. Its shear of 1.25, radians in the Keras
of its time, would flatten a photo to a stripe; here it is up to 40 %. Standardization and whitening
are no augmentation: they give each photo one form, computed from all photos, and so their nine are
different photos. Keras standardizes by one mean and one deviation per channel, not per pixel, as
the chapter has it.
"""

import argparse
import os
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away

import keras
import numpy as np
from keras import layers
from matplotlib.figure import Figure

VARIANTS = 9
SIZE = 150
ZCA_SIZE = 32  # the covariance of 150x150x3 values would take 18 GB
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def define_augmentations():
    """Return {name: (title, layer)}, the layers of Keras that change each photo at random."""
    fill = {"fill_mode": "nearest"}
    return {
        "rotation": ("Rotation by up to 90 degrees", layers.RandomRotation(90 / 360, **fill)),
        "shifts": ("Shifts by up to 20 %", layers.RandomTranslation(0.2, 0.2, **fill)),
        "shear": ("Shear by up to 40 %", layers.RandomShear((0, 0.4), (0, 0.4), **fill)),
        # two layers, since one for both directions always flips both ways at once
        "flips": ("Horizontal and vertical flips", keras.Sequential(
            [layers.RandomFlip("horizontal"), layers.RandomFlip("vertical")])),
        "zoom": ("Zoom by up to 30 %, in and out", layers.RandomZoom(0.3, **fill)),
    }


def load_photos(first, limit):
    """Return the photo `first` and others of its folder, at most `limit` in all.

    float32 (n, 150, 150, 3), RGB in 0..255. Raises OSError where there are fewer than nine, or one
    cannot be read.
    """
    others = sorted((p for p in first.parent.iterdir() if p.suffix.lower() in SUFFIXES),
                    key=lambda p: (len(p.name), p.name))
    paths = list(dict.fromkeys([first, *others]))[:limit]
    photos = []
    for path in paths:
        try:
            photos.append(np.asarray(keras.utils.load_img(
                path, target_size=(SIZE, SIZE), interpolation="bilinear")))
        except OSError as error:
            raise OSError(f"cannot read {path}: {error.strerror or 'not a photo'}") from None
    if len(photos) < VARIANTS:
        raise OSError(f"nine photos or more are needed in {first.parent}, it has {len(photos)}")
    return np.array(photos, dtype=np.float32)


def standardize(photos):
    """Return `photos` with mean 0 and deviation 1 in each channel over all of them."""
    normalization = layers.Normalization(axis=-1)
    normalization.adapt(photos)
    return normalization(photos).numpy()


def whiten(photos, epsilon=0.1):
    """Return `photos`, shrunk to 32x32, whitened by zero-phase component analysis (ZCA).

    Bell and Sejnowski, "The 'independent components' of natural scenes are edge filters", 1997:
    the values are rotated to their principal components, each is divided by its deviation, and all
    are rotated back, which leaves edges. `epsilon`, added to the variances of values in 0..1, keeps
    components that hardly vary from being blown up to noise.
    """
    small = keras.ops.image.resize(photos, (ZCA_SIZE, ZCA_SIZE), antialias=True).numpy() / 255
    values = small.reshape(len(small), -1)
    values -= values.mean(axis=0)
    _, deviations, components = np.linalg.svd(values / np.sqrt(len(values)), full_matrices=False)
    scaled = values @ components.T / np.sqrt(deviations**2 + epsilon)
    return (scaled @ components).reshape(small.shape)


def scale_for_display(photos):
    """Return `photos`, of mean 0, in 0..255: 0 becomes grey, -3 deviations black, 3 white."""
    return np.clip(photos / photos.std() / 6 + 0.5, 0, 1) * 255


def save_gallery(name, title, original, variants, labels, save_to):
    """Draw `original` and `variants`, RGB in 0..255, into plots/augmentation_`name`.png.

    Where `save_to` is a folder, each variant also goes there as aug_`name`_1.png to ..._9.png.
    """
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    figure.suptitle(title)
    photos, labels = [original, *variants], ["original", *labels]
    for axes, photo, label in zip(figure.subplots(2, 5).flat, photos, labels, strict=True):
        axes.imshow(photo.round().astype(np.uint8))
        axes.set_title(label, fontsize="medium")
        axes.axis("off")
    figure.savefig(f"plots/augmentation_{name}.new.png")  # written whole before it takes the name
    os.replace(f"plots/augmentation_{name}.new.png", f"plots/augmentation_{name}.png")
    print(f"plots/augmentation_{name}.png")
    if save_to:
        for number, photo in enumerate(variants, start=1):
            keras.utils.save_img(save_to / f"aug_{name}_{number}.png", photo, scale=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")  # one line
    parser.add_argument("photo", nargs="?", type=Path, default="sample/train/dog.5.jpg",
                        metavar="PHOTO", help="to vary (%(default)s)")
    parser.add_argument("--limit", type=int, default=500, help="photos of its folder to compute "
                        "mean, deviation and ZCA from (%(default)s)")
    parser.add_argument("--save-to", type=Path, metavar="DIR",
                        help="write the variants there, too, as aug_<method>_<number>.png")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (%(default)s)")
    args = parser.parse_args()
    if not args.photo.is_file():
        parser.error(f"there is no photo {args.photo}")
    if args.limit < VARIANTS or not 0 <= args.seed < 2**32:
        parser.error("--limit must be 9 or more, --seed from 0 to 4294967295")
    warnings.simplefilter("ignore")  # Pillow's, of photos that are readable all the same
    keras.utils.set_random_seed(args.seed)
    try:
        photos = load_photos(args.photo, args.limit)
        Path("plots").mkdir(exist_ok=True)
        if args.save_to:
            args.save_to.mkdir(parents=True, exist_ok=True)
        numbers = [f"variant {number}" for number in range(1, VARIANTS + 1)]
        for name, (title, layer) in define_augmentations().items():
            variants = layer(np.repeat(photos[:1], VARIANTS, axis=0), training=True).numpy()
            save_gallery(name, title, photos[0], variants, numbers, args.save_to)
        labels = ["the same photo", *(f"photo {number}" for number in range(2, VARIANTS + 1))]
        for name, title, changed in (
            ("standardization", "Featurewise standardization", standardize(photos)),
            ("zca", "ZCA whitening at 32x32", whiten(photos)),
        ):
            title += f", computed from {len(photos)} photos"
            variants = scale_for_display(changed)[:VARIANTS]
            save_gallery(name, title, photos[0], variants, labels, args.save_to)
        if args.save_to:
            print(f"{args.save_to}: {VARIANTS} photos of each")
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: stopped\n")
    except OSError as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
