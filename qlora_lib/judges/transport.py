"""One POST of JSON to an endpoint, with patience and without leaking the key.

How it works: what may pass (408, 429, 5xx, a timeout, a lost connection) is tried again, after as long as `Retry-After` says
or else after 1, 2, 4, ... seconds with some chance in it. What cannot (401, 403, 404, no credit) stops the run. Anything else
is a failure of this one question. Redirects are not followed: they would carry the key to another host. Every text that a server
sends passes `_without_key` before it is parsed, kept or shown, since servers repeat keys in their errors.

urllib is enough for it: no HTTP library is among this package's own dependencies.
"""

import email.utils
import http.client
import json
import math
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from itertools import count
from urllib.parse import urlsplit

from qlora_lib.errors import QloraError, one_line

TRY_AGAIN = {408, 409, 425, 429, *range(500, 600)}
LARGEST = 8 << 20  # bytes of an answer
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Failed(Exception):
    """This question got no answer: a reason that can be counted, and what was received."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, one_line(detail)[:300]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None


def is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in LOOPBACK


class Client:
    """Asks one address.

    Args:
        sleep: waits so many seconds; may return early to give up waiting.
    """

    def __init__(self, url: str, key: str | None, key_variable: str, timeout: float, retries: int, longest_wait: float,
                 sleep: Callable[[float], object] = time.sleep):  # fmt: skip
        self.url, self.key_variable = url, key_variable
        self.timeout, self.retries, self.longest_wait, self.sleep = timeout, retries, longest_wait, sleep
        self._key = key
        proxies = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
        self._opener = urllib.request.build_opener(_NoRedirects(), *proxies)
        self.requests = 0

    def post(self, payload: dict) -> dict:
        """The parsed answer.

        Raises:
            Failed: for this question.
            QloraError: where no question will be answered.
        """
        for attempt in count():
            try:
                return self._once(payload)
            except _Again as e:
                failed, wait = e.failed, e.wait
            if wait is None:
                wait = min(2.0**attempt, self.longest_wait) * random.uniform(0.75, 1.0)
            if wait > self.longest_wait:
                raise Failed(failed.reason, f"asked to wait {wait:.0f} s, more than longest_wait; {failed.detail}")
            if attempt < self.retries:
                self.sleep(wait)
            if attempt >= self.retries:  # asked again after the wait: the run may have ended meanwhile
                raise failed

    def _once(self, payload: dict) -> dict:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "qlora_lib"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, json.dumps(payload).encode(), headers)
        self.requests += 1
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                text = self._read(response)
        except urllib.error.HTTPError as e:
            with e:
                self._refused(e)
        except TimeoutError:
            raise _Again(Failed("timeout", f"no answer within {self.timeout:g} s")) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as e:
            reason = getattr(e, "reason", e)
            if isinstance(reason, TimeoutError):
                raise _Again(Failed("timeout", f"no answer within {self.timeout:g} s")) from None
            raise _Again(Failed("no connection", self._without_key(f"{type(reason).__name__}: {reason}"))) from None
        try:
            answer = json.loads(text)
        except ValueError:
            raise Failed("malformed answer", text) from None
        if not isinstance(answer, dict):
            raise Failed("malformed answer", text)
        return answer

    def _read(self, response) -> str:
        """The body, within the time and size allowed: a server that sends a byte now and then is a timeout too."""
        until, parts, size = time.monotonic() + self.timeout, [], 0
        while part := response.read1(1 << 16):
            parts.append(part)
            size += len(part)
            if time.monotonic() > until:
                raise TimeoutError
            if size > LARGEST:
                raise Failed("malformed answer", f"more than {LARGEST >> 20} MiB")
        return self._without_key(b"".join(parts).decode("utf-8", "replace"))

    def _refused(self, e: urllib.error.HTTPError):
        try:
            text = self._read(e)
        except (OSError, http.client.HTTPException, Failed):
            text = ""
        said = one_line(_message(text))[:200]
        shown = f": {said}" if said else ""
        if e.code in (401, 403):
            held = "the key in" if self._key else "no key, since nothing is in"
            raise QloraError(
                f"{self.url} refused {held} the environment variable {self.key_variable} (HTTP {e.code}{shown}); "
                "a key that may use this model was expected",
                f"Set {self.key_variable}, or name another variable",
            ) from None
        if e.code == 404:
            raise QloraError(
                f"{self.url} has no such model or address (HTTP 404{shown})",
                "Check the judge's model and base_url, which usually ends in /v1",
            ) from None
        if e.code == 429 and "insufficient_quota" in text:
            raise QloraError(
                f"{self.url} answers no more: the account has no credit left (HTTP 429{shown})",
                "Everything judged so far is kept; run again once there is credit",
            ) from None
        reason = "rate limit (HTTP 429)" if e.code == 429 else f"HTTP {e.code}"
        failed = Failed(reason, said)
        if e.code in TRY_AGAIN:
            raise _Again(failed, _retry_after(e.headers.get("Retry-After"))) from None
        raise failed from None

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


class _Again(Exception):
    def __init__(self, failed: Failed, wait: float | None = None):
        super().__init__(failed.reason)
        self.failed, self.wait = failed, wait


def _message(text: str) -> str:
    """What an OpenAI-compatible error says, or the text itself."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text


def _retry_after(value: str | None) -> float | None:
    """Seconds, from seconds or a date; None where nothing usable was sent."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
