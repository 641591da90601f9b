"""The benchmark scripts do what they say, as far as that takes no training."""

import collections
import copy
import importlib.util
import io
import json
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from glomjax.data.sources import load_source
from glomjax.errors import UserError
from glomjax.evaluation import auroc
from glomjax.pretrained import kecam, reading, timm, weight_file

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_patches(folder: pathlib.Path, count: int, patients: int) -> None:
    rows = ["path,label,patient,stain"]
    for i in range(count):
        label, patient = ("glomerulus", "other")[i % 2], f"P{i * patients // count}"
        file = folder / label / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(file)
        rows.append(f"{label}/{i}.png,{label},{patient},PAS")
    (folder / "manifest.csv").write_text("\n".join(rows))


def test_real_tissue_splits_by_the_patients_that_are_named(tmp_path):
    write_patches(tmp_path, 12, 3)
    script("real_tissue").write_split(tmp_path, tmp_path / "split.csv", ["P2"], ["P0"])
    splits = load_source(tmp_path / "split.csv")
    assert set(splits.test.patients) == {"P2"}
    assert set(splits.validation.patients) == {"P0"}
    assert set(splits.train.patients) == {"P1"}
    assert len(splits.train) == 4


def test_transfer_trains_on_balanced_nested_subsets_with_the_same_patients_held_out(tmp_path):
    write_patches(tmp_path, 60, 10)
    transfer = script("transfer")
    whole = load_source(tmp_path, seed=3)
    names = {}
    for count in (6, 14, 0):
        transfer.write_subset(tmp_path, tmp_path / f"{count}.csv", count, 3)
        splits = load_source(tmp_path / f"{count}.csv")
        names[count] = {pathlib.Path(name).name for name in splits.train.ids}
        assert len(splits.train) == (count or len(whole.train))
        assert splits.train.labels.mean() == 0.5
        for split in ("validation", "test"):
            assert set(splits[split].patients) == set(whole[split].patients)
            assert len(splits[split]) == len(whole[split])
    assert names[6] < names[14] < names[0]


def test_transfer_reports_student_s_interval_over_the_seeds():
    interval = script("transfer").interval
    mean, low, high = interval([0.7, 0.8, 0.9])
    # 4.3027 is the 97.5% quantile of Student's t with 2 degrees of freedom.
    assert mean == pytest.approx(0.8)
    assert high - mean == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=1e-4)
    assert mean - low == pytest.approx(high - mean)
    assert interval([0.7]) == (0.7, float("-inf"), float("inf"))


def test_transfer_compares_with_random_values_by_seed():
    def runs(*values):
        return [{"auroc": value, "loss": 0.5, "collapsed": value == 0.5} for value in values]

    table = {(50, "scratch"): runs(0.5, 0.6, 0.8), (50, "partial"): runs(0.6, 0.7, 0.9)}
    _, scratch, partial = script("transfer").tabulate(table)
    assert scratch.endswith("  -  0.500 0.600 0.800  0.500  1 of 3")
    # The seeds differ by far more than the regimes, which differ by the same in each.
    assert "+0.100 (+0.100 to +0.100)" in partial
    assert "0.733 (0.354 to 1.113)" in partial


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return script("compare")


@pytest.mark.parametrize("task", ["train", "infer"])
def test_compare_measures_this_project_s_worker(compare, tmp_path, capsys, task):
    file = tmp_path / "out.json"
    argv = ["--networks", "alexnet_mini", "--stacks", "glomjax", "--tasks", task]
    argv += ["--batch", "2", "--size", "37", "--rounds", "2", "--seconds", "0"]
    compare.main([*argv, "--json", str(file), "--plot", str(tmp_path / "out.png")])
    (row,) = json.loads(file.read_text())["results"]
    assert row["work"]["parameters"] == 3_810_561
    assert row["work"]["images"] == [2, 37, 37, 3]
    assert [len(turn) for turn in row["rounds"]] == [1, 1]
    assert min(row["images_per_second"]) > 0
    assert row["peak_mb"] > 0
    # A loss before the first update and after each of three; or a logit for each image.
    assert len(row["outcome"]) == {"train": 4, "infer": 2}[task]
    if task == "train":
        assert row["outcome"][3] < row["outcome"][0]
    table = capsys.readouterr().out
    assert f"alexnet_mini, {task}: 3,810,561 parameters" in table
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_compare_says_which_worker_failed_and_why(compare, tmp_path):
    # A module that has no stack: its worker ends at once.
    with (
        compare.Worker("keras", compare.Stack("protocol", ""), tmp_path) as worker,
        pytest.raises(
            UserError, match=r"(?s)has no attribute.*keras failed at 'build': ended \(1\)"
        ),
    ):
        worker.ask("build", spec={})


