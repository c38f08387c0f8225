"""The five experiments at 200x200 pixels, run as a user would on the sample."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, assert_refused, command, run, run_several
from PIL import Image

# Runs each script anew, resumed, resumed once more, and anew, one epoch at a time. Prints what each
# run drew at random: its first batch, and the seeds of its layers.
DRAWS = """
import json, runpy, sys, zlib
import keras

def record(model, iterator, **options):
    batch = next(iter(iterator))[0].numpy()
    seeds = [v.numpy().tolist() for v in model.variables if v.name == "seed_generator_state"]
    drawn.append([zlib.crc32(batch), seeds])
    return fit(model, iterator, **options)

fit, keras.Model.fit = keras.Model.fit, record
for script, *arguments in json.loads(sys.argv[1]):
    drawn = []
    for options in (["1"], ["2", "--resume"], ["3", "--resume"], ["1"]):
        sys.argv = [script, *arguments, "--epochs", *options]
        keras.utils.clear_session()  # layers get the names that they have in a new process
        runpy.run_path(script, run_name="__main__")
    print(json.dumps(drawn), file=sys.stderr)
"""
PHOTO = ROOT / "sample/test/1.jpg"
EXPERIMENTS = {
    "baseline_vgg1": "float32", "baseline_vgg2": "float32", "baseline_vgg3": "float32",
    "vgg3_dropout": "float32", "vgg3_augmentation": "mixed_bfloat16",
}


def read_history(folder, name):
    """Return the rows of the history that experiment `name` has written below `folder`."""
    with open(folder / f"plots/{name}_history.csv", newline="") as file:
        return list(csv.DictReader(file))


def count_ticks(pixels):
    """Return how many ticks the lowest x axis of a plot has, by the dark dashes below it."""
    dark = pixels.sum(axis=-1) < 100
    axis = max(row for row in range(len(dark)) if dark[row].sum() > dark.shape[1] / 2)
    dashes = dark[axis + 3]
    return int((dashes[1:] & ~dashes[:-1]).sum())


def check_outputs(folder, name, stdout, epochs):
    """Check the history, the printed accuracy, the picture and the model of `epochs` epochs."""
    rows = {int(row["epoch"]): row for row in read_history(folder, name)}
    assert list(rows) == list(range(epochs))
    (accuracy,) = [line for line in stdout.splitlines() if line.startswith("> ")]
    assert accuracy == f"> {float(rows[epochs - 1]['val_accuracy']) * 100:.3f}"
    assert all(0 < float(r["loss"]) < 100 and 0 < float(r["val_loss"]) < 100 for r in rows.values())
    with Image.open(folder / f"plots/{name}_plot.png") as plot:
        pixels = np.asarray(plot.convert("RGB"), dtype=int)
        assert plot.format == "PNG" and min(plot.size) >= 600
    for colour in ((0, 0, 255), (255, 165, 0)):  # train blue, test orange, in both halves
        drawn = np.abs(pixels - colour).sum(axis=-1) < 30
        assert drawn[: len(drawn) // 2].any() and drawn[len(drawn) // 2 :].any()
    assert (folder / f"models/{name}.keras").stat().st_size > 10**6
    return float(rows[epochs - 1]["val_accuracy"])


@pytest.fixture(scope="module")
def ran(tiny, tmp_path_factory):
    """(folder, results of the five experiments), each of one epoch on 16 photos of the sample.

    The results are those of the experiments, of predict.py with their models, and of --help.
    """
    folder = tmp_path_factory.mktemp("ran")
    lines = [(f"{name}.py", "--dataset", tiny, "--epochs", "1", "--precision", precision)
             for name, precision in EXPERIMENTS.items()]
    lines += [("predict.py", PHOTO, "--model", f"models/{name}.keras") for name in EXPERIMENTS]
    lines += [(f"{name}.py", "--help") for name in EXPERIMENTS]
    results = run_several(*lines, cwd=folder)
    return folder, *(dict(zip(EXPERIMENTS, results[start:start + 5], strict=True))
                     for start in (0, 5, 10))


@pytest.fixture(scope="module")
def keras():
    """Keras, in this process: imported once for the tests that look into a script."""
    return importlib.import_module("keras")


def test_one_epoch(ran):
    folder, results, *_ = ran
    for name, (code, out, err) in results.items():
        assert (code, err) == (0, ""), (name, err)
        assert out.count("Found 8 files") == 2
        assert "Trainable params" in out  # the model's summary
        check_outputs(folder, name, out, 1)


def test_models_take_photos_as_they_are(keras, ran, tiny):
    """Each saved model, loaded as anyone would, says of uint8 photos what the run has measured."""
    folder, results, *_ = ran
    test_it = importlib.import_module("baseline_vgg1").flow_from_directory(tiny / "test", False)
    photos = np.concatenate([batch for batch, _ in test_it])
    classes = np.concatenate([labels for _, labels in test_it])
    for name in EXPERIMENTS:
        model = keras.models.load_model(folder / f"models/{name}.keras")
        assert model.input_shape == (None, 200, 200, 3) and model.output_shape == (None, 1)
        dogs = model.predict(photos, verbose=0)
        accuracy = ((dogs > 0.5) == classes).mean() * 100
        assert f"> {accuracy:.3f}\n" in results[name][1], name
        assert np.allclose(model.predict(photos.astype("float64"), verbose=0), dogs, atol=1e-6)


def test_models_through_predict(keras, ran):
    """predict.py with each model says what the model says of the array that it was trained on."""
    folder, _, results, _ = ran
    load_image = importlib.import_module("predict").load_image
    for name, (code, out, err) in results.items():
        assert (code, err) == (0, ""), (name, err)
        model = keras.models.load_model(folder / f"models/{name}.keras")
        dog = float(model.predict_on_batch(load_image(PHOTO, (200, 200)))[0, 0])
        assert abs(float(re.search(r"\(([\d.]+) %\)", out)[1]) - max(dog, 1 - dog) * 100) < 0.02


def test_learns_the_sample(dataset, tmp_path):
    """Well above chance, 0.55 being the larger class's share, and silent on standard error."""
    (tmp_path / "dataset_dogs_vs_cats").symlink_to(dataset)
    done = run("baseline_vgg3.py", "--epochs", "7", cwd=tmp_path)
    assert "Found 146 files" in done.stdout and "Found 54 files" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")  # TensorFlow's own messages, too, are none
    assert check_outputs(tmp_path, "baseline_vgg3", done.stdout, 7) > 0.75
    with Image.open(tmp_path / "plots/baseline_vgg3_plot.png") as plot:
        assert count_ticks(np.asarray(plot.convert("RGB"), dtype=int)) >= 5


