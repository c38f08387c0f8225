"""What the tests share: running the scripts as a user would, and small trees of photos."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the few tests that look into a script
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Runs several command lines in one process, so that TensorFlow is imported once for all.
SEVERAL = """
import contextlib, io, json, os, runpy, sys, traceback
results = []
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv = [script, *arguments]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code = 0
    if "keras" in sys.modules:  # layers get the names that they have in a new process
        sys.modules["keras"].utils.clear_session()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:  # with the status, or with a line for standard error
            code = stop.code if isinstance(stop.code, int) or stop.code is None else 1
            if code != stop.code:
                print(stop.code, file=err)
        except Exception:
            traceback.print_exc()
            code = 1
    results.append((code or 0, *(text.buffer.getvalue().decode() for text in (out, err))))
print(json.dumps(results))
"""


def pytest_configure(config):
    # Keras's own, with NumPy 2: nothing that the scripts could change
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation:DeprecationWarning")


def command(script, *arguments):
    """Return the command line that runs `script` of the repository."""
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def run(script, *arguments, cwd, **options):
    """Run a script as a user would, with `cwd` as the current folder; return the process."""
    return subprocess.run(command(script, *arguments), cwd=cwd, capture_output=True, text=True,
                          timeout=300, stdin=subprocess.DEVNULL, check=False, **options)


def run_several(*lines, cwd, env=None):
    """Run several (script, argument, ...) in one process: [(exit status, stdout, stderr)]."""
    lines = [(str(ROOT / script), *map(str, arguments)) for script, *arguments in lines]
    done = subprocess.run([sys.executable, "-c", SEVERAL, json.dumps(lines)], cwd=cwd, text=True,
                          capture_output=True, timeout=300, check=False,
                          env={**os.environ, **(env or {})})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_refused(result, *words):
    """Check for a status that is not 0, and one line on standard error with all `words`.

    What argparse refuses has its usage above that line.
    """
    code, _, err = result
    lines = err.strip().splitlines()
    assert code in (1, 2), result
    assert len(lines) == 1 or (code == 2 and lines[0].startswith("usage: ")), err
    for word in words:
        assert str(word) in lines[-1], err


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Half of the sample, as prepare_dataset.py splits it; tests only read it."""
    folder = tmp_path_factory.mktemp("sample")
    (folder / "train").mkdir()
    for number in range(100):
        for label in ("cat", "dog"):
            shutil.copy(ROOT / f"sample/train/{label}.{number}.jpg", folder / "train")
    done = run("prepare_dataset.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "dataset_dogs_vs_cats"


@pytest.fixture(scope="session")
def tiny(dataset, tmp_path_factory):
    """A tree of 4 photos in each folder, for runs that need not learn; tests only read it."""
    tree = tmp_path_factory.mktemp("tiny") / "dataset_dogs_vs_cats"
    for folder in dataset.glob("*/*/"):
        target = tree / folder.relative_to(dataset)
        target.mkdir(parents=True)
        for photo in sorted(folder.iterdir())[:4]:
            shutil.copy(photo, target)
    return tree


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """A folder of 6 cats and 6 dogs of the sample, under Kaggle's names; tests only read it."""
    folder = tmp_path_factory.mktemp("few") / "train"
    folder.mkdir()
    for number in range(6):
        for label in ("cat", "dog"):
            shutil.copy(ROOT / f"sample/train/{label}.{number}.jpg", folder)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """The same random weights of VGG-16 in both layouts: (Keras 3's, the published older one)."""
    import h5py  # here, since they load TensorFlow, which not all tests need
    import keras

    folder = tmp_path_factory.mktemp("weights")
    keras.utils.set_random_seed(1)
    vgg16 = keras.applications.VGG16(include_top=False, weights=None, input_shape=(224, 224, 3))
    vgg16.save_weights(folder / "vgg16.weights.h5")
    with h5py.File(folder / "vgg16_notop.h5", "w") as file:
        names = ["input_1", *(layer.name for layer in vgg16.layers[1:])]
        file.attrs["layer_names"] = [name.encode() for name in names]
        for name, layer in zip(names, vgg16.layers, strict=True):
            group = file.create_group(name)
            names_of_two = f"{name}_W_1:0", f"{name}_b_1:0"
            arrays = dict(zip(names_of_two, layer.get_weights(), strict=False))
            group.attrs["weight_names"] = [array.encode() for array in arrays]
            for array, values in arrays.items():
                group.create_dataset(array, data=values)
    return folder / "vgg16.weights.h5", folder / "vgg16_notop.h5"


@pytest.fixture(scope="session")
def small(dataset, tmp_path_factory):
    """The sample as prepare_small_dataset.py splits it, 20, 10 and 10 photos of each class."""
    folder = tmp_path_factory.mktemp("small")
    done = run("more_experiments/prepare_small_dataset.py", dataset,
               "--counts", "20", "10", "10", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "cats_and_dogs_small"
