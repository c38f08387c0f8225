"""The scripts of more_experiments/, each run as a user would, for its smallest budget."""

import csv
import importlib
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import ROOT, assert_refused, command, run, run_several
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
    "small_data_fine_tuning": (("--epochs", "1", "--steps", "1", "--precision", "mixed_bfloat16"),
                               (40, 20, 20)),
}
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
    with open(folder / f"plots/{name}_history.csv", newline="") as file:
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
    check_plot(folder / f"plots/{name}_plot.png", (0, 0, 255), (255, 165, 0))


def test_saved_models(keras, trained, small, dataset):
    """The models on the disk have the accuracy that was printed, and the parameters they should."""
    folder, results = trained
    photos = {}
    for name, parameters in PARAMETERS.items():
        model = keras.models.load_model(folder / f"models/{name}.keras")
        assert model.count_params() == parameters
        directory = dataset / "test" if name == "small_cnn_32" else small / "test"
        key = directory, model.input_shape[1:3]
        if key not in photos:
            photos[key] = keras.utils.image_dataset_from_directory(
                directory, image_size=key[1], label_mode="binary", shuffle=False, verbose=False)
        if name == "small_vgg_in_memory":  # it has no test split
            assert model.predict(photos[key], verbose=0).shape == (20, 1)
            continue
        probabilities = model.predict(photos[key], verbose=0)[:, 0]
        dogs = np.concatenate([labels for _, labels in photos[key]])[:, 0]
        *_, printed = re.findall(r"^> ([\d.]+)", results[name][1], re.MULTILINE)
        assert abs(((probabilities > 0.5) == dogs).mean() * 100 - float(printed)) < 0.01 or (
            np.abs(probabilities - 0.5).min() < 2e-2)  # an undecided photo may fall either way
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
    assert len(names) == 13 and after["block1_conv1"].dtype_policy.name == "mixed_bfloat16"
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
    assert "photos: (80, 150, 150, 3), classes: (80, 1), to train on: 64" in out
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
        expected = np.asarray(image.convert("RGB").resize((150, 150)))
    assert photos.shape == (80, 150, 150, 3) and np.array_equal(photos[7], expected)
    assert script.load_dataset(small, 1)[0] == paths != script.load_dataset(small, 2)[0]


