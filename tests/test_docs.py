"""What README and docs show is true: commands and scripts run, messages, links and names exist."""

import argparse
import ast
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import sys

import jax
import numpy as np
import pytest
from quick_programs import FEW_BLOCKS
from small_runs import blots, config_for, write_patches

from glomjax.cli.configuration import apply_overrides, load_config
from glomjax.cli.main import VERBS, main, verb_parser
from glomjax.data import synthetic
from glomjax.data.sources.columns import COLUMN_SYNONYMS
from glomjax.files import cache_dir
from glomjax.models import googlenet
from glomjax.training import train_and_evaluate
from glomjax.training.config_checks import read_config

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = {page.name: page.read_text() for page in (README, *sorted((ROOT / "docs").glob("*.md")))}

INSTALLS = "installs packages; .ci/run makes the environment in a clean clone"
CHECKS = "the tests themselves, and what .ci/run runs beside them"
PROCESSES = "needs two processes on two hosts; test_processes.py has two on one"
MEASURES = "takes hours and data that are not in the project; its options are parsed"
# Every command of a ```bash block that is not run here, and why.
EXCLUDED = {
    "python3 -m venv .venv": INSTALLS,
    ".venv/bin/pip install -r requirements.txt": INSTALLS,
    ".venv/bin/pip install -r requirements.txt -e '.[dev]'": INSTALLS,
    ".venv/bin/pip install .": INSTALLS,
    "pip install mlflow": INSTALLS,
    "glomjax train --config alexnet_mini --config.log.trackers=mlflow": (
        "needs MLflow; test_trackers.py has a stand-in for it"
    ),
    ".venv/bin/ruff check .": CHECKS,
    ".venv/bin/ruff format --check .": CHECKS,
    ".venv/bin/mypy": CHECKS,
    ".venv/bin/pytest": CHECKS,
    ".venv/bin/python main.py --config configs/davit.py --coordinator host0:1234 "
    "--processes 2 --process 0": PROCESSES,
    ".venv/bin/python main.py --config configs/davit.py --coordinator host0:1234 "
    "--processes 2 --process 1": PROCESSES,
    ".venv/bin/python main.py --config configs/davit.py --config.data.source=patches "
    "--config.pretrained.source=davit_t_imagenet.h5 --workdir runs/from_file": (
        "needs a file of Keras weights; test_loop.py trains from one"
    ),
    "sbatch docs/slurm.sh --config davit --config.data.source=patches --workdir=runs/davit": (
        "needs SLURM; test_processes.py runs the script with stand-ins for its commands"
    ),
    "glomjax crossval --config alexnet_mini --config.data.source=biopsy_stains "
    '--config.image_size="(140,140)" --folds 5': MEASURES,
    "python benchmarks/real_tissue.py kidney_slides --config configs/alexnet_mini.py "
    "--seeds 0 1 2 --test I_3_S_1 I_4_S_4 I_2_S_3 --validation I_4_S_3 I_1_S_4": MEASURES,
    "python benchmarks/label_review.py kidney_slides": MEASURES,
    "python benchmarks/label_review.py synthetic": MEASURES,
}

# What a network that is trained in no time needs besides.
SMALL = {
    "davit": [
        *("--config.image_size=32", "--config.model.options.depths=1,"),
        *("--config.model.options.embed_dims=8,", "--config.model.options.num_heads=1,"),
    ],
    "alexnet_mini": ["--config.image_size=40"],
    "googlenet": ["--config.image_size=64", "--config.model.options.aux_heads=False"],
}

START = re.compile(
    r"(?:\.venv/bin/)?(?:python main\.py|(?:python -m )?glomjax (?P<verb>[\w-]+))(?P<rest>(?: .*)?)"
)


def blocks(page: str) -> list[tuple[str, str]]:
    """[(bash or python, text)] of a page."""
    return re.findall(r"```(bash|python)\n(.*?)```", PAGES[page], re.DOTALL)


def lines_of(block: str) -> list[str]:
    """The commands of a bash block, each on one line."""
    return re.sub(r"\s*\\\n\s*", " ", block).strip().splitlines()


def commands_of(page: str) -> list[str]:
    return [line for kind, text in blocks(page) if kind == "bash" for line in lines_of(text)]


