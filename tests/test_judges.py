"""Judges: AlpacaEval's protocol against its own code, an endpoint that misbehaves in every way, files, and the random order."""

import http.server
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_lib.checking import validate
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.judges import (
    JudgeSettings,
    Verdict,
    alpaca_eval,
    evaluate_annotations,
    evaluate_pairs,
    judge_pairs,
    make_judge,
    read_annotations,
    write_annotations,
)
from qlora_lib.judges.endpoint import EndpointJudge
from qlora_lib.judges.offline import ReferenceOverlapJudge
from qlora_lib.judges.transport import _retry_after

EXAMPLE = json.loads((Path(__file__).parent / "alpaca_eval_example.json").read_text(encoding="utf-8"))
KEY = "sk-Very0Secret1Key2"


# --- the protocol, against what alpaca_eval's own code gave


def test_the_prompt_is_alpaca_evals():
    for pair in EXAMPLE["prompts"]:
        assert alpaca_eval.messages(pair["instruction"], pair["output_1"], pair["output_2"]) == pair["messages"]


def test_an_answer_that_looks_like_a_placeholder_stays():
    asked = alpaca_eval.messages("{output_1}", "{output_2} <|im_end|>", "b")[1]["content"]
    assert '"instruction": """{output_1}"""' in asked and '"output": """{output_2} <|im_end|>"""' in asked


@pytest.mark.parametrize("case", EXAMPLE["parsed"])
def test_log_probabilities_are_read_as_alpaca_eval_does(case):
    assert alpaca_eval.weighted_preference(case["tokens"]) == pytest.approx(case["preference"], abs=1e-12)


@pytest.mark.parametrize("seed", EXAMPLE["switched"])
def test_the_coin_is_alpaca_evals(seed):
    found = [alpaca_eval.is_swapped(text, int(seed)) for text in EXAMPLE["switch_instructions"]]
    assert "".join(".x"[swapped] for swapped in found) == EXAMPLE["switched"][seed]


# --- an endpoint


class Server:
    """An OpenAI-compatible endpoint; `script(number, request)` says what the request of that number gets."""

    def __init__(self):
        self.asked, self.headers, self.script = [], [], lambda number, asked: answer(-0.1, -2.0)
        ours = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                ours.asked.append((self.path, asked))
                ours.headers.append(dict(self.headers))
                status, headers, body = ours.script(len(ours.asked) - 1, asked)
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the judge has gone

            def do_GET(self):  # what a redirected request becomes
                ours.asked.append((self.path, None))
                self.send_error(500)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.block_on_close = False  # a request that hangs is left behind
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


def answer(first: float, second: float, text: str = "m", prompt_tokens: int = 100):
    top = [{"token": "m", "logprob": first}, {"token": "M", "logprob": second}, {"token": "Both", "logprob": -20.0}]
    return 200, {}, {
        "model": "judge-1", "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 1},
        "choices": [{"message": {"role": "assistant", "content": text}, "logprobs": {"content": [{"top_logprobs": top}]}}],
    }  # fmt: skip


def failing(status: int, message: str = "no", headers: dict | None = None, code: str = ""):
    return lambda *_: (status, headers or {}, {"error": {"message": message, "code": code}})


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def judge_of(server, waits=None, **more):
    more = {"retries": 2, "timeout": 5.0, "parallel": 1, **more}
    settings = JudgeSettings(kind="endpoint", model="judge-1", base_url=server.url, **more)
    return EndpointJudge(settings, sleep=(waits if waits is not None else []).append)


def cached_files(tmp_path):
    return sorted((tmp_path / "cache" / "judgements").rglob("*.json"))


def pairs(n):
    return [f"question {i}" for i in range(n)], [f"ours {i}" for i in range(n)], [f"theirs {i}" for i in range(n)]