def test_resumes(small, tmp_path):
    """Stopped in the second epoch, resumed to the third, and told to do what is done: no more."""
    script, options = "more_experiments/small_data_augmentation.py", (
        "--dataset", small, "--epochs", "3", "--steps", "2", "--seed", "2")
    history = tmp_path / "plots/small_data_augmentation_seed2_history.csv"
    process = subprocess.Popen(command(script, *options), cwd=tmp_path, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not (history.exists() and "\n1," in history.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "--resume" in err
    assert len(err.strip().splitlines()) == 1, err
    for code, out, err in run_several(*[(script, *options, "--resume")] * 2, cwd=tmp_path):
        assert (code, err) == (0, "") and "Epoch 1/3" not in out
    rows = [row.split(",")[0] for row in history.read_text().splitlines()[1:]]
    assert list(dict.fromkeys(rows)) == ["0", "1", "2"]
    assert (tmp_path / "models/small_data_augmentation_seed2.keras").exists()


def test_prepare_small_dataset(small, tmp_path):
    for split, first, count in (("train", 0, 20), ("validation", 20, 10), ("test", 30, 10)):
        for label in ("cat", "dog"):
            photos = list((small / split / f"{label}s").iterdir())
            assert {path.name for path in photos} == {
                f"{label}.{number}.jpg" for number in range(first, first + count)}
            for path in photos:
                assert path.read_bytes() == (ROOT / "sample/train" / path.name).read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.jpg").write_text("the user's")
    script = "more_experiments/prepare_small_dataset.py"
    sample = ROOT / "sample/train"
    results = run_several(
        (script,), (script, "nowhere.zip"), (script, sample),
        (script, sample, "--counts", "0", "1", "1"),
        (script, sample, "--counts", "2", "1", "1", "--output", "other"), cwd=tmp_path)
    for result, words in zip(results, (
        ("train",), ("nowhere.zip",), ("cats 1000 to 1499", "--counts"), ("--counts",),
        ("other", "--output"),
    ), strict=True):
        assert_refused(result, *words)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine.jpg"]


def test_bad_input(small, trained, tmp_path):
    """Each script that trains looks at its photos first, and says in one line what is wrong."""
    folder, _ = trained
    (tmp_path / "text.keras").write_text("not a model")
    lines, words = [], []
    for name in TRAINED:
        script = f"more_experiments/{name}.py"
        lines += [(script,), (script, "--dataset", "nowhere")]
        prepare = ("prepare_dataset.py" if name in ("small_cnn_32", "vgg16_128_transfer")
                   else "prepare_small_dataset.py")
        words += [(prepare,), ("nowhere", prepare)]
    tuning = "more_experiments/small_data_fine_tuning.py", "--dataset", small
    lines += [
        ("more_experiments/small_data_features.py", "--dataset", small, "--weights", "no.h5"),
        tuning, (*tuning, "--model", "text.keras"),
        (*tuning, "--model", folder / "models/small_data_cnn.keras"),
    ]
    words += [("no.h5", "--weights"), ("small_data_features.keras", "small_data_features.py"),
              ("text.keras",), ("small_data_cnn.keras",)]
    shutil.copytree(small, tmp_path / "damaged")
    (tmp_path / "damaged/train/cats/cat.0.jpg").write_text("not a photo")
    for name in ("small_data_cnn", "small_vgg_in_memory"):
        lines.append((f"more_experiments/{name}.py", "--dataset", "damaged"))
        words.append(("damaged",) if name == "small_vgg_in_memory" else ())
    for result, expected in zip(run_several(*lines, cwd=tmp_path), words, strict=True):
        assert_refused(result, *expected)
    assert not list(tmp_path.glob("plots/*_plot.png"))


def test_export_model(trained, tmp_path):
    """Both forms of a model with augmentation, and of one on VGG-16, answer as the model does."""
    folder, _ = trained
    os.symlink(ROOT / "sample", tmp_path / "sample")
    script = "more_experiments/export_model.py"
    for name in ("five_conv_300", "small_data_features"):
        done = run(script, folder / f"{name}.keras", cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        values = re.findall(r": (0\.\d{6})$", done.stdout, re.MULTILINE)
        assert len(values) == 3 and np.ptp(np.array(values, dtype=float)) < 1e-4
        assert (tmp_path / f"exported/{name}/1/saved_model.pb").exists()
        assert (tmp_path / f"exported/{name}.tflite").stat().st_size > 1_000_000
        assert f":8501/v1/models/{name}:predict" in done.stdout
    assert "B - 103.939" in done.stdout  # what VGG-16 takes is said
    tf = importlib.import_module("tensorflow")
    served = tf.saved_model.load(tmp_path / "exported/five_conv_300/1")
    photo = np.random.default_rng(1).uniform(0, 255, (2, 300, 300, 3)).astype(np.float32)
    assert np.array_equal(served.serve(photo), served.serve(photo))  # nothing is augmented

    (tmp_path / "text.keras").write_text("not a model")
    (tmp_path / "file").write_text("not a folder")
    model = folder / "five_conv_300.keras"
    results = run_several(
        (script,), (script, "text.keras"), (script, model, "--photo", "text.keras"),
        (script, model, "--photo", "nowhere.jpg"), (script, model, "--output", "file"),
        cwd=tmp_path)
    for result, words in zip(results, (("five_conv_300.py",), ("text.keras",), ("text.keras",),
                                       ("nowhere.jpg",), ("file",)), strict=True):
        assert_refused(result, *words)


def test_classify_photo(keras, few, tmp_path):
    script, home = "more_experiments/classify_photo.py", tmp_path / "keras"
    (home / "models").mkdir(parents=True)
    shutil.copy(ROOT / "tests/imagenet_class_index.json", home / "models")
    keras.utils.set_random_seed(1)
    network = keras.applications.MobileNet(weights=None)
    network.save_weights(tmp_path / "mobilenet.weights.h5")
    (tmp_path / "text.jpg").write_text("not a photo")
    offline = {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(home)}
    mobilenet = (script, "--model", "mobilenet", "--weights", "mobilenet.weights.h5")
    results = run_several((*mobilenet, few, "text.jpg"), (*mobilenet, "nowhere.jpg"),
                          (script, few), (script, few, "--model", "vgg16", *mobilenet[3:]),
                          (script, few, "--model", "alexnet"), cwd=tmp_path, env=offline)
    code, out, err = results[0]
    assert code == 1 and err.strip().splitlines() == ["classify_photo.py: text.jpg: not an image"]
    lines = out.splitlines()
    assert len(lines) == 12 * 6 and lines[0] == f"{few / 'cat.0.jpg'}:"
    photo = keras.utils.load_img(few / "cat.0.jpg", target_size=(224, 224),
                                 interpolation="bilinear")
    prepared = keras.applications.mobilenet.preprocess_input(np.asarray(photo, dtype=np.float32))
    expected = np.sort(network.predict_on_batch(prepared[None])[0])[::-1][:5] * 100
    printed = [float(line.split(" %  ")[0]) for line in lines[1:6]]
    assert np.allclose(printed, expected, atol=0.02)
    names = (ROOT / "tests/imagenet_class_index.json").read_text()
    assert all(f'"{line.split(" %  ")[1]}"' in names for line in lines[1:6])
    code, _, err = results[1]
    assert code == 1 and "nowhere.jpg" in err and len(err.splitlines()) == 1
    assert_refused(results[2], "imagenet", "vgg16", "--weights")
    assert_refused(results[3], "mobilenet.weights.h5", "vgg16")
    assert_refused(results[4], "alexnet", "inception_resnet_v2")


def test_classify_photo_networks(keras):
    """Each network's own photo size is the one that Keras gives it."""
    script = importlib.import_module("more_experiments.classify_photo")
    assert list(script.MODELS) == ["vgg16", "vgg19", "resnet50", "inception_v3",
                                   "inception_resnet_v2", "xception", "mobilenet"]
    for name, (module, function, size) in script.MODELS.items():
        assert module.__name__.endswith(f".applications.{name}")
        assert module.preprocess_input and module.decode_predictions
        if name not in ("vgg19", "inception_resnet_v2"):  # as above, and seconds to build
            assert getattr(module, function)(weights=None).input_shape == (None, size, size, 3)


def test_functional_api(tmp_path):
    """Seven models with the counts of the chapter; graphs where they can be drawn."""
    script = "more_experiments/functional_api.py"
    done = run(script, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    counts = dict(re.findall(r"^(\w+): ([\d,]+) parameters$", done.stdout, re.MULTILINE))
    assert counts == {"mlp": "541,794", "cnn": "138,122", "rnn": "84,362",
                      "shared_input": "399,610", "shared_extractor": "78,984",
                      "two_inputs": "424,874", "two_outputs": "31,348"}
    assert done.stdout.count("Total params") == 7
    graphs = sorted(tmp_path.glob("plots/*.png"))
    if "no graphs: " in done.stdout:
        assert "Graphviz" in done.stdout.splitlines()[-1] and not graphs
    else:
        assert [path.stem for path in graphs] == sorted(f"functional_api_{n}" for n in counts)
        for path in graphs:
            check_plot(path, (0, 0, 0))
    bare = run(script, cwd=tmp_path, env={**os.environ, "PATH": str(tmp_path)})
    assert bare.returncode == 0 and "Graphviz" in bare.stdout.splitlines()[-1]


def test_vgg16_from_scratch(tmp_path):
    done = run("more_experiments/vgg16_from_scratch.py", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for name in ("vgg16-sequential", "vgg16-functional"):
        assert (f"{name}: 138,357,544 parameters; 22 of 22 layers as in "
                "keras.applications.VGG16") in done.stdout


def test_augmentation_gallery(tmp_path):
    script, sample = "more_experiments/augmentation_gallery.py", ROOT / "sample/train"
    (tmp_path / "few").mkdir()
    shutil.copy(sample / "cat.0.jpg", tmp_path / "few")
    shutil.copytree(sample, tmp_path / "damaged")
    (tmp_path / "damaged/cat.1.jpg").write_text("not a photo")
    (tmp_path / "file").write_text("not a folder")
    results = run_several(
        (script, sample / "dog.5.jpg", "--save-to", "out/augmented", "--limit", "40"),
        (script, "nowhere.jpg"), (script, "few/cat.0.jpg"), (script, "damaged/cat.0.jpg"),
        (script, "few/cat.0.jpg", "--limit", "3"),
        (script, sample / "dog.5.jpg", "--save-to", "file"), cwd=tmp_path)
    code, out, err = results[0]
    assert (code, err) == (0, ""), err
    names = ["flips", "rotation", "shear", "shifts", "standardization", "zca", "zoom"]
    assert sorted(path.stem for path in tmp_path.glob("plots/*.png")) == [
        f"augmentation_{name}" for name in names]
    photo = Image.open(sample / "dog.5.jpg").resize((150, 150), Image.Resampling.BILINEAR)
    first = np.asarray(photo, dtype=int)
    mirrored = [first, first[:, ::-1], first[::-1], first[::-1, ::-1]]
    for name in names:
        assert f"plots/augmentation_{name}.png" in out
        check_plot(tmp_path / f"plots/augmentation_{name}.png")
        saved = [np.asarray(Image.open(tmp_path / f"out/augmented/aug_{name}_{n}.png"), dtype=int)
                 for n in range(1, 10)]
        size = 32 if name == "zca" else 150
        assert all(photo.shape == (size, size, 3) for photo in saved)
        if name == "flips":
            ways = [[np.array_equal(photo, way) for way in mirrored] for photo in saved]
            assert all(sum(way) == 1 for way in ways)
            assert np.any(ways, axis=0).sum() > 2  # not just both ways at once
            continue
        assert len({photo.tobytes() for photo in saved}) == 9, name
        if name not in ("zca", "standardization"):  # changed, but still the same photo
            assert all(np.abs(photo.mean((0, 1)) - first.mean((0, 1))).max() < 60
                       for photo in saved)
    assert len(list((tmp_path / "out/augmented").iterdir())) == 63
    for result, words in zip(results[1:], (("nowhere.jpg",), ("few", "1"), ("cat.1.jpg",),
                                           ("--limit",), ("file",)), strict=True):
        assert_refused(result, *words)


def test_whitening():
    """Whitened values are uncorrelated, of the deviation 1, and close to the centred ones."""
    script = importlib.import_module("more_experiments.augmentation_gallery")
    photos = np.random.default_rng(1).uniform(0, 255, (60, 150, 150, 3)).astype(np.float32)
    photos[:30] *= 0.5  # something for the components to find
    values = script.whiten(photos, epsilon=1e-9).reshape(60, -1)
    _, deviations, _ = np.linalg.svd(values / np.sqrt(60), full_matrices=False)
    assert np.allclose(deviations[:-1], 1, atol=1e-2)  # 60 centred photos span 59 dimensions
    standard = script.standardize(photos)
    assert np.abs(standard.mean((0, 1, 2))).max() < 1e-3
    assert np.abs(standard.std((0, 1, 2)) - 1).max() < 1e-3


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