COMMANDS = list(dict.fromkeys(itertools.chain.from_iterable(map(commands_of, PAGES))))
# {command: (verb, its arguments)}
OURS = {
    command: (found["verb"] or "train", shlex.split(found["rest"]))
    for command in COMMANDS
    if (found := START.fullmatch(command))
}
FIRST_PAGE = {command: page for page in reversed(PAGES) for command in commands_of(page)}


def test_what_is_not_run_is_still_there():
    assert set(EXCLUDED) <= set(COMMANDS)
    assert set(COMMANDS) - set(EXCLUDED) <= set(OURS)


@pytest.mark.parametrize("page", PAGES)
def test_a_command_to_copy_stands_in_a_block_that_is_run(page):
    rest = re.sub(r"```bash\n.*?```", "", PAGES[page], flags=re.DOTALL)
    assert re.findall(r"^(?: {4,}(?:glomjax|pip) | *(?:\.venv/bin/|sbatch )).*", rest, re.M) == []


def test_the_first_two_commands_make_their_own_environment():
    job, tests = (text for kind, text in blocks("README.md") if kind == "bash")
    for command in (job, tests):
        assert command.startswith(
            "python3 -m venv .venv\n.venv/bin/pip install -r requirements.txt"
        )
    assert job.strip().endswith("main.py --config configs/davit.py")
    assert f"<!-- main job -->\n```bash\n{job}```" in PAGES["README.md"]
    for tool in ("ruff check .", "ruff format --check .", "mypy", "pytest"):
        assert f".venv/bin/{tool}\n" in tests


def test_ci_runs_the_readme_s_test_command():
    assert "<!-- tests -->" in (ROOT / ".ci" / "run").read_text()
    tests = blocks("README.md")[1][1]
    assert f"<!-- tests -->\n```bash\n{tests}```" in PAGES["README.md"]


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 110