def test_compare_s_workers_answer_a_failure_and_go_on(compare, monkeypatch):
    protocol = importlib.import_module("stacks.protocol")

    class Halves(protocol.Stack):
        def once(self):
            return [0.5]

    requests = [{"command": "build", "spec": {}}, {"command": "nonsense"}]
    requests += [{"command": "run", "steps": 3}, {"command": "stop"}, {"command": "memory"}]
    monkeypatch.setattr("sys.stdin", [json.dumps(request) for request in requests])
    replies = io.StringIO()
    protocol.serve(Halves(), replies)
    failed, unknown, ran, stopped = map(json.loads, replies.getvalue().splitlines())
    assert failed == {"error": "NotImplementedError: "}
    assert "no command 'nonsense'" in unknown["error"]
    assert ran["outcome"] == [0.5]
    assert len(ran["seconds"]) == 3
    assert stopped == {}


def test_compare_refuses_unequal_work(compare):
    work = {"parameters": 3, "window": 9, "learning rate": 1e-4}
    ours = {"work": work, "outcome": [0.7, 0.6, 0.5, 0.4]}
    # float32 settings and losses that differ by rounding are equal.
    theirs = {"work": work | {"learning rate": 9.9999997e-5}, "outcome": [0.7, 0.6, 0.5, 0.4005]}
    compare.check_equal_work({"glomjax": ours, "keras": theirs}, 1e-3)

    def refused(message, tolerance=1e-3, **changes):
        other = copy.deepcopy(theirs) | changes
        with pytest.raises(UserError, match=f"not do the same work: .*{message}"):
            compare.check_equal_work({"glomjax": ours, "keras": other}, tolerance)

    refused("parameters is 4 in keras and 3 in glomjax", work=work | {"parameters": 4})
    refused("window is 7 in keras and 9 in glomjax", work=work | {"window": 7})
    refused("dropout rate is 0.3 in keras and unknown", work=work | {"dropout rate": 0.3})
    refused("keras gives .*0.402", outcome=[0.7, 0.6, 0.5, 0.402])
    refused("keras gives .*nan", outcome=[0.7, 0.6, 0.5, float("nan")])
    refused("keras gives 1 numbers and glomjax 4", outcome=[0.7])
    refused("keras gives .*0.4005", tolerance=1e-4)


def test_compare_gives_other_stacks_the_very_weights(compare):
    data = pathlib.Path(__file__).parent / "data"
    theirs = {
        "keras": kecam.read(data / "davit_kecam" / "kecam_davit.h5"),
        "torch": timm.read(data / "davit_timm" / "timm_davit.safetensors")[0],
    }
    for environment, tensors in theirs.items():
        rules = compare.weights.rules_for("davit_tiny", environment)
        params, unknown = reading.convert(data, tensors, rules)
        assert not unknown
        shapes = {name: value.shape for name, value in tensors.items()}
        arrays, paths = compare.weights.translate(params, shapes, rules)
        assert arrays.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(arrays[name], value)
        assert set(paths.values()) == set(params)
        del params["head/kernel"]
        with pytest.raises(UserError, match="would be head/kernel, which glomjax does not have"):
            compare.weights.translate(params, shapes, rules)


def test_difference_coverage_counts_pairs_as_the_auroc_does():
    coverage = script("difference_coverage")
    rng = np.random.default_rng(0)
    patient, y, (scores, _) = coverage.draw(rng, 5, 0.3, "mostly one", 0.8, [1.0, 0.5])
    whole, without = coverage.areas(scores, y, patient, 5)
    assert whole == pytest.approx(auroc(y, scores))
    for left_out in range(5):
        kept = patient != left_out
        assert without[left_out] == pytest.approx(auroc(y[kept], scores[kept]))


