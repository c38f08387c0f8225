"""The five experiments at 200x200 pixels, run as a user would on the sample."""

import csv
import importlib
import re
import resource
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import ROOT, assert_refused, command, run, run_several
from PIL import Image

PHOTO = ROOT / "sample/test/1.jpg"
EXPERIMENTS = {
    "baseline_vgg1": "float32", "baseline_vgg2": "float32", "baseline_vgg3": "float32",
    "vgg3_dropout": "float32", "vgg3_augmentation": "mixed_bfloat16",
}
# What a notebook's cell, a shell or an old keras.json may leave in the environment.
INHERITED = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "KERAS_BACKEND": "torch"}


def read_history(folder, name):
    """Return the rows of the history that the run `name` has written below `folder`."""
    with open(folder / f"plots/{name}_history.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_tree(folder):
    """Return {path below `folder`: bytes} of its files."""
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def count_ticks(pixels):
    """Return how many ticks the lowest x axis of a plot has, by the dark dashes below it."""
    dark = pixels.sum(axis=-1) < 100
    axis = max(row for row in range(len(dark)) if dark[row].sum() > dark.shape[1] / 2)
    dashes = dark[axis + 3]
    return int((dashes[1:] & ~dashes[:-1]).sum())


def check_outputs(folder, name, stdout, epochs):
    """Check the history, the printed accuracy, the picture and the model of `epochs` epochs."""
    rows = read_history(folder, name)
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(epochs)]
    (accuracy,) = [line for line in stdout.splitlines() if line.startswith("> ")]
    assert accuracy == f"> {float(rows[-1]['val_accuracy']) * 100:.3f}"
    assert all(0 < float(row["loss"]) < 100 and 0 < float(row["val_loss"]) < 100 for row in rows)
    with Image.open(folder / f"plots/{name}_plot.png") as plot:
        pixels = np.asarray(plot.convert("RGB"), dtype=int)
        assert plot.format == "PNG" and min(plot.size) >= 600
    for colour in ((0, 0, 255), (255, 165, 0)):  # train blue, test orange, in both halves
        drawn = np.abs(pixels - colour).sum(axis=-1) < 30
        assert drawn[: len(drawn) // 2].any() and drawn[len(drawn) // 2 :].any()
    assert (folder / f"models/{name}.keras").stat().st_size > 10**6
    assert not list((folder / "models").glob("*.new.keras"))
    return float(rows[-1]["val_accuracy"])


@pytest.fixture(scope="module")
def keras():
    """Keras, in this process: imported once for the tests that look into a script."""
    return importlib.import_module("keras")


@pytest.fixture(scope="module")
def ran(tiny, tmp_path_factory):
    """(folder, results of the five experiments), each of one epoch on 16 photos of the sample.

    The results are those of the experiments, of predict.py with their models, and of --help.
    """
    folder = tmp_path_factory.mktemp("ran")
    (folder / "keras").mkdir()
    (folder / "keras/keras.json").write_text(
        '{"backend": "torch", "image_data_format": "channels_first"}')
    lines = [(f"{name}.py", "--dataset", tiny, "--epochs", "1", "--precision", precision)
             for name, precision in EXPERIMENTS.items()]
    lines += [("predict.py", PHOTO, "--model", f"models/{name}.keras") for name in EXPERIMENTS]
    lines += [(f"{name}.py", "--help") for name in EXPERIMENTS]
    results = run_several(*lines, cwd=folder,
                          env={**INHERITED, "KERAS_HOME": str(folder / "keras")})
    return folder, *(dict(zip(EXPERIMENTS, results[start:start + 5], strict=True))
                     for start in (0, 5, 10))


def test_one_epoch(ran):
    folder, results, _, helps = ran
    for name, (code, out, err) in results.items():
        assert (code, err) == (0, ""), (name, err)
        assert out.count("Found 8 files") == 2
        assert "Trainable params" in out  # the model's summary
        check_outputs(folder, name, out, 1)
        for option in ("--dataset", "--epochs", "--precision", "--seed", "--resume"):
            assert option in helps[name][1]


def test_models_take_photos_as_they_are(keras, ran, tiny):
    """Each saved model, loaded as anyone would, says of uint8 photos what the run has measured.

    predict.py says what the model says.
    """
    folder, results, predictions, _ = ran
    test_it = importlib.import_module("baseline_vgg1").flow_from_directory(tiny / "test", False)
    photos = np.concatenate([batch for batch, _ in test_it])
    classes = np.concatenate([labels for _, labels in test_it])
    photo = importlib.import_module("predict").load_image(PHOTO, (200, 200))
    for name in EXPERIMENTS:
        model = keras.models.load_model(folder / f"models/{name}.keras")
        assert model.input_shape == (None, 200, 200, 3) and model.output_shape == (None, 1)
        dogs = model.predict(photos, verbose=0)
        accuracy = ((dogs > 0.5) == classes).mean() * 100
        assert f"> {accuracy:.3f}\n" in results[name][1], name
        assert np.allclose(model.predict(photos.astype("float64"), verbose=0), dogs, atol=1e-6)
        code, out, err = predictions[name]
        assert (code, err) == (0, ""), (name, err)
        dog = float(model.predict_on_batch(photo)[0, 0])
        assert abs(float(re.search(r"\(([\d.]+) %\)", out)[1]) - max(dog, 1 - dog) * 100) < 0.02


def test_learns_the_sample(dataset, tmp_path):
    """The first experiment of README: it learns its drawings, and is silent on standard error."""
    (tmp_path / "dataset_sample").symlink_to(dataset)
    done = run("baseline_vgg1.py", "--dataset", "dataset_sample", "--epochs", "3", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")  # TensorFlow's own messages, too, are none
    check_outputs(tmp_path, "baseline_vgg1_dataset_sample", done.stdout, 3)
    rows = read_history(tmp_path, "baseline_vgg1_dataset_sample")
    assert float(rows[-1]["accuracy"]) > 0.6 and float(rows[-1]["loss"]) < float(rows[0]["loss"])
    with Image.open(tmp_path / "plots/baseline_vgg1_dataset_sample_plot.png") as plot:
        assert count_ticks(np.asarray(plot.convert("RGB"), dtype=int)) >= 3


def stop(folder, sign, moment, *options):
    """Send `sign` to a run of 50 epochs as soon as `moment()` is true; return its error output.

    The run gets Python's own handler of Ctrl-C: a suite in the background has it switched off.
    """
    process = subprocess.Popen(
        command("baseline_vgg3.py", "--epochs", "50", *options), cwd=folder, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # noqa: PLW1509
    while process.poll() is None and not moment():
        time.sleep(0.002)
    process.send_signal(sign)
    return process.communicate(timeout=60)[1], process.returncode


def test_killed_stopped_resumed_extended(keras, tiny, tmp_path):
    (tmp_path / "dataset_dogs_vs_cats").symlink_to(tiny)
    history = tmp_path / "plots/baseline_vgg3_history.csv"
    saved = tmp_path / "models/baseline_vgg3.keras"
    unfinished = tmp_path / "models/baseline_vgg3.new.keras"

    def count_steps():
        """Return how many steps the saved network has been trained for: one in each epoch."""
        return int(keras.models.load_model(saved).optimizer.iterations.numpy())

    # killed while it saves its third epoch
    moment = lambda: history.exists() and "\n1," in history.read_text() and unfinished.exists()
    err, code = stop(tmp_path, signal.SIGKILL, moment)
    assert (err, code) == ("", -signal.SIGKILL)
    first = read_history(tmp_path, "baseline_vgg3")
    assert 2 <= len(first) <= count_steps() <= len(first) + 1

    # resumed, and stopped by Ctrl-C
    moment = lambda: f"\n{len(first) + 1}," in history.read_text()
    err, code = stop(tmp_path, signal.SIGINT, moment, "--resume")
    assert code == 1 and "Traceback" not in err and "--resume" in err, err
    rows = read_history(tmp_path, "baseline_vgg3")
    assert rows[:len(first)] == first and len(rows) > len(first)
    assert len(rows) <= count_steps() <= len(rows) + 2  # an epoch may be saved twice, never none

    # no room to save: Python's own error, and network and history as they were
    before = read_tree(tmp_path)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**7, 10**7))
    full = subprocess.run(command("baseline_vgg3.py", "--epochs", "50", "--resume"), cwd=tmp_path,
                          capture_output=True, text=True, check=False,
                          preexec_fn=limit)
    assert full.returncode == 1 and "Error" in full.stderr.splitlines()[-1]
    unfinished.unlink()
    assert read_tree(tmp_path) == before

    # resumed to its end, once more, extended; then another seed, and anew
    end, steps = len(rows) + 1, count_steps()
    to_end, again, more, other, anew = run_several(
        ("baseline_vgg3.py", "--epochs", end, "--resume"),
        ("baseline_vgg3.py", "--epochs", end, "--resume"),
        ("baseline_vgg3.py", "--epochs", end + 1, "--resume"),
        ("baseline_vgg3.py", "--epochs", "1", "--seed", "2"),
        ("baseline_vgg3.py", "--epochs", "1", "--seed", "3"), cwd=tmp_path)
    for (code, out, err), epochs in ((to_end, [end]), (again, []), (more, [end + 1])):
        assert (code, err) == (0, ""), err
        assert re.findall(r"^Epoch (\d+)/", out, re.MULTILINE) == [str(epoch) for epoch in epochs]
    check_outputs(tmp_path, "baseline_vgg3", more[1], end + 1)
    assert read_history(tmp_path, "baseline_vgg3")[:len(rows)] == rows
    assert count_steps() == steps + 2  # its optimizer went on, with its momentum
    check_outputs(tmp_path, "baseline_vgg3_seed2", other[1], 1)
    check_outputs(tmp_path, "baseline_vgg3_seed3", anew[1], 1)
    assert read_history(tmp_path, "baseline_vgg3_seed2") != read_history(tmp_path,
                                                                         "baseline_vgg3_seed3")


def test_what_cannot_be_resumed(ran, tiny, tmp_path):
    """Histories that another program has saved, or of nothing, and another network."""
    folder, *_ = ran
    for name in ("plots", "models"):
        (tmp_path / name).mkdir()
    good = (folder / "plots/baseline_vgg2_history.csv").read_bytes()
    histories = {"2": good, "3": b"", "4": good.splitlines(keepends=True)[0],
                 "5": b"\xef\xbb\xbf" + good, "6": good.replace(b",", b";"), "7": good.rstrip()}
    for seed, history in histories.items():
        (tmp_path / f"plots/baseline_vgg3_seed{seed}_history.csv").write_bytes(history)
        shutil.copy(folder / "models/baseline_vgg2.keras",
                    tmp_path / f"models/baseline_vgg3_seed{seed}.keras")
    (tmp_path / "plots/baseline_vgg3_seed8_history.csv").write_bytes(good)  # its network is gone
    before = read_tree(tmp_path)
    line = ("baseline_vgg3.py", "--dataset", tiny, "--epochs", "9", "--resume", "--seed")
    nothing, *refused = run_several(*((*line, seed) for seed in "1345678"), cwd=tmp_path)
    assert_refused(nothing, "nothing to resume", "baseline_vgg3_history.csv")
    for result, words in zip(refused, ("nothing to resume", "nothing to resume", "another program",
                                       "another program", "another program", "nothing to resume"),
                             strict=True):
        assert_refused(result, words)
    other = run(*line, "2", cwd=tmp_path)  # the saved network has two blocks, the script three
    assert other.returncode == 1 and "load_weights" in other.stderr
    assert read_tree(tmp_path) == before


def test_options_that_cannot_be_right(ran, tiny, tmp_path):
    """Refused with status 2, and nothing touched."""
    folder, *_ = ran
    for name in ("one", "three", "empty", "other"):
        shutil.copytree(tiny, tmp_path / name)
    for split in ("train", "test"):
        shutil.rmtree(tmp_path / "one" / split / "dogs")
        shutil.copytree(tiny / split / "dogs", tmp_path / "three" / split / "wolves")
    for photo in (tmp_path / "empty/test/cats").iterdir():
        photo.unlink()
    (tmp_path / "other/test/cats").rename(tmp_path / "other/test/ants")
    (tmp_path / "file").write_text("not a folder")
    shutil.copytree(folder / "plots", tmp_path / "plots")
    shutil.copytree(folder / "models", tmp_path / "models")
    cases = [
        ((), "dataset_dogs_vs_cats", "prepare_dataset.py"),
        (("--dataset", "nowhere"), "nowhere", "prepare_dataset.py"),
        (("--dataset", "file"), "file", "prepare_dataset.py"),
        (("--dataset", "one"), "one", "two folders"),
        (("--dataset", "three"), "three", "two folders"),
        (("--dataset", "other"), "other", "the same two folders"),
        (("--dataset", "empty"), "no photos in empty/test/cats"),
        (("--dataset", tiny, "--epochs", "0"), "--epochs"),
        (("--dataset", tiny, "--epochs", "many"), "--epochs", "many"),
        (("--dataset", tiny, "--precision", "bfloat16"), "--precision", "mixed_bfloat16"),
        (("--dataset", tiny, "--batch", "3"), "--batch"),
    ]
    before = read_tree(tmp_path)
    results = run_several(*((script, *options) for options, *_ in cases
                            for script in ("baseline_vgg2.py", "vgg3_augmentation.py")),
                          cwd=tmp_path)
    for number, result in enumerate(results):
        assert result[0] == 2, result
        assert_refused(result, *cases[number // 2][1:])
    assert read_tree(tmp_path) == before


def test_errors_point_at_the_line(tiny, tmp_path):
    """Mistakes of who edits a script: the traceback names the line, or the message the mistake."""
    text = (ROOT / "baseline_vgg3.py").read_text()
    (tmp_path / "padding.py").write_text(text.replace('64, 3, padding="same"',
                                                      '64, 3, padding="sane"'))
    (tmp_path / "flatten.py").write_text(re.sub(r" +layers\.Flatten\(\),.*\n", "", text))
    (tmp_path / "damaged").symlink_to(tiny)
    for name, words in (("padding", ("layers.Conv2D(64, 3, padding=\"sane\"", "^^^^", "'same'")),
                        ("flatten", ("(None, 25, 25, 1)", "Flatten()"))):
        done = run(tmp_path / f"{name}.py", "--dataset", tiny, cwd=tmp_path)
        assert done.returncode == 1 and f'{name}.py", line' in done.stderr
        for word in words:
            assert word in done.stderr, done.stderr
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def test_two_other_classes(tmp_path):
    """Red and blue pictures, PNG and .JPG, from a hand-made folder to predict.py --classes."""
    rng = np.random.default_rng(1)
    for split, count in (("train", 24), ("test", 4)):
        for name, colour in (("bees", (220, 40, 40)), ("ants", (40, 40, 220))):
            folder = tmp_path / "dataset_mine" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(0, 35, (90, 120, 3), dtype=np.uint8)
                picture = Image.fromarray(noise + np.array(colour, dtype=np.uint8))
                picture.save(folder / f"{name}_{number}{('.png', '.JPG')[number % 2]}")
    (tmp_path / "dataset_mine/train/.ipynb_checkpoints").mkdir()
    model = "models/baseline_vgg3_dataset_mine.keras"
    trained, ants, bees = run_several(
        ("baseline_vgg3.py", "--dataset", "dataset_mine", "--epochs", "5"),
        *(("predict.py", f"dataset_mine/test/{name}", "--model", model, "--classes", "ants", "bees")
          for name in ("ants", "bees")), cwd=tmp_path)
    assert trained[0] == 0, trained[2]
    assert check_outputs(tmp_path, "baseline_vgg3_dataset_mine", trained[1], 5) == 1
    for result, name in ((ants, "ants"), (bees, "bees")):
        assert (result[0], result[2]) == (0, "")
        answers = re.findall(r": (?:unsure, rather )?(\w+) \(", result[1])
        assert answers == [name] * 4, result[1]


def test_iterator(keras, dataset):
    script = importlib.import_module("baseline_vgg1")
    batches = list(script.flow_from_directory(dataset / "train", shuffle=False))
    cats, dogs = (len(list((dataset / "train" / name).iterdir())) for name in ("cats", "dogs"))
    assert [len(photos) for photos, _ in batches[:-1]] == [64] * ((cats + dogs) // 64)
    photos = np.concatenate([photos for photos, _ in batches])
    classes = np.concatenate([labels for _, labels in batches])
    assert photos.dtype == np.uint8 and photos.shape == (cats + dogs, 200, 200, 3)
    assert classes.dtype == np.float32 and classes.ravel().tolist() == [0] * cats + [1] * dogs
    exact = keras.utils.image_dataset_from_directory(
        dataset / "train", image_size=(200, 200), batch_size=len(photos), shuffle=False,
        crop_to_aspect_ratio=True, verbose=False)
    assert np.abs(photos - next(iter(exact))[0].numpy()).max() <= 0.5  # rounded, not cut

    shuffled = script.flow_from_directory(dataset / "train", shuffle=True)
    orders = []
    for _ in range(2):
        seen = [(photo.numpy().tobytes(), float(label[0]))
                for batch in shuffled for photo, label in zip(*batch, strict=True)]
        orders.append(seen)
        assert sorted(seen) == sorted((photo.tobytes(), float(label[0]))
                                      for photo, label in zip(photos, classes, strict=True))
    assert orders[0] != orders[1]
    first = [label for _, label in orders[0][:64]]
    assert 16 < sum(first) < 48  # a full shuffle, not one within a window


def test_augmentation(keras, dataset):
    keras.utils.set_random_seed(1)
    model = importlib.import_module("vgg3_augmentation").define_model()
    rescaling, shift, flip = model.layers[:3]
    # a ramp in both directions shows where each pixel came from
    y, x = np.mgrid[0:200, 0:200]
    photos = np.repeat(np.stack([x, y, 0 * x], axis=-1)[None].astype(np.uint8), 64, axis=0)
    assert np.allclose(flip(shift(rescaling(photos), training=False), training=False) * 255, photos)
    shifted = np.asarray(shift(rescaling(photos), training=True)) * 255
    moved = shifted[:, 100, 100, :2] - 100  # how far, in pixels
    assert 15 < np.abs(moved[:, 0]).max() <= 20.01 and 15 < np.abs(moved[:, 1]).max() <= 20.01
    assert np.unique(moved.round(2)).size > 100  # both directions drawn for each photo
    expected = np.clip(x + moved[:, 0, None, None], 0, 199)  # edges: the nearest pixel
    assert np.abs(shifted[..., 0] - expected).max() < 1.01
    mirrored = np.asarray(flip(shift(rescaling(photos), training=False), training=True)) * 255
    falling = mirrored[:, 0, 0, 0] > mirrored[:, 0, 199, 0]
    assert 16 < falling.sum() < 48
    assert np.allclose(mirrored[:, 0, 0, 1], 0)  # never upside down
    predicted = [model.predict(photos[:2], verbose=0) for _ in range(2)]
    assert np.array_equal(*predicted)


def test_float16(keras, dataset):
    """The precision for older GPUs: a CPU takes seconds for one photo, so only one is tried."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = importlib.import_module("baseline_vgg3").define_model()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.layers[1].compute_dtype == "float16"
    assert model.layers[-1].compute_dtype == "float32"
    (photos, classes), *_ = importlib.import_module("baseline_vgg3").flow_from_directory(
        dataset / "test", shuffle=False).take(1)
    loss, _ = model.train_on_batch(photos[:1], classes[:1])
    assert 0 <= loss < 100


def test_networks(keras):
    """What each experiment says of itself, layer by layer."""
    counts = {"baseline_vgg1": 320_000 * 128, "baseline_vgg2": 160_000 * 128,
              "baseline_vgg3": 80_000 * 128}
    counts["vgg3_dropout"] = counts["vgg3_augmentation"] = counts["baseline_vgg3"]
    for name, dense in counts.items():
        script = importlib.import_module(name)
        model = script.define_model()
        filters = [w.filters for w in model.layers if isinstance(w, keras.layers.Conv2D)]
        assert filters == {1: [32], 2: [32, 64], 3: [32, 64, 128]}[len(filters)]
        assert len(filters) == int(name[-1] if name[-1].isdigit() else name[3])
        kernel, bias = model.layers[-2 if name != "vgg3_dropout" else -3].get_weights()
        assert kernel.size == dense and bias.size == 128
        rates = [w.rate for w in model.layers if isinstance(w, keras.layers.Dropout)]
        assert rates == ([0.2, 0.2, 0.2, 0.5] if name == "vgg3_dropout" else [])
        config = model.optimizer.get_config()
        assert isinstance(model.optimizer, keras.optimizers.SGD) and config["momentum"] == 0.9
        assert abs(config["learning_rate"] - 0.001) < 1e-9
        assert model.loss == "binary_crossentropy"
        assert script.EPOCHS == (20 if name.startswith("baseline") else 50)
        for layer in model.layers[:-1]:
            if hasattr(layer, "kernel_initializer"):
                assert isinstance(layer.kernel_initializer, keras.initializers.HeUniform)
