"""tools/compare.py, and README's figures against the reference runs in plots/reference/."""

import csv
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT, assert_refused, command, run, run_several
from PIL import Image

COMPARE = "tools/compare.py"
HEADER = "epoch,accuracy,loss,val_accuracy,val_loss\n"
REFERENCE = sorted((ROOT / "plots/reference").glob("*_history.csv"))


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_history(path, *accuracies, loss=0.6):
    """Write a history with these accuracies on the photos that were not trained on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{n},0.5,0.7,{value},{loss}\n"
                                     for n, value in enumerate(accuracies)))


@pytest.fixture
def plots(tmp_path):
    """A folder with own runs and reference runs, some of them of several seeds."""
    for name, accuracies in {
            "baseline_vgg1": (0.6, 0.7, 0.65), "reference/baseline_vgg1": (0.5,),
            "baseline_vgg3": (0.6, 0.8), "baseline_vgg3_seed2": (0.7, 0.77),
            "baseline_vgg3_seed10": (0.65, 0.83, 0.9), "reference/my_own": (0.6, 0.9),
            "small_data_cnn": (0.7,)}.items():
        write_history(tmp_path / f"plots/{name}_history.csv", *accuracies)
    return tmp_path


def read_tables(stdout):
    """Return [(data set or "", file drawn, rows as lists of cells)] of the printed tables."""
    tables = []
    for text in stdout.strip().split("\n\n"):
        lines = text.splitlines()
        dataset = ""
        if lines[0].startswith("other photos: "):
            dataset = lines.pop(0).removeprefix("other photos: ")
        assert lines[0].startswith("script ") and lines[-1].startswith("drawn: ")
        rows = [re.split(r"\s{2,}", line.strip()) for line in lines[1:-1]]
        tables.append((dataset, lines[-1].split()[1], rows))
    return tables


def test_compares_the_experiments_of_the_readme(plots):
    """Of all that can be read the table is right; what cannot is skipped, each with a line."""
    excel = HEADER.replace(",", ";") + "0;0,5;0,7;0,9;0,6\n"
    marked = "\ufeff" + HEADER + "0,0.5,0.7,0.9,0.6\n"  # as Windows marks UTF-8
    damaged = {"baseline_vgg2": "", "baseline_vgg2_seed2": marked, "baseline_vgg2_seed3": excel,
               "vgg3_dropout": HEADER, "vgg16_transfer": "hello\n",
               "vgg3_dropout_seed2": HEADER + "0,0.5",
               "vgg3_dropout_seed3": HEADER + "0,a,b,c,d\n"}
    for name, content in damaged.items():
        (plots / f"plots/{name}_history.csv").write_text(content, encoding="utf-8")
    (plots / "plots/vgg3_augmentation_history.csv").write_bytes(bytes(range(256)))
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # inherited from a cell
    ((code, out, err),) = run_several((COMPARE,), cwd=plots, env=notebook)
    assert code == 0, err
    assert read_tables(out) == [("", "plots/comparison.png", [
        # the seeds to the epoch that all have come to
        ["baseline_vgg3", "test", "2", "80.0 ± 3.0 % (3 seeds)", "80.000", "(2)", "80.184"],
        ["baseline_vgg1", "test", "3", "65.000 %", "70.000", "(2)", "72.331"],
        ["baseline_vgg1 (reference)", "test", "1", "50.000 %", "50.000", "(1)", "72.331"],
    ])]
    skipped = re.findall(r"^compare.py: skipped plots/(\w+)_history.csv: .+$", err, re.MULTILINE)
    assert sorted(skipped) == sorted([*damaged, "vgg3_augmentation"])
    assert len(err.splitlines()) == len(skipped)
    with Image.open(plots / "plots/comparison.png") as plot:
        assert plot.format == "PNG" and min(plot.size) >= 600


def test_other_photos_are_listed_apart(plots):
    """A run on the sample outranks no run on the photos, and is in a picture of its own."""
    for name, accuracies in {
            "baseline_vgg1_dataset_sample": (0.99,), "baseline_vgg1_dataset_sample_seed2": (0.95,),
            "baseline_vgg2_dataset_sample": (0.98,), "baseline_vgg3_ants": (1.0,)}.items():
        write_history(plots / f"plots/{name}_history.csv", *accuracies)
    all_runs, named, of_script = run_several(
        (COMPARE,), (COMPARE, "baseline_vgg1_dataset_sample", "baseline_vgg3_seed2"),
        (COMPARE, "baseline_vgg2"), cwd=plots)
    ours, ants, sample = read_tables(all_runs[1])
    assert [row[0] for row in ours[2]] == [
        "baseline_vgg3", "baseline_vgg1", "baseline_vgg1 (reference)"]
    assert ants == ("ants", "plots/comparison_ants.png", [
        ["baseline_vgg3", "test", "1", "100.000 %", "100.000", "(1)", "-"]])
    assert sample == ("dataset_sample", "plots/comparison_dataset_sample.png", [
        ["baseline_vgg2", "test", "1", "98.000 %", "98.000", "(1)", "-"],
        ["baseline_vgg1", "test", "1", "97.0 ± 2.0 % (2 seeds)", "97.000", "(1)", "-"]])
    assert [(dataset, [row[:4] for row in rows]) for dataset, _, rows in read_tables(named[1])] == [
        ("", [["baseline_vgg3", "test", "2", "77.000 %"]]),
        ("dataset_sample", [["baseline_vgg1", "test", "1", "97.0 ± 2.0 % (2 seeds)"]])]
    assert [dataset for dataset, _, _ in read_tables(of_script[1])] == ["dataset_sample"]
    for name in ("comparison", "comparison_ants", "comparison_dataset_sample"):
        with Image.open(plots / f"plots/{name}.png") as plot:
            plot.load()


def test_seeds_are_one_line_in_a_band(plots):
    """The picture of three seeds has a band between the lowest and the highest, and one line."""
    def count_pale(*names):
        assert run(COMPARE, *names, cwd=plots).returncode == 0
        with Image.open(plots / "plots/comparison.png") as plot:
            pixels = np.asarray(plot.convert("RGB"), dtype=int)
        band = np.array([31, 119, 180]) * 0.25 + 255 * 0.75  # tab:blue at a quarter
        return (np.abs(pixels - band).max(axis=-1) < 8).sum()

    assert count_pale("baseline_vgg3") > 20 * count_pale("plots/baseline_vgg3_history.csv")


def test_compares_what_is_named(plots):
    (plots / "kept").mkdir()  # a copy is not another seed, nor is the same file
    shutil.copy(plots / "plots/baseline_vgg1_history.csv", plots / "kept")
    # an epoch that was redone counts once, and so does what Keras writes on Windows
    text = HEADER + "0,0.5,0.7,0.1,0.6\n0,0.5,0.7,0.55,0.6\n"
    (plots / "plots/other_history.csv").write_bytes(text.replace("\n", "\r\r\n").encode())
    (plots / "empty").mkdir()
    unknown = ("baseline_vgg2", "baseline_vgg", "nothing.csv")
    named, *refused = run_several(
        (COMPARE, "baseline_vgg1.py", "kept/baseline_vgg1_history.csv", "my_own", "other",
         "more_experiments/small_data_cnn.py", plots / "plots/baseline_vgg1_history.csv"),
        *((COMPARE, "baseline_vgg1", name) for name in unknown), cwd=plots)
    assert named[0] == 0, named
    ((_, _, rows),) = read_tables(named[1])
    assert [row[:4] for row in rows] == [
        ["my_own (reference)", "test", "2", "90.000 %"],
        ["small_data_cnn", "validation", "1", "70.000 %"],
        ["baseline_vgg1", "test", "3", "65.000 %"],
        ["baseline_vgg1 (kept)", "test", "3", "65.000 %"],
        ["other", "test", "1", "55.000 %"], ["baseline_vgg1 (reference)", "test", "1", "50.000 %"]]
    for result, name in zip(refused, unknown, strict=True):
        assert_refused(result, name)
    done = run(COMPARE, cwd=plots / "empty")
    assert_refused((done.returncode, done.stdout, done.stderr), "no history")


def test_ends_quietly_where_nobody_reads_on(plots):
    process = subprocess.Popen(command(COMPARE), cwd=plots, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 0


def test_reference_runs():
    """Each reference run is whole, and results.csv says of it what its history says."""
    results = {(row["script"], row["seed"]): row
               for row in read_rows(ROOT / "plots/reference/results.csv")}
    assert len(results) == len(REFERENCE)
    for (script, seed), result in results.items():
        name = script if seed == "1" else f"{script}_seed{seed}"
        rows = read_rows(ROOT / f"plots/reference/{name}_history.csv")
        accuracies = [float(row["val_accuracy"]) * 100 for row in rows]
        (source,) = [path for folder in (".", "more_experiments", "beyond")
                     for path in ROOT.glob(f"{folder}/{script}.py")]
        assert re.search(rf"EPOCHS = (10, )?{len(rows)}\b", source.read_text())
        assert [int(row["epoch"]) for row in rows] == list(range(len(rows)))
        assert int(result["epochs"]) == len(rows)
        published = re.search(r"Published (\w+) accuracy", source.read_text())
        assert result["split"] == (published[1] if published else "test")
        assert result["final_accuracy"] == f"{accuracies[-1]:.3f}"
        assert result["best_accuracy"] == f"{max(accuracies):.3f}"
        for row in rows:  # the axes cut off nothing but losses of the first three epochs
            assert 0.4 <= min(float(row["accuracy"]), float(row["val_accuracy"]))
            if int(row["epoch"]) >= 3:
                assert max(float(row["loss"]), float(row["val_loss"])) <= 1.3
        with Image.open(ROOT / f"plots/reference/{name}_plot.png") as plot:
            plot.load()


def test_try_it():
    """The outcomes of the changes to try are those of the runs, in the docs and in README."""
    results = (ROOT / "docs/results.md").read_text()
    rows = re.findall(r"^\| \[.*\]\(\.\./(plots/reference/try_it/\w+\.csv)\) \| (.*) \|$", results,
                      re.MULTILINE)
    assert sorted(ROOT / path for path, _ in rows) == sorted(
        (ROOT / "plots/reference/try_it").iterdir())
    readme = (ROOT / "README.md").read_text()
    for path, row in rows:
        epochs = read_rows(ROOT / path)
        last = {name: float(value) for name, value in epochs[-1].items()}
        cells = [f"{last['accuracy'] * 100:.1f}", f"{last['val_accuracy'] * 100:.1f}",
                 f"{last['val_loss']:.3f}"]
        assert f"{last['val_accuracy'] * 100:.0f} %" in readme
        if len(epochs) == 20:
            mean = np.mean([float(epoch["val_accuracy"]) for epoch in epochs[-10:]]) * 100
            cells.append(f"{mean:.1f}")
            assert f"{mean:.0f} %" in readme
        assert row == " | ".join(cells)


def test_readme_tables():
    """The READMEs' accuracies are those of the reference runs, and they show no other."""
    for readme, count in (("README.md", 8), ("more_experiments/README.md", 14)):
        table = (ROOT / readme).read_text().split("\n\n![")[0].split("The tutorials:")[0]
        rows = re.findall(r"^\| `(?:beyond/)?(\w+)\.py` \|(.*)\|$", table, re.MULTILINE)
        assert len(rows) == count
        for script, row in rows:
            *_, ours, seeds = [cell.strip() for cell in row.split("|")]
            finals = [float(read_rows(path)[-1]["val_accuracy"]) * 100 for path in REFERENCE
                      if re.fullmatch(rf"{script}(_seed\d+)?_history", path.stem)]
            if len(finals) > 1:
                digits = 1 if np.ptp(finals) >= 0.1 else 2  # ± 0.0 would look like an error
                assert ours == f"{np.mean(finals):.{digits}f} ± {np.ptp(finals) / 2:.{digits}f}"
            elif finals:
                assert ours == f"{finals[0]:.1f}"
            else:
                assert ours in ("not measured by us", "not measured", "-")
            assert seeds == (str(len(finals)) if finals else "")
    assert (ROOT / "plots/reference/comparison.png").exists()


