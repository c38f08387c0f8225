"""Photos per second: the experiments' iterator against the tutorial's ImageDataGenerator.

    python tests/benchmarks/iterator.py DATASET        (needs SciPy, as ImageDataGenerator does)

DATASET is a folder that prepare_dataset.py has built. Both sides read DATASET/train, plain and
with the augmentation of the tutorial, for a first epoch and a later one, one after the other.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import vgg3_augmentation
from vgg3_augmentation import keras, tf

directory = Path(sys.argv[1]) / "train"
ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator


def photos_per_second(batches, steps):
    """Return how many photos a second come out of `steps` batches."""
    start, count = time.perf_counter(), 0
    for _, (photos, _) in zip(range(steps), batches, strict=False):
        count += len(photos)
    return count / (time.perf_counter() - start)


def measure(title, ours, theirs):
    """Print both sides' rates, in a first epoch and in a later one, and their ratio."""
    steps = len(theirs)
    for epoch in ("first epoch", "later epoch"):
        rates = photos_per_second(ours, steps), photos_per_second(theirs, steps)
        print(f"{title}, {epoch}: iterator {rates[0]:.0f} photos/s, ImageDataGenerator "
              f"{rates[1]:.0f} photos/s, ratio {rates[0] / rates[1]:.1f}")


options = {"class_mode": "binary", "batch_size": 64, "target_size": (200, 200)}
measure("plain", vgg3_augmentation.flow_from_directory(directory, shuffle=True),
        ImageDataGenerator(rescale=1 / 255).flow_from_directory(directory, **options))

augmentation = keras.Sequential(vgg3_augmentation.define_model().layers[:3])
augment = tf.function(lambda photos: augmentation(photos, training=True))
iterator = vgg3_augmentation.flow_from_directory(directory, shuffle=True)
measure("augmented", iterator.map(lambda photos, classes: (augment(photos), classes)),
        ImageDataGenerator(rescale=1 / 255, width_shift_range=0.1, height_shift_range=0.1,
                           horizontal_flip=True).flow_from_directory(directory, **options))
