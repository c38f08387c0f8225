"""Look at augmentation: one photo, and what each of Keras's random layers makes of it.

    python more_experiments/augmentation_gallery.py
    python more_experiments/augmentation_gallery.py my_photo.jpg --save-to augmented

The pictures are plots/augmentation_*.png. What to see: each variant still shows what the photo
shows. A change that makes it something else would teach the network something wrong.

Chapter 2 of "Keras in Chinese", and a picture of the book's section 6.6: rotation, shifts, shear,
zoom and mirroring at once. The chapter shows MNIST's digits; here they are photos, since those are
what we augment: a digit, as the chapter says itself, gains nothing from being turned or mirrored.
The chapter's shear of 1.25, radians in the Keras of its time, would stretch a photo threefold; here
it is up to 40 %. Standardization and whitening are no augmentation: they give each photo one form,
computed from all photos. Keras standardizes by one mean and one deviation for each channel; the
chapter says, for each pixel.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can calculate with other libraries, too
os.environ["MPLBACKEND"] = "agg"  # draw into files, not into windows
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers

SIZE = 150
ZCA_SIZE = 32  # pixels, so that the decomposition in whiten() is quick
KERAS_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")  # what Keras takes for a photo


def define_augmentations():
    """Return {name: (title, number of variants to show, layer)}.

    The layers take photos (n, height, width, 3), 0 to 255, and give the same, changed at random.
    Where a photo has moved away, a gap is left; fill_mode="nearest" fills it with the photo's edge.
    """
    rotation = layers.RandomRotation(90 / 360, fill_mode="nearest")  # in full turns
    shifts = layers.RandomTranslation(0.2, 0.2, fill_mode="nearest")  # of the height, of the width
    # x: sideways, by parts of the height. The top row stays, the bottom row moves most.
    # y: up or down, by parts of the width. The left edge stays, the right edge moves most.
    shear = layers.RandomShear(x_factor=(0, 0.4), y_factor=(0, 0.4), fill_mode="nearest")
    # two layers, since one for both directions flips both ways or not at all
    flips = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomFlip("vertical")])
    zoom = layers.RandomZoom(0.3, fill_mode="nearest")
    # as in section 6.6, whose shear is 0.2 radians, nearly 20 %, and in small_data_augmentation.py
    combined = keras.Sequential([
        layers.RandomRotation(40 / 360, fill_mode="nearest"),
        layers.RandomTranslation(0.2, 0.2, fill_mode="nearest"),
        layers.RandomShear(x_factor=(0, 0.2), fill_mode="nearest"),
        layers.RandomZoom(0.2, 0.2, fill_mode="nearest"),
        layers.RandomFlip("horizontal"),
    ])
    return {
        "rotation": ("Rotation by up to 90 degrees", 9, rotation),
        "shifts": ("Shifts by up to 20 %", 9, shifts),
        "shear": ("Shear by up to 40 %", 9, shear),
        "flips": ("Horizontal and vertical flips", 9, flips),
        "zoom": ("Zoom by up to 30 %, in and out", 9, zoom),  # not in that chapter
        "combined": ("Rotation by up to 40 degrees, shifts, shear, zoom by up to 20 %, mirrored",
                     4, combined),
    }


def find_photos(first, limit):
    """Return the path `first` and those of the other photos of its folder, at most `limit`."""
    others = []
    for path in first.parent.iterdir():
        if path.suffix.lower() in KERAS_SUFFIXES and path.name != first.name:
            others.append(path)
    others.sort(key=lambda path: (len(path.name), path.name))  # cat.2 before cat.10
    paths = [first] + others
    return paths[:limit]


def load_photos(paths):
    """Return the photos as float32 (n, 150, 150, 3), RGB, 0 to 255; end here if one is none."""
    photos = []
    for path in paths:
        try:
            photo = tf.io.decode_image(path.read_bytes(), channels=3, expand_animations=False)
        except tf.errors.InvalidArgumentError:
            sys.exit(f"{path} is damaged, or not a JPEG, PNG, GIF or BMP")
        photos.append(keras.preprocessing.image.smart_resize(photo, (SIZE, SIZE)))
    return np.array(photos)


def standardize(photos):
    """Return `photos` with mean 0 and deviation 1 in each channel over all of them."""
    normalization = layers.Normalization(axis=-1)
    normalization.adapt(photos)
    return normalization(photos).numpy()


def whiten(photos, epsilon=0.1):
    """Return `photos`, shrunk to 32x32, whitened by zero-phase component analysis (ZCA).

    Neighbouring pixels are nearly equal in all photos. Whitening takes away what is common, and
    leaves edges: each photo is written as a sum of patterns, the principal components, which vary
    independently of each other; the amount of each is divided by its deviation over all photos; and
    the sum is computed again. `epsilon`, added to the variances of values from 0 to 1, keeps
    patterns that hardly vary from being blown up to noise. After Bell and Sejnowski, "The
    'independent components' of natural scenes are edge filters", 1997.
    """
    n = len(photos)
    small = tf.image.resize(photos, (ZCA_SIZE, ZCA_SIZE), antialias=True).numpy() / 255
    values = small.reshape(n, -1)  # a photo in each row, a pixel's colour in each column
    values = values - values.mean(axis=0)
    # The singular value decomposition gives the components, one in each row, and how much the
    # photos deviate along each of them.
    _, deviations, components = np.linalg.svd(values / np.sqrt(n), full_matrices=False)
    rotated = values @ components.T  # @ multiplies matrices
    variances = deviations**2
    scaled = rotated / np.sqrt(variances + epsilon)
    rotated_back = scaled @ components
    return rotated_back.reshape(small.shape)


def plot_photos(name, title, photos, labels):
    """Draw `photos`, RGB, 0 to 255, five in a row, into plots/augmentation_`name`.png."""
    rows = len(photos) // 5
    figure, axes = plt.subplots(rows, 5, figsize=(12, 0.6 + 2.6 * rows), layout="constrained")
    figure.suptitle(title)
    axes = axes.flat  # the places, row by row
    for number in range(len(photos)):
        axes[number].imshow(keras.utils.array_to_img(photos[number], scale=False))
        axes[number].set_title(labels[number], fontsize="medium")
        axes[number].set_axis_off()
    figure.savefig(f"plots/augmentation_{name}.png")
    plt.close(figure)
    print(f"plots/augmentation_{name}.png: {title}")


def plot_changed(name, title, changed, labels):
    """Draw ten of the photos `changed`, whose mean is 0, into plots/augmentation_`name`.png.

    To look at them: 0 becomes grey, three deviations below it black, three above it white.
    """
    shown = changed[:10] / changed.std() / 6 + 0.5
    shown = np.clip(shown, 0, 1) * 255
    plot_photos(name, f"{title}, computed from {len(changed)} photos", shown, labels)


def parse_args():
    """Return the options of the command line; end with status 2 if one cannot be right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", nargs="?", type=Path, default="sample/train/cat.4.jpg",
                        metavar="PHOTO", help="to vary (%(default)s)")
    parser.add_argument("--limit", type=int, default=500, help="photos of its folder to compute "
                        "mean, deviation and ZCA from (%(default)s)")
    parser.add_argument("--save-to", type=Path, metavar="DIR",
                        help="write the variants there, too, as aug_<method>_<number>.png")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (%(default)s)")
    args = parser.parse_args()
    if not args.photo.is_file():
        parser.error(f"there is no photo {args.photo}")
    found = len(find_photos(args.photo, args.limit))
    if args.limit < 10 or found < 10:
        parser.error(f"ten photos are needed, {args.photo.parent} and --limit {args.limit} give "
                     f"{found}")
    if args.save_to and args.save_to.exists() and not args.save_to.is_dir():
        parser.error(f"{args.save_to} is not a folder")
    return args


