"""The notebooks: their form in git, that every cell runs, and that their pages need no network."""

import ast
import contextlib
import importlib
import json
import os
import re
import sys
import tomllib
import types
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from example_records import example_records, write_example
from IPython.core.inputtransformer2 import TransformerManager

from qlora_lib.config import load_profile
from qlora_lib.course.exercises import MODULES, exercises_of
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.notebooks import execute_notebooks, runner, stamps
from qlora_lib.notebooks.html import to_html
from qlora_lib.notebooks.ledger import Ledger
from qlora_lib.notebooks.lesson import Lesson, Shown, as_table
from qlora_lib.paths import course_dir

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in PATHS]
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
each_notebook = pytest.mark.parametrize("path", PATHS, ids=NAMES)
each_file = pytest.mark.parametrize("path", PATHS + SOLUTIONS, ids=NAMES + [f"solutions-{p.stem}" for p in SOLUTIONS])
each_exercised = pytest.mark.parametrize("path", PATHS[1:], ids=NAMES[1:])


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(path: Path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def as_python(source: str) -> str:
    return TransformerManager().transform_cell(source)


# --- what is in git ------------------------------------------------------------------------------


def test_lessons_are_numbered():
    numbers = [name.split("_")[0] for name in NAMES]
    assert numbers[0] == "00" and {"01", "02", "03", "04", "05", "06", "09"} <= set(numbers) and len(set(numbers)) == len(numbers)


@each_file
def test_stored_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in code_cells(path):
        assert cell.outputs == [] and cell.execution_count is None, cell.id


@each_file
def test_cells_are_short_and_explained(path):
    before = None
    for cell in read(path).cells:
        lines = cell.source.splitlines()
        if cell.cell_type == "code":
            assert before == "markdown", f"no prose before cell {cell.id}"
            assert len(lines) <= 25 and max(map(len, lines)) <= 78, cell.id
        before = cell.cell_type


@each_notebook
def test_opens_and_closes_as_every_lesson(path):
    prose = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    for wanted in ("# ", "**What you will learn**", "**What you need.**", "**Time and memory.**"):
        assert wanted in prose[0]
    end = prose[-2]
    assert "## Summary" in end and "## Exercises" in end
    assert any("Predict" in text for text in prose)


@each_file
def test_has_one_parameters_cell(path):
    tagged = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    values = {}
    exec(tagged[0].source, values)
    assert (values["profile"], values["records"]) == ("demo", "auto")


@each_file
def test_names_no_machine(path):
    text = path.read_text()
    assert not re.search(r"/(home|root|work|Users|tmp|usr)/|[A-Z]:\\\\", text)
    assert "/content" not in text  # Colab's own folder may change


@each_file
def test_imports_resolve(path):
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(as_python(cell.source))):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)


@each_file
def test_links_lead_to_notebooks(path):
    for target in re.findall(r"\]\(([^)]+\.ipynb)\)", "".join(c.source for c in read(path).cells)):
        if not target.startswith("https://"):
            assert (path.parent / target).is_file(), target


# --- exercises and predictions -------------------------------------------------------------------


def checked(path: Path) -> list[str]:
    """Keys of the exercises that a notebook checks, in order."""
    return [key for cell in code_cells(path) for key in re.findall(r'\bcheck\("([\d.]+)"', cell.source)]


def test_every_lesson_but_the_first_has_exercises():
    assert [path.name.split("_")[0] for path in PATHS[1:]] == list(MODULES)
    assert [path.name for path in SOLUTIONS] == [path.name for path in PATHS[1:]]


@each_exercised
def test_lesson_solutions_and_checkers_have_the_same_exercises(path):
    exercises = exercises_of(path.name.split("_")[0])
    keys = [e.key for e in exercises]
    assert len(keys) >= 4 and len(set(keys)) == len(keys)
    assert checked(path) == keys == checked(path.parent / "solutions" / path.name)
    prose = "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    titles = dict(re.findall(r"^#+ Exercise ([\d.]+) · (.+)$", prose, re.MULTILINE))
    assert titles == {e.key: e.title for e in exercises}
    for e in exercises:
        known = len(e.options) - 1 if hasattr(e, "options") else len(e.mistakes)
        assert known >= 3, f"{e.key} knows {known} mistakes"