def test_a_judgement_by_log_probabilities(server):
    judge = judge_of(server, usd_per_million_prompt_tokens=10.0, usd_per_million_completion_tokens=30.0)
    verdict = judge.compare("Which?", "one", "two")
    first, second = math.exp(-0.1), math.exp(-2.0)
    assert verdict.preference == pytest.approx(1 + second / (first + second))
    assert verdict.cost_usd == pytest.approx((100 * 10 + 1 * 30) / 1e6) and not verdict.cached
    path, asked = server.asked[0]
    assert path == "/v1/chat/completions" and server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert asked["messages"] == alpaca_eval.messages("Which?", "one", "two")
    assert {k: asked[k] for k in ("model", "max_tokens", "temperature", "logprobs", "top_logprobs")} == {
        "model": "judge-1", "max_tokens": 1, "temperature": 1, "logprobs": True, "top_logprobs": 5,
    }  # fmt: skip
    assert judge_of(server, usd_per_million_prompt_tokens=10.0).compare("Which?", "one", "two").cost_usd is None  # half a price


def test_what_was_judged_is_not_asked_again(server, tmp_path):
    first = judge_of(server).compare("Which?", "one", "two")
    again = judge_of(server).compare("Which?", "one", "two")
    assert again == Verdict(first.preference, cached=True, prompt_tokens=100, completion_tokens=1) and len(server.asked) == 1
    judge_of(server).compare("Which?", "two", "one")  # another order is another question
    assert len(server.asked) == 2
    path = cached_files(tmp_path)[0]
    path.write_text(path.read_text()[:50])  # a damaged file is none
    for pair in (("one", "two"), ("two", "one")):
        judge_of(server).compare("Which?", *pair)
    assert len(server.asked) == 3 and len(cached_files(tmp_path)) == 2
    assert not list(tmp_path.rglob("*.part"))


def test_retry_after_is_waited_for(server):
    server.script = lambda number, asked: failing(429, headers={"Retry-After": "7"})() if number < 2 else answer(-0.1, -2.0)
    waits = []
    assert judge_of(server, waits).compare("Which?", "one", "two").preference is not None
    assert waits == [7.0, 7.0] and len(server.asked) == 3


def test_without_retry_after_the_waits_grow(server):
    server.script = failing(503)
    waits = []
    verdict = judge_of(server, waits, retries=4, longest_wait=5.0).compare("Which?", "one", "two")
    assert verdict == Verdict(None, "HTTP 503", detail="no")
    assert len(waits) == 4 and all(0.7 * w <= found <= w for found, w in zip(waits, (1, 2, 4, 5), strict=True))


def test_retry_after_may_be_a_date_or_nonsense():
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0 and _retry_after("soon") is None and _retry_after(None) is None
    assert _retry_after("2.5") == 2.5 and _retry_after("nan") is None and _retry_after("-3") == 0


def test_a_wait_longer_than_allowed_is_a_failure_at_once(server):
    server.script = failing(429, headers={"Retry-After": "3600"})
    waits = []
    assert judge_of(server, waits).compare("Which?", "one", "two").why == "rate limit (HTTP 429)"
    assert waits == [] and len(server.asked) == 1


@pytest.mark.promise("network")
def test_429_for_ever_stops_with_one_line_and_keeps_what_was_judged(server, tmp_path):
    server.script = lambda number, asked: answer(-0.1, -2.0) if number < 4 else failing(429, "slow down")()
    judge = judge_of(server, retries=1)
    with pytest.raises(QloraError) as stopped:
        judge_pairs(*pairs(30), judge, failures_in_a_row=3)
    assert "3 times in a row" in str(stopped.value) and "429" in str(stopped.value) and "4 of 30" in str(stopped.value)
    assert "\n" not in str(stopped.value) and len(server.asked) == 4 + 3 * 2 and len(cached_files(tmp_path)) == 4


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_stopped_run_goes_on_where_it_was(server, tmp_path, parallel):
    def dies(number, asked):
        if number == 6:
            return failing(401)()
        return answer(-0.1, -2.0)

    server.script = dies
    with pytest.raises(QloraError):
        judge_pairs(*pairs(12), judge_of(server, parallel=parallel))
    kept = len(cached_files(tmp_path))
    assert 6 <= kept < 12
    server.asked.clear()
    server.script = lambda *_: answer(-0.1, -2.0)
    judged = judge_pairs(*pairs(12), judge_of(server, parallel=parallel))
    assert len(server.asked) == 12 - kept and judged.cost["from_cache"] == kept and judged.missing == {}