@pytest.mark.parametrize("mix", ["both classes", "one class"])
def test_difference_coverage_finds_intervals_that_hold(mix):
    found = script("difference_coverage").cell(
        np.random.default_rng(0), 150, 6, 0.3, mix, 0.8, 0.75, 0.0
    )
    assert 0.93 < found["AUROC"] <= 1
    assert found["AUROC p"] < 0.07
    assert found["McNemar p"] < 0.07 < found["exact p"]


@pytest.fixture
def stress(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return script("stress")


# A small part of what the script does by itself: some 10 s of computing on one core.
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged files
# TensorStore's threads answer after the loop that asked has ended.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("kind", "count"), [("config", 600), ("tables", 200), ("images", 1000), ("weights", 400)]
)
def test_stress_finds_each_case_refused_or_accepted(stress, tmp_path, kind, count):
    cases = stress.KINDS[kind](tmp_path, count, 2)
    # A worker that takes the place of another one goes on with the same cases.
    again = stress.KINDS[kind](tmp_path, count, 2)
    assert [name for name, _ in cases] == [name for name, _ in again]
    ends = collections.Counter()
    for name, run in cases:
        outcome, detail = stress.attempt(run)
        ends[outcome] += 1
        assert outcome in ("refused", "accepted"), (name, detail)
    assert ends.total() == count
    assert ends.keys() == {"refused", "accepted"}


@pytest.mark.parametrize("checksum", ["tensors", "metadata"])
def test_stress_finds_what_a_checksum_would_not_cover(stress, tmp_path, monkeypatch, checksum):
    whole = weight_file.tensor_digest

    def part(tensors, begun=b""):
        return whole({}, begun) if checksum == "tensors" else whole(tensors)

    monkeypatch.setattr(weight_file, "tensor_digest", part)
    cases = stress.KINDS["weights"](tmp_path, 3000, 0)
    ends = [stress.attempt(run) for name, run in cases if name.startswith("glomjax:")]
    silent = [detail for outcome, detail in ends if outcome == "silent"]
    what = {"tensors": "the values of", "metadata": "says of its network"}[checksum]
    assert any(what in detail for detail in silent), ends


def test_stress_knows_what_should_not_end_so(stress):
    def refuse(sentence):
        raise UserError(sentence)

    def fill():
        raise MemoryError

    def refuse_what_fills():
        try:
            fill()
        except MemoryError as error:
            raise UserError("no") from error

    assert stress.attempt(lambda: refuse("no"))[0] == "refused"
    assert stress.attempt(lambda: refuse("no\n  no"))[0] == "several lines"
    assert stress.attempt(lambda: refuse("no" * 400))[0] == "long sentence"
    assert stress.attempt(fill)[0] == "memory"
    assert stress.attempt(refuse_what_fills)[0] == "memory"
    assert stress.attempt(lambda: {}["key"]) == ("raw exception", "\"KeyError: 'key'\"")


def test_stress_counts_what_its_workers_say(stress, monkeypatch, capsys):
    ends = [("script: a", "refused", ""), ("script: b", "accepted", ""), ("call: c", "memory", "C")]
    monkeypatch.setattr(stress, "outcomes", lambda *_: iter(ends))
    assert stress.stress("config", 3, 0) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("config: 3 cases, seed 0")
    assert lines[2].split() == ["script", "1", "1", *"0000000"]
    assert lines[3].split() == ["call", *"00001", *"0000"]
    assert lines[4:] == ["memory:", "  call: c  C"]


ADVISORY = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"], "description": "..."}
GOOD = {"name": "numpy", "version": "1.0", "vulns": []}
BAD = {"name": "pillow", "version": "1.0", "vulns": [ADVISORY]}
SKIPPED = {"name": "jax", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([GOOD], 0, "1 packages, 0 known vulnerabilities (advisories of PyPI)"),
        ([GOOD, BAD], 1, "pillow 1.0: PYSEC-1, CVE-1; fixed in 1.1"),
        ([GOOD, SKIPPED], 2, "PyPI gave no answer on 1 packages (jax)"),
        ([], 2, "PyPI gave no answer on the packages"),
    ],
)
def test_audit_tells_nothing_known_from_no_answer(capsys, packages, code, said):
    assert script("audit").report(packages, "PyPI") == code
    captured = capsys.readouterr()
    assert said in captured.out + captured.err


