"""The five experiments at 200x200 pixels, run as a user would on the sample."""

import csv
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, assert_refused, command, run, run_several
from PIL import Image

# Runs each script three times, anew, continued, and anew, and stops it after an epoch. Prints what
# each run drew at random: its first batch, and the seeds of its layers.
DRAWS = """
import json, runpy, shutil, sys, zlib
import keras

def record(model, iterator, **options):
    batch = next(iter(iterator))[0].numpy()
    seeds = [v.numpy().tolist() for v in model.variables if v.name == "seed_generator_state"]
    drawn.append([zlib.crc32(batch), seeds])
    options["callbacks"].append(keras.callbacks.LambdaCallback(on_epoch_begin=stop))
    return fit(model, iterator, **options)

def stop(epoch, logs):
    epochs.append(epoch)
    if epoch:
        raise KeyboardInterrupt

fit, keras.Model.fit = keras.Model.fit, record
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv, drawn, epochs = [script, *arguments], [], []
    for again in (False, False, True):
        if again:
            shutil.rmtree("plots/backup")
        keras.utils.clear_session()  # layers get the names that they have in a new process
        try:
            runpy.run_path(script, run_name="__main__")
        except KeyboardInterrupt:
            pass
    print(json.dumps([drawn, epochs]), file=sys.stderr)
"""

EXPERIMENTS = {
    "baseline_vgg1": "float32", "baseline_vgg2": "float32", "baseline_vgg3": "float32",
    "vgg3_dropout": "float32", "vgg3_augmentation": "mixed_bfloat16",
}


def read_history(folder, name):
    """Return the rows of the history that experiment `name` has written below `folder`."""
    with open(folder / f"plots/{name}_history.csv", newline="") as file:
        return list(csv.DictReader(file))


