"""beyond/many_devices.py: the same curve on any number of devices and processes, over loopback."""

import csv
import importlib.util
import os
import shutil
import socket
import subprocess
import time

import keras
import numpy as np
import pytest
from conftest import assert_refused, command, run_several

SCRIPT = "beyond/many_devices.py"
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("jax"),
                                reason="pip install -r beyond/requirements.txt")
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


@pytest.fixture(scope="module")
def tree(dataset, tmp_path_factory):
    """4 cats and 3 dogs to train on, 3 and 2 to test with: ragged at a batch of 4."""
    tree = tmp_path_factory.mktemp("tree") / "dataset_dogs_vs_cats"
    for folder, count in (("train/cats", 4), ("train/dogs", 3), ("test/cats", 3), ("test/dogs", 2)):
        (tree / folder).mkdir(parents=True)
        for photo in sorted((dataset / folder).iterdir())[:count]:
            shutil.copy(photo, tree / folder)
    return tree


def start(tree, folder, *arguments, env=None):
    folder.mkdir(exist_ok=True)
    # of a proxy, which another test may have set, JAX speaks on standard error
    without = {name: value for name, value in os.environ.items()
               if not name.lower().endswith("_proxy")}
    env = {**without, **(env or {}), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
           "JAX_COMPILATION_CACHE_DIR": str(tree.parent / "compiled")}  # saves seconds
    return subprocess.Popen(
        command(SCRIPT, "--dataset", tree, "--batch", "4", *arguments),
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_two(tree, folder, *arguments):
    """Start two processes that find each other on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [start(tree, folder, *arguments, env={
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2", "KERAS_DISTRIBUTION_PROCESS_ID": rank,
    }) for rank in "01"]


def read_history(folder):
    path = folder / "plots/many_devices_history.csv"
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def read_output(process):
    """Return (exit status, lines on stdout, lines on stderr), less what the transport says."""
    streams = process.communicate(timeout=300)
    return process.returncode, *([line for line in text.splitlines() if "[Gloo]" not in line]
                                 for text in streams)


def measure_accuracy(folder, tree):
    """Return the share of the test photos, in per cent, for which the saved network is right."""
    model = keras.models.load_model(folder / "models/many_devices.keras")
    right = []
    for path in tree.glob("test/*/*.jpg"):
        photo = np.array(keras.utils.load_img(path))
        photo = keras.preprocessing.image.smart_resize(photo, (200, 200))
        dog = model.predict(photo[np.newaxis], verbose=0)[0, 0] > 0.5
        right.append(dog == (path.parent.name == "dogs"))
    assert len(right) == 5
    return 100 * np.mean(right)


def test_same_curve_and_a_lost_process(tree, tmp_path):
    folders = [tmp_path / name for name in ("one", "devices", "processes")]
    plain = "--no-augmentation", "--epochs"
    running = [start(tree, folders[0], *plain, "2"),
               start(tree, folders[1], *plain, "2", env=TWO_DEVICES)]
    for process, folder in zip(running, folders, strict=False):
        code, out, err = read_output(process)
        assert (code, err) == (0, []), err
        assert out[-1] == f"> {float(read_history(folder)[-1]['val_accuracy']) * 100:.3f}"
        assert abs(float(out[-1][2:]) - measure_accuracy(folder, tree)) < 0.01

    # Two processes; the second is lost after two epochs.
    first, second = start_two(tree, folders[2], *plain, "99")
    while len(read_history(folders[2])) < 2 and first.poll() is None:
        time.sleep(0.1)
    second.kill()
    lost = time.monotonic()
    code, _, err = read_output(first)
    assert code != 0 and err and time.monotonic() - lost < 120
    assert read_output(second)[1:] == ([], [])

    curves = [read_history(folder)[:2] for folder in folders]
    for key in ("loss", "val_loss"):
        losses = [[float(row[key]) for row in curve] for curve in curves]
        assert np.ptp(losses, axis=0).max() < 1e-4, losses
        assert losses[0][0] != losses[0][1]

    # All are started again, and go on, with augmentation; process 0 alone prints and writes.
    epochs = len(read_history(folders[2])) + 1
    first, second = start_two(tree, folders[2], "--epochs", epochs, "--resume", "--cache", "disk")
    code, out, err = read_output(first)
    assert (code, err) == (0, []), err
    assert read_output(second) == (0, [], [])
    rows = read_history(folders[2])
    assert [int(row["epoch"]) for row in rows] == list(range(epochs))
    assert not any(line.startswith("Epoch 1/") for line in out)
    assert abs(float(out[-1][2:]) - measure_accuracy(folders[2], tree)) < 0.01
    assert (folders[2] / "plots/many_devices_plot.png").exists()


def test_refused(tree, tmp_path):
    """With status 2, and nothing touched: a batch that devices cannot share, no photos, others."""
    cases = [("2 devices cannot share --batch 3", "--batch", "3"), ("--batch must", "--batch", "0"),
             ("run prepare_dataset.py", "--dataset", "no"), ("--epochs must", "--epochs", "0"),
             ("bfloat16", "--precision", "bfloat16")]
    results = run_several(*((SCRIPT, "--dataset", tree, *options) for _, *options in cases),
                          cwd=tmp_path, env=TWO_DEVICES)
    for result, (words, *_) in zip(results, cases, strict=True):
        assert result[0] == 2
        assert_refused(result, words)
    assert not list(tmp_path.iterdir())
