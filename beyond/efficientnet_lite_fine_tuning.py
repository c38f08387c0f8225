"""Fine-tuning: the end of EfficientNet-Lite learns, too.

    python beyond/efficientnet_lite_transfer.py
    python beyond/efficientnet_lite_fine_tuning.py

Starts from the model that efficientnet_lite_transfer.py has saved, with the same --dataset and
--seed. Its classifier has learnt already: the large first steps of an untrained one would spoil the
network. Now the last two of its seven stages, and the convolution after them, learn with the
classifier, in small steps, from random crops of the photos.
If the classes are cats and dogs, the loss has a second part: it grows where the network's old
answers for 123 breeds change. The next script, efficientnet_lite_halfway.py, needs these answers to
tell a cat or a dog from other things.
Measured: 99.29 ± 0.04 % of the test photos (3 seeds, 3 epochs), after 99.20 ± 0.02 % without
fine-tuning. The first epoch makes it worse; as the learning rate falls, the test accuracy rises
above where it began, while 99.9 % of the training photos are right: more epochs would overfit.
The learning rate depends on --epochs: with --resume keep the number that the run began with.

Published test accuracy: none, since no tutorial has this network. VGG-16, without fine-tuning, has
97.636 % in the tutorial (Jason Brownlee, 2019), here in vgg16_transfer.py
https://machinelearningmastery.com/how-to-develop-a-convolutional-neural-network-to-classify-photos-of-dogs-and-cats/
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

EPOCHS = 3  # an epoch: every training photo has been seen once more
DOGS = list(range(151, 269))  # their breeds, among ImageNet's 1,000 classes
CATS = list(range(281, 286))  # five kinds; below, all 123 are called breeds
BREEDS = DOGS + CATS


def define_model(start, network, with_breeds):
    """Return EfficientNet-Lite, the network that is trained, and the network that is saved.

    They share their layers, and take photos (n, size, size, 3), 0 to 255, as the model in the file
    `start` does. What is saved gives P(second class) (n, 1). What is trained gives the same;
    `with_breeds` adds 123 columns, the logits of the breeds of dogs and cats: (n, 124). `network`
    is the file that prepare_efficientnet_lite.py made. (A logit is the number of which a sigmoid or
    softmax makes a probability.)
    """
    saved = keras.models.load_model(start)
    lite = saved.layers[0]
    classifier = saved.layers[1:]
    lite.trainable = True  # it was saved frozen
    for layer in lite.layers:
        # The first stages see edges and fur, in any photos; the last ones put them together.
        # Only layers whose names start with one of these three learn.
        layer.trainable = layer.name.startswith(("stage6", "stage7", "top"))
    photos = keras.Input(saved.input_shape[1:])
    features = lite(photos)
    answer = features
    for layer in classifier:
        answer = layer(answer)
    if not with_breeds:
        return lite, keras.Model(photos, answer), saved

    # The old classifier of 1,000 classes still knows what is a pug, a siamese cat, or neither. We
    # take its columns for cats and dogs. These weights are frozen. But the features that go in
    # change, and with them the logits: it is the loss that holds the logits where they were.
    whole = keras.models.load_model(network)
    imagenet = whole.get_layer("imagenet")
    # If lite was made from this file, whole has the weights of its last layer besides, and no more.
    if whole.count_params() != lite.count_params() + imagenet.count_params():
        sys.exit(f"{start} is not made from {network}: name its --network")
    kernel, bias = imagenet.get_weights()  # (1280, 1000) and (1000,): a column for each class
    old_answers = layers.Dense(len(BREEDS), trainable=False, name="breeds")
    breeds = old_answers(features)  # only this first call gives the layer its weights
    old_answers.set_weights([kernel[:, BREEDS], bias[BREEDS]])
    model = keras.Model(photos, layers.Concatenate()([answer, breeds]))
    return lite, model, saved


def set_precision(lite, precision):
    """Let `lite` calculate in `precision`, but for some layers, which stay float32.

    These are its first and last layer, and the depthwise convolutions that learn.
    """
    for layer in lite.layers:
        if layer.name.startswith(("stem", "stage", "top")):
            layer.dtype_policy = precision
        if layer.trainable and "depthwise" in layer.name:
            layer.dtype_policy = "float32"  # its gradient is slow in bfloat16


def loss(true, predicted):
    """Return the loss (n,): cross-entropy of P(second class), plus how far the logits have drifted.

    `true` (n, 124) has the class, 0 or 1, and the breeds' logits before fine-tuning; `predicted`
    (n, 124) has P(second class), and these logits now. Their drift counts a tenth (Li and Hoiem,
    2016). Without breeds both are (n, 1), and nothing drifts.
    """
    # [:, :1]: the first column, as (n, 1); [:, 1:]: all the others
    # label smoothing: right are 0.01 and 0.99, since some photos are in the wrong folder
    wrong = keras.losses.binary_crossentropy(true[:, :1], predicted[:, :1], label_smoothing=0.02)
    if predicted.shape[1] == 1:
        return wrong
    forgotten = keras.losses.mean_squared_error(true[:, 1:], predicted[:, 1:])
    return 0.1 * forgotten + wrong


def accuracy(true, predicted):
    """Return for each photo, (n,), 1 where the answer is right, and 0 elsewhere."""
    return keras.metrics.binary_accuracy(true[:, :1], predicted[:, :1])


def flow_from_directory(directory, size):
    """Return the iterator over the photos in the two folders of `directory`, one for each class.

    The first folder in alphabetical order is class 0 (cats), the second class 1 (dogs). It yields,
    one by one, uint8 photos (*size, 3), 0 to 255, and float32 classes (1,).
    """
    photos = keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=size, batch_size=None, shuffle=False,
        crop_to_aspect_ratio=True)  # of a wide photo the middle, instead of squashing it
    # Resizing gives fractions. As whole numbers, a byte each, all photos fit into memory (173 kB
    # each at 240x240): they are read once, and later epochs read no files.
    photos = photos.map(lambda photo, label: (tf.cast(tf.round(photo), tf.uint8), label))
    return photos.cache()


def add_breeds(model, photos):
    """Return the iterator over `photos` with what `model` is to answer: float32 (124,).

    That is the class, and the logits of the breeds as they are before fine-tuning.
    """
    targets = model.predict(photos.batch(64))  # it sees the photos, and ignores the labels
    classes = []
    for _, labels in photos.batch(64):
        classes.append(labels)
    targets[:, :1] = np.concatenate(classes)  # column 0: the true class replaces the guess
    targets = tf.data.Dataset.from_tensor_slices(targets)  # a row for each photo
    photos = photos.map(lambda photo, label: photo)  # without the labels
    return tf.data.Dataset.zip(photos, targets)  # pairs of a photo and its target


def augment(photos, targets):
    """Return random crops of 64 `photos`, at the photos' size, and `targets` as they are.

    Height and width of a crop are each 70 to 100 % of the photo's, drawn separately: so it is
    stretched a little, too. Each photo is mirrored with a probability of one half.
    """
    sides = tf.random.uniform([64, 2], 0.7, 1)  # parts of the photo's height and width
    corners = tf.random.uniform([64, 2]) * (1 - sides)  # so that the box stays in the photo
    boxes = tf.concat([corners, corners + sides], axis=1)  # top, left, bottom, right
    flipped = tf.image.random_flip_left_right(photos)
    numbers = range(64)  # which photo each box is of
    size = photos.shape[1:3]
    crops = tf.image.crop_and_resize(flipped, boxes, numbers, size)
    return crops, targets


def save_model(model, name):
    """Save `model` as models/`name`.keras, never half of it: a run may be stopped at any moment."""
    model.save(f"models/{name}.new.keras")
    os.replace(f"models/{name}.new.keras", f"models/{name}.keras")  # in one go


def read_history(name):
    """Return plots/`name`_history.csv: a row for each epoch, with loss and accuracy.

    What begins with val_ is of photos from which the network does not learn.
    """
    return np.genfromtxt(f"plots/{name}_history.csv", delimiter=",", names=True, ndmin=1)


def count_epochs(name):
    """Return how many epochs of the run `name` are done; end here if it cannot be resumed."""
    file = Path(f"plots/{name}_history.csv")
    for needed in (file, Path(f"models/{name}.keras")):
        if not needed.exists():
            sys.exit(f"there is nothing to resume: no {needed}")
    text = file.read_text()
    if len(text.splitlines()) < 2:  # the first line names the columns
        sys.exit(f"there is nothing to resume: no whole epoch in {file}")
    if not text.startswith("epoch,") or not text.endswith("\n"):
        sys.exit(f"{file} is not as the run wrote it: was it saved by another program?")
    return len(read_history(name))


def summarize_diagnostics(name):
    """Draw the learning curves of plots/`name`_history.csv into plots/`name`_plot.png."""
    history = read_history(name)
    epochs = history["epoch"] + 1  # the file counts from 0
    figure, (upper, lower) = plt.subplots(2, figsize=(8, 8), layout="constrained")
    upper.plot(epochs, history["loss"], ".-", color="blue", label="train")
    upper.plot(epochs, history["val_loss"], ".-", color="orange", label="test")
    upper.set(title=f"{name}: loss", xlabel="epoch", ylim=(0, 1.3))  # the same in all scripts
    lower.plot(epochs, history["accuracy"], ".-", color="blue", label="train")
    lower.plot(epochs, history["val_accuracy"], ".-", color="orange", label="test")
    lower.set(title=f"{name}: accuracy", xlabel="epoch", ylim=(0.4, 1))
    for axes in (upper, lower):
        axes.set_xlim(0, len(epochs) + 1)
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axes.legend()
    figure.savefig(f"plots/{name}_plot.png")


def find_classes(folder):
    """Return the names of the folders in `folder`, in alphabetical order, without hidden ones."""
    return sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())


def parse_args():
    """Return the options of the command line; end with status 2 if one cannot be right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default="dataset_dogs_vs_cats",
                        help="a folder that prepare_dataset.py has built (%(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS,
                        help="how often to go through the training photos (%(default)s)")
    parser.add_argument("--precision", choices=["float32", "mixed_bfloat16"], default="float32",
                        help="of the arithmetic (%(default)s)")
    parser.add_argument("--network", type=Path, default="models/efficientnet_lite1.keras",
                        help="what prepare_efficientnet_lite.py has made (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (%(default)s)")
    parser.add_argument("--resume", action="store_true",
                        help="go on after the last whole epoch of the run before")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    if not args.network.exists():
        parser.error(f"there is no {args.network}: run beyond/prepare_efficientnet_lite.py first")
    classes = find_classes(args.dataset / "train")
    if len(classes) != 2 or find_classes(args.dataset / "test") != classes:
        parser.error(f"{args.dataset} must hold the folders train and test, and in each the same "
                     "two folders of photos, one for each class: run prepare_dataset.py first")
    for split in ("train", "test"):
        for name in classes:
            if not any((args.dataset / split / name).iterdir()):
                parser.error(f"there are no photos in {args.dataset / split / name}")
    return args


