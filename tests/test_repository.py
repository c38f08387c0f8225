"""The copies of the pipeline, the embedded sample, and README, held against each other."""

import ast
import difflib
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

FAMILY = ["baseline_vgg1", "baseline_vgg2", "baseline_vgg3", "vgg3_dropout", "vgg3_augmentation"]
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
MORE = sorted(path.stem for path in ROOT.glob("more_experiments/*.py"))
BEYOND = sorted(path.stem for path in ROOT.glob("beyond/*.py"))


def read_functions(name):
    """Return {function: source} of a script, in order."""
    text = (ROOT / f"{name}.py").read_text()
    return {node.name: ast.get_source_segment(text, node) for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def count_changes(first, second):
    """Return the number of lines of a script that its neighbour drops or adds."""
    lines = [(ROOT / f"{name}.py").read_text().splitlines() for name in (first, second)]
    return sum(line[0] in "+-" and line[:3] not in ("+++", "---")
               for line in difflib.unified_diff(*lines, n=0))


def test_copies_of_the_pipeline():
    first = read_functions(FAMILY[0])
    assert list(first) == ["define_model", "flow_from_directory", "summarize_diagnostics",
                           "run_test_harness"]
    for name in FAMILY[1:]:
        assert list(read_functions(name)) == list(first)
        assert read_functions(name)["define_model"] != first["define_model"]
        below = [(ROOT / f"{script}.py").read_text().split("def flow_from_directory")[1]
                 for script in (FAMILY[0], name)]
        assert below[0] == below[1]
    many = read_functions("beyond/many_devices")
    assert list(many) == list(first)
    assert many["summarize_diagnostics"] == first["summarize_diagnostics"]
    transfer, final = read_functions("vgg16_transfer"), read_functions("finalize_model")
    assert transfer["summarize_diagnostics"] == first["summarize_diagnostics"]
    for function in ("define_model", "extract_features"):
        assert transfer[function] == final[function]
    dataset, everything = (read_functions(name) for name in
                           ("prepare_dataset", "prepare_final_dataset"))
    for function in ("download_photos", "list_photos", "prepare_photo", "save_photo",
                     "copy_photos"):
        assert dataset[function] == everything[function]


def test_copies_in_what_predicts():
    for original, copy, *functions in (
            ("predict", "plots/errors", "load_model"), ("predict", "beyond/grad_cam", "load_image"),
            ("predict", "more_experiments/classify_photo", "load_image", "find_photos"),
            ("predict", "beyond/predict_lite", "describe"),
            ("predict", "beyond/web_page", "load_image", "describe"),
            ("beyond/grad_cam", "beyond/web_page", "LastMap", "load_model", "grad_cam")):
        first, second = read_functions(original), read_functions(copy)
        for function in functions:
            assert first[function] == second[function], (copy, function)
    formats = {line for path in [*ROOT.glob("*.py"), *ROOT.glob("[!.t]*/*.py")]
               for line in re.findall("^FORMATS = .*", path.read_text(), re.MULTILINE)}
    assert len(formats) == 1


def test_copies_in_more_experiments():
    more = {name: read_functions(f"more_experiments/{name}") for name in MORE}
    below = [(ROOT / f"more_experiments/{name}.py").read_text().split("def flow_from_directory")[1]
             for name in ("small_data_cnn", "small_data_augmentation")]
    assert below[0] == below[1]
    summaries = {name: functions["summarize_diagnostics"] for name, functions in more.items()
                 if "summarize_diagnostics" in functions}
    assert summaries["vgg16_128_transfer"] == summaries["small_cnn_32"]
    for name in ("small_data_augmentation", "small_data_features", "small_data_fine_tuning",
                 "five_conv_300"):
        assert summaries[name] == summaries["small_data_cnn"]
    for name, functions in more.items():
        if name in summaries:  # it trains: the same functions in the same order
            order = [function for function in functions if function in
                     ("define_model", "summarize_diagnostics", "run_test_harness")]
            assert order == ["define_model", "summarize_diagnostics", "run_test_harness"]


# What a statement of plumbing names: options, resuming, errors, files.
PLUMBING = {"argparse", "parser", "args", "os", "shutil", "sys", "warnings", "Path", "history",
            "backup", "resume", "name"}


def count_plumbing(tree):
    """Return how many lines are imports from the standard library, the end, or the harness's
    plumbing; importing Keras is not."""
    lines = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Try | ast.If):
            lines.update(range(node.lineno, node.end_lineno + 1))
        for part in ast.walk(node):
            if isinstance(part, ast.Import | ast.ImportFrom):
                module = getattr(part, "module", None) or part.names[0].name
                if module.split(".")[0] not in sys.stdlib_module_names:
                    lines.discard(part.lineno)
        if isinstance(node, ast.FunctionDef) and node.name == "run_test_harness":
            for statement in node.body:
                names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
                calls = {n.attr for n in ast.walk(statement) if isinstance(n, ast.Attribute)}
                if names & PLUMBING and not calls & {"fit", "evaluate", "set_random_seed"} and (
                        "flow_from_directory" not in names and "define_model" not in names):
                    lines.update(range(statement.lineno, statement.end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize(("name", "most"), [*((name, 120) for name in FAMILY),
                                            ("vgg16_transfer", 150), ("finalize_model", 150),
                                            *((f"more_experiments/{name}", 150) for name in MORE
                                              if "EPOCHS" in (ROOT / f"more_experiments/{name}.py"
                                                              ).read_text()),
                                            ("beyond/efficientnet_lite_transfer", 150),
                                            ("beyond/resnet_from_scratch", 150),
                                            ("beyond/many_devices", 150)])
def test_the_lesson_is_the_larger_part(name, most):
    text = (ROOT / f"{name}.py").read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= most
    assert count_plumbing(tree) <= len(text.splitlines()) / 3
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):  # no function inside a function
            assert sum(isinstance(n, ast.FunctionDef) for n in ast.walk(function)) == 1
    # Ctrl-C's handler is one line. As an exception it would let HDF5 close a backup half written,
    # which Keras takes for a whole one; what a kill leaves makes it take the one before.
    assert len(re.findall(r"signal\(|\batexit\b", text)) == 1
    load_image = read_functions("predict")["load_image"].split('"""')[2].strip("\n")
    assert len(load_image.splitlines()) <= 10


@pytest.mark.parametrize(("first", "second", "most"), [
    ("baseline_vgg1", "baseline_vgg2", 12), ("baseline_vgg2", "baseline_vgg3", 12),
    ("baseline_vgg3", "vgg3_dropout", 16), ("baseline_vgg3", "vgg3_augmentation", 12),
    ("baseline_vgg3", "vgg16_transfer", 110), ("vgg16_transfer", "finalize_model", 70),
    ("prepare_dataset", "prepare_final_dataset", 40),
    ("vgg3_augmentation", "beyond/many_devices", 105),
    ("more_experiments/small_data_cnn", "more_experiments/small_data_augmentation", 26),
    ("more_experiments/small_data_cnn", "more_experiments/five_conv_300", 70),
    ("baseline_vgg3", "more_experiments/small_cnn_32", 60),
    ("vgg16_transfer", "more_experiments/small_data_features", 80),
])
def test_neighbours_differ_little(first, second, most):
    assert 0 < count_changes(first, second) <= most


@pytest.mark.parametrize("name", [
    "vgg3_augmentation", "beyond/many_devices", "more_experiments/five_conv_300",
    "more_experiments/small_data_augmentation", "more_experiments/small_data_fine_tuning",
    "more_experiments/small_vgg_in_memory"])
def test_augmentation_in_float32(name):
    """In bfloat16 TensorFlow shifts, turns and zooms on the CPU alone, and a GPU would wait."""
    text = (ROOT / f"{name}.py").read_text()
    lines = re.findall(r"layers\.Random(?:Rotation|Shear|Translation|Zoom)\(.*", text)
    assert lines and all('dtype="float32"' in line for line in lines)


def test_no_script_imports_another():
    for name in [*SCRIPTS, *(f"more_experiments/{name}" for name in MORE),
                 *(f"beyond/{name}" for name in BEYOND)]:
        tree = ast.parse((ROOT / f"{name}.py").read_text())
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            modules = {module.split(".")[0] for module in modules}
            assert not {*SCRIPTS, *MORE, *BEYOND} & modules, name


def test_sample_is_what_draw_draws(tmp_path):
    subprocess.run([sys.executable, ROOT / "sample/draw.py", tmp_path], check=True, timeout=120,
                   capture_output=True)
    committed = sorted((ROOT / "sample").rglob("*.jpg"))
    committed.remove(ROOT / "sample/chelsea.jpg")  # the one photo
    assert len(committed) == 204
    assert len(list(tmp_path.rglob("*.jpg"))) == 204
    for path in committed:
        drawn = tmp_path / path.relative_to(ROOT / "sample")
        with Image.open(path) as old, Image.open(drawn) as new:
            assert old.size == new.size and 150 <= min(old.size) and max(old.size) <= 500
            # releases of Pillow may round edges and compress a little differently
            assert np.abs(np.asarray(old, dtype=int) - np.asarray(new, dtype=int)).mean() < 2
    train = list((ROOT / "sample/train").iterdir())
    assert {path.name for path in train} == {f"{label}.{n}.jpg" for label in ("cat", "dog")
                                             for n in range(100)}
    assert sum(path.stat().st_size for path in train) < 1_500_000


def test_sample_has_no_giveaway(dataset):
    """Colours, contrast and size alone, without shapes, hardly tell the sample's classes apart."""
    features, classes = {}, {}
    for split in ("train", "test"):
        rows = []
        paths = sorted((dataset / split).glob("*/*.jpg"))
        for path in paths:
            with Image.open(path) as image:
                pixels = np.asarray(image, dtype=float) / 255
            border = np.concatenate([pixels[:8].reshape(-1, 3), pixels[-8:].reshape(-1, 3),
                                     pixels[:, :8].reshape(-1, 3), pixels[:, -8:].reshape(-1, 3)])
            rows.append([1, *pixels.mean((0, 1)), *border.mean(0), *pixels.std((0, 1)),
                         pixels.shape[0] / 500, pixels.shape[1] / 500])
        features[split] = np.array(rows)
        classes[split] = np.array([1 if path.name.startswith("dog") else -1 for path in paths])
    for columns in ([0, 1, 2, 3], [0, 4, 5, 6], [0, 7, 8, 9], [0, 10, 11]):
        weights = np.linalg.lstsq(features["train"][:, columns], classes["train"], rcond=None)[0]
        right = np.sign(features["test"][:, columns] @ weights) == classes["test"]
        assert right.mean() < 0.65


def test_readme():
    readme = (ROOT / "README.md").read_text()
    for name in [*FAMILY, "vgg16_transfer"]:
        text = (ROOT / f"{name}.py").read_text()
        published = re.search(r"Published test accuracy: ([\d.]+) % after (\d+) epochs", text)
        (row,) = re.findall(rf"^\| `{name}\.py` \|.*$", readme, re.MULTILINE)
        cells = [cell.strip() for cell in row.split("|")]
        assert published[1] in cells and published[2] in cells, row
        assert re.search(r"^EPOCHS = (\d+)$", text, re.MULTILINE)[1] == published[2]
    for name in SCRIPTS:
        assert f"`{name}.py`" in readme or f"python {name}.py" in readme


def test_commands_of_the_readmes():
    """The commands name scripts and options that exist."""
    for readme, least in (("README.md", 6), ("more_experiments/README.md", 6),
                          ("beyond/README.md", 2)):
        text = (ROOT / readme).read_text()
        commands = re.findall(r"python (?!-)(\S+\.py)([^\n&`]*)", text)
        assert len(commands) >= least
        for script, options in commands:
            assert (ROOT / script).exists(), script
            for option in re.findall(r"--[\w-]+", options):
                assert f'"{option}"' in (ROOT / script).read_text(), (script, option)