def test_tables_of_seeds():
    """Of each seed in docs/results.md, and of their mean in beyond/README.md, there is a run."""
    finals = {}
    for path in REFERENCE:
        script, seed = re.fullmatch(r"(\w+?)(?:_seed(\d+))?_history", path.stem).groups()
        accuracy = float(read_rows(path)[-1]["val_accuracy"]) * 100
        finals.setdefault(script, {})[int(seed or 1)] = accuracy
    table = (ROOT / "docs/results.md").read_text().split("| script | seed 1 |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(?:beyond/)?(\w+)\.py` \|(.*)\|$", table, re.MULTILINE)
    assert len(rows) == 9
    for script, row in rows:
        printed = {seed: cell.strip() for seed, cell in enumerate(row.split("|"), start=1)}
        measured = {seed: f"{finals[script][seed]:.3f}" if seed in finals[script] else ""
                    for seed in printed}
        assert printed == measured, script

    table = (ROOT / "beyond/README.md").read_text().split("\n\n## ")[0]
    rows = re.findall(r"^\| `(\w+)\.py` \|(.*)\|$", table, re.MULTILINE)
    checked = [script for script, _ in rows if script in finals]
    assert checked == ["efficientnet_lite_transfer", "efficientnet_lite_fine_tuning",
                       "resnet_from_scratch"]
    for script, row in rows:
        if script in finals:
            accuracy, seeds = (cell.strip() for cell in row.split("|")[1:3])
            values = list(finals[script].values())
            assert accuracy == f"{np.mean(values):.2f} ± {np.ptp(values) / 2:.2f}"
            assert seeds == str(len(values))