def test_predictions_have_names_of_their_own():
    names = []
    for path in PATHS:
        for cell in code_cells(path):
            for call in (n for n in ast.walk(ast.parse(as_python(cell.source))) if isinstance(n, ast.Call)):
                if isinstance(call.func, ast.Attribute) and call.func.attr == "reveal":
                    name = call.args[0]
                    text = name.value if isinstance(name, ast.Constant) else name.values[0].value  # an f-string's start
                    assert text.startswith(path.name[:3].replace("_", " ")), f"{path.name}: {text}"
                    names.append(ast.unparse(name))
    assert len(names) > 40 and len(set(names)) == len(names)


@each_exercised
def test_an_unanswered_exercise_stops_no_lesson(path, executed):
    asked = [cell for cell in code_cells(executed[path.stem].output) if "check(" in cell.source]
    assert len(asked) >= 4
    for cell in asked:
        assert "Open. No answer yet" in json.dumps(cell.outputs), cell.id


@each_exercised
def test_solutions_are_right_and_drawn(path, executed):
    cells = [c for c in code_cells(executed[f"solutions/{path.stem}"].output) if "check(" in c.source]
    for cell in cells:
        kinds = [set(o.data) for o in cell.outputs if "data" in o]
        assert "Right. " in json.dumps(cell.outputs), cell.id
        assert any("image/png" in kind for kind in kinds), cell.id
    assert sum(len(re.findall(r"\bcheck\(", cell.source)) for cell in cells) == len(checked(path))


# --- Colab ---------------------------------------------------------------------------------------


@each_file
def test_badge_and_clone_name_the_repository(path):
    repository = REPOSITORY.removeprefix("https://github.com/")
    file = path.relative_to(ROOT).as_posix()
    badge = f"https://colab.research.google.com/github/{repository}/blob/main/{file}"
    assert f"]({badge})" in read(path).cells[0].source
    assert f"!git clone -q --depth 1 {REPOSITORY}\n" in code_cells(path)[0].source


def run_set_up(path: Path, monkeypatch, colab: bool) -> list[str]:
    """Run the set-up cell where the working directory is; the shell lines that it would have run."""
    ran = []
    shell = types.SimpleNamespace(
        system=ran.append, run_line_magic=lambda name, line: ran.append(f"%{name} {line}")
    )
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    exec(as_python(code_cells(path)[0].source), {"get_ipython": lambda: shell})
    return ran


