"""The copies of the pipeline, the embedded sample, and the READMEs, held against each other."""

import ast
import csv
import difflib
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

FAMILY = ["baseline_vgg1", "baseline_vgg2", "baseline_vgg3", "vgg3_dropout", "vgg3_augmentation"]
FOLDERS = ["", "more_experiments/", "beyond/", "tools/"]
SCRIPTS = [f"{folder}{path.stem}" for folder in FOLDERS
           for path in sorted((ROOT / folder).glob("*.py"))]
# What means the same is the same, to the letter, in every script that has it.
COPIES = ["save_model", "count_epochs", "find_classes", "decode_photo", "load_image",
          "find_photos", "find_keras_version", "is_newer", "load_model", "find_model", "describe",
          "LastMap", "find_layers", "watch_last_map", "grad_cam"]
# These have another function of that name.
OTHERS = {"load_model": ["tools/predict_lite"],
          "find_photos": ["more_experiments/augmentation_gallery",
                          "more_experiments/prepare_small_dataset",
                          "more_experiments/small_vgg_in_memory"]}


def read_functions(name):
    """Return {function or class: source} of a script, in order."""
    text = (ROOT / f"{name}.py").read_text()
    return {node.name: ast.get_source_segment(text, node) for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def read_code(name):
    """Return the lines of a script below its docstring."""
    text = (ROOT / f"{name}.py").read_text()
    return text.splitlines()[ast.parse(text).body[0].end_lineno:]


def list_changes(first, second):
    """Return the lines of code that `second` drops ("-...") from `first`, or adds ("+...")."""
    lines = difflib.unified_diff(read_code(first), read_code(second), n=0, lineterm="")
    return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


def test_copies_of_the_pipeline():
    first = read_functions(FAMILY[0])
    assert list(first) == ["define_model", "flow_from_directory", "save_model", "read_history",
                           "count_epochs", "summarize_diagnostics", "find_classes", "parse_args",
                           "run_test_harness"]
    for name in FAMILY[1:]:
        assert list(read_functions(name)) == list(first)
        assert read_functions(name)["define_model"] != first["define_model"]
        below = [(ROOT / f"{script}.py").read_text().split("def flow_from_directory")[1]
                 for script in (FAMILY[0], name)]
        assert below[0] == below[1]
    transfer, final = read_functions("vgg16_transfer"), read_functions("finalize_model")
    for function in ("define_model", "flow_from_directory", "extract_features"):
        assert transfer[function] == final[function]
    dataset, everything = (read_functions(name) for name in
                           ("prepare_dataset", "prepare_final_dataset"))
    common = [function for function in dataset if function in everything]
    assert {"list_photos", "decode_photo", "prepare_photo", "save_photo"} <= set(common)
    for function in common:
        if function not in ("parse_args", "main"):
            assert dataset[function] == everything[function], function


@pytest.mark.parametrize("function", COPIES)
def test_copies(function):
    copies = {}
    for name in SCRIPTS:
        if function in read_functions(name) and name not in OTHERS.get(function, []):
            copies.setdefault(read_functions(name)[function], []).append(name)
    assert len(copies) == 1, list(copies.values())
    (names,) = copies.values()
    assert len(names) > 1


def test_copies_in_training_scripts():
    """Drawing and the order of functions: the held-out photos may be called test or validation."""
    drawn = {}
    for name in SCRIPTS:
        functions = read_functions(name)
        if "summarize_diagnostics" in functions:
            text = functions["summarize_diagnostics"].replace("validation", "test")
            drawn.setdefault(text, []).append(name)
            order = [function for function in functions if function in
                     ("define_model", "summarize_diagnostics", "parse_args", "run_test_harness")]
            assert order == ["define_model", "summarize_diagnostics", "parse_args",
                             "run_test_harness"]
    assert len(drawn) == 1, list(drawn.values())
    below = [(ROOT / f"more_experiments/{name}.py").read_text().split("def flow_from_directory")[1]
             for name in ("small_data_cnn", "small_data_augmentation")]
    assert below[0] == below[1]


def test_copies_of_formats():
    """What is taken for a photo, and what Pillow may open: never EPS, which starts a program."""
    for constant in ("FORMATS", "SUFFIXES"):
        found = {}
        for name in SCRIPTS:
            text = (ROOT / f"{name}.py").read_text()
            for match in re.findall(rf"^{constant} = \([^)]*\)", text, re.MULTILINE):
                found.setdefault(match, []).append(name)
        assert len(found) == 1, found


@pytest.mark.parametrize(("first", "second", "most"), [
    ("baseline_vgg1", "baseline_vgg2", 3), ("baseline_vgg2", "baseline_vgg3", 3),
    ("baseline_vgg3", "vgg3_dropout", 6), ("baseline_vgg3", "vgg3_augmentation", 6),
    ("baseline_vgg3", "vgg16_transfer", 155), ("vgg16_transfer", "finalize_model", 110),
    ("prepare_dataset", "prepare_final_dataset", 46),
    ("vgg3_augmentation", "beyond/many_devices", 150),
    ("more_experiments/small_data_cnn", "more_experiments/small_data_augmentation", 20),
    ("more_experiments/small_data_cnn", "more_experiments/five_conv_300", 65),
    ("baseline_vgg3", "more_experiments/small_cnn_32", 72),
    ("vgg16_transfer", "more_experiments/small_data_features", 65),
])
def test_neighbours_differ_little(first, second, most):
    assert 0 < len(list_changes(first, second)) <= most


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
    stems = {name.split("/")[-1] for name in SCRIPTS}
    for name in SCRIPTS:
        for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not stems & {module.split(".")[0] for module in modules}, name


def test_sample_is_what_draw_draws(tmp_path):
    subprocess.run([sys.executable, ROOT / "sample/draw.py", tmp_path], check=True, timeout=120,
                   capture_output=True)
    committed = sorted((ROOT / "sample").rglob("*.jpg"))
    committed.remove(ROOT / "sample/chelsea.jpg")  # the one photo
    assert len(list(tmp_path.rglob("*.jpg"))) == len(committed)
    for path in committed:
        drawn = tmp_path / path.relative_to(ROOT / "sample")
        with Image.open(path) as old, Image.open(drawn) as new:
            assert old.size == new.size
            # releases of Pillow may round edges and compress a little differently
            assert np.abs(np.asarray(old, dtype=int) - np.asarray(new, dtype=int)).mean() < 2
    train = list((ROOT / "sample/train").iterdir())
    each = len(train) // 2
    assert each >= 200
    assert {path.name for path in train} == {f"{label}.{n}.jpg" for label in ("cat", "dog")
                                             for n in range(each)}
    assert sum(path.stat().st_size for path in train) < 5_000_000


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


def read_results():
    """Return {script: final accuracies of its reference runs, in per cent}."""
    accuracies = {}
    with open(ROOT / "plots/reference/results.csv", newline="") as file:
        for row in csv.DictReader(file):
            accuracies.setdefault(row["script"], []).append(float(row["final_accuracy"]))
            name = row["script"] + (f"_seed{row['seed']}" if row["seed"] != "1" else "")
            with open(ROOT / f"plots/reference/{name}_history.csv", newline="") as history:
                rows = list(csv.DictReader(history))
            final = f"{float(rows[-1]['val_accuracy']) * 100:.3f}"
            assert (final, str(len(rows))) == (row["final_accuracy"], row["epochs"]), name
            assert (ROOT / f"plots/reference/{name}_plot.png").exists()
    return accuracies


def describe_results(accuracies, digits=1):
    """Return the mean of `accuracies` ± half their range, or the one there is, rounded."""
    mean = f"{sum(accuracies) / len(accuracies):.{digits}f}"
    if len(accuracies) == 1:
        return mean
    return f"{mean} ± {(max(accuracies) - min(accuracies)) / 2:.{digits}f}"


def test_measured_figures_are_those_of_the_reference_runs():
    """In the docstrings of the experiments, and in README's table, as are the published ones."""
    results = read_results()
    readme = (ROOT / "README.md").read_text()
    for name in [*FAMILY, "vgg16_transfer"]:
        text = (ROOT / f"{name}.py").read_text()
        measured = describe_results(results[name])
        assert f"Measured: {measured} % of the test photos" in text, name
        seeds = len(results[name])
        assert f"({seeds} seed{'s' if seeds > 1 else ''}, " in text, name
        published = re.search(r"Published test accuracy: ([\d.]+) % after (\d+) epochs", text)
        (row,) = re.findall(rf"^\| `{name}\.py` \|.*$", readme, re.MULTILINE)
        cells = [cell.strip() for cell in row.split("|")]
        assert {published[1], published[2], measured, str(seeds)} <= set(cells), row
        assert re.search(r"^EPOCHS = (\d+)", text, re.MULTILINE)[1] == published[2]
        assert "https://machinelearningmastery.com/" in text


def test_readme_quotes_the_scripts():
    """Each diff is that of the two scripts named above it; Python code stands so in a script."""
    readme = (ROOT / "README.md").read_text()
    diffs = re.findall(r"`diff -u (\w+)\.py (\w+)\.py`[^`]*```diff\n(.*?)```", readme, re.DOTALL)
    assert len(diffs) == readme.count("```diff") >= 3
    for first, second, quoted in diffs:
        lines = quoted.splitlines()
        changes = [line for line in lines if line[:1] in ("+", "-")]
        assert sorted(changes) == sorted(list_changes(first, second)), (first, second)
        code = read_code(second)
        assert all(line[1:] in code for line in lines if line not in changes), (first, second)
    code = "".join(textwrap.dedent((ROOT / f"{name}.py").read_text()) for name in SCRIPTS)
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        assert textwrap.indent(block, "    ") in code, block


def test_readme_names_all_scripts_of_the_top_level():
    readme = (ROOT / "README.md").read_text()
    for path in ROOT.glob("*.py"):
        assert path.name in readme


def test_recipe_for_own_photos():
    """Its commands are the same in README and where one looks them up."""
    readme, options = ((ROOT / name).read_text() for name in ("README.md", "docs/options.md"))
    blocks = re.findall(r"(?:^    .+\n)+", readme, re.MULTILINE)
    (recipe,) = [block for block in blocks if "prepare_dataset.py my_photos" in block]
    assert recipe in options


def test_commands_of_the_readmes():
    """The commands name scripts and options that exist, the links files that exist."""
    texts = [path for folder in (".", "more_experiments", "beyond", "tools", "docs")
             for path in sorted((ROOT / folder).glob("*.md"))]
    assert len(texts) >= 3
    for path in texts:
        text = path.read_text()
        for script, options in re.findall(r"python (?!-)(\S+\.py)([^\n&`]*)", text):
            assert (ROOT / script).exists(), (path, script)
            for option in re.findall(r"--[\w-]+", options):
                assert f'"{option}"' in (ROOT / script).read_text(), (script, option)
        for link in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (path.parent / link).exists(), (path, link)