def test_a_killed_run_goes_on_where_it_was(server, tmp_path):
    """SIGKILL, while the judge is being waited for."""
    hangs = threading.Event()

    def script(number, asked):
        if number == 5:
            hangs.set()
            time.sleep(30)
        return answer(-0.1, -2.0)

    server.script = script
    code = (
        "from qlora_lib.judges import *; import sys;"
        f"s = JudgeSettings(kind='endpoint', model='judge-1', base_url={server.url!r}, parallel=1);"
        f"judge_pairs(*{pairs(9)!r}, make_judge(s))"
    )
    run = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert hangs.wait(60)
    finally:
        run.kill()
        run.wait()
    server.asked.clear()
    server.script = lambda *_: answer(-0.1, -2.0)
    assert judge_pairs(*pairs(9), judge_of(server)).missing == {} and len(server.asked) == 4


@pytest.mark.promise("network")
@pytest.mark.parametrize(
    ("script", "why"),
    [
        (lambda *_: (200, {}, b"<html>hello</html>"), "malformed answer"),
        (lambda *_: (200, {}, b'{"choices": [{"message"'), "malformed answer"),
        (lambda *_: (200, {}, []), "malformed answer"),
        (lambda *_: (200, {}, {"choices": []}), "malformed answer"),
        (lambda *_: (200, {}, {"choices": [{"message": None}]}), "malformed answer"),
        (lambda *_: (200, {}, {"choices": [{"message": {"content": "m"}}]}), "no log-probabilities in the answer"),
        (lambda *_: (200, {}, {"choices": [{"message": {"content": "m"}, "logprobs": None}]}), "no log-probabilities in the answer"),
        (lambda *_: (200, {}, {"choices": [{"message": {"content": None}, "logprobs": {"content": [{"top_logprobs": [
            {"token": "I", "logprob": -0.1}, {"token": "Both", "logprob": -1}]}]}}]}), "neither m nor M in the answer"),
        (lambda *_: answer(math.nan, math.nan), "neither m nor M in the answer"),
        (lambda *_: answer("x", 0), "no log-probabilities in the answer"),
        (failing(400, "context too long"), "HTTP 400"),
    ],
)  # fmt: skip
def test_nonsense_is_counted_and_the_run_goes_on(server, tmp_path, script, why):
    server.script = lambda number, asked: script() if number in (1, 3) else answer(-0.1, -2.0)
    judged = judge_pairs(*pairs(6), judge_of(server))
    assert [p is None for p in judged.preferences] == [False, True, False, True, False, False]
    assert judged.missing == {why: 2} and judged.annotations[1]["failure"] == why
    assert len(cached_files(tmp_path)) == 4  # nonsense is not kept: the next run asks again
    assert len(server.asked) == 6


@pytest.mark.promise("network")
def test_a_redirect_is_not_followed_since_it_would_take_the_key_along(server):
    server.script = lambda *_: (302, {"Location": f"{server.url}/elsewhere"}, {})
    assert judge_of(server).compare("Which?", "one", "two").why == "HTTP 302" and len(server.asked) == 1


def test_a_run_that_ends_does_not_wait_for_the_patience_of_others(server):
    def script(number, asked):
        return failing(429, headers={"Retry-After": "50"})() if "question 0" in str(asked) else failing(401)()

    server.script = script
    settings = JudgeSettings(kind="endpoint", model="judge-1", base_url=server.url, parallel=3)
    begun = time.monotonic()
    with pytest.raises(QloraError, match="401"):
        judge_pairs(*pairs(9), make_judge(settings))
    assert time.monotonic() - begun < 20


