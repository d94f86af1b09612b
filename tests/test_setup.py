"""Set-up: the pins are true, the side files agree, and the Makefile does what its lines promise.

The Makefile is run in an empty folder against a stand-in Python that logs what it is asked, so
nothing is installed and nothing is asked of the network.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [Requirement(line) for line in PROJECT["dependencies"]
         + PROJECT["optional-dependencies"]["test"]]
PIN_LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines()
             if line and not line.startswith("#")]
PINS = {canonicalize_name(line.split("==")[0]): line.partition("==")[2] for line in PIN_LINES}
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "pydantic", "matplotlib", "pandas")


# --- constraints.txt ---------------------------------------------------------------------------

def test_each_pin_is_one_exact_public_version():
    for line in PIN_LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), line
    assert len(PINS) == len(PIN_LINES), "a package is pinned twice"


@pytest.mark.parametrize("asked", ASKED, ids=lambda r: r.name)
def test_a_dependency_is_pinned_within_its_bounds_and_installed_as_pinned(asked):
    pin = PINS[canonicalize_name(asked.name)]
    assert asked.specifier and pin in asked.specifier
    assert Version(version(asked.name)).public == pin


def test_what_is_installed_is_what_is_pinned():
    installed = {canonicalize_name(d.name): Version(d.version).public for d in distributions()}
    differing = {name: (pin, installed[name]) for name, pin in PINS.items()
                 if installed.get(name, pin) != pin}
    assert differing == {}


def test_what_dependencies_bring_in_is_pinned_too():
    """Walks the installed tree from the declared dependencies, extras included."""
    unpinned, seen, todo = set(), set(), list(ASKED)
    while todo:
        asked = todo.pop()
        name = canonicalize_name(asked.name)
        if (key := (name, frozenset(asked.extras))) in seen or re.match("nvidia|cuda|triton", name):
            continue  # torch fixes its CUDA packages itself, each CUDA version its own
        seen.add(key)
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # an extra that nothing here asked pip for
        if name not in PINS:
            unpinned.add(name)
        for line in requires:
            child = Requirement(line)
            extras = asked.extras or {""}
            if not child.marker or any(child.marker.evaluate({"extra": e}) for e in extras):
                todo.append(child)
    assert unpinned == set()
    assert len(seen) > 100, "the walk ended early"


# --- files that repeat what pyproject.toml says --------------------------------------------------

def test_conda_environment_is_in_step():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    python, pip, (section) = environment["dependencies"]
    lower, upper = python.removeprefix("python").split(",")
    assert lower == PROJECT["requires-python"]
    newest = re.search(r'"newer" if v > \((\d+), (\d+)\)', (ROOT / "Makefile").read_text())
    assert upper == f"<{newest[1]}.{int(newest[2]) + 1}", "the Makefile's newest tried Python"
    assert Version("25.1") in SpecifierSet(pip.removeprefix("pip"))
    assert section == {"pip": ["-c constraints.txt", "-e .[test]"]}


def test_pip_is_new_enough_to_resume_downloads_and_to_pin_build_tools():
    pinned = re.search(r"^PIP_VERSION = (\S+)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert Version(pinned) >= Version("25.3")


def test_citation_is_in_step():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert " AND ".join(citation["license"]) == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    cited = {i["value"] for r in citation["references"] for i in r["identifiers"]}
    assert cited == {"arXiv:2305.14314", "arXiv:2106.09685"}


@pytest.mark.parametrize("name, starts, ends, digest", [
    ("LICENSE", "\n                                 Apache License\n", "limitations under the License.\n",
     "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"),
    ("LICENSE-PROSE", "Attribution 4.0 International\n\n====", "contacted at creativecommons.org.\n",
     "fd3a263fe19ed8faa9068b43abaebafc02c77897b0c6fc09abc04bb592e5f16e"),
])
def test_licence_is_the_whole_official_text_after_its_scope(name, starts, ends, digest):
    text = (ROOT / name).read_text()
    scope, legal = text[:text.index(starts)], text[text.index(starts):]
    assert legal.endswith(ends)
    assert hashlib.sha256(legal.encode()).hexdigest() == digest
    assert scope.startswith("Copyright 2026 the qlora_lib authors\n")
    assert name in PROJECT["license-files"]


# --- light imports -------------------------------------------------------------------------------

@pytest.mark.parametrize("code", [
    "import qlora_lib",
    "import sys; sys.argv = ['qlora', '--help']; from {module} import {attr} as main\n"
    "try: main()\nexcept SystemExit as stop: assert not stop.code, stop.code",
], ids=["import", "console script"])
def test_the_package_and_its_help_load_nothing_heavy(code):
    module, attr = PROJECT["scripts"]["qlora"].split(":")
    code = code.format(module=module, attr=attr)
    code += f"\nimport sys; print('LOADED', sorted(set(sys.modules) & set({HEAVY!r})))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "LOADED []"


# --- the Makefile --------------------------------------------------------------------------------

# Stands for a base Python: `-m venv` makes a .venv whose python logs its pip calls and fails
# when the file `fail` lists a word of the call. `-c` goes to the real one.
BASE_PYTHON = f"""#!/bin/sh
case "$*" in
  "-m venv .venv") echo "venv by $0" >> log; mkdir -p .venv/bin
    cat > .venv/bin/python <<'END'
