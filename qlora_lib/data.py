"""Language-modelling data: texts -> one stream of tokens a split -> fixed windows in a fixed order.

How it works: the documents of a split are joined by a blank line, as the usual WikiText protocol
joins its rows, and tokenized as one text with no special tokens. Training cuts the stream into
windows of `window_length`, so that no token is padding; the order of the windows depends on the
seed alone and is the same in every arm.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qlora_lib.errors import QloraError
from qlora_lib.paths import cache_dir, write_atomic
from qlora_lib.records import DataInfo, SplitStatistics
from qlora_lib.texts import JOIN, SPLITS, Texts, load_texts


SHORTER = 32  # tokens in a window that a page of text has room for


@dataclass(frozen=True)
class LanguageData:
    """Token streams by split, and what is known of them."""

    tokens: dict[str, np.ndarray]  # split -> [tokens] int32
    window_length: int
    info: DataInfo

    def windows(self, split: str) -> np.ndarray:
        """[windows, window_length]; a last partial window is left out."""
        windows = pack(self.tokens[split], self.window_length)
        if len(windows) == 0:
            raise QloraError(
                f"the {split} split of '{self.info.name}' has {len(self.tokens[split])} tokens, "
                f"and one window needs {self.window_length}",
                f"Give more text (a local file is split 90/5/5), or shorter windows: --set data.window_length={SHORTER}",
            )
        return windows


def prepare(name: str, text_column: str, window_length: int, tokenizer) -> LanguageData:
    """Load, tokenize and describe a data set (statistics as in the published table 1)."""
    texts, known = load_texts(name, text_column), fingerprint(tokenizer)
    tokens = {split: tokenize(JOIN.join(texts.splits[split]), tokenizer, known) for split in SPLITS}
    return LanguageData(tokens, window_length, _describe(texts, tokens, window_length, len(tokenizer)))


def _describe(texts: Texts, tokens, window_length: int, vocabulary_size: int) -> DataInfo:
    splits = {
        split: SplitStatistics(
            documents=len(texts.splits[split]),
            characters=sum(map(len, texts.splits[split])),
            tokens=len(tokens[split]),
            windows=len(tokens[split]) // window_length,
        )
        for split in SPLITS
    }
    return DataInfo(
        name=texts.name,
        source=texts.source,
        revision=texts.revision,
        license=texts.license,
        attribution=texts.attribution,
        stand_in_for=texts.stand_in_for,
        train_tokens=len(tokens["train"]),
        eval_tokens=len(tokens["test"]),
        vocabulary_size=vocabulary_size,
        window_length=window_length,
        splits=splits,
    )


def tokenize(text: str, tokenizer, known: bytes | None = None) -> np.ndarray:
    """[tokens] int32, without special tokens; kept in the cache by text and tokenizer.

    A cache file is the SHA-256 of the ids, then the ids: a damaged one is made again.

    Args:
        known: the tokenizer's `fingerprint`, where there are several texts: it takes longer than they do.
    """
    key = hashlib.sha256(text.encode() + b"\0" + (known or fingerprint(tokenizer))).hexdigest()
    path = cache_dir() / "tokens" / f"{key}.i4"
    try:
        stored = path.read_bytes()
        if hashlib.sha256(stored[32:]).digest() == stored[:32]:
            return np.frombuffer(stored[32:], dtype="<i4").copy()  # torch warns of memory it may not write
    except OSError:
        pass  # not there
    tokens = np.asarray(_encode(text, tokenizer), dtype="<i4")
    try:
        write_atomic(path, hashlib.sha256(tokens.tobytes()).digest() + tokens.tobytes())
    except OSError:
        pass  # a full or read-only cache costs a second next time, nothing else
    return tokens


def _encode(text: str, tokenizer) -> list[int]:
    """The ids of a whole text, in two fifths of the time that `tokenizer(text)` takes.

    Its Python call also keeps where each token stood and makes masks and lists of all that. The text stays one
    piece: cut between documents, the tokens of the blank line that joins them would be others.
    """
    tokenizer("", add_special_tokens=False)  # leaves its backend as a plain call does: no truncation, no padding
    return tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def fingerprint(tokenizer) -> bytes:
    """SHA-256 of all that decides the ids: vocabulary, merges, normalization."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).digest()


def pack(tokens: np.ndarray, window_length: int) -> np.ndarray:
    """[tokens] -> [tokens // window_length, window_length]."""
    count = len(tokens) // window_length
    return tokens[: count * window_length].reshape(count, window_length)


def training_order(windows: int, wanted: int, seed: int) -> np.ndarray:
    """[wanted] indices of windows: one random permutation an epoch, from the seed alone."""
    rng = np.random.default_rng(seed)
    epochs = -(-wanted // windows)
    return np.concatenate([rng.permutation(windows) for _ in range(epochs)])[:wanted]


def file_tokens(path: Path, text_column: str, tokenizer) -> np.ndarray:
    """[tokens] of a whole local file or folder, in reading order: for evaluation, unsplit."""
    from qlora_lib.texts import read_documents

    return tokenize(JOIN.join(read_documents(path, text_column)), tokenizer)
