"""plots/compare.py, and README's figures against the reference runs in plots/reference/."""

import csv
import re
import shutil

import pytest
from conftest import ROOT, assert_refused, run
from PIL import Image

HEADER = "epoch,accuracy,loss,val_accuracy,val_loss\n"
REFERENCE = sorted((ROOT / "plots/reference").glob("*_history.csv"))


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def plots(tmp_path):
    """A folder with one finished run, a reference run of the same script, and one of another."""
    (tmp_path / "plots/reference").mkdir(parents=True)
    for path, accuracies in {"baseline_vgg1": (0.6, 0.7, 0.65), "reference/baseline_vgg1": (0.5,),
                             "reference/my_own": (0.6, 0.9)}.items():
        rows = "".join(f"{n},0.5,0.7,{value},0.6\n" for n, value in enumerate(accuracies))
        (tmp_path / f"plots/{path}_history.csv").write_text(HEADER + rows)
    return tmp_path


def read_table(stdout):
    """Return the printed rows as lists of cells, without the column titles."""
    return [re.split(r"\s{2,}", line.strip()) for line in stdout.splitlines()[1:-1]]


def test_compares_all(plots):
    for name, content in {"empty": "", "header": HEADER, "text": "hello\n", "cut": HEADER + "0,0.5",
                          "words": HEADER + "0,a,b,c,d\n"}.items():
        (plots / f"plots/{name}_history.csv").write_text(content)
    (plots / "plots/binary_history.csv").write_bytes(bytes(range(256)))
    done = run("plots/compare.py", cwd=plots)
    assert done.returncode == 0, done.stderr
    assert read_table(done.stdout) == [
        ["my_own (reference)", "2", "90.000", "90.000", "2", "-"],
        ["baseline_vgg1", "3", "65.000", "70.000", "2", "72.331"],
        ["baseline_vgg1 (reference)", "1", "50.000", "50.000", "1", "72.331"],
    ]
    skipped = done.stderr.splitlines()
    assert len(skipped) == 6
    for name in ("empty", "header", "text", "cut", "words", "binary"):
        assert any(f"skipped plots/{name}_history.csv" in line for line in skipped)
    with Image.open(plots / "plots/comparison.png") as plot:
        assert plot.format == "PNG" and min(plot.size) >= 600


def test_compares_what_is_named(plots):
    shutil.copy(plots / "plots/baseline_vgg1_history.csv", plots / "elsewhere.csv")
    done = run("plots/compare.py", "baseline_vgg1.py", "elsewhere.csv", cwd=plots)
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in read_table(done.stdout)] == [
        "baseline_vgg1", "elsewhere", "baseline_vgg1 (reference)"]
    for name in ("baseline_vgg2", "nothing.csv"):
        done = run("plots/compare.py", "baseline_vgg1", name, cwd=plots)
        assert_refused((done.returncode, done.stdout, done.stderr), name)
    (plots / "empty").mkdir()
    done = run("plots/compare.py", cwd=plots / "empty")
    assert_refused((done.returncode, done.stdout, done.stderr), "no history")


def test_reference_runs():
    """Each reference run is whole, and results.csv says of it what its history says."""
    results = {row["script"]: row for row in read_rows(ROOT / "plots/reference/results.csv")}
    assert set(results) == {path.stem.removesuffix("_history") for path in REFERENCE}
    for script, result in results.items():
        rows = read_rows(ROOT / f"plots/reference/{script}_history.csv")
        accuracies = [float(row["val_accuracy"]) * 100 for row in rows]
        (source,) = [*ROOT.glob(f"{script}.py"), *ROOT.glob(f"more_experiments/{script}.py")]
        assert f"\nEPOCHS = {len(rows)}\n" in source.read_text()
        assert [int(row["epoch"]) for row in rows] == list(range(len(rows)))
        assert int(result["epochs"]) == len(rows)
        assert result["final_test_accuracy"] == f"{accuracies[-1]:.3f}"
        assert result["best_test_accuracy"] == f"{max(accuracies):.3f}"
        for row in rows:  # nothing is cut off by the limits of the axes
            assert 0.4 <= min(float(row["accuracy"]), float(row["val_accuracy"]))
            assert max(float(row["loss"]), float(row["val_loss"])) <= 2
        with Image.open(ROOT / f"plots/reference/{script}_plot.png") as plot:
            plot.load()


def test_readme_table():
    """README's accuracies are those of the reference runs, and it shows no other."""
    readme = (ROOT / "README.md").read_text()
    results = {row["script"]: row for row in read_rows(ROOT / "plots/reference/results.csv")}
    rows = re.findall(r"^\| `(\w+)\.py` \|(.*)\|$", readme.split("## ")[0], re.MULTILINE)
    assert len(rows) == 6
    for script, row in rows:
        *_, final, best = [cell.strip() for cell in row.split("|")]
        if script in results:
            result = results[script]
            assert (final, best) == (result["final_test_accuracy"], result["best_test_accuracy"])
        else:
            assert final.startswith("not measured"), script
    assert (ROOT / "plots/reference/comparison.png").exists()
