"""The scripts of more_experiments/, each run as a user would, for its smallest budget."""

import csv
import importlib
import re
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import ROOT, assert_refused, command, run_several
from PIL import Image, ImageOps

MORE = sorted(path.name for path in (ROOT / "more_experiments").glob("*.py"))
# the scripts that train: the options of a short run, and the photos that they print as found
TRAINED = {
    "small_cnn_32": (("--epochs", "2"), (146, 54)),
    "vgg16_128_transfer": (("--epochs", "1", "--steps", "1", "--dataset", "cats_and_dogs_small"),
                           (40, 20)),
    "small_data_cnn": (("--epochs", "2", "--steps", "2"), (40, 20, 20)),
    "small_data_augmentation": (("--epochs", "1", "--steps", "2"), (40, 20, 20)),
    "five_conv_300": (("--epochs", "1", "--steps", "1"), (40, 20, 20)),
    "small_vgg_in_memory": (("--epochs", "1"), ()),
    "small_data_features": (("--epochs", "2"), (40, 20, 20)),
    "small_data_fine_tuning": (("--epochs", "1", "--steps", "1"), (40, 20, 20)),
}
RUNS = {name: name for name in TRAINED}  # the runs' names
RUNS["vgg16_128_transfer"] = "vgg16_128_transfer_cats_and_dogs_small"
VGG16 = 14_714_688  # parameters of its convolutions
PARAMETERS = {"small_cnn_32": 157_857, "small_data_cnn": 3_453_121,
              "small_data_augmentation": 3_453_121, "small_vgg_in_memory": 3_453_121,
              "five_conv_300": 1_704_097, "vgg16_128_transfer": VGG16 + 8192 + 1,
              "small_data_features": VGG16 + 8192 * 256 + 256 + 257,
              "small_data_fine_tuning": VGG16 + 8192 * 256 + 256 + 257}


@pytest.fixture(scope="module")
def keras():
    """Keras, in this process."""
    return importlib.import_module("keras")


@pytest.fixture(scope="module")
def trained(dataset, small, weights, tmp_path_factory):
    """(folder, {script: (exit status, stdout, stderr)}) after a short run of all of TRAINED."""
    folder = tmp_path_factory.mktemp("more")
    (folder / "dataset_dogs_vs_cats").symlink_to(dataset)
    (folder / "cats_and_dogs_small").symlink_to(small)
    (folder / "test1").symlink_to(ROOT / "sample/test")
    lines = []
    for name, (options, _) in TRAINED.items():
        if name in ("vgg16_128_transfer", "small_data_features"):
            options = (*options, "--weights", weights[name == "small_data_features"])
        lines.append((f"more_experiments/{name}.py", *options))
    return folder, dict(zip(TRAINED, run_several(*lines, cwd=folder), strict=True))


def check_plot(path, *colours):
    """Check that `path` is a PNG of some size in which the `colours` occur; return its pixels."""
    with Image.open(path) as plot:
        pixels = np.asarray(plot.convert("RGB"), dtype=int)
        assert plot.format == "PNG" and min(plot.size) >= 400
    for colour in colours:
        assert (np.abs(pixels - colour).sum(axis=-1) < 30).any(), (path, colour)
    return pixels


