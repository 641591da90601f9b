"""`glomjax doctor`: what it says of a machine, calls broken and keeps to itself."""

import dataclasses
import getpass
import pathlib
import platform
import socket
import sys

import jax
import pytest

import glomjax
from glomjax import environment
from glomjax.cli import doctor
from glomjax.cli.main import main
from glomjax.ops import native
from glomjax.pretrained import sources


@pytest.fixture
def examined(home, monkeypatch, capsys, unloaded_kernels):
    """Runs the command, with an empty cache and without a network, and gives (exit code, lines by
    their names)."""
    monkeypatch.setenv("GLOMJAX_CACHE", str(home / "Dr_Who"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("there is a connection"))

    def examine() -> tuple[int, dict[str, str]]:
        code = main(["doctor"])
        captured = capsys.readouterr()
        assert captured.err == ""
        lines = captured.out.splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 80
        for private in (str(home), str(pathlib.Path.home()), home.name, "Dr_Who"):
            assert private not in captured.out
        whole = captured.out.replace("\n" + " " * 11, " ")
        return code, {line[:11].strip(): line[11:] for line in whole.splitlines()}

    return examine


def test_a_machine_is_told_on_one_screen_and_nothing_is_made_of_it(examined, home):
    code, lines = examined()
    assert code == 0
    assert lines["glomjax"].startswith(glomjax.__version__)
    assert lines["python"].startswith(platform.python_version())
    assert f"jax {jax.__version__}" in lines["packages"]
    assert lines["devices"].startswith(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    assert lines["cache"] == "where GLOMJAX_CACHE says, can be written, 0.0 GiB"
    assert lines["weights"] == "none in the cache yet"
    assert set(lines) >= {"lock", "kernels", "processor", "memory", "disk", "to mend:"}
    assert list((home / "Dr_Who").rglob("*")) == []


def test_no_user_host_or_folder_is_named(examined, monkeypatch):
    monkeypatch.delenv("GLOMJAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    _, lines = examined()
    assert lines["cache"].startswith("~/.cache/glomjax, can be written")
    words = " ".join(lines.values()).replace("~/.cache/glomjax", "").replace(".", " ").split()
    assert not {getpass.getuser(), socket.gethostname()} & set(words)
    assert not [word for word in words if "/" in word]


def test_a_cache_that_cannot_be_written_is_broken(examined, home):
    (home / "Dr_Who").write_text("a file where the folder should be")
    code, lines = examined()
    assert code == 1
    assert "cannot be written" in lines["cache"]
    assert "let GLOMJAX_CACHE name a folder that can be written" in lines["to mend:"]


def test_a_current_folder_that_was_removed_is_no_failure(examined, home, monkeypatch):
    (home / "removed").mkdir()
    monkeypatch.chdir(home / "removed")
    (home / "removed").rmdir()
    code, lines = examined()
    assert code == 0
    assert lines["disk"].startswith("unknown free in the current folder, ")


@pytest.mark.parametrize("module", ["jax", "optax"])
def test_a_package_that_cannot_be_imported_is_broken(examined, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    code, lines = examined()
    assert code == 1
    assert f"{module} (ModuleNotFoundError of {module})" in lines["packages"]
    assert "requirements.txt" in lines["to mend:"]


def test_versions_that_differ_from_the_lock_are_named_and_no_failure(examined, monkeypatch):
    # All of them, with numbers as long as those of nightly builds.
    monkeypatch.setattr(environment, "version", lambda name: "99.1.0.dev20261128+cuda12.cudnn97")
    code, lines = examined()
    assert code == 0
    pins = [line.split("==") for line in doctor._LOCK.read_text().split() if "==" in line]
    assert lines["lock"].startswith(f"{len(pins)} of {len(pins)} packages are not those")
    name, pinned = pins[0]
    assert f"{name} 99.1.0.dev20261128+cuda12.cudnn97 ({pinned})" in lines["lock"]


def test_a_package_of_the_lock_that_is_not_installed_is_broken(examined, monkeypatch):
    installed = environment.version
    monkeypatch.setattr(
        environment,
        "version",
        lambda name: "not installed" if name == "tensorboardX" else installed(name),
    )
    code, lines = examined()
    assert code == 1
    assert "install tensorboardX" in lines["to mend:"]


def test_without_a_device_what_jax_says_is_quoted_up_to_its_first_path(examined, monkeypatch):
    def refuse():
        raise RuntimeError("Unable to initialize backend: no plugin in /home/Dr_Who/x.so found")

    monkeypatch.setattr(jax, "devices", refuse)
    code, lines = examined()
    assert code == 1
    assert lines["devices"] == "jax has none: Unable to initialize backend: no plugin in"
    assert "JAX_PLATFORMS" in lines["to mend:"]


@pytest.mark.parametrize(
    ("platforms", "plugin", "advice"),
    [
        ("cpu", "0.10.2", "JAX_PLATFORMS names other devices"),
        ("", "not installed", "pip install -e '.[cuda]'"),
        ("", "0.10.2", "see to its driver"),
    ],
)
def test_an_accelerator_that_jax_does_not_use_is_told_with_the_way_to_it(
    tmp_path, monkeypatch, platforms, plugin, advice
):
    if jax.default_backend() != "cpu":
        pytest.skip("jax uses one")
    found = ("an NVIDIA GPU", (str(tmp_path),), ("jax-cuda12-plugin",), "cuda")
    monkeypatch.setattr(doctor, "_ACCELERATORS", (found,))
    monkeypatch.setattr(environment, "version", lambda name: plugin)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        fact = doctor._devices()
    finally:
        jax.config.update("jax_platforms", before)
    assert "an NVIDIA GPU seems to be there, which jax does not use" in fact.says
    assert advice in fact.advice
    assert not fact.broken


@pytest.mark.parametrize(
    ("state", "code"), [("not built", 0), ("damaged", 1), ("no compiler", 0), ("several", 0)]
)
def test_kernels_are_looked_at_and_never_built(examined, monkeypatch, state, code):
    if jax.default_backend() != "cpu":
        pytest.skip("kernels are for CPUs")
    if state == "no compiler":
        monkeypatch.setenv("CXX", "/home/Dr_Who/c++")
    elif native.in_cache()[0] == "no compiler":
        pytest.skip("there is no C++ compiler")
    else:
        library = native._target().path
        library.parent.mkdir(parents=True)
        if state == "damaged":
            library.write_bytes(b"not what was built")
    monkeypatch.setattr(native, "_build", lambda *_: pytest.fail("kernels are built"))
    if state == "several":
        monkeypatch.setattr(jax, "device_count", lambda: 4)
    found, lines = examined()
    assert found == code
    said, advice = {
        "not built": ("not built yet", "nothing"),
        "damaged": ("damaged", "start any run, which builds the kernels anew"),
        "no compiler": ("off: there is no C++ compiler", "install a C++ compiler"),
        "several": ("off: they run on one CPU device and there are 4", "nothing"),
    }[state]
    assert lines["kernels"].startswith(said)
    assert lines["to mend:"].startswith(advice)


@pytest.mark.parametrize("published", ["kecam/davit_t_imagenet", "timm/davit_tiny.msft_in1k"])
@pytest.mark.parametrize("whole", [True, False])
def test_weights_in_the_cache_are_told_apart_from_damaged_ones(
    examined, monkeypatch, published, whole
):
    entry = sources.PUBLISHED[published]
    content = b"\x08\0\0\0\0\0\0\0{}      " if whole else b"\x99"
    entry.cached.parent.mkdir(parents=True)
    entry.cached.write_bytes(content)
    if entry.md5 and whole:
        known = dataclasses.replace(entry, md5=sources.checksum(entry.cached, "md5"))
        monkeypatch.setitem(sources.PUBLISHED, published, known)
    code, lines = examined()
    assert code == (0 if whole else 1)
    assert lines["weights"] == f"{'whole' if whole else 'damaged'}: {published}"
    assert (f"remove what the cache has of {published}" in lines["to mend:"]) != whole