@pytest.mark.promise("network")
def test_a_timeout_is_counted(server):
    def slow(number, asked):
        time.sleep(0.6 if "question 1" in asked["messages"][1]["content"] else 0)
        return answer(-0.1, -2.0)

    server.script = slow
    judged = judge_pairs(*pairs(3), judge_of(server, timeout=0.2, retries=1))
    assert judged.missing == {"timeout": 1} and len(server.asked) == 4


@pytest.mark.promise("network")
def test_a_dropped_connection_is_counted(server):
    server.http.shutdown()
    server.http.server_close()
    assert judge_of(server, retries=0).compare("Which?", "one", "two").why == "no connection"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_at_once_and_names_the_variable(server, status):
    server.script = failing(status, f"Incorrect API key provided: {KEY}")
    with pytest.raises(QloraError, match="environment variable OPENAI_API_KEY") as stopped:
        judge_pairs(*pairs(20), judge_of(server))
    assert len(server.asked) == 1 and KEY not in str(stopped.value) and "[key]" in str(stopped.value)


def test_no_such_model_and_no_credit_stop_at_once(server):
    for script, match in ((failing(404), "404"), (failing(429, "You exceeded", code="insufficient_quota"), "no credit")):
        server.script, server.asked = script, []
        with pytest.raises(QloraError, match=match):
            judge_pairs(*pairs(20), judge_of(server))
        assert len(server.asked) == 1


def test_the_key_is_written_nowhere(server, tmp_path, capsys):
    """A server that repeats the key wherever it can: in answers, in errors, in headers."""

    def echoes(number, asked):
        status, headers, body = answer(-0.1, -2.0, text=f"m {KEY}")
        if number % 3 == 1:
            return 500, {"X-Key": KEY}, {"error": {"message": f"bad key {KEY}"}}
        if number % 3 == 2:
            return 200, {}, f"<html>{KEY}</html>".encode()
        return status, headers, body | {"model": f"judge {KEY}"}

    server.script = echoes
    judge = judge_of(server, retries=0, parallel=2)
    result = evaluate_pairs(*pairs(9), judge, annotations_to=tmp_path / "annotations.json", progress=True)
    assert len(server.asked) == 9 and set(result["missing"]) == {"HTTP 500", "malformed answer"}
    assert cached_files(tmp_path)
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert KEY.encode() not in path.read_bytes(), path
    shown = capsys.readouterr()
    assert KEY not in json.dumps(result) + json.dumps(judge.describe()) + shown.out + shown.err + repr(judge.settings)


def test_keys_that_are_absent_or_misplaced(server, monkeypatch):
    remote = {"kind": "endpoint", "model": "j", "base_url": "https://example.invalid/v1"}
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UsageError, match="OPENAI_API_KEY is empty"):
        make_judge(JudgeSettings(**remote))
    assert judge_of(server).compare("Which?", "one", "two").preference  # on this machine none is needed
    assert "Authorization" not in server.headers[0]
    monkeypatch.setenv("MY_KEY", "two words")
    with pytest.raises(UsageError, match="MY_KEY holds no key") as refused:
        make_judge(JudgeSettings(**remote, key_variable="MY_KEY"))
    assert "two words" not in str(refused.value)
    with pytest.raises(UsageError, match="no name of an environment variable") as refused:
        validate(JudgeSettings, {"key_variable": KEY}, "the judge")
    assert KEY not in str(refused.value)
    for url in ("ftp://x/v1", "example.com/v1", f"https://user:{KEY}@x/v1", f"https://x/v1?key={KEY}", "http://x:port/"):
        with pytest.raises(UsageError, match="base_url") as refused:
            validate(JudgeSettings, {"base_url": url}, "the judge")
        assert KEY not in str(refused.value)
    with pytest.raises(UsageError, match="has no model"):
        make_judge(JudgeSettings(kind="endpoint"))


