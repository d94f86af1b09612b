"""A tokenizer.json as the vocabulary of a GGUF file.

How it works: llama.cpp has two tokenizers that matter here.

  * `gpt2`, byte-level BPE (LLaMA 3, SmolLM2, Qwen2): tokens, merges in order, and the name of the rule by which a text is
    cut into words before any merge. llama.cpp's converter finds that name by hashing the ids of a text, which knows published
    vocabularies alone; here it is read from the rule itself, so a vocabulary of one's own works too, and a rule that
    llama.cpp has no name for is refused instead of guessed at.
  * `llama`, SentencePiece's BPE (LLaMA 2, Mistral, TinyLlama): tokens with scores; the neighbours whose union has the
    highest score are merged first. A tokenizer.json has lost the scores but has the merges in their order, so a token's score
    is minus the rank of the first merge that makes it.

Every row of the embedding needs a token: rows beyond the vocabulary get a name of their own and the type "unused".
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from qlora_lib.errors import QloraError, UsageError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # GGUF's token types
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = {LLAMA3: "llama-bpe", LLAMA3.replace("{1,3}", ""): "qwen2"}  # how text is cut -> llama.cpp's name
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    model: str  # "gpt2" or "llama"
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    special: dict[str, int]  # bos, eos, unk, pad -> id
    add_bos: bool
    add_eos: bool
    add_space: bool | None = None
    chat_template: str | None = field(default=None, repr=False)

    def add_to(self, writer) -> None:
        import gguf

        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            kinds = gguf.GGUFValueType
            writer.add_key_value(gguf.Keys.Tokenizer.MERGES, self.merges, kinds.ARRAY, None if self.merges else kinds.STRING)
        for kind, token in self.special.items():
            getattr(writer, f"add_{kind}_token_id")(token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.add_space is not None:
            writer.add_add_space_prefix(self.add_space)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The vocabulary of a model folder; `rows`: of its embedding.

    Raises: UsageError for a tokenizer that llama.cpp has no like of, QloraError for a folder without a readable one.
    """
    from qlora_lib.models import load_tokenizer

    try:
        described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        bpe, added = described["model"], {t["id"]: t for t in described.get("added_tokens") or []}
        if bpe.get("type") != "BPE":
            raise UsageError(f"cannot write a {bpe.get('type')} tokenizer as GGUF; byte-level or SentencePiece BPE was expected")
        merges = [m.split(" ", 1) if isinstance(m, str) else m for m in bpe["merges"]]
        by_id = {i: token for token, i in bpe["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise QloraError(f"no tokenizer.json can be read in {folder}: {e!s:.200}") from None
    if by_id and max(by_id) >= rows:
        raise QloraError(f"the tokenizer in {folder} has token {max(by_id)} and the embedding only {rows} rows")
    tokenizer = load_tokenizer(folder)
    sentencepiece = bool(bpe.get("byte_fallback"))
    pre = "default" if sentencepiece else word_rule(described)
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(rows)]
    types = [_type(i, by_id, added, tokenizer.unk_token_id if sentencepiece else None, sentencepiece) for i in range(rows)]
    probe = tokenizer("a").input_ids
    return Vocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre=pre,
        tokens=tokens,
        types=types,
        scores=_scores(tokens, types, merges) if sentencepiece else None,
        merges=None if sentencepiece else [f"{a} {b}" for a, b in merges],
        special={kind: i for kind in ("bos", "eos", "unk", "pad") if (i := getattr(tokenizer, f"{kind}_token_id")) is not None},
        add_bos=bool(probe) and probe[0] == tokenizer.bos_token_id,
        add_eos=bool(probe) and probe[-1] == tokenizer.eos_token_id,
        add_space=_adds_space(described) if sentencepiece else None,
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def _type(i: int, by_id: dict, added: dict, unknown: int | None, sentencepiece: bool) -> int:
    if i not in by_id:
        return UNUSED
    if sentencepiece and i == unknown:
        return UNKNOWN
    if i in added:
        return CONTROL if added[i].get("special") else USER_DEFINED
    return BYTE if sentencepiece and BYTE_TOKEN.fullmatch(by_id[i]) else NORMAL


def _scores(tokens: list[str], types: list[int], merges: list[list[str]]) -> list[float]:
    """Minus the rank of the first merge that makes a token; letters, which nothing makes, come last."""
    rank: dict[str, int] = {}
    for i, (a, b) in enumerate(merges):
        rank.setdefault(a + b, i)
    last = len(merges)
    return [0.0 if kind in (BYTE, CONTROL, UNKNOWN, UNUSED) else -float(rank.get(token, last)) for token, kind in zip(tokens, types)]


# --- how a text is cut into words ----------------------------------------------------------------


def word_rule(described: dict) -> str:
    """llama.cpp's name for the way in which a tokenizer.json cuts a text before it merges."""
    normalizer = (described.get("normalizer") or {}).get("type")
    steps = _steps(described.get("pre_tokenizer"))
    kinds = [s.get("type") for s in steps]
    *before, last = steps or [{}]
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space") and normalizer in (None, "NFC"):
        own_regex = last.get("use_regex", True)
        if kinds == ["ByteLevel"] and own_regex:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and own_regex and before[0].get("individual_digits"):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not own_regex and not before[0].get("invert"):
            name = WORDS.get(before[0].get("pattern", {}).get("Regex"))
            if name and before[0].get("behavior") in ("Isolated", "isolated"):
                return name
    shown = json.dumps(described.get("pre_tokenizer"), ensure_ascii=True)
    raise UsageError(f"llama.cpp has no known name for this tokenizer's way to cut words: {shown:.200}", "Export it with llama.cpp's own converter")


def _steps(pre_tokenizer: dict | None) -> list[dict]:
    if not pre_tokenizer:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]


def _adds_space(described: dict) -> bool:
    """Whether a SentencePiece tokenizer puts a space before the text."""
    normalizer = described.get("normalizer") or {}
    parts = normalizer.get("normalizers", [normalizer])
    if any(p.get("type") == "Prepend" for p in parts):
        return True
    scheme = next((s.get("prepend_scheme", "always") for s in _steps(described.get("pre_tokenizer")) if s.get("type") == "Metaspace"), "never")
    return scheme != "never"