def test_killed_stopped_resumed_extended(tiny, tmp_path):
    (tmp_path / "dataset_dogs_vs_cats").symlink_to(tiny)
    backup = tmp_path / "plots/backup/baseline_vgg3"

    def stop(sign, epochs, *options):
        """Send `sign` to a run as soon as it has logged `epochs` epochs: in the backup, or near."""
        process = subprocess.Popen(command("baseline_vgg3.py", "--epochs", "50", *options),
                                   cwd=tmp_path, text=True, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        history = tmp_path / "plots/baseline_vgg3_history.csv"
        while process.poll() is None and not (
                history.exists() and f"\n{epochs - 1}," in history.read_text()):
            time.sleep(0.005)
        process.send_signal(sign)
        return process.communicate(timeout=60)[1], process.returncode

    def resume(*epochs):
        """Resume up to each of `epochs`, one after the other; return the epochs of each run."""
        results = run_several(*(("baseline_vgg3.py", "--epochs", end, "--resume")
                                for end in epochs), cwd=tmp_path)
        assert [(code, err) for code, _, err in results] == [(0, "")] * len(epochs)
        check_outputs(tmp_path, "baseline_vgg3", results[-1][1], epochs[-1])
        return [re.findall(r"^Epoch (\d+)/", out, re.MULTILINE) for _, out, _ in results]

    assert stop(signal.SIGKILL, 3) == ("", -signal.SIGKILL)
    first = read_history(tmp_path, "baseline_vgg3")[:2]
    err, code = stop(signal.SIGINT, 5, "--resume")
    assert code == 1 and len(err.strip().splitlines()) == 1 and "--resume" in err, err
    assert read_history(tmp_path, "baseline_vgg3")[:2] == first  # it went on, and did not start
    epochs = int(read_history(tmp_path, "baseline_vgg3")[-1]["epoch"]) + 1
    shutil.rmtree(tmp_path / "models")
    first_part, after_its_end, more = resume(epochs + 3, epochs + 3, epochs + 4)
    assert first_part[-1] == str(epochs + 3) and len(first_part) <= 4
    assert after_its_end == [] and more == [str(epochs + 4)]
    assert read_history(tmp_path, "baseline_vgg3")[:2] == first

    # killed in the middle of a backup: the one before is taken, and its epoch redone, which is then
    # logged twice and counts once; the history is as Keras writes it on plain Windows
    whole = (backup / "latest.weights.h5").read_bytes()
    (backup / "latest.weights.h5").write_bytes(whole[:len(whole) // 2])
    history = tmp_path / "plots/baseline_vgg3_history.csv"
    history.write_bytes(history.read_bytes().replace(b"\n", b"\r\r\n"))
    before = read_history(tmp_path, "baseline_vgg3")
    assert resume(epochs + 4) == [[str(epochs + 4)]]
    after = read_history(tmp_path, "baseline_vgg3")
    assert len(after) == len(before) + 1 and after[-1]["epoch"] == after[-2]["epoch"]
    assert after[-1] != after[-2]  # other random numbers

    # another seed keeps its own files; without --resume a run starts anew and drops the backup
    (backup.parent / "mine").mkdir()
    other, anew = run_several(("baseline_vgg3.py", "--epochs", "1", "--seed", "2"),
                              ("baseline_vgg3.py", "--epochs", "1"), cwd=tmp_path)
    check_outputs(tmp_path, "baseline_vgg3_seed2", other[1], 1)
    check_outputs(tmp_path, "baseline_vgg3", anew[1], 1)
    assert (backup.parent / "mine").exists()
    assert len(list(backup.iterdir())) == 2  # one epoch's, no older one's


def test_backup_that_does_not_fit(tiny, tmp_path):
    (tmp_path / "dataset_dogs_vs_cats").symlink_to(tiny)
    assert run_several(("baseline_vgg2.py", "--epochs", "1"), cwd=tmp_path)[0][0] == 0
    backup = tmp_path / "plots/backup/baseline_vgg3"
    (backup.parent / "baseline_vgg2").rename(backup)
    history = tmp_path / "plots/baseline_vgg3_history.csv"
    (tmp_path / "plots/baseline_vgg2_history.csv").rename(history)
    before = history.read_bytes()
    damaged = tmp_path / "plots/backup/baseline_vgg1"
    damaged.mkdir()
    (damaged / "latest.weights.h5").write_bytes(b"damaged")
    (tmp_path / "plots/baseline_vgg1_history.csv").write_bytes(before)
    other, broken, wrong = run_several(
        ("baseline_vgg3.py", "--epochs", "2", "--resume"),
        ("baseline_vgg1.py", "--epochs", "2", "--resume"),
        ("baseline_vgg3.py", "--dataset", "nowhere"), cwd=tmp_path)
    assert_refused(other, "could not be loaded")
    assert_refused(broken, "open file")
    assert_refused(wrong, "nowhere")  # a wrong folder costs no backup
    assert (backup / "latest.weights.h5").exists() and history.read_bytes() == before


def test_no_room(tiny, tmp_path):
    """A disk without room for the backups is refused before the training, and costs no backup.

    With --resume the backups are there, and take no more room.
    """
    (tmp_path / "plots/backup/baseline_vgg3").mkdir(parents=True)
    (tmp_path / "plots/baseline_vgg3_history.csv").touch()
    full = ("import runpy, shutil, sys; sys.argv = sys.argv[1:]; "
            "shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**9, 10**9, 50_000_000); "
            "runpy.run_path(sys.argv[0], run_name='__main__')")
    line = command("baseline_vgg3.py", "--dataset", tiny, "--epochs", "1")
    done, resumed = (subprocess.run([line[0], "-c", full, *line[1:], *options], cwd=tmp_path,
                                    capture_output=True, text=True, check=False, timeout=300)
                     for options in ([], ["--resume"]))
    assert_refused((done.returncode, done.stdout, done.stderr), "no room")
    assert resumed.returncode == 0 and (tmp_path / "models/baseline_vgg3.keras").exists()


def test_resumed_runs_draw_anew(tiny, tmp_path):
    lines = [(str(ROOT / f"{name}.py"), "--dataset", str(tiny))
             for name in ("vgg3_dropout", "vgg3_augmentation")]
    done = subprocess.run([sys.executable, "-c", DRAWS, json.dumps(lines)], cwd=tmp_path, text=True,
                          capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert len(results) == len(lines)
    for first, *resumed, again in results:
        assert first == again
        batches = [first[0], *(batch for batch, _ in resumed)]
        assert len(set(batches)) == 3
        assert first[1] and all(seed not in first[1] for _, seeds in resumed for seed in seeds)


def test_ctrl_c_while_tensorflow_is_imported(tmp_path):
    (tmp_path / "keras.py").write_text(
        "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
    done = run("baseline_vgg1.py", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (1, "stopped; add --resume to continue\n")


def test_bad_input(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "damaged")
    next((tmp_path / "damaged/train/cats").iterdir()).write_text("not a photo")
    for split in ("train", "test"):
        for label in ("cats", "dogs"):
            (tmp_path / f"empty/{split}/{label}").mkdir(parents=True)
    shutil.copytree(dataset, tmp_path / "half")
    for photo in (tmp_path / "half/test/cats").iterdir():
        photo.unlink()
    (tmp_path / "file").write_text("not a folder")
    cases = [
        ((), "dataset_dogs_vs_cats", "prepare_dataset.py"),
        (("--dataset", "nowhere"), "nowhere", "prepare_dataset.py"),
        (("--dataset", "empty"), "empty", "prepare_dataset.py"),
        (("--dataset", "half"), "half/test", "prepare_dataset.py"),
        (("--dataset", "file"), "file", "prepare_dataset.py"),
        (("--dataset", "damaged", "--epochs", "1"), "Unknown image file format"),
        (("--epochs", "many"), "--epochs", "many"),
        (("--seed", "-1"), "Seed"),
        (("--precision", "float8"), "float8"),
        (("--epoch", "1", "--batch", "3"), "--batch"),
    ]
    results = run_several(*(("vgg3_augmentation.py", *case[0]) for case in cases), cwd=tmp_path)
    for result, case in zip(results, cases, strict=True):
        assert_refused(result, *case[1:])
    assert not list((tmp_path / "models").iterdir())


def test_iterator(keras, dataset):
    script = importlib.import_module("baseline_vgg1")
    batches = list(script.flow_from_directory(dataset / "train", shuffle=False))
    assert [len(photos) for photos, _ in batches] == [64, 64, 18]
    photos = np.concatenate([photos for photos, _ in batches])
    classes = np.concatenate([labels for _, labels in batches])
    assert photos.dtype == np.uint8 and photos.shape == (146, 200, 200, 3)
    assert classes.dtype == np.float32 and classes.ravel().tolist() == [0] * 76 + [1] * 70
    exact = keras.utils.image_dataset_from_directory(
        dataset / "train", image_size=(200, 200), batch_size=146, shuffle=False, verbose=False)
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


def test_help(ran):
    """Help names the options."""
    for name, (code, out, _) in ran[-1].items():
        assert code == 0, name
        for option in ("--dataset", "--epochs", "--precision", "--seed", "--resume"):
            assert option in out