@pytest.mark.parametrize("knows", ["PyPI", "OSV", ""])
def test_audit_asks_a_service_only_if_it_has_advisories(monkeypatch, capsys, knows):
    """A mirror of PyPI has none, and an unreachable service gives no answer."""
    audit = script("audit")
    asked = []

    def answer(python, service, requirements, *options):
        asked.append((service, requirements.name))
        if audit.SERVICES[service] != knows:
            return [] if service == "osv" else [{"version": "", "vulns": [], **SKIPPED}]
        return [BAD] if requirements.name == "known.txt" else [GOOD]

    monkeypatch.setattr(audit, "audit", answer)
    monkeypatch.setattr(audit.venv, "create", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        audit.subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=0)
    )
    assert audit.main() == (0 if knows else 2)
    captured = capsys.readouterr()
    if knows:
        assert asked[-1] == (knows.lower(), "requirements.txt")
        assert captured.out == f"1 packages, 0 known vulnerabilities (advisories of {knows})\n"
    else:
        assert asked == [("pypi", "known.txt"), ("osv", "known.txt")]
        assert "the advisories of neither PyPI nor OSV can be had from here" in captured.err


@pytest.mark.parametrize("output", ["", "Traceback", "[]", '{"dependencies": null}'])
def test_audit_takes_no_answer_for_none(monkeypatch, output):
    audit = script("audit")
    monkeypatch.setattr(audit.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=output))
    assert audit.audit("python", "pypi", pathlib.Path("requirements.txt")) == []


def test_label_review_changes_labels_that_are_read_where_the_images_lie(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    (tmp_path / "patches").mkdir()
    write_patches(tmp_path / "patches", 40, 10)
    review, table = script("label_review"), tmp_path / "work" / "changed.csv"
    labels = []
    for draw in (0, 0, 1):
        review.write_changed(tmp_path / "patches" / "manifest.csv", table, draw)
        splits = load_source(table, allow_outside=True)
        assert "2 label(s) that were changed" in " ".join(splits.notes)
        labels.append(table.read_text())
    assert labels[0] == labels[1] != labels[2]


def test_newest_releases_finds_the_newest_interpreter_that_starts(tmp_path, monkeypatch):
    newest, folder, pyenv = script("newest_releases"), tmp_path / "bin", tmp_path / "versions"

    def interpreter(file: pathlib.Path, command: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{command}\n")
        file.chmod(0o755)

    monkeypatch.setenv("PATH", f"{folder}:/bin")
    assert newest.find_python("3.12", pyenv) == ""
    # As pyenv's command for a version that is not chosen.
    interpreter(folder / "python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    for version in ("3.12.9", "3.12.10", "3.1.2"):
        interpreter(pyenv / version / "bin" / "python", f"echo {version}")
    assert newest.find_python("3.12", pyenv) == str(pyenv / "3.12.10" / "bin" / "python")
    interpreter(folder / "python3.12", "echo 3.12.4")
    assert newest.find_python("3.12", pyenv) == str(folder / "python3.12")


def test_newest_releases_counts_what_pytest_says(tmp_path):
    newest = script("newest_releases")
    (tmp_path / "test_few.py").write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert False\n"
        "def test_left_out(): pytest.skip('no')\n"
        "def test_error(no_such_fixture): pass\n"
    )
    table = tmp_path / "tests.xml"
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", f"--junitxml={table}", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "/dev/null", *options], capture_output=True
    )
    found = newest.read_results(table, "3.13.0", {"jax": "0.12.0"}, 25.4)
    assert (found.passed, found.failed, found.skipped) == (1, 2, 1)
    lines = newest.tabulate([found], "today:").splitlines()
    assert lines[2].startswith("| Python | jax | flax |")
    assert lines[4].startswith("| 3.13.0 | 0.12.0 |  |")
    assert lines[4].endswith("| 1 | 2 | 1 | 25 |")
    assert lines[6] == "Failed on Python 3.13.0:"
    assert [line.rpartition(".")[2] for line in lines[8:]] == ["test_wrong", "test_error"]


def test_newest_releases_leaves_a_folder_of_other_things_alone(tmp_path, capsys):
    (tmp_path / "checkout").mkdir()
    with pytest.raises(SystemExit):
        script("newest_releases").main([str(tmp_path)])
    assert "holds something else; name another folder" in capsys.readouterr().err
    assert (tmp_path / "checkout").is_dir()
