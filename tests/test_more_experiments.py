"""The scripts of more_experiments/, each run as a user would, for its smallest budget."""

import csv
import importlib
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import ROOT, assert_refused, command, run_several
from PIL import Image

MORE = sorted(path.name for path in (ROOT / "more_experiments").glob("*.py"))
# the scripts that train: the options of a short run, and the photos that they print as found
TRAINED = {
    "small_cnn_32": (("--epochs", "2"), (146, 54)),
    "vgg16_128_transfer": (("--epochs", "1", "--steps", "1", "--dataset", "cats_and_dogs_small"),
                           (40, 20)),
    "small_data_cnn": (("--epochs", "2", "--steps", "2"), (40, 20, 20)),
    "small_data_augmentation": (("--epochs", "1", "--steps", "2"), (40, 20, 20)),
    "five_conv_300": (("--epochs", "1", "--steps", "1", "--precision", "mixed_bfloat16"),
                      (40, 20, 20)),
    "small_vgg_in_memory": (("--epochs", "1"), ()),
    "small_data_features": (("--epochs", "2"), (40, 20, 20)),
    "small_data_fine_tuning": (("--epochs", "1", "--steps", "1"), (40, 20, 20)),
}
PARAMETERS = {"small_cnn_32": 157_857, "small_data_cnn": 3_453_121,
              "small_data_augmentation": 3_453_121, "small_vgg_in_memory": 3_453_121,
              "five_conv_300": 1_704_097}


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
    with open(folder / f"plots/{name}_history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(n) for n in range(int(options[1]))]
    assert all(0 < float(row[key]) < 100 for row in rows for key in ("loss", "val_loss"))
    (accuracy,) = re.findall(r"^> ([\d.]+)$", out, re.MULTILINE)
    if name in ("small_cnn_32", "vgg16_128_transfer", "small_vgg_in_memory"):
        assert accuracy == f"{float(rows[-1]['val_accuracy']) * 100:.3f}"
    check_plot(folder / f"plots/{name}_plot.png", (0, 0, 255), (255, 165, 0))
    assert not list((folder / "plots/backup").iterdir())


def test_saved_models(keras, trained, small):
    """The models on the disk have the accuracy that was printed, and the parameters they should."""
    folder, results = trained
    for name in ("small_data_cnn", "small_data_augmentation", "five_conv_300",
                 "small_data_features", "small_data_fine_tuning"):
        model = keras.models.load_model(folder / f"{name}.keras")
        photos = keras.utils.image_dataset_from_directory(
            small / "test", image_size=model.input_shape[1:3], label_mode="binary", shuffle=False,
            verbose=False)
        if "block5_conv3" in [layer.name for layer in model.layers]:
            prepare = keras.applications.vgg16.preprocess_input
            photos = photos.map(lambda x, y, prepare=prepare: (prepare(x), y))
        probabilities = model.predict(photos, verbose=0)[:, 0]
        right = (probabilities > 0.5) == (np.arange(20) >= 10)
        (printed,) = re.findall(r"^> ([\d.]+)$", results[name][1], re.MULTILINE)
        assert abs(right.mean() * 100 - float(printed)) < 0.01 or (
            np.abs(probabilities - 0.5).min() < 1e-3)  # an undecided photo may fall either way
        assert model.count_params() == PARAMETERS.get(name, 14_714_688 + 8192 * 256 + 256 + 257)
    assert "loaded again" in results["five_conv_300"][1]
    check_plot(folder / "plots/five_conv_300_loss_accuracy.png", (0, 0, 255), (255, 165, 0))


def test_networks(keras):
    """Parameters and optimizer as the tutorials have them; untrained, no photo is changed."""
    photos = np.random.default_rng(1).integers(0, 255, (2, 300, 300, 3), dtype=np.uint8)
    for name, count in PARAMETERS.items():
        script = importlib.import_module(f"more_experiments.{name}")
        model = script.define_model()
        assert model.count_params() == count
        rms = name.startswith("small_data") or name == "small_vgg_in_memory"
        assert type(model.optimizer).__name__ == ("RMSprop" if rms else "Adam")
        assert abs(float(model.optimizer.learning_rate) - (1e-4 if rms else 1e-3)) < 1e-9
        assert script.BATCH_SIZE == {"small_cnn_32": 16, "small_data_cnn": 20,
                                     "five_conv_300": 128}.get(name, 32)
        assert script.EPOCHS == {"small_cnn_32": 10, "small_data_cnn": 30, "five_conv_300": 70,
                                 "small_data_augmentation": 50, "small_vgg_in_memory": 64}[name]
        size = model.input_shape[1]
        predicted = [model.predict(photos[:, :size, :size], verbose=0) for _ in range(2)]
        assert np.array_equal(*predicted)


def test_fine_tuning_trains_block5_only(keras, trained):
    folder, _ = trained
    before, after = (keras.models.load_model(folder / f"small_data_{name}.keras")
                     for name in ("features", "fine_tuning"))
    for old, new in zip(before.layers, after.layers, strict=True):
        changed = any(not np.array_equal(*pair)
                      for pair in zip(old.get_weights(), new.get_weights(), strict=True))
        trains = bool(new.weights) and not re.match("block[1-4]", new.name)
        assert changed == trains, new.name
    # a second, third, ... file of features would be one too many
    assert len(list((folder / "features").iterdir())) == 3


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_in_memory_outputs(keras, trained):
    folder, results = trained
    out = results["small_vgg_in_memory"][1]
    assert "photos: (80, 150, 150, 3), to train on: 64, to validate: 16" in out
    check_plot(folder / "plots/small_vgg_in_memory_classes.png")
    grid = check_plot(folder / "plots/small_vgg_in_memory_predictions.png")
    assert len(np.unique(grid.reshape(-1, 3), axis=0)) > 1000  # photos, not a blank sheet
    model = keras.models.load_model(folder / "small_vgg_in_memory.keras")
    again = importlib.import_module("more_experiments.small_vgg_in_memory").define_model()
    again.load_weights(folder / "small_vgg_in_memory.weights.h5")
    for pair in zip(model.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(*pair)


def test_in_memory_split():
    """Each class is split 80/20, no photo is in both parts."""
    script = importlib.import_module("more_experiments.small_vgg_in_memory")
    photos, classes = np.arange(50), np.array([[0.0]] * 30 + [[1.0]] * 20)
    (train, train_classes), (validation, validation_classes) = script.split_dataset(
        photos, classes, 1)
    assert sorted([*train, *validation]) == list(range(50))
    assert len(validation) == 10 and validation_classes.sum() == 4 and train_classes.sum() == 16


def test_comparison_of_003(trained):
    """vgg16_128_transfer.py ends with both results, of which one may be missing."""
    folder, results = trained
    *_, small_cnn, vgg16 = results["vgg16_128_transfer"][1].strip().splitlines()
    for name, line in (("small_cnn_32", small_cnn), ("vgg16_128_transfer", vgg16)):
        with open(folder / f"plots/{name}_history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        seconds = sum(float(row["seconds"]) for row in rows)
        assert 0 < seconds < 600
        assert line == (f"{name}: {float(rows[-1]['val_accuracy']) * 100:.3f} % after {len(rows)} "
                        f"epochs, trained for {seconds:.0f} s")


def test_interrupted_run_continues(small, tmp_path):
    line = command("more_experiments/small_data_augmentation.py", "--dataset", small,
                   "--epochs", "3", "--steps", "2")
    history = tmp_path / "plots/small_data_augmentation_history.csv"
    process = subprocess.Popen(line, cwd=tmp_path, text=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    while process.poll() is None and not (history.exists() and "\n1," in history.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "the same command" in err
    assert len(err.strip().splitlines()) == 1, err
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "Epoch 1/3" not in done.stdout and "Epoch 3/3" in done.stdout
    assert [row.split(",")[0] for row in history.read_text().splitlines()[1:]] == ["0", "1", "2"]


def test_bad_input(small, trained, tmp_path):
    """Each script that trains looks at its photos first, and says in one line what is wrong."""
    folder, _ = trained
    (tmp_path / "text.keras").write_text("not a model")
    (tmp_path / "none").mkdir()
    lines, words = [], []
    for name in TRAINED:
        script = f"more_experiments/{name}.py"
        lines += [(script,), (script, "--dataset", "nowhere"), (script, "--epochs", "0")]
        prepare = ("prepare_dataset.py" if name in ("small_cnn_32", "vgg16_128_transfer")
                   else "more_experiments/prepare_small_dataset.py")
        words += [(prepare,), ("nowhere", prepare), ("--epochs",)]
    tuning = "more_experiments/small_data_fine_tuning.py", "--dataset", small
    lines += [
        ("more_experiments/small_data_features.py", "--dataset", small, "--weights", "no.h5"),
        tuning, (*tuning, "--model", "text.keras"),
        (*tuning, "--model", folder / "small_data_cnn.keras"),
        ("more_experiments/small_vgg_in_memory.py", "--dataset", small, "--photos", "none"),
    ]
    words += [("no.h5", "--weights"), ("small_data_features.keras", "small_data_features.py"),
              ("text.keras",), ("small_data_cnn.keras",), ("none",)]
    shutil.copytree(small, tmp_path / "damaged")
    (tmp_path / "damaged/train/cats/cat.0.jpg").write_text("not a photo")
    for name in ("small_data_cnn", "small_vgg_in_memory"):
        lines.append((f"more_experiments/{name}.py", "--dataset", "damaged"))
        words.append(("damaged",))
    for result, expected in zip(run_several(*lines, cwd=tmp_path), words, strict=True):
        assert_refused(result, *expected)
    assert not list(tmp_path.glob("plots/*.png"))


def test_every_script_is_in_the_readme():
    readme = (ROOT / "more_experiments/README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+\.py)` \|(.*)\|$", readme, re.MULTILINE))
    assert sorted(rows) == MORE
    with open(ROOT / "plots/reference/results.csv", newline="") as file:
        results = {f"{row['script']}.py": row for row in csv.DictReader(file)}
    for name, row in rows.items():
        *_, published, ours = [cell.strip() for cell in row.split("|")]
        text = (ROOT / "more_experiments" / name).read_text()
        figure = re.search(r"Published \w+ accuracy: ([\d.]+(?: to [\d.]+)?) %", text)
        assert published.startswith(figure[1] if figure else "-"), name
        if name in results:
            result = results[name]
            assert ours == f"{result['final_test_accuracy']} (best {result['best_test_accuracy']})"
        else:
            assert ours in ("not measured", "-"), name
