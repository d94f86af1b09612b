"""Settings of the judges, typed: which judge, and for an endpoint where it is and how patiently it is asked."""

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from qlora_lib.config import Format, Section
from qlora_lib.errors import UsageError


class JudgeSettings(Section):
    kind: Literal["reference-overlap", "endpoint", "local"] = "reference-overlap"
    margin: float = Field(5.0, ge=0, le=100)  # reference-overlap: F1 points within which two answers are a draw
    model: str = ""  # endpoint: as it names it; local: a registered name, hub id, local folder or .gguf file
    quantization: Format = "none"  # local: how its weights are loaded
    # endpoint
    base_url: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"  # the NAME of the environment variable that holds the key
    weighted: bool = True  # by the first token's log-probabilities; false: by what is written, for endpoints without them
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # what this endpoint calls it
    timeout: float = Field(60.0, gt=0, le=3600)  # seconds for one request
    retries: int = Field(5, ge=0, le=100)  # after a 408, 429 or 5xx, a timeout or a lost connection
    longest_wait: float = Field(60.0, ge=0, le=3600)  # seconds between two attempts, at most
    parallel: int = Field(4, ge=1, le=64)  # requests at once
    usd_per_million_prompt_tokens: float | None = Field(None, ge=0)
    usd_per_million_completion_tokens: float | None = Field(None, ge=0)
    # every judge
    failures_in_a_row: int = Field(10, ge=1)  # after which the run stops

    @field_validator("key_variable")
    @classmethod
    def _is_a_name(cls, value):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):  # the value may be a key: it is not shown
            raise UsageError(
                "'key_variable' is no name of an environment variable; a name such as OPENAI_API_KEY was expected",
                "Put the key into the environment, and its variable's name here",
            )
        return value

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value):
        try:
            parts = urlsplit(value)
            whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:
            whole = False
        if not whole or parts.username or parts.password or parts.query or parts.fragment:  # any may be a secret: not shown
            raise UsageError(
                "'base_url' is no address that judgements can be asked from",
                "http(s)://host[:port]/path was expected, without a user, a password or a query",
            )
        return value.rstrip("/")
