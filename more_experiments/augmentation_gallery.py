"""Look at augmentation: one photo and what each of Keras's random layers makes of it.

Chapter 2 of "Keras in Chinese", and the picture of its section 6.6: all methods at once. The
chapter shows MNIST's digits; here they are photos, since those are what we augment: a digit, as the
chapter says itself, gains nothing from being turned or mirrored. Its shear of 1.25, radians in the
Keras of its time, would stretch a photo threefold; here it is up to 40 %. Standardization and
whitening are no augmentation: they give each photo one form, computed from all photos. Keras
standardizes by one mean and one deviation per channel, not per pixel, as the chapter has it.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
try:
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers
    from matplotlib.figure import Figure
except KeyboardInterrupt:  # Ctrl-C during the imports, which take seconds
    sys.exit("stopped")

SIZE = 150
ZCA_SIZE = 32  # the covariance of 150x150x3 values would take 18 GB
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def define_augmentations():
    """Return {name: (title, number of variants to show, layer)}; the layers take (n, h, w, 3)."""
    fill = {"fill_mode": "nearest"}
    return {
        # chapter 2: one method each
        "rotation": ("Rotation by up to 90 degrees", 9, layers.RandomRotation(90 / 360, **fill)),
        "shifts": ("Shifts by up to 20 %", 9, layers.RandomTranslation(0.2, 0.2, **fill)),
        "shear": ("Shear by up to 40 %", 9, layers.RandomShear((0, 0.4), (0, 0.4), **fill)),
        # two layers, since one for both directions always flips both ways at once
        "flips": ("Horizontal and vertical flips", 9, keras.Sequential(
            [layers.RandomFlip("horizontal"), layers.RandomFlip("vertical")])),
        # not in that chapter
        "zoom": ("Zoom by up to 30 %, in and out", 9, layers.RandomZoom(0.3, **fill)),
        # section 6.6: all of them, with its settings; its shear is 0.2 radians, 20 %
        "combined": ("All: rotation by up to 40 degrees, shifts, shear, zoom by up to 20 %, flips",
                     4, keras.Sequential([
                         layers.RandomRotation(40 / 360, **fill),
                         layers.RandomTranslation(0.2, 0.2, **fill),
                         layers.RandomShear((0, 0.2), **fill),
                         layers.RandomZoom(0.2, 0.2, **fill),
                         layers.RandomFlip("horizontal")])),
    }


def load_photos(first, limit):
    """Return the photo `first` and others of its folder, at most `limit` in all, and their names.

    float32 (n, 150, 150, 3), RGB, 0 to 255. Raises OSError or ValueError where `first` cannot be
    read, the folder has fewer than ten photos, or one is not a photo.
    """
    others = sorted((path for path in first.parent.iterdir() if path.suffix.lower() in SUFFIXES),
                    key=lambda path: (len(path.name), path.name))
    paths = list(dict.fromkeys([first, *others]))[:max(0, limit)]
    if len(paths) < 10:
        raise ValueError(f"ten photos are needed, {first.parent} and --limit give {len(paths)}")
    photos = []
    for path in paths:
        try:
            photo = tf.io.decode_image(path.read_bytes(), channels=3, expand_animations=False)
        except tf.errors.InvalidArgumentError:
            raise ValueError(f"{path} is damaged, or not a JPEG, PNG, GIF or BMP") from None
        photos.append(tf.image.resize(photo, (SIZE, SIZE)))
    return np.array(photos), [path.name for path in paths]


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
    small = tf.image.resize(photos, (ZCA_SIZE, ZCA_SIZE), antialias=True).numpy() / 255
    values = small.reshape(len(small), -1)
    values -= values.mean(axis=0)
    _, deviations, components = np.linalg.svd(values / np.sqrt(len(values)), full_matrices=False)
    scaled = values @ components.T / np.sqrt(deviations**2 + epsilon)
    return (scaled @ components).reshape(small.shape)


def plot_photos(name, title, photos, labels):
    """Draw `photos`, RGB, 0 to 255, five in a row, into plots/augmentation_`name`.png."""
    rows = len(photos) // 5
    figure = Figure(figsize=(12, 0.6 + 2.6 * rows), layout="constrained")
    figure.suptitle(title)
    places = figure.subplots(rows, 5, subplot_kw={"xticks": (), "yticks": ()}).flat
    for axes, photo, label in zip(places, photos, labels, strict=False):
        axes.imshow(keras.utils.array_to_img(photo, scale=False))
        axes.set_title(label, fontsize="medium")
    figure.savefig(f"plots/augmentation_{name}.png")
    print(f"plots/augmentation_{name}.png: {title}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", nargs="?", type=Path, default="sample/train/cat.4.jpg",
                        metavar="PHOTO", help="to vary (%(default)s)")
    parser.add_argument("--limit", type=int, default=500, help="photos of its folder to compute "
                        "mean, deviation and ZCA from (%(default)s)")
    parser.add_argument("--save-to", type=Path, metavar="DIR",
                        help="write the variants there, too, as aug_<method>_<number>.png")
    parser.add_argument("--seed", type=int, default=1, help="random seed (%(default)s)")
    args = parser.parse_args()
    if not args.photo.is_file():
        raise FileNotFoundError(f"there is no photo {args.photo}")
    keras.utils.set_random_seed(args.seed)
    photos, names = load_photos(args.photo, args.limit)
    for folder in filter(None, (Path("plots"), args.save_to)):
        folder.mkdir(parents=True, exist_ok=True)
    plot_photos("photos", "Ten photos as they are", photos[:10], names)
    for name, (title, count, layer) in define_augmentations().items():
        variants = layer(np.repeat(photos[:1], count, axis=0), training=True).numpy()
        plot_photos(name, title, [photos[0], *variants],
                    [names[0], *(f"variant {number}" for number in range(1, count + 1))])
        for number, variant in enumerate(variants if args.save_to else (), start=1):
            keras.utils.save_img(args.save_to / f"aug_{name}_{number}.png", variant, scale=False)
    for name, title, changed in (
        ("standardization", "Featurewise standardization", standardize(photos)),
        ("zca", f"ZCA whitening at {ZCA_SIZE}x{ZCA_SIZE}", whiten(photos)),
    ):
        # to look at them: 0 becomes grey, -3 deviations black, 3 white
        shown = np.clip(changed[:10] / changed.std() / 6 + 0.5, 0, 1) * 255
        plot_photos(name, f"{title}, computed from {len(photos)} photos", shown, names)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, OSError, ValueError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split()) or 'stopped'}")