@pytest.mark.parametrize("command", OURS)
def test_every_command_is_a_valid_one(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    verb, arguments = OURS[command]
    parsed = verb_parser(verb, "glomjax").parse(arguments)
    if verb == "train":
        read_config(apply_overrides(load_config(parsed.config), parsed.overrides))


def test_the_docs_show_every_verb():
    assert {verb for verb, _ in OURS.values()} == set(VERBS)
    for verb in VERBS:
        assert f"`{verb}`" in PAGES["index.md"], verb


class Parsed(Exception):
    """The options of a script have been parsed."""


MEASUREMENTS = sorted(
    {
        re.split(r"\s{2,}|[:;.] |\n", re.sub(r"\s*\\\n\s*", " ", found))[0].strip()
        for text in PAGES.values()
        for found in re.findall(r"python (benchmarks/(?:\\\n|[^`\n])*)", text)
    }
)


@pytest.mark.parametrize("command", MEASUREMENTS)
def test_every_measurement_s_options_are_those_of_its_script(command, monkeypatch):
    def parse_args(parser, args=None, namespace=None):
        raise Parsed(parse(parser, args, namespace))

    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script, *arguments = shlex.split(command)
    if "parse_args" not in (ROOT / script).read_text():
        assert not arguments  # and its main would begin at once
        return
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    found = importlib.util.spec_from_file_location(pathlib.Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    with pytest.raises(Parsed):
        module.main()


@pytest.fixture(scope="module")
def seeds(small_run, tmp_path_factory):
    """Two more runs on the images of the small one."""
    folder = tmp_path_factory.mktemp("seeds")
    for seed in (1, 2):
        config = config_for(small_run[0], seed=seed, num_epochs=1)
        train_and_evaluate(config, folder / str(seed), progress=False)
    return folder


@pytest.fixture
def place(small_run, tmp_path, monkeypatch):
    """A folder with what the pages suppose, in which their commands and scripts are run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GLOMJAX_OFFLINE", "1")
    # A cache of its own, since its demo data are few; what is compiled is shared.
    (tmp_path / "cache").mkdir()
    for name, shared in (("jit", "jit-tests"), ("native", "native")):
        (tmp_path / "cache" / name).symlink_to(cache_dir(shared))
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path / "cache"))
    compiled = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(googlenet, "_BLOCKS", FEW_BLOCKS)
    sizes = {"train": (16, 2), "validation": (8, 2), "test": (8, 2)}
    monkeypatch.setitem(synthetic.SIZES, "demo", sizes)
    os.symlink(ROOT / "configs", "configs")
    shutil.copytree(small_run[1], "runs/davit")
    shutil.copytree(small_run[1], "start")
    write_patches(tmp_path / "patches", first=700, numbered=True)
    others = write_patches(tmp_path / "other_hospital", first=500, numbered=True)
    header, *lines = (others / "manifest.csv").read_text().splitlines()
    renamed = [f"other_hospital/{line.replace(',other,', ',Tubule,')}" for line in lines]
    (tmp_path / "renamed.csv").write_text("\n".join([header, *renamed]) + "\n")
    splits = ["train"] * 16 + ["validation"] * 8 + ["test"] * 24
    rows = [f"{line},{part}" for line, part in zip(lines, splits, strict=True)]
    (others / "manifest.csv").write_text("\n".join([f"{header},split", *rows]) + "\n")
    (tmp_path / "new_patches").mkdir()
    for n in range(3):
        blots(900 + n).save(tmp_path / "new_patches" / f"{n}.png")
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", compiled)


def added(verb: str, arguments: list[str]) -> list[str]:
    """What a command is given besides, by which it takes no time."""
    if verb == "evaluate":
        return ["--report=none"]
    if verb not in ("train", "crossval"):
        return []
    given = " ".join(arguments)
    config = pathlib.Path(arguments[arguments.index("--config") + 1].partition(":")[0]).stem
    small = ["--config.batch_size=8", "--config.report=none"]
    small.append(f"--config.num_epochs={10 if 'unfreeze' in given else 1}")
    small += SMALL[config]
    if verb == "crossval":
        small.append("--folds=2")
    if config == "davit" and ":scratch" not in given and "data.source" in given:
        if "pretrained.source" not in given:  # the published weights cannot be had here
            small.append("--config.pretrained.source=start")
        if "regime" not in given or "partial" in given:
            small.append("--config.freeze.until=stem")  # the published cut lies in a second stage
    return small


def run_page(page: str) -> list[str]:
    """Runs what a page shows, in its order; the commands that were run.

    A training that an earlier page has as well is left to that page.
    """
    ran = []
    for kind, text in blocks(page):
        if kind == "python":
            exec(compile(text, page, "exec"), {"__name__": "__main__"})
            continue
        for command in lines_of(text):
            if command in EXCLUDED:
                continue
            verb, arguments = OURS[command]
            if verb == "train" and FIRST_PAGE[command] != page:
                continue
            assert main([verb, *arguments, *added(verb, arguments)]) == 0, command
            ran.append(command)
    return ran


# Whose results are looked at below.
LATER = ("training.md", "trained_network.md")
SHOWN = [page for page in PAGES if page not in LATER and set(commands_of(page)) - set(EXCLUDED)]
# What trains into runs/davit itself.
TRAINING = ("README.md", "index.md", "regimes.md", "cross_validation.md")


@pytest.mark.parametrize("page", SHOWN)
def test_what_a_page_shows_runs(page, place, seeds):
    if page in TRAINING:
        shutil.rmtree(place / "runs")
    if page == "reading_a_report.md":
        shutil.copytree(seeds / "1", place / "runs" / "googlenet")
        shutil.copytree(seeds / "2", place / "runs" / "alexnet_mini")
    run_page(page)


def test_a_run_from_a_script_has_what_the_page_says(place, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        labels = np.arange(8) % 2
        images = rng.integers(0, 156, (8, 140, 140, 3)) + 100 * labels[:, None, None, None]
        patients = [f"{split} {i // 2}" for i in range(8)]
        images = images.astype(np.uint8)
        np.savez(f"{split}.npz", images=images, labels=labels, patients=patients)
    [(_, script)] = [block for block in blocks("training.md") if block[0] == "python"]
    assert len(script.splitlines()) <= 20
    run_page("training.md")
    metrics = json.loads((place / "runs" / "mine" / "test_metrics.json").read_text())
    assert (metrics["n"], metrics["epochs"], metrics["patients"]) == (8, 2, 4)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{metrics['auroc']} ")


def test_every_file_that_a_run_leaves_is_in_the_table(small_run):
    table = PAGES["training.md"].split("| file | what it holds |")[1].split("\n\n")[0]
    named = {name.split("/")[0] for name in re.findall(r"`([\w./]+)`", table)}
    left = {file.name for file in small_run[1].iterdir()} - {"lock.json"}
    assert left <= named


def test_a_trained_network_is_used_by_every_command_of_its_section(place, capsys):
    section = PAGES["trained_network.md"].split("## Use a trained network")[1].split("\n## ")[0]
    marked = re.findall(r"<!-- trained -->\n```bash\n(.*?)```", section, re.DOTALL)
    commands = [line for block in marked for line in lines_of(block)]
    assert commands == commands_of("trained_network.md")
    assert run_page("trained_network.md") == commands
    verbs = ["predict", "convert", "predict", "evaluate", "evaluate", "evaluate", "train"]
    assert [OURS[command][0] for command in commands] == verbs
    assert len((place / "predictions.csv").read_text().splitlines()) == 4
    assert json.loads((place / "test" / "test_metrics.json").read_text())["n"] == 24
    out = capsys.readouterr().out
    assert "the weights were trained with" not in out
    lines = out.splitlines()[-3:]  # of the script
    assert [line.split()[0] for line in lines] == ["0.png", "1.png", "2.png"]
    assert all(line.split()[1] in ("other", "glomerulus") for line in lines)


def test_a_trained_network_is_used_in_six_lines():
    [(_, script)] = [block for block in blocks("trained_network.md") if block[0] == "python"]
    assert f"<!-- use -->\n```python\n{script}```" in PAGES["trained_network.md"]
    assert len([line for line in script.splitlines() if line]) <= 6


def test_the_manifest_s_columns_are_those_that_are_read():
    page = PAGES["own_data.md"]
    for column in COLUMN_SYNONYMS:
        assert f"`{column}`" in page, column
    table = page.split("or called | what it is for |")[1].split("- Columns with nearly these")[0]
    known = {name for names in COLUMN_SYNONYMS.values() for name in names}
    named = set(re.findall(r"`(\w+)`", table.replace("`--config.data.split_by=site`", "")))
    assert len(named) > 20
    assert named <= known


def templates() -> list[re.Pattern[str]]:
    """What each text of the code can say, with anything in place of its values."""
    found = []
    for file in (ROOT / "glomjax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            if sum(len(part or "") for part in parts) >= 40:
                found.append("".join(".+" if p is None else re.escape(p) for p in parts))
    return [re.compile(text) for text in found]


MESSAGES = [
    " ".join(text.split()) for text in re.findall(r"```text\n(.*?)```", PAGES["faq.md"], re.DOTALL)
]


@functools.cache
def what_is_said() -> tuple[list[str], list[re.Pattern[str]]]:
    """The answers of docs/reliability.md, and what the texts of the code can say."""
    rows = [re.split(r"(?<!\\)\|", line) for line in PAGES["reliability.md"].splitlines()]
    answers = [re.sub(r"\\(\W)|\\(_)", r"\1\2", row[-2]).strip() for row in rows if len(row) == 5]
    return answers, templates()


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_of_the_faq_is_one_that_is_said(message):
    answers, texts = what_is_said()
    cut = re.compile(".+".join(map(re.escape, message.split("..."))))
    assert any(map(cut.search, answers)) or any(text.fullmatch(message) for text in texts)


def test_the_faq_has_twenty_messages():
    assert len(set(MESSAGES)) == len(MESSAGES) >= 20


def test_every_file_that_is_named_exists():
    for page, text in PAGES.items():
        for name in re.findall(r"`((?:glomjax|configs|docs|benchmarks|tests)/[\w/]+\.\w+)`", text):
            assert (ROOT / name).exists(), (page, name)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    folder = (README if page == README.name else ROOT / "docs" / page).parent
    for link in re.findall(r"\]\(((?!https?:)[^)\s]*)\)", PAGES[page]):
        name, _, anchor = link.partition("#")
        assert not name or (folder / name).exists(), link
        if anchor and (not name or name.endswith(".md")):
            assert anchor in anchors((folder / (name or page)).read_text()), link