def run_test_harness():
    """Train, print the accuracy on the test photos in per cent, save learning curves and model."""
    args = parse_args()
    ending = ""
    if args.dataset.absolute().name != "dataset_dogs_vs_cats":
        ending += f"_{args.dataset.absolute().name}"
    if args.seed != 1:
        ending += f"_seed{args.seed}"
    name = Path(__file__).stem + ending
    start = f"models/efficientnet_lite_transfer{ending}.keras"
    if not os.path.exists(start):
        sys.exit(f"there is no {start}, from which to start: run "
                 "beyond/efficientnet_lite_transfer.py with the same --dataset and --seed first")
    os.makedirs("plots", exist_ok=True)
    epochs_done = 0
    if args.resume:
        epochs_done = count_epochs(name)
    keras.utils.set_random_seed(args.seed)  # the same order of photos in every run
    keras.config.set_image_data_format("channels_last")  # (height, width, colours)

    classes = find_classes(args.dataset / "train")
    lowered = [folder.lower() for folder in classes]
    with_breeds = lowered in (["cats", "dogs"], ["cat", "dog"])
    if not with_breeds:
        print(f"The classes are {classes[0]} and {classes[1]}, not cats and dogs: the old answers "
              "for breeds are left out.")
    lite, model, saved = define_model(start, args.network, with_breeds)
    set_precision(lite, args.precision)
    train_photos = flow_from_directory(args.dataset / "train", model.input_shape[1:3])
    test_photos = flow_from_directory(args.dataset / "test", model.input_shape[1:3])
    if len(train_photos) < 64:
        sys.exit(f"{args.dataset}/train has {len(train_photos)} photos, less than a batch of 64")
    if with_breeds:
        # before --resume loads what was trained: the logits are to be those of the start
        train_photos = add_breeds(model, train_photos)
        test_photos = add_breeds(model, test_photos)
    # shuffled anew in each epoch; drop_remainder: augment() wants 64 photos, never fewer
    train_it = train_photos.shuffle(len(train_photos)).batch(64, drop_remainder=True)
    # prefetch: the next batches are prepared while the network learns from this one
    train_it = train_it.map(augment).prefetch(tf.data.AUTOTUNE)
    test_it = test_photos.batch(64)
    # The learning rate grows from 0 to 0.0001 in a tenth of the steps. Then it falls to 0 along
    # half a wave of a cosine: slowly at first, faster in the middle, slowly at the end. It is small
    # at all times: what the network has learnt from a million photos is to be kept.
    steps = args.epochs * (len(train_photos) // 64)
    warmup_steps = steps // 10
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0, warmup_target=1e-4, warmup_steps=warmup_steps,
        decay_steps=steps - warmup_steps)
    model.compile(optimizer=keras.optimizers.Adam(rate), loss=loss, metrics=[accuracy])
    # Adam keeps running means of the gradients, which --resume needs. The file is written from
    # `saved`: so `saved` gets the same optimizer.
    saved.compile(optimizer=model.optimizer)
    model.summary()
    if args.resume:
        # build() makes room for the running means, load_weights reads them, too
        model.optimizer.build(model.trainable_variables)
        saved.load_weights(f"models/{name}.keras")
    # after each epoch: save the network, then add a row to the history
    save = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: save_model(saved, name))
    log = keras.callbacks.CSVLogger(f"plots/{name}_history.csv", append=args.resume)
    try:
        model.fit(
            train_it, validation_data=test_it, initial_epoch=epochs_done, epochs=args.epochs,
            shuffle=False,  # train_it does that
            callbacks=[save, log])
    except KeyboardInterrupt:
        sys.exit("\nstopped: --resume goes on after the last whole epoch")
    _, test_accuracy = model.evaluate(test_it, verbose=0)
    print(f"> {test_accuracy * 100:.3f}")
    summarize_diagnostics(name)
    set_precision(lite, "float32")  # what is saved runs fast anywhere
    save_model(saved, name)


if __name__ == "__main__":
    run_test_harness()