def test_by_the_name_written_where_log_probabilities_are_not_to_be_had(server):
    def written(number, asked):
        assert "logprobs" not in asked
        return 200, {}, {"choices": [{"message": {"content": ["m", " M\n", "both"][number]}}]}

    server.script = written
    judge = judge_of(server, weighted=False)
    assert [judge.compare(f"q{i}", "one", "two").preference for i in range(3)] == [1.0, 2.0, None]
    assert "not weighted" in judge.protocol


def test_only_the_leaderboards_judge_is_called_alpaca_eval(server):
    assert judge_of(server).protocol.startswith("AlpacaEval-style")
    published = EndpointJudge(JudgeSettings(kind="endpoint", model="gpt-4-1106-preview", base_url=server.url))
    assert published.protocol.startswith("AlpacaEval-style:") and published.name == "weighted_alpaca_eval_gpt4_turbo"


def test_the_document_of_an_evaluation(server):
    server.script = lambda number, asked: answer(-0.1, -2.0, prompt_tokens=1000)
    judge = JudgeSettings(kind="endpoint", model="judge-1", base_url=server.url, parallel=3,
                          usd_per_million_prompt_tokens=1.0, usd_per_million_completion_tokens=0.0)  # fmt: skip
    instructions, ours, theirs = pairs(40)
    more = {"model": "a", "adapter": "b", "baseline": "c", "data": "d", "progress": False}
    result = evaluate_pairs(instructions, [text * 3 for text in ours[:39]] + [None], theirs, judge, **more)
    again = evaluate_pairs(instructions, [text * 3 for text in ours[:39]] + [None], theirs, judge, **more)
    assert {k: result[k] for k in ("task", "model", "adapter", "baseline", "data", "n")} == {
        "task": "winrate", "model": "a", "adapter": "b", "baseline": "c", "data": "d", "n": 39,
    }  # fmt: skip
    assert result["missing"] == {"no answer of the model": 1} and result["cost_usd"] == pytest.approx(39e-3)
    assert result["confidence_interval"][0] < result["win_rate"] < result["confidence_interval"][1]
    assert result["judge"]["asked"] == 39 and again["judge"]["from_cache"] == 39 and len(server.asked) == 39
    assert again["judge"]["cost_usd_this_run"] is None and again["cost_usd"] == result["cost_usd"]
    # this judge looks at the place alone: every first answer wins by the same weight, and the random order shows it
    weight = 100 / (1 + math.exp(-1.9))
    assert result["position_bias"]["first_place_wins"] == pytest.approx(weight)
    assert result["position_bias"]["advantage"] == pytest.approx(2 * weight - 100)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


# --- without an endpoint


class Always:
    """Prefers what a function of (instruction, answer) scores higher, and the place it is told to."""

    name, protocol, needs_reference, parallel = "always", "a test", False, 1

    def __init__(self, score=len, place=0.0):
        self.score, self.place, self.seen = score, place, []

    def compare(self, instruction, output_1, output_2, reference=None):
        self.seen.append((output_1, output_2))
        return Verdict(
            1.5
            - self.place
            + 0.25 * ((self.score(output_2) > self.score(output_1)) - (self.score(output_2) < self.score(output_1)))
        )

    def describe(self):
        return {}