def main():
    """Draw the photos, the variants of the first one, and what is computed from all of them."""
    args = parse_args()
    keras.utils.set_random_seed(args.seed)
    paths = find_photos(args.photo, args.limit)
    names = [path.name for path in paths]
    photos = load_photos(paths)
    os.makedirs("plots", exist_ok=True)
    if args.save_to:
        os.makedirs(args.save_to, exist_ok=True)
    plot_photos("photos", "Ten photos as they are", photos[:10], names)

    for name, (title, count, layer) in define_augmentations().items():
        copies = np.repeat(photos[:1], count, axis=0)  # the first photo, `count` times
        # training=True: otherwise these layers give back the photos as they are
        variants = layer(copies, training=True).numpy()
        labels = [names[0]]
        for number in range(1, count + 1):
            labels.append(f"variant {number}")
        shown = np.concatenate([photos[:1], variants])
        plot_photos(name, title, shown, labels)
        if args.save_to:
            for number, variant in enumerate(variants, start=1):
                file = args.save_to / f"aug_{name}_{number}.png"
                keras.utils.save_img(file, variant, scale=False)

    plot_changed("standardization", "Featurewise standardization", standardize(photos), names)
    plot_changed("zca", f"ZCA whitening at {ZCA_SIZE}x{ZCA_SIZE}", whiten(photos), names)


if __name__ == "__main__":
    main()