@pytest.mark.parametrize("name", TRAINED)
def test_trains(name, trained):
    folder, results = trained
    (code, out, err), (options, found) = results[name], TRAINED[name]
    assert (code, err) == (0, ""), err
    for count in found:
        assert f"Found {count} files" in out
    with open(folder / f"plots/{RUNS[name]}_history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(n) for n in range(int(options[1]))]
    assert all(0 < float(row[key]) < 100 for row in rows for key in ("loss", "val_loss"))
    printed = re.findall(r"^> ([\d.]+) \(([^)]+)\)$", out, re.MULTILINE)
    assert printed[0][0] == f"{float(rows[-1]['val_accuracy']) * 100:.3f}"
    if name in ("small_cnn_32", "vgg16_128_transfer"):  # tutorial 003, which has no validation
        seconds = sum(float(row["seconds"]) for row in rows)
        assert 0 <= seconds < 300
        assert printed[0][1] == (f"loss {float(rows[-1]['val_loss']):.4f}, {seconds:.0f} s of "
                                 "training")
    else:
        splits = ["validation"] if name == "small_vgg_in_memory" else ["validation", "test"]
        assert [split for _, split in printed] == splits
    check_plot(folder / f"plots/{RUNS[name]}_plot.png", (0, 0, 255), (255, 165, 0))


def test_saved_models(keras, trained, small, dataset):
    """The models on the disk have the loss that was logged last, and the parameters they should."""
    folder, results = trained
    photos = {}
    for name, parameters in PARAMETERS.items():
        model = keras.models.load_model(folder / f"models/{RUNS[name]}.keras")
        assert model.count_params() == parameters
        directory = (dataset / "test" if name == "small_cnn_32" else small / "test"
                     if name == "vgg16_128_transfer" else small / "validation")
        key = directory, model.input_shape[1:3]
        if key not in photos:
            photos[key] = keras.utils.image_dataset_from_directory(
                directory, image_size=key[1], label_mode="binary", shuffle=False, verbose=False,
                crop_to_aspect_ratio=True)
        if name == "small_vgg_in_memory":  # it draws the photos to validate on by itself
            assert model.predict(photos[key], verbose=0).shape == (20, 1)
            continue
        dog = model.predict(photos[key], verbose=0)[:, 0].astype(float)
        classes = np.concatenate([labels for _, labels in photos[key]])[:, 0]
        loss = -np.log(np.where(classes == 1, dog, 1 - dog)).mean()
        with open(folder / f"plots/{RUNS[name]}_history.csv", newline="") as file:
            *_, last = csv.DictReader(file)
        assert abs(loss - float(last["val_loss"])) < 5e-4
    assert "loaded again" in results["five_conv_300"][1]
    check_plot(folder / "plots/five_conv_300_loss_accuracy.png", (0, 0, 255), (255, 165, 0))


def test_networks(keras):
    """Optimizer as the tutorials have it; untrained, no photo is changed."""
    photos = np.random.default_rng(1).integers(0, 255, (2, 300, 300, 3), dtype=np.uint8)
    for name in ("small_cnn_32", "five_conv_300", "small_data_cnn", "small_data_augmentation",
                 "small_vgg_in_memory"):
        script = importlib.import_module(f"more_experiments.{name}")
        model = script.define_model()
        rms = name.startswith("small_data") or name == "small_vgg_in_memory"
        assert type(model.optimizer).__name__ == ("RMSprop" if rms else "Adam")
        assert abs(float(model.optimizer.learning_rate) - (1e-4 if rms else 1e-3)) < 1e-9
        assert model.optimizer.epsilon == (1e-14 if rms else 1e-7)
        assert script.EPOCHS == {"small_cnn_32": 10, "small_data_cnn": 30, "five_conv_300": 70,
                                 "small_data_augmentation": 50, "small_vgg_in_memory": 64}[name]
        size = model.input_shape[1]
        predicted = [model.predict(photos[:, :size, :size], verbose=0) for _ in range(2)]
        assert np.array_equal(*predicted)


def test_fine_tuning(keras, trained):
    """Block 5 and the classifier are trained, from what small_data_features.py has saved."""
    folder, _ = trained
    before, after = ({layer.name: layer for layer in keras.models.load_model(
        folder / f"models/small_data_{name}.keras").layers} for name in ("features", "fine_tuning"))
    names = [name for name in before if name.startswith("block") and before[name].weights]
    assert len(names) == 13
    for name in names:
        pairs = zip(before[name].get_weights(), after[name].get_weights(), strict=True)
        changed = any(not np.array_equal(*pair) for pair in pairs)
        assert changed == name.startswith("block5"), name
    for old, new in zip(list(before.values())[-3:], list(after.values())[-3:], strict=True):
        for pair in zip(old.get_weights(), new.get_weights(), strict=True):
            assert not np.array_equal(*pair) and np.abs(np.subtract(*pair)).max() < 1e-3
    # a second, third, ... file of features would be one too many
    assert len(list((folder / "features").iterdir())) == 3


def test_in_memory_outputs(keras, trained):
    folder, results = trained
    out = results["small_vgg_in_memory"][1]
    assert "training photos: (64, 150, 150, 3), validation: (16, 150, 150, 3)" in out
    check_plot(folder / "plots/small_vgg_in_memory_classes.png")
    for picture in ("photos", "predictions"):
        grid = check_plot(folder / f"plots/small_vgg_in_memory_{picture}.png")
        assert len(np.unique(grid.reshape(-1, 3), axis=0)) > 1000  # photos, not a blank sheet
    model = keras.models.load_model(folder / "models/small_vgg_in_memory.keras", compile=False)
    weights = model.get_weights()
    model.set_weights([np.zeros_like(array) for array in weights])
    model.load_weights(folder / "models/small_vgg_in_memory.weights.h5")
    for pair in zip(model.get_weights(), weights, strict=True):
        assert np.array_equal(*pair)


def test_in_memory_dataset(small):
    """Classes by turns and as labelled, no photo twice; another seed is another order."""
    script = importlib.import_module("more_experiments.small_vgg_in_memory")
    paths, photos, classes = script.load_dataset(small, 1)
    assert [path.parent.name for path in paths] == ["cats", "dogs"] * 40
    assert classes[:, 0].tolist() == [0, 1] * 40 and len(set(paths)) == 80
    with Image.open(paths[7]) as image:
        expected = np.asarray(ImageOps.fit(image.convert("RGB"), (150, 150)))
    assert photos.shape == (80, 150, 150, 3) and np.array_equal(photos[7], expected)
    assert script.load_dataset(small, 1)[0] == paths != script.load_dataset(small, 2)[0]


def test_resumes(small, tmp_path):
    """Stopped after the first epoch, resumed to the third, and told to do what is done."""
    script, options = "more_experiments/small_data_augmentation.py", (
        "--dataset", small, "--epochs", "3", "--steps", "2", "--seed", "2")
    history = tmp_path / "plots/small_data_augmentation_seed2_history.csv"
    process = subprocess.Popen(
        command(script, *options), cwd=tmp_path, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,  # Python's handler of Ctrl-C: in the background it is switched off
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # noqa: PLW1509
    while process.poll() is None and not (history.exists() and "\n0," in history.read_text()):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == (
        "\nstopped: --resume goes on after the last whole epoch\n")
    assert process.returncode == 1
    for code, out, err in run_several(*[(script, *options, "--resume")] * 2, cwd=tmp_path):
        assert (code, err) == (0, "") and "Epoch 1/3" not in out
    rows = [row.split(",")[0] for row in history.read_text().splitlines()[1:]]
    assert rows == ["0", "1", "2"]
    assert (tmp_path / "models/small_data_augmentation_seed2.keras").exists()


def test_bad_input(small, tmp_path):
    """What cannot be right is refused with status 2, before anything is written."""
    lines, words = [], []
    for name in TRAINED:
        script = f"more_experiments/{name}.py"
        whole = name in ("small_cnn_32", "vgg16_128_transfer")
        prepare = "prepare_dataset.py" if whole else "prepare_small_dataset.py"
        lines += [(script,), (script, "--dataset", "nowhere"), (script, "--epochs", "0"),
                  (script, "--precision", "bfloat16")]
        words += [(prepare,), ("nowhere", prepare), ("--epochs",), ("mixed_bfloat16",)]
        if '"--steps"' in (ROOT / script).read_text():
            lines.append((script, "--steps", "0"))
            words.append(("--steps",))
    lines += [("more_experiments/small_data_features.py", "--dataset", small, "--weights", "no.h5"),
              ("more_experiments/small_data_fine_tuning.py", "--dataset", small)]
    words += [("no.h5",), ("small_data_features.keras", "small_data_features.py")]
    results = run_several(*lines, cwd=tmp_path)
    for result, expected in zip(results, words, strict=True):
        assert result[0] == 2, result
        assert_refused(result, *expected)
    assert not list(tmp_path.iterdir())


def test_every_script_is_in_the_readme():
    """With the accuracy that its docstring quotes from the tutorial."""
    readme = (ROOT / "more_experiments/README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+\.py)` \|(.*)\|$", readme, re.MULTILINE))
    assert sorted(rows) == MORE
    for name, row in rows.items():
        *_, published, ours, _ = [cell.strip() for cell in row.split("|")]
        text = (ROOT / "more_experiments" / name).read_text()
        figure = re.search(r"Published \w+ accuracy: ([\d.]+(?: to [\d.]+)?) %", text)
        assert published == (figure[1] if figure else "-"), name
        assert (ours == "-") == (published == "-"), name