texts = st.lists(st.tuples(st.text(max_size=5), st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=30)


@settings(max_examples=50)
@given(texts, st.integers(0, 1000), st.integers(0, 1000))
def test_a_judge_without_a_bias_for_a_place_gives_the_same_in_any_order(rows, seed, other):
    instructions, ours, theirs = (list(column) for column in zip(*rows, strict=True))
    found = judge_pairs(instructions, ours, theirs, Always(), seed=seed).preferences
    assert found == judge_pairs(instructions, ours, theirs, Always(), seed=other).preferences
    swapped = judge_pairs(instructions, theirs, ours, Always(), seed=seed).preferences
    assert swapped == [3 - p for p in found]


@given(texts, st.integers(0, 1000))
def test_the_order_depends_on_the_instruction_and_the_seed_alone(rows, seed):
    instructions, ours, theirs = (list(column) for column in zip(*rows, strict=True))
    first, second = Always(), Always()
    judge_pairs(instructions, ours, theirs, first, seed=seed)
    judge_pairs(instructions[::-1], ours[::-1], theirs[::-1], second, seed=seed)
    assert first.seen == second.seen[::-1]


def test_a_bias_for_a_place_is_found_and_not_taken_for_a_win():
    n = 400
    instructions = [f"q{i}" for i in range(n)]
    judged = judge_pairs(instructions, ["a much longer answer"] * n, ["short"] * n, Always(place=0.2))
    bias = judged.position_bias  # ours wins by 0.75 in either place, and 0.2 more when first
    assert bias["win_rate_when_first"] == pytest.approx(95) and bias["win_rate_when_second"] == pytest.approx(55)
    assert bias["advantage"] == pytest.approx(40) and bias["n"] == n and bias["balanced_win_rate"] == pytest.approx(75)
    fair = judge_pairs(instructions, ["a much longer answer"] * n, ["short"] * n, Always()).position_bias
    assert fair["advantage"] == pytest.approx(0) and fair["first_place_wins"] != pytest.approx(50, abs=0.01)


def test_equal_and_absent_answers_are_not_asked_about():
    judge = Always()
    judged = judge_pairs(["a", "b", "c", "d"], ["x", None, "y", ""], ["x", "z", None, "w"], judge)
    assert judged.preferences[:3] == [1.5, None, None] and len(judge.seen) == 1
    assert judged.missing == {"no answer of the model": 1, "no answer of the baseline": 1}
    assert judged.lengths == [1, 0, 1, 0]


def test_the_reference_overlap_judge():
    judge = ReferenceOverlapJudge(margin=5.0)
    reference = "paris is the capital of france"
    assert judge.compare("q", "Paris is the capital of France.", "London", reference).preference == 1.0
    assert judge.compare("q", "London", "capital of France", reference).preference == 2.0
    assert judge.compare("q", "Rome", "London", reference).preference == 1.5
    assert judge.compare("q", "Rome", "London", "  ").why == "no reference answer"
    assert "no judge of quality" in judge.protocol and judge.describe()["judges_quality"] is False
    with pytest.raises(UsageError, match="needs reference"):
        judge_pairs(["q"], ["a"], ["b"], judge)
    with pytest.raises(QloraError, match="10 times in a row"):
        judge_pairs(["q"] * 12, ["a"] * 12, ["b"] * 12, judge, references=[None] * 12)
    result = evaluate_pairs(["q"] * 8, [reference] * 8, ["x"] * 8, JudgeSettings(), references=[reference] * 8, progress=False)
    assert result["win_rate"] == 100 and result["cost_usd"] is None and "reference-overlap" in result["protocol"]


def test_an_answer_that_is_not_there_has_no_length():
    n = 40
    columns = [f"q{i}" for i in range(n)], ["w" * (i % 7 + 1) for i in range(n)], ["v" * (i % 5 + 2) for i in range(n)]
    whole = evaluate_pairs(*columns, Always(), progress=False)
    more = evaluate_pairs(columns[0] + ["x"], columns[1] + [None], columns[2] + ["v" * 999], Always(), progress=False)
    assert more["missing"] == {"no answer of the model": 1}
    assert more["length_controlled"] == whole["length_controlled"]


def test_no_verdict_at_all_is_no_rate():
    with pytest.raises(QloraError, match="2 no answer of the model"):
        evaluate_pairs(["q", "r"], [None, None], ["a", "b"], Always(), progress=False)


def test_unequal_numbers_are_refused():
    with pytest.raises(UsageError, match="2 instructions and 1 outputs"):
        judge_pairs(["q", "r"], ["a"], ["b", "c"], Always())
    with pytest.raises(UsageError, match="no instructions"):
        judge_pairs([], [], [], Always())


# --- annotation files


def test_annotations_written_are_those_read_and_give_the_same_rates(tmp_path):
    path = tmp_path / "annotations.json"
    n = 30
    columns = [f"q{i}" for i in range(n)], ["w " * (i + 1) for i in range(n)], ["v " * (n - i) for i in range(n)]
    result = evaluate_pairs(*columns, Always(), model="m", baseline="b", annotations_to=path, progress=False)
    read = read_annotations(path)
    assert (read.model, read.baseline, read.annotator) == ("m", "b", "always")
    again = evaluate_annotations(path)
    for key in ("n", "win_rate", "standard_error", "length_controlled_win_rate", "length_controlled"):
        assert again[key] == result[key]
    assert again["missing"] == {} and "always" in again["protocol"]


def test_alpaca_evals_own_files_are_read(tmp_path):
    """With `preference` 0 for a draw, NaN for none, and keys that we do not know."""
    entry = {
        "instruction": "q",
        "output_1": "aa",
        "output_2": "b",
        "generator_1": "x",
        "generator_2": "y",
        "dataset": "helpful",
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps([entry | {"preference": p} for p in (0, 1, 2.0, 1.25, None, float("nan"))]))
    read = read_annotations(path)
    assert read.preferences == [1.5, 1.0, 2.0, 1.25, None, None]
    assert read.lengths == [1] * 6 and read.baseline_lengths == [2] * 6 and read.annotator is None
    assert evaluate_annotations(path)["missing"] == {"no preference in the file": 2}
    write_annotations(path, read.entries[:3])
    assert len(read_annotations(path).entries) == 3


ENTRY = '{"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1, "generator_2": "one"}'


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "no JSON"), ("{}", "no list"), ("[]", "no list"), ("[1]", "entry 0 .* no object"),
        ('[{"instruction": "q"}]', "entry 0 .* has no output_1"),
        ('[{"instruction": "q", "output_1": 3, "output_2": "b", "preference": 1}]', "output_1 is no text"),
        ('[{"instruction": "q", "output_1": "a", "output_2": "b", "preference": 3}]', "preference is 3"),
        ('[{"instruction": "q", "output_1": "a", "output_2": "b", "preference": "x"}]', "preference is 'x'"),
        ('[{"instruction": "q", "output_1": "a", "output_2": "b", "preference": null}]', "no entry .* has a preference"),
        (f"[{ENTRY}, {ENTRY.replace('one', 'two')}]", "several values of generator_2"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path, content, match):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(QloraError, match=match):
        evaluate_annotations(tmp_path / "a.json")
    with pytest.raises(UsageError, match="cannot read"):
        read_annotations(tmp_path / "absent.json")


# --- a model on this machine


def test_a_local_judge_weighs_the_likelihoods_of_both_names(tiny_model, tiny_tokenizer):
    import torch

    from qlora_lib.config import Quantization
    from qlora_lib.judges.local import LocalJudge
    from qlora_lib.models import load_base

    model = load_base(tiny_model, Quantization(), torch.float32, "cpu")
    judge = LocalJudge(model, tiny_tokenizer, "tiny")
    judge.limit = None
    verdict = judge.compare("Which?", "one", "two")
    text = judge._prompt("Which?", "one", "two")
    likely = []
    for name in ("m", "M"):  # the likelihood of the whole text less that of the prompt, the long way
        ids = torch.tensor([tiny_tokenizer(text + name, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            likely.append(float(torch.log_softmax(model(ids).logits[0, -2].double(), -1)[ids[0, -1]]))
    wanted = 1 + math.exp(likely[1]) / (math.exp(likely[0]) + math.exp(likely[1]))
    assert verdict.preference == pytest.approx(wanted, abs=1e-5)
    assert judge.protocol.startswith("AlpacaEval-style, local judge")
    judge.limit = 10
    assert judge.compare("Which?", "one", "two").why == "longer than the judge's context"