def check_outputs(folder, name, stdout, epochs):
    """Check the history, the printed accuracy and the picture of a run of `epochs` epochs."""
    rows = read_history(folder, name)
    assert [int(row["epoch"]) for row in rows] == list(range(epochs))
    (accuracy,) = [line for line in stdout.splitlines() if line.startswith("> ")]
    assert accuracy == f"> {float(rows[-1]['val_accuracy']) * 100:.3f}"
    assert all(0 < float(row["loss"]) < 100 and 0 < float(row["val_loss"]) < 100 for row in rows)
    with Image.open(folder / f"plots/{name}_plot.png") as plot:
        pixels = np.asarray(plot.convert("RGB"), dtype=int)
        assert plot.format == "PNG" and min(plot.size) >= 600
    for colour in ((0, 0, 255), (255, 165, 0)):  # train blue, test orange, in both halves
        drawn = np.abs(pixels - colour).sum(axis=-1) < 30
        assert drawn[: len(drawn) // 2].any() and drawn[len(drawn) // 2 :].any()
    assert not list((folder / "plots/backup").iterdir())
    return float(rows[-1]["val_accuracy"])


def test_one_epoch(dataset, tmp_path):
    results = run_several(*((f"{name}.py", "--dataset", dataset, "--epochs", "1",
                             "--precision", precision) for name, precision in EXPERIMENTS.items()),
                          cwd=tmp_path)
    for (code, out, err), name in zip(results, EXPERIMENTS, strict=True):
        assert (code, err) == (0, ""), (name, err)
        assert "Found 146 files" in out and "Found 54 files" in out
        assert f"plots/{name}_plot.png" in out
        check_outputs(tmp_path, name, out, 1)


def test_learns_the_sample(dataset, tmp_path):
    """The first command of README: well above chance, 0.55 being the larger class's share."""
    (tmp_path / "dataset_dogs_vs_cats").symlink_to(dataset)
    done = run("baseline_vgg1.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")  # TensorFlow's own messages, too, are none
    assert check_outputs(tmp_path, "baseline_vgg1", done.stdout, 20) > 0.75


def test_killed_runs_continue(dataset, tmp_path):
    (tmp_path / "dataset_dogs_vs_cats").symlink_to(dataset)
    (tmp_path / "plots").mkdir()
    # what an older and longer run may have left
    old = "".join(f"{epoch},0.5,0.7,0.5,0.7\n" for epoch in range(9))
    history = tmp_path / "plots/baseline_vgg3_history.csv"
    history.write_text("epoch,accuracy,loss,val_accuracy,val_loss\n" + old)
    line = command("baseline_vgg3.py", "--epochs", "4")

    def stop(sign, epochs):
        process = subprocess.Popen(line, cwd=tmp_path, text=True, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        while process.poll() is None and (old in history.read_text()
                                          or len(read_history(tmp_path, "baseline_vgg3")) < epochs):
            time.sleep(0.02)
        process.send_signal(sign)
        err = process.communicate(timeout=60)[1]
        return process.returncode, err

    assert stop(signal.SIGKILL, 2) == (-signal.SIGKILL, "")
    first = read_history(tmp_path, "baseline_vgg3")
    code, err = stop(signal.SIGINT, 3)
    assert code == 130 and len(err.strip().splitlines()) == 1, err
    assert "the same command" in err
    # another run in between, with a history of its own
    other = run("baseline_vgg3.py", "--epochs", "1", "--seed", "2", cwd=tmp_path)
    assert other.returncode == 0 and len(read_history(tmp_path, "baseline_vgg3")) == 1
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert "Epoch 1/4" not in done.stdout and "Epoch 4/4" in done.stdout
    check_outputs(tmp_path, "baseline_vgg3", done.stdout, 4)
    assert read_history(tmp_path, "baseline_vgg3")[:1] == first[:1]


def test_continued_runs_draw_anew(tiny, small, weights, tmp_path):
    lines = [(f"{name}.py", "--dataset", tiny) for name in ("vgg3_dropout", "vgg3_augmentation")]
    lines += [(f"more_experiments/{name}.py", "--dataset", small, *options) for name, options in (
        ("small_data_augmentation", ("--steps", 1)),
        ("small_data_features", ("--weights", weights[0])))]
    lines = [(str(ROOT / script), *map(str, arguments)) for script, *arguments in lines]
    done = subprocess.run([sys.executable, "-c", DRAWS, json.dumps(lines)], cwd=tmp_path, text=True,
                          capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert len(results) == len(lines)
    for (new, continued, again), epochs in results:
        assert epochs == [0, 1, 1, 0, 1]
        assert new == again
        assert continued[0] != new[0]  # the first batch
        assert new[1] and all(seed not in new[1] for seed in continued[1])


def test_backup_of_other_photos_is_not_taken(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "dataset_dogs_vs_cats")
    process = subprocess.Popen(command("baseline_vgg3.py", "--epochs", "5"), cwd=tmp_path,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("plots/backup/*/*.json")):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    next((tmp_path / "dataset_dogs_vs_cats/train/dogs").iterdir()).unlink()
    done = run("baseline_vgg3.py", "--epochs", "5", cwd=tmp_path)
    assert done.returncode == 0 and "Epoch 1/5" in done.stdout


def test_bad_input(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "damaged")
    next((tmp_path / "damaged/train/cats").iterdir()).write_text("not a photo")
    for split in ("train", "test"):
        for label in ("cats", "dogs"):
            (tmp_path / f"empty/{split}/{label}").mkdir(parents=True)
    (tmp_path / "file").write_text("not a folder")
    cases = [
        ((), "dataset_dogs_vs_cats", "prepare_dataset.py"),
        (("--dataset", "nowhere"), "nowhere", "prepare_dataset.py"),
        (("--dataset", "empty"), "empty", "prepare_dataset.py"),
        (("--dataset", "file"), "file", "prepare_dataset.py"),
        (("--dataset", "damaged", "--epochs", "1"), "damaged", "prepare_dataset.py"),
        (("--epochs", "0"), "--epochs"),
        (("--epochs", "many"), "--epochs", "many"),
        (("--seed", "-1"), "--seed"),
        (("--precision", "float8"), "--precision", "float8", "mixed_bfloat16"),
        (("--epoch", "1", "--batch", "3"), "--batch"),
    ]
    for name in ("baseline_vgg1", "vgg3_augmentation"):
        results = run_several(*((f"{name}.py", *case[0]) for case in cases), cwd=tmp_path)
        for result, case in zip(results, cases, strict=True):
            assert_refused(result, *case[1:])


def test_no_room(tiny, tmp_path):
    # A limit on the size of files makes writing fail as a disk does that fills meanwhile.
    done = run("baseline_vgg3.py", "--dataset", tiny, "--epochs", "1", cwd=tmp_path,
               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)))
    assert_refused((done.returncode, done.stdout, done.stderr), "large")
    # On a disk that is full HDF5 crashes, so that the script has to look before.
    full = ("import runpy, shutil, sys; sys.argv = sys.argv[1:]; "
            "shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**9, 10**9, 50_000_000); "
            "runpy.run_path(sys.argv[0], run_name='__main__')")
    line = command("baseline_vgg3.py", "--dataset", tiny, "--epochs", "1")
    done = subprocess.run([line[0], "-c", full, *line[1:]], cwd=tmp_path, timeout=300,
                          capture_output=True, text=True, check=False)
    assert_refused((done.returncode, done.stdout, done.stderr), "no room", "plots/backup")
    assert not (tmp_path / "plots/baseline_vgg3_plot.png").exists()


@pytest.fixture(scope="module")
def keras():
    """Keras, in this process: imported once for the tests that look into a script."""
    return importlib.import_module("keras")


def test_iterator(keras, dataset):
    script = importlib.import_module("baseline_vgg1")
    batches = list(script.flow_from_directory(dataset / "train"))
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
        dataset / "test").take(1)
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


def test_other_folder_and_help():
    """Help is there without a dataset, and names the defaults."""
    results = run_several(*((f"{name}.py", "--help") for name in EXPERIMENTS), cwd=ROOT,
                          env=dict(os.environ))
    for (code, out, _), name in zip(results, EXPERIMENTS, strict=True):
        assert code == 0
        assert "dataset_dogs_vs_cats" in out
        assert f"({20 if name.startswith('baseline') else 50})" in out
