"""A judge behind any OpenAI-compatible chat endpoint, by AlpacaEval 2's weighted protocol.

How it works: one request a comparison; the preference comes from the log-probabilities of the first answer token
(`judges.alpaca_eval`). Each usable answer is a file in the cache, named by the SHA-256 of what was asked of whom, so a run
that was stopped or is repeated pays for nothing twice. Answers that say nothing usable are not kept: the next run asks again.

The key comes from an environment variable and stays in this process: it is in no record, cache, log or error.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
import threading
from pathlib import Path

from qlora_lib.errors import UsageError
from qlora_lib.judges import alpaca_eval
from qlora_lib.judges.base import Verdict
from qlora_lib.judges.settings import JudgeSettings
from qlora_lib.judges.transport import Client, Failed, is_loopback
from qlora_lib.paths import cache_dir, write_atomic

TOP = 5  # likeliest tokens asked for


class EndpointJudge:
    """Asks `settings.model` at `settings.base_url`.

    Raises:
        UsageError: without a model's name, or without a key where one is certainly needed.
    """

    needs_reference = False

    def __init__(self, settings: JudgeSettings, sleep=None):
        if not settings.model:
            raise UsageError("the judge has no model", "Name it as the endpoint does, e.g. gpt-4-1106-preview")
        key = os.environ.get(settings.key_variable, "").strip() or None
        here = is_loopback(settings.base_url)
        if key is None and not here:
            raise UsageError(
                f"the environment variable {settings.key_variable} is empty; the key of {settings.base_url} was expected there",
                f"Set it, e.g. `export {settings.key_variable}=...`, or name another variable",
            )
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise UsageError(f"the environment variable {settings.key_variable} holds no key: it has blanks or odd characters")
        if key and not here and settings.base_url.startswith("http:"):
            print(f"warning: the key in {settings.key_variable} goes to {settings.base_url} unencrypted", file=sys.stderr)
        self.settings, self.parallel = settings, settings.parallel
        published = settings.weighted and settings.model == alpaca_eval.PUBLISHED_JUDGE
        self.name = "weighted_alpaca_eval_gpt4_turbo" if published else f"alpaca_eval_style_{settings.model}"
        how = "weighted by log-probabilities" if settings.weighted else "by the name written, not weighted"
        # AlpacaEval 2 itself is also its 805 instructions and its baseline, which a judge does not know.
        self.protocol = f"AlpacaEval-style: judge {settings.model}, prompt of weighted_alpaca_eval_gpt4_turbo, {how}"
        self._closed = threading.Event()
        self._writing = threading.Lock()
        self.client = Client(
            f"{settings.base_url}/chat/completions", key, settings.key_variable,
            settings.timeout, settings.retries, settings.longest_wait, sleep or self._closed.wait,
        )  # fmt: skip

    def compare(self, instruction: str, output_1: str, output_2: str, reference: str | None = None) -> Verdict:
        asked = self._request(instruction, output_1, output_2)
        path = self._path(asked)
        answer, cached = self._cached(path), True
        if answer is None:
            cached = False
            try:
                answer = self.client.post(asked)
            except Failed as e:
                return Verdict(None, e.reason, detail=e.detail)
        verdict = self._verdict(answer, cached)
        if verdict.preference is not None and not cached:
            kept = {"asked_of": self.settings.base_url, "model": self.settings.model, "answer": _kept(answer)}
            with self._writing:  # the same pair may be judged twice in one run
                write_atomic(path, json.dumps(kept, ensure_ascii=False, allow_nan=False))
        return verdict

    def describe(self) -> dict:
        s = self.settings
        return {
            "kind": "endpoint", "name": self.name, "model": s.model, "base_url": s.base_url, "weighted": s.weighted,
            "usd_per_million_prompt_tokens": s.usd_per_million_prompt_tokens,
            "usd_per_million_completion_tokens": s.usd_per_million_completion_tokens,
        }  # fmt: skip

    def close(self) -> None:
        """Ends waits between attempts: the run is over, and so is this judge."""
        self._closed.set()
        self.client.retries = 0

    def _request(self, instruction: str, output_1: str, output_2: str) -> dict:
        request = {
            "model": self.settings.model,
            "messages": alpaca_eval.messages(instruction, output_1, output_2),
            self.settings.token_limit: 1,
            "temperature": 1,  # of sampling: the log-probabilities do not depend on it
            "top_p": 1.0,
        }
        if self.settings.weighted:
            return request | {"logprobs": True, "top_logprobs": TOP}
        return request | {"temperature": 0}

    def _path(self, asked: dict) -> Path:
        whole = json.dumps([self.settings.base_url, asked], sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()
        return cache_dir() / "judgements" / digest[:2] / f"{digest}.json"

    def _cached(self, path: Path) -> dict | None:
        """An answer kept earlier; a file that is none counts as absent, and is written anew."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            answer = json.loads(path.read_text(encoding="utf-8"))["answer"]
            if self._verdict(answer, True).preference is not None:
                return answer
        return None

    def _verdict(self, answer: dict, cached: bool) -> Verdict:
        prompt, completion = _usage(answer)
        spent = {"cost_usd": self._cost(prompt, completion), "prompt_tokens": prompt, "completion_tokens": completion}
        raw = _kept(answer)
        try:
            choice = answer["choices"][0]
            written = choice["message"].get("content") or ""
            if not isinstance(written, str):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError):
            return Verdict(None, "malformed answer", detail=json.dumps(answer)[:300], cached=cached, raw=raw, **spent)
        if not self.settings.weighted:
            found = {alpaca_eval.FIRST: 1.0, alpaca_eval.SECOND: 2.0}.get(written.strip())
        else:
            tokens = _first_tokens(choice)
            if not tokens:
                why = "no log-probabilities in the answer"
                return Verdict(None, why, detail="weighted=false judges by the name written", cached=cached, raw=raw, **spent)
            found = alpaca_eval.weighted_preference(tokens)
        if found is None:
            return Verdict(None, "neither m nor M in the answer", detail=written[:100], cached=cached, raw=raw, **spent)
        return Verdict(found, cached=cached, raw=raw, **spent)

    def _cost(self, prompt: int | None, completion: int | None) -> float | None:
        prices = self.settings.usd_per_million_prompt_tokens, self.settings.usd_per_million_completion_tokens
        if None in (prompt, completion, *prices):
            return None
        return (prompt * prices[0] + completion * prices[1]) / 1e6


def _first_tokens(choice: dict) -> dict[str, float]:
    """token -> log-probability at the answer's first place; empty where there are none."""
    try:
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        tokens = {t["token"]: float(t["logprob"]) for t in listed if isinstance(t["token"], str)}
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
    return {token: value for token, value in tokens.items() if not math.isnan(value) and value < math.inf}


def _usage(answer: dict) -> tuple[int | None, int | None]:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    counts = [usage.get(k) if isinstance(usage, dict) else None for k in ("prompt_tokens", "completion_tokens")]
    return tuple(n if isinstance(n, int) and not isinstance(n, bool) and n >= 0 else None for n in counts)


def _kept(answer: dict) -> dict:
    """What of an answer is kept: the choice, the tokens used and the model that answered."""
    try:
        clean = json.loads(json.dumps(answer, allow_nan=False))
    except ValueError:
        return {}
    return {k: clean[k] for k in ("model", "choices", "usage") if k in clean}