#!/bin/sh
case "$1" in -c) exec "{sys.executable}" "$@";; esac
echo "python $*" >> log
if [ -e fail ] && echo "$*" | grep -q -- "$(cat fail)"; then echo "no network" >&2; exit 1; fi
END
    chmod +x .venv/bin/python;;
  *) exec "{sys.executable}" "$@";;
esac
"""
OLD = '#!/bin/sh\necho old\n'
BROKEN = '#!/bin/sh\necho "shim: command not found" >&2; exit 127\n'
BARE = f"""#!/bin/sh
exec "{sys.executable}" -c 'import sys; sys.modules["ensurepip"] = None; exec(sys.argv[2])' "$@"
"""


class Checkout:
    """An empty folder with the Makefile, and a PATH on which the Pythons are the given scripts."""

    def __init__(self, folder: Path, **pythons: str):
        self.folder, self.bin = folder / "a checkout", folder / "bin"
        self.folder.mkdir()
        self.bin.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder)
        every = dict.fromkeys(["python3"] + [f"python3.{n}" for n in range(11, 16)], BROKEN)
        for name, script in (every | pythons).items():
            (self.bin / name).write_text(script)
            (self.bin / name).chmod(0o755)

    def make(self, *words: str) -> subprocess.CompletedProcess:
        # A clean environment: the variables of an outer `make test` must not reach this one.
        env = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(["make", *words], cwd=self.folder, env=env, text=True,
                              capture_output=True, stdin=subprocess.DEVNULL)

    def log(self) -> list[str]:
        """What was asked of the stand-ins since the last call."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


def test_set_up_is_done_once_and_renewed_in_place_when_the_pins_change(tmp_path):
    checkout = Checkout(tmp_path, python3=BASE_PYTHON)
    assert checkout.make("setup").returncode == 0
    made, pip, packages = checkout.log()
    assert made.startswith("venv by") and "install -qq pip==" in pip
    assert packages.endswith("-c constraints.txt -e .[test]")
    assert checkout.make("setup").returncode == 0
    assert checkout.log() == []
    ready = (checkout.folder / ".venv/.ready").stat().st_mtime
    os.utime(checkout.folder / "constraints.txt", (ready + 5, ready + 5))
    assert checkout.make("setup").returncode == 0
    assert [line.startswith("venv") for line in checkout.log()] == [False, False]


def test_an_interrupted_set_up_starts_from_an_empty_environment(tmp_path):
    checkout = Checkout(tmp_path, python3=BASE_PYTHON)
    (checkout.folder / "fail").write_text("constraints.txt")
    failed = checkout.make("test")
    assert failed.returncode != 0 and "error: set-up stopped" in failed.stderr
    assert not any("-m pytest" in line for line in checkout.log())
    (checkout.folder / "fail").unlink()
    (checkout.folder / ".venv/half-written").touch()
    assert checkout.make("setup").returncode == 0
    assert checkout.log()[0].startswith("venv by")
    assert not (checkout.folder / ".venv/half-written").exists()


def test_a_moved_checkout_gets_a_new_environment_and_a_hand_made_one_is_kept(tmp_path):
    checkout = Checkout(tmp_path, python3=BASE_PYTHON)
    checkout.make("setup")
    checkout.folder = checkout.folder.rename(tmp_path / "moved")
    checkout.log()
    assert checkout.make("setup").returncode == 0
    assert checkout.log()[0].startswith("venv by")
    (checkout.folder / ".venv/.ready").unlink()  # as one that `python -m venv .venv` made
    assert checkout.make("setup").returncode == 0
    assert not any(line.startswith("venv by") for line in checkout.log())


def test_another_build_of_torch_comes_first_and_alone(tmp_path):
    checkout = Checkout(tmp_path, python3=BASE_PYTHON)
    assert checkout.make("setup", "TORCH_ARGS=--find-links wheels", "PIP_ARGS=--pre").returncode == 0
    torch, packages = checkout.log()[2:]
    assert "--no-deps --pre --find-links wheels -c constraints.txt torch" in torch
    assert "--pre" in packages and "wheels" not in packages