@each_file
def test_set_up_does_nothing_outside_colab(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_set_up(path, monkeypatch, colab=False) == []
    assert list(tmp_path.iterdir()) == []


@each_file
def test_set_up_in_colab_keeps_torch_and_numpy(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ran = run_set_up(path, monkeypatch, colab=True)
    assert ran == [
        f"git clone -q --depth 1 {REPOSITORY}",
        "pip install -q -c keep.txt -e qlora_lib",
        "%cd -q qlora_lib",
    ]
    from importlib.metadata import version

    kept = [f"{name}=={version(name)}" for name in ("torch", "numpy")]
    assert (tmp_path / "keep.txt").read_text().splitlines() == kept
    (tmp_path / "qlora_lib").mkdir()  # after a restart the clone is there: installed again, not cloned
    assert len(run_set_up(path, monkeypatch, colab=True)) == 2
    (tmp_path / "pyproject.toml").touch()  # inside the checkout: the cell was run twice
    assert run_set_up(path, monkeypatch, colab=True) == []


# --- executed, once for all tests ----------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Results folder with made-up records, and pages outside the checkout."""
    folder = tmp_path_factory.mktemp("notebooks")
    write_example(folder / "results" / "smoke", "smoke")
    (folder / "code").mkdir()
    (folder / "code" / "style.py").write_text("WIDTH = 16\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "PACKAGE", folder / "code")  # the code that outputs depend on
        patch.setenv("QLORA_RESULTS", str(folder / "results"))
        patch.setattr(runner, "report_dir", lambda: folder / "report")
        yield load_profile("smoke")


@pytest.fixture(scope="module")
def executed(smoke):
    return {e.name: e for e in execute_notebooks(smoke, "own", solutions=True)}


def test_every_notebook_runs(executed):
    lessons = [name for name in executed if "/" not in name]
    assert sorted(lessons) == NAMES and lessons[-1] == "09_figures"  # it draws the predictions of all others
    assert sorted(name for name in executed if "/" in name) == [f"solutions/{p.stem}" for p in SOLUTIONS]
    for e in executed.values():
        assert not e.cached and e.output.is_file() and e.html.is_file()
        for cell in code_cells(e.output):
            assert cell.execution_count is not None, f"{e.name} {cell.id}"
            text = json.dumps(cell.outputs)
            streams = [o.name for o in cell.outputs if o.output_type == "stream"]
            assert len(set(streams)) == len(streams), f"{e.name} {cell.id}: text in pieces"
            assert '"error"' not in text and "Warning" not in text, f"{e.name} {cell.id}"
        stamp = json.loads(stamps.stamp_path(e.output).read_text())
        assert stamp["seconds"] > 0 and (stamp["peak_resident_bytes"] or 1) > 0


def test_executed_notebooks_name_no_checkout(executed):
    for e in executed.values():
        notebook = read(e.output)
        assert "input_path" not in notebook.metadata.papermill and "widgets" not in notebook.metadata
        assert notebook.metadata.papermill.parameters == {"profile": "smoke", "records": "own"}


def test_a_new_prediction_makes_the_last_page_again(executed, smoke, monkeypatch):
    made = []
    monkeypatch.setattr(runner, "make_pages", lambda source, *rest: made.append(source.stem))
    path = course_dir("smoke") / "predictions.json"
    before = path.read_text()
    Ledger(path).note("05 step time, QLoRA over full", 1.1, 1.2, "times", "Measured")
    try:
        execute_notebooks(smoke, "own")
    finally:
        path.write_text(before)
    assert made == ["09_figures"]


def test_unchanged_notebooks_are_not_executed_again(executed, smoke):
    again = execute_notebooks(smoke, "own", solutions=True)
    assert all(e.cached for e in again) and sum(e.seconds for e in again) < 1


def test_what_decides_a_page_makes_it_again(executed, smoke, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(runner, "make_pages", lambda source, *rest: made.append(source.stem))
    execute_notebooks(smoke, "own", ["09"], force=True)
    assert made == ["09_figures"]
    made.clear()
    write_example(tmp_path / "smoke", "smoke", seed=1)  # other records
    with monkeypatch.context() as patch:
        patch.setenv("QLORA_RESULTS", str(tmp_path))
        execute_notebooks(smoke, "own", ["09"])
    assert made == ["09_figures"]
    made.clear()
    module = runner.PACKAGE / "style.py"
    module.write_text("WIDTH = 17\n")
    try:
        execute_notebooks(smoke, "own", ["09"])
    finally:
        module.write_text("WIDTH = 16\n")
    assert made == ["09_figures"]
    made.clear()
    executed["09_figures"].html.rename(tmp_path / "gone.html")
    try:
        execute_notebooks(smoke, "own", ["09"])
    finally:
        (tmp_path / "gone.html").rename(executed["09_figures"].html)
    assert made == ["09_figures"]


class Page(HTMLParser):
    """What a browser would load, pictures' texts, links, and formulas of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads, self.alts, self.links, self.tags = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag == "a":
            self.links.append(attrs.get("href", ""))
        else:
            found = (attrs.get(k) for k in ("src", "srcset", "href", "data", "poster", "action"))
            self.loads += [v for v in found if v]
        if tag == "img":
            self.alts.append(attrs.get("alt"))


@each_notebook
def test_page_needs_no_network(path, executed):
    file = executed[path.stem].html
    page = Page(file)
    assert "script" not in page.tags and "iframe" not in page.tags and "link" not in page.tags
    assert all(load.startswith(("data:", "#")) for load in page.loads), page.loads
    style = "".join(re.findall(r"<style>(.*?)</style>", file.read_text(), re.DOTALL))
    assert "url(" not in style and "@import" not in style
    for link in page.links:
        assert link.startswith(("https://", "#")) or (file.parent / link).is_file(), link


@each_notebook
def test_formulas_are_mathml(path, executed):
    prose = "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", prose, flags=re.DOTALL)
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", prose, re.DOTALL)
    assert Page(executed[path.stem].html).tags.count("math") == len(formulas)


def test_pictures_say_what_they_show(executed):
    page = Page(executed["09_figures"].html)
    assert len(page.alts) == 7  # the report's, and the predictions
    assert all(alt and len(alt) > 40 and "No description" not in alt for alt in page.alts)
    assert any("Base fp32" in alt and "perplexity" in alt for alt in page.alts)
    assert page.alts[-1].startswith("Predictions against measurements. 01 ")


@pytest.mark.promise("hostile-file")
def test_page_escapes_and_reports_bad_formulas(tmp_path):
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    long = "<b>&" + "x" * 500
    out = new_output("stream", name="stdout", text=long)
    notebook = new_notebook(cells=[
        new_markdown_cell("# A <title>\n\n![seen](https://example.org/a.png) $a<b$, `$5`"),
        new_code_cell("print()", outputs=[out], execution_count=1),
    ])  # fmt: skip
    path = tmp_path / "01_a.ipynb"
    nbformat.write(notebook, path)
    page = to_html(path)
    assert "<title>A &lt;title&gt;</title>" in page
    assert "&lt;b&gt;&amp;xxx" in page and "<b>&" not in page
    assert "example.org" not in page and "seen" in page
    assert page.count("<math") == 1 and "$5" in page
    for bad in (r"\left( a", "x_", r"\nosuchcommand"):
        notebook.cells[0].source = f"${bad}$"
        nbformat.write(notebook, path)
        with pytest.raises(QloraError, match=r"a formula cannot be turned into MathML"):
            to_html(path)


# --- what can go wrong ---------------------------------------------------------------------------


def test_unknown_number_lists_the_valid_ones():
    with pytest.raises(UsageError, match="no notebook '42'.*Choose from: 00, 01, 02, "):
        runner.choose(["05", "42"])
    assert [p.stem for p in runner.choose(["9", " 05"])] == ["05_comparison", "09_figures"]


def test_a_profile_without_records_says_how_to_make_them(smoke, monkeypatch, tmp_path):
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path))
    with pytest.raises(QloraError, match="no records for profile 'smoke'.*qlora run --profile smoke"):
        execute_notebooks(smoke, "own")


@pytest.fixture
def one_cell(smoke, monkeypatch, tmp_path):
    """Execute a made-up notebook: a good cell, then the given one."""
    from nbformat.v4 import new_code_cell, new_notebook

    monkeypatch.setattr(runner, "project_root", lambda: tmp_path)
    monkeypatch.setattr(runner, "report_dir", lambda: tmp_path / "report")

    def execute(source: str):
        parameters = new_code_cell("profile = records = None", metadata={"tags": ["parameters"]})
        cells = [parameters, new_code_cell("print('was here')"), new_code_cell(source)]
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(new_notebook(cells=cells, metadata=metadata), tmp_path / "notebooks" / "01_made.ipynb")
        return execute_notebooks(smoke, "own")

    return execute


@pytest.mark.parametrize(
    "source, said",
    [
        ("\nvalue = 1 / 0", r"failed in its cell 4 \(In \[4\], `value = 1 / 0`\): ZeroDivisionError: division by zero"),
        ("import os; os._exit(1)", r"the kernel of notebook 01_made died in its cell 4 \(`import os; os._exit\(1\)`\)"),
    ],
    ids=["failing cell", "dead kernel"],
)
def test_a_failure_is_one_line_and_keeps_what_had_run(one_cell, tmp_path, source, said):
    with pytest.raises(QloraError, match=said) as failure:
        one_cell(source)
    assert "\n" not in str(failure.value) and "01_made" in str(failure.value)
    folder = tmp_path / "report" / "smoke" / "notebooks"
    kept = folder / "01_made.failed.ipynb"
    assert sorted(p.name for p in folder.iterdir()) == [kept.name, "01_made.log"]
    assert "was here" in json.dumps([c.outputs for c in code_cells(kept)])


def test_kernel_is_this_python_whatever_is_installed(one_cell, monkeypatch, tmp_path):
    shadow = tmp_path / "jupyter" / "kernels" / "python3"
    shadow.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "shadow", "language": "python"}
    (shadow / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    (done,) = one_cell("import sys; print(sys.executable, profile, records)")
    assert f"{sys.executable} smoke own" in code_cells(done.output)[-1].outputs[0].text


def test_one_process_runs_all_and_keeps_nothing(smoke, monkeypatch, tmp_path):
    """Names, memory, the working directory and the counter of cells: each notebook finds them fresh."""
    from nbformat.v4 import new_code_cell, new_notebook

    monkeypatch.setattr(runner, "project_root", lambda: tmp_path)
    monkeypatch.setattr(runner, "report_dir", lambda: tmp_path / "report")
    (tmp_path / "notebooks").mkdir()
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    sources = {
        "01_first": "import os; big = bytearray(400 * 2**20); os.chdir('/'); print(os.getpid())",
        "02_second": "import os; print(os.getpid(), 'big' in dir(), os.getcwd())",
    }
    for name, source in sources.items():
        parameters = new_code_cell("profile = records = None", metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[parameters, new_code_cell(source)], metadata=metadata)
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    first, second = execute_notebooks(smoke, "own")
    pid = code_cells(first.output)[-1].outputs[0].text.strip()
    last = code_cells(second.output)[-1]
    assert last.outputs[0].text.split() == [pid, "False", str(tmp_path / "notebooks")]
    assert last.execution_count == 3  # the parameters, those that papermill put in, and this
    peaks = [json.loads(stamps.stamp_path(e.output).read_text())["peak_resident_bytes"] for e in (first, second)]
    if None not in peaks:
        assert peaks[0] > 400 * 2**20 > peaks[1]


# --- the lesson ----------------------------------------------------------------------------------


def lesson_of(monkeypatch, folder: Path, arms=None) -> Lesson:
    for arm, record in example_records("smoke").items():
        if arms is None or arm in arms:
            record.write(folder / "smoke" / arm)
    monkeypatch.setenv("QLORA_RESULTS", str(folder))
    return Lesson("smoke", "own")


@pytest.mark.parametrize("arms", [["base"], ["full"], ["base", "qlora-checkpointing"]], ids=",".join)
@pytest.mark.parametrize("name", ["05_comparison", "09_figures"])
def test_notebooks_of_an_unfinished_run(name, arms, monkeypatch, tmp_path):
    """Whatever is missing is told; no cell fails."""
    lesson_of(monkeypatch, tmp_path, arms)
    space = {}
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        for cell in code_cells(ROOT / "notebooks" / f"{name}.ipynb"):
            *body, last = ast.parse(as_python(cell.source)).body or [ast.parse("None").body[0]]
            exec(compile(ast.Module(body, []), cell.id, "exec"), space)
            if not isinstance(last, ast.Expr):
                exec(compile(ast.Module([last], []), cell.id, "exec"), space)
            else:
                shown = eval(compile(ast.Expression(last.value), cell.id, "eval"), space)
                if hasattr(shown, "_repr_html_"):
                    assert shown._repr_html_()
            if "parameters" in cell.metadata.get("tags", []):
                space |= {"profile": "smoke", "records": "own"}


def test_lesson_says_whose_numbers_and_what_is_missing(monkeypatch, tmp_path):
    text = repr(lesson_of(monkeypatch, tmp_path, ["base", "qlora"]))
    assert "profile “smoke”: measured on this machine" in text
    assert "These arms have no record" in text and "LoRA" in text


def test_lesson_refuses_an_unknown_source():
    with pytest.raises(UsageError, match="records = 'comitted' is no source. Did you mean 'committed'"):
        Lesson("smoke", "comitted")


def test_lesson_trains_what_is_missing_when_asked(monkeypatch, tmp_path):
    asked = []
    write_example(tmp_path / "smoke", "smoke")
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path))
    monkeypatch.setattr("qlora_lib.study.run_profile", lambda profile: asked.append(profile.name))
    assert "measured on this machine" in Lesson("smoke", "run").source
    assert asked == ["smoke"]


def test_tables_print_absence_and_formats(monkeypatch, tmp_path):
    lesson = lesson_of(monkeypatch, tmp_path)
    rows = lesson.table(
        {"ppl": "perplexity.after", "bytes": "size_bytes.total@mib_unit", "gain": "gained.{arm}"},
        ["base", "qlora", "qlora-checkpointing", "nobody"],
    ).text.splitlines()
    assert len(rows) == 4  # a head, and an arm without a record is left out
    size = example_records("smoke")["base"].size_bytes.total
    assert f"{size / 1024:.1f}\u00a0KiB" in rows[1] and "not measured" in rows[1] and "—" in rows[1]
    assert "+" in rows[2] or "\u2212" in rows[2]


def test_reveal_compares_a_prediction(monkeypatch, tmp_path):
    lesson = lesson_of(monkeypatch, tmp_path, ["base"])
    assert "set guess" in lesson.reveal("01 a", None, 3.0, "times").text
    assert lesson.reveal("01 b", 3.1, 3.0, "times").text.endswith("Your prediction: 3.10×, within a tenth of it.")
    assert lesson.reveal("01 c", 1.5, 3.0, "times").text.endswith("off by a factor of 2.")
    assert "factor" not in lesson.reveal("01 d", 0, 3.0, "times").text
    assert "not measured" in lesson.reveal("01 e", 1.0, None).text
    assert "The simple rule says 6.00×, off by a factor of 2." in lesson.reveal("01 f", None, 3.0, "times", rule=6).text
    assert "In the ledger stands your first prediction, 1.50×." in lesson.reveal("01 c", 3, 3.0, "times").text
    assert [e.name for e in lesson.ledger.entries] == ["01 a", "01 b", "01 c", "01 d", "01 f"]
    assert "01 f: the rule 6.00×; measured 3.00×" in lesson.predictions().alt


def test_a_ledger_without_predictions_is_not_drawn(monkeypatch, tmp_path):
    lesson = lesson_of(monkeypatch, tmp_path, ["base"])
    assert "holds no prediction yet" in lesson.predictions().text


def test_a_figure_is_kept_for_a_talk(monkeypatch, tmp_path):
    from qlora_lib import style

    lesson = lesson_of(monkeypatch, tmp_path, ["base"])
    with style.page_style():
        figure = style.new_figure(3)
        figure.subplots()
    assert lesson.keep("empty", figure, "nothing").alt == "nothing"
    kept = tmp_path / "smoke" / "course" / "talk"
    assert sorted(p.name for p in kept.iterdir()) == ["empty.png", "empty.svg"]
    assert list(Lesson("smoke", "own").records) == ["base"]  # what a reader leaves is no record


@pytest.mark.promise("hostile-file")
def test_shown_text_is_escaped():
    table = as_table(["<a>", "b & c"], [["<script>", "1"]])
    assert "<script>" not in table.html and "&lt;script&gt;" in table.html and "b &amp; c" in table.html
    assert isinstance(table, Shown) and repr(table).splitlines()[1].startswith("<script>")


def test_figure_that_cannot_be_drawn_says_why(monkeypatch, tmp_path):
    lesson = lesson_of(monkeypatch, tmp_path, ["base"])
    assert lesson.figure("loss-curves").text.startswith("Not drawn: ")
    with pytest.raises(QloraError, match="no figure 'loss-curve'. Did you mean 'loss-curves'"):
        lesson.figure("loss-curve")


def test_cost_takes_the_last_run_here_else_the_committed_one(monkeypatch, tmp_path):
    lesson = lesson_of(monkeypatch, tmp_path, ["base", "full"])
    monkeypatch.setattr("qlora_lib.notebooks.lesson.report_dir", lambda: tmp_path)
    row = "this notebook, its records being there"
    assert row not in lesson.cost("05_comparison").text and "all 2 arms" in lesson.cost("05_comparison").text
    (tmp_path / "records").mkdir()
    committed = {"05_comparison": {"seconds": 7.0, "peak_resident_bytes": 2**28}}
    (tmp_path / "records" / "smoke-notebooks.json").write_text(json.dumps(committed))
    assert "7.00 s" in lesson.cost("05_comparison").text and row not in lesson.cost("06_inference").text
    folder = tmp_path / "smoke" / "notebooks"
    folder.mkdir(parents=True)
    stamps.stamp_path(folder / "05_comparison.ipynb").write_text('{"seconds": 90.0, "peak_resident_bytes": null}')
    assert re.search(r"90\.0 s +not measured", lesson.cost("05_comparison", each_arm=True).text)
