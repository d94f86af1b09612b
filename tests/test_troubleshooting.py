"""docs/TROUBLESHOOTING.md quotes messages that the code really has, and some of them are caused here.

Each message of the page is held against the string literals of the package, read with `ast`: the constant parts of one
message and its hint must make up the page's line, with anything in the places of an f-string's expressions. What the page
has in such a place, beyond a word or two, must stand in the code as well.
"""

import ast
import json
import re
from pathlib import Path

import pytest

import qlora_lib
from qlora_lib.errors import QloraError

PACKAGE = Path(qlora_lib.__file__).parent
ROOT = PACKAGE.parent
PAGE = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
MESSAGES = [line for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
PLACEHOLDERS = set(re.findall(r"`([A-Z]+)`", PAGE.split("Words in capitals")[1].split(". An error")[0])) | {"PAGE"}
PLACEHOLDER = re.compile(rf"\b(?:{'|'.join(sorted(PLACEHOLDERS))})\b")
HOLE = "\0"


# --- the code's messages -------------------------------------------------------------------------


def template(node: ast.AST) -> str | None:
    """A string expression with a hole for each part that is not constant; None for what is no string."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return HOLE


def templates() -> tuple[set[str], list[str]]:
    """(whole lines: a message, or a message with its hint; every string of the package)."""
    lines, strings = set(), []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Constant, ast.JoinedStr)) and (text := template(node)):
                strings.append(text)
                lines.add(text)
            if isinstance(node, ast.Call) and len(node.args) >= 2:
                message, hint = map(template, node.args[:2])
                if message and hint:
                    whose = f"{HOLE} " if isinstance(node.func, ast.Name) and node.func.id == "bad" else ""
                    lines.add(f"{whose}{message}. {hint}")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shell = [re.sub(r"\$\$[\w*]+", HOLE, text) for text in re.findall(r'echo "error: (.*?)"', makefile)]
    return {" ".join(line.split()) for line in lines | set(shell)}, strings + shell


LINES, STRINGS = templates()
FLAT = ["".join(text.split()) for text in STRINGS]


def agrees(message: str, line: str) -> bool:
    """Whether a line of the code can print this message of the page."""
    if len(re.sub(rf"[{HOLE}\W]", "", line)) < 12:  # all holes: it could print anything
        return False
    if not all(part in message for part in line.split(HOLE)):  # soon said
        return False
    pattern = "(.*)".join(re.escape(part) for part in line.split(HOLE))
    found = re.fullmatch(rf"{pattern}(?: STEP)?", message)
    return bool(found) and all(known(filled) for filled in found.groups())


def known(filled: str) -> bool:
    """Whether what stands in a hole is a placeholder with a word or two, or text that the code has."""
    for fragment in PLACEHOLDER.split(filled):
        fragment = fragment.strip(" :;.()'`?")
        if len(fragment.split()) > 2 and not any("".join(fragment.split()) in text for text in FLAT):
            return False
    return True


@pytest.mark.parametrize("message", MESSAGES)
def test_each_message_of_the_page_is_one_of_the_code(message):
    text = message.removeprefix("error: ")
    assert any(agrees(text, line) for line in LINES), message


def test_a_message_that_the_code_does_not_have_is_noticed():
    assert len(MESSAGES) >= 40 and len(set(MESSAGES)) == len(MESSAGES)
    for wrong in (
        "arm 'ARM' ran out of storage. Set train.batch_size lower, or train.gradient_checkpointing=true",
        "arm 'ARM' ran out of memory. Set train.batch_size higher",
        "arm 'ARM': the system has stopped it, most likely for want of memory. Its step is planned to need NUMBER, and NUMBER can be used",
        "arm 'ARM' ran out of memory. It is known to need NUMBER of bytes",
        "FOLDER is somehow wrong. Mend it",
    ):
        assert not any(agrees(wrong, line) for line in LINES), wrong


def test_the_page_is_linked_and_its_links_hold():
    assert "docs/TROUBLESHOOTING.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


# --- some of them, caused ------------------------------------------------------------------------


def unknown_model(tmp_path):
    from qlora_lib.assets import resolve_model

    resolve_model("tiny-randm")


def pickles(tmp_path):
    from qlora_lib.assets import resolve_model

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    resolve_model(str(tmp_path))


def own_code(tmp_path):
    from qlora_lib.assets import resolve_model

    (tmp_path / "config.json").write_text('{"auto_map": {}}')
    resolve_model(str(tmp_path))


def held(tmp_path):
    from qlora_lib.claimed import claimed

    with claimed(tmp_path), claimed(tmp_path):
        pass


def not_left(tmp_path):
    from qlora_lib.claimed import computing

    with computing(tmp_path), computing(tmp_path):
        pass


def cannot_write(tmp_path):
    from qlora_lib.claimed import claimed

    (tmp_path / "file").touch()
    with claimed(tmp_path / "file" / "arm"):
        pass


def cannot_use_cache(tmp_path):
    from qlora_lib.assets.store import make_once

    (tmp_path / "file").touch()
    make_once(tmp_path / "file" / "entry", "a recipe", "it", lambda *_: None)


def full_disk(tmp_path):
    from qlora_lib.assets.store import clear_disk_errors

    with clear_disk_errors(tmp_path), open("/dev/full", "w") as disk:
        disk.write("x")


def not_fetched(tmp_path):  # PIP_NO_INDEX is set for all tests
    from qlora_lib.assets import fetch

    with pytest.MonkeyPatch.context() as here:
        here.setenv("QLORA_CACHE", str(tmp_path / "cache"))  # another test may have left it in the one of all tests
        fetch(["wikipedia-sample"], progress=False)


def offline(tmp_path):  # HF_HUB_OFFLINE too
    from qlora_lib.assets import resolve_model

    resolve_model("no-such-org/no-such-model", progress=False)


def foreign_folder(tmp_path):
    from qlora_lib.study import _start_afresh

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine").touch()
    _start_afresh(tmp_path, "key")


def cut_record(tmp_path):
    from qlora_lib.records import read_record

    (tmp_path / "record.json").write_text('{"status": ')
    read_record(tmp_path / "record.json")


def altered_record(tmp_path):
    from example_records import example_records

    from qlora_lib.records import read_record

    path = example_records("smoke")["lora"].write(tmp_path)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    read_record(path)


def no_records(tmp_path):
    from qlora_lib.records import records_of

    records_of("nobody-ran-this", "own")


def unknown_profile(tmp_path):
    from qlora_lib.config import load_profile

    load_profile("smok")


def no_quantization(tmp_path):
    from qlora_lib.config import load_profile

    profile = load_profile("smoke")
    profile.settings(profile.arm("qlora"), {"quantization.format": "none"})


def no_json(tmp_path):
    from qlora_lib.texts import load_texts

    (tmp_path / "x.jsonl").write_text("{}\nnot json\n")
    load_texts(str(tmp_path / "x.jsonl"))


def no_utf8(tmp_path):
    from qlora_lib.texts import load_texts

    (tmp_path / "x.txt").write_bytes("déjà vu ".encode("latin1") * 9)
    load_texts(str(tmp_path / "x.txt"))


def no_column(tmp_path):
    from qlora_lib.texts import load_texts

    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    load_texts(str(tmp_path / "x.csv"))


def bad_chats(tmp_path):
    from qlora_lib.tasks.load import load_task

    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": []}) + "\n")
    load_task(str(tmp_path / "x.jsonl"))


def no_adapter(tmp_path):
    from qlora_lib.models import check_adapter

    (tmp_path / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "adapter" / name).touch()
    check_adapter(tmp_path)


def no_notebooks(tmp_path):
    from qlora_lib.notebooks import runner

    with pytest.MonkeyPatch.context() as here:
        here.setattr(runner, "project_root", lambda: tmp_path)
        runner.choose()


def no_step(tmp_path):
    from qlora_lib.config import load_profile
    from qlora_lib.training import planned_steps

    profile = load_profile("smoke")
    settings = profile.settings(profile.arm("qlora"))
    settings.train.epochs = 0.5
    planned_steps(settings, 2)


def one_of_several(tmp_path):
    from qlora_lib.processes import check_launcher

    with pytest.MonkeyPatch.context() as here:
        here.setenv("ACCELERATE_MIXED_PRECISION", "no")
        here.setenv("MASTER_PORT", "29500")
        check_launcher()


def another_number(tmp_path):
    from qlora_lib.processes import check_number

    check_number(2, 1)


def no_share(tmp_path):
    from qlora_lib.config import load_profile

    profile = load_profile("smoke")
    profile.settings(profile.arm("qlora"), {"runtime.processes": 3})


def no_gpu_to_shard(tmp_path):
    from qlora_lib.hardware import DType
    from qlora_lib.sharding import check

    check("cpu", DType("fp32", ""))


CAUSES = [
    unknown_model, pickles, own_code, held, not_left, cannot_write, cannot_use_cache, full_disk, not_fetched, offline, foreign_folder, cut_record,
    altered_record, no_records, unknown_profile, no_quantization, no_json, no_utf8, no_column, bad_chats, no_adapter, no_notebooks, no_step,
    one_of_several, another_number, no_share, no_gpu_to_shard,
]  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.__name__)
def test_a_fault_that_is_caused_says_what_the_page_says(cause, tmp_path):
    if cause is full_disk and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(QloraError) as raised:
        cause(tmp_path)
    said = f"error: {raised.value}"
    matching = [m for m in MESSAGES if re.fullmatch("(.*)".join(map(re.escape, PLACEHOLDER.split(m))), said)]
    specific = [m for m in matching if "This was not foreseen" not in m]
    assert len(specific) == 1, (said, matching)