@pytest.mark.parametrize("pythons, chosen", [
    ({"python3": BASE_PYTHON, "python3.13": BASE_PYTHON}, "python3"),
    ({"python3": BROKEN, "python3.12": BASE_PYTHON}, "python3.12"),
    ({"python3": OLD, "python3.11": BASE_PYTHON}, "python3.11"),
    ({"python3": BARE, "python3.12": BASE_PYTHON}, "python3.12"),
    ({"python3": BASE_PYTHON.replace("*) exec", '-c*) echo newer;;\n  *) exec'),
      "python3.11": BASE_PYTHON}, "python3.11"),
    ({"python3": BASE_PYTHON.replace("*) exec", '-c*) echo newer;;\n  *) exec')}, "python3"),
], ids=["first", "broken shim", "old", "no ensurepip", "newer, tried one there", "only newer"])
def test_the_first_python_that_fits_is_taken(tmp_path, pythons, chosen):
    checkout = Checkout(tmp_path, **pythons)
    assert checkout.make("setup").returncode == 0
    assert checkout.log()[0] == f"venv by {checkout.bin / chosen}"


@pytest.mark.parametrize("script, line", [
    (OLD, "error: no Python 3.11 or newer that starts; tried: {python}. Install one, or name it: "
          "make setup PYTHON=/path/to/python3"),
    (BARE, "error: {python} cannot make virtual environments (it lacks ensurepip); on Debian or "
           "Ubuntu: apt-get install python3-venv"),
], ids=["old", "no ensurepip"])
def test_a_named_python_that_does_not_do_is_refused_in_one_line(tmp_path, script, line):
    checkout = Checkout(tmp_path, python3=BASE_PYTHON, theirs=script)
    refused = checkout.make("setup", f"PYTHON={checkout.bin / 'theirs'}")
    said = [s for s in refused.stderr.splitlines() if not s.startswith("make")]
    assert refused.returncode != 0
    assert said == [line.format(python=checkout.bin / "theirs")]
    assert not (checkout.folder / ".venv").exists()


@pytest.mark.parametrize("target, command", [
    ("report", ".venv/bin/qlora report --profile demo"),
    ("smoke", ".venv/bin/qlora report --profile smoke"),
    ("test", ".venv/bin/python -m pytest"),
])
def test_each_command_sets_up_first(tmp_path, target, command):
    shown = Checkout(tmp_path).make("-n", target).stdout
    assert 0 < shown.index("-e '.[test]'") < shown.index(command)


def test_make_alone_explains_itself(tmp_path):
    shown = Checkout(tmp_path).make().stdout
    for target in ("report", "test", "smoke", "setup", "constraints", "clean"):
        assert re.search(rf"^make {target}\b", shown, re.M)


# --- what is committed ---------------------------------------------------------------------------

def git(*words: str, **kwargs) -> list[str]:
    run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, **kwargs)
    assert run.returncode in (0, 1), run.stderr
    return [name for name in run.stdout.split("\0") if name]


def test_results_are_ignored_and_the_examples_are_not():
    kept = ["report/demo.pdf", "report/report.typ", "report/records/demo/qlora.json",
            "figures/demo/comparison.svg", "notebooks/05.ipynb", "constraints.txt"]
    ignored = [".venv/bin/python", ".venv.unfinished", "results/demo/qlora/record.json",
               "figures/smoke/comparison.svg", "figures/demo/comparison.png", "report/smoke.pdf",
               "report/demo/05.html", "report/smoke/05.ipynb", "qlora_lib.egg-info/PKG-INFO"]
    assert git("check-ignore", "--no-index", "-z", "--stdin", input="\0".join(kept + ignored)) == ignored


def test_nothing_that_git_should_ignore_is_tracked():
    assert git("ls-files", "-z", "--cached", "--ignored", "--exclude-standard")[:5] == []


def test_no_file_names_this_machine_or_a_package_registry():
    """The words are put together here, so that this file does not hold them."""
    hosts = ["pypi" + ".org", "python" + "hosted.org", "npmjs" + ".org", "anaconda" + ".org",
             "debian" + ".org", "ubuntu" + ".com", "crates" + ".io", "golang" + ".org"]
    places = ["/" + "work/", "/" + "root/", "/" + "opt/wheels", "/" + "opt/pypi", "/tmp" + "/w/"]
    banned = re.compile("|".join(map(re.escape, hosts)) + r"|download\.pytorch" + r"\.org|"
                        + "|".join(rf"(?<![\w.}}])({re.escape(p)})" for p in places))
    ignored = set(git("ls-files", "-z", "--cached", "--ignored", "--exclude-standard"))
    names = set(git("ls-files", "-z", "--cached", "--others", "--exclude-standard")) - ignored
    found = {name: match[0] for name in sorted(names) if (ROOT / name).is_file()
             and (match := banned.search((ROOT / name).read_bytes().decode("utf-8", "replace")))}
    assert len(names) > 10 and found == {}
