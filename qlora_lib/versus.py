"""`qlora eval --task winrate`: a model's answers to instructions against a baseline's, by a judge.

How it works: answers are made greedily, one instruction after another, and written to the folder of the evaluation after
each, in AlpacaEval's format; run again, what is there is not made again. The baseline is the same model without its
adapter, the data's own reference answers, or a file of answers. Then a judge compares them (qlora_lib.judges).
"""

import json
import sys
from pathlib import Path

from qlora_lib.adapters import Adapters
from qlora_lib.assets.store import sha256_of
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.evaluation import load_for_use, what_ran
from qlora_lib.judges import JudgeSettings, evaluate_pairs, make_judge
from qlora_lib.metrics.answers import answering
from qlora_lib.metrics.tasks import room_for_prompt
from qlora_lib.paths import write_atomic
from qlora_lib.progress import bar
from qlora_lib.tasks.chat import prompt_ids
from qlora_lib.tasks.examples import Example
from qlora_lib.tasks.load import load_task

MADE_OF = ("base", "reference")


def evaluate_win_rate(
    model: str,
    data: str,
    adapter: Path | None = None,
    quantization: str = "none",
    double_quant: bool = True,
    context: int = 2048,
    examples: int | None = None,
    answer_tokens: int = 256,
    baseline: str | None = None,
    judge: JudgeSettings | None = None,
    out: Path | None = None,
    dtype: str = "auto",
    seed: int = 0,
) -> dict:
    """The win rate of `model` (with `adapter`) on the instructions of `data`.

    Args:
        baseline: "base" (the model without its adapter), "reference" (the data's own answers), or an AlpacaEval file of
            answers; by default "base" with an adapter and "reference" without.
        judge: by default the one that needs no network and is no judge of quality.
        out: folder for answers and annotations; what it holds of this very model is not made again.
    """
    baseline, judge = baseline or ("base" if adapter else "reference"), judge or JudgeSettings()
    loaded_data = load_task(data)
    if loaded_data.task not in ("instructions", "chat"):
        raise UsageError(f"task winrate needs instructions, and '{data}' is for {loaded_data.task}", "See: qlora eval --help")
    asked = loaded_data.splits["test"][:examples]
    instructions, references = [whole_prompt(e) for e in asked], [e.response.strip() for e in asked]
    if baseline == "base" and adapter is None:
        raise UsageError("the baseline is the model without its adapter, and there is no adapter", "Give --adapter, or another --baseline")
    if baseline == "reference" and judge.kind == "reference-overlap":
        raise UsageError(
            "the judge reference-overlap compares with the reference answers, which cannot also be the baseline",
            "Give --adapter (then the baseline is the model without it), a file of answers, or another --judge",
        )
    room = room_for_prompt(context, answer_tokens)
    judging = make_judge(judge) if judge.kind != "local" else judge  # a key that is missing is told before hours of answers
    if judge.kind == "local" and not judge.model:
        raise UsageError("a local judge has no model", "Name it: --judge-set model=NAME")
    theirs = references if baseline == "reference" else None
    if baseline not in MADE_OF:
        theirs = read_outputs(Path(baseline), instructions)  # a bad file is told before a model is loaded
    def answered() -> tuple:
        """(our answers, the baseline's, what ran, prompts cut); the model is let go, for a judge that is one needs its room."""
        loaded, tokenizer, asset, chosen = load_for_use(model, adapter, quantization, double_quant, dtype)
        prompts = [prompt_ids(e, tokenizer) for e in asked]
        name = f"{asset.name}@{(asset.revision or 'local')[:12]}, {quantization}{'+dq' if double_quant and '4' in quantization else ''}"

        def answers(of: str, file: str) -> list[str]:
            kept = _Kept(out / file if out else None, f"{of}, {chosen.name}, at most {answer_tokens} tokens in {context}")
            rows = [(text, prompt) for text, prompt in zip(instructions, prompts) if text not in kept.known]
            with answering(loaded, tokenizer, answer_tokens) as answer:
                for text, prompt in bar(rows, "answers", "answer", sys.stderr.isatty()):
                    kept.add(text, answer(prompt[-room:]), loaded_data.name)
            return [kept.known[text] for text in instructions]

        ours, others = answers(f"{name} + adapter {_digest(adapter)}" if adapter else name, "outputs.json"), theirs
        if others is None:
            with Adapters(loaded).using(None):
                others = answers(name, "baseline.json")
        return ours, others, asset, chosen, sum(len(p) > room for p in prompts)

    ours, others, asset, chosen, prompts_cut = answered()
    found = evaluate_pairs(
        instructions, ours, others, judging, failures_in_a_row=judge.failures_in_a_row, references=references, seed=seed, model=asset.name,
        adapter=str(adapter) if adapter else None, baseline=baseline, data=loaded_data.name,
        annotations_to=out / "annotations.json" if out else None, progress=sys.stderr.isatty(),
    )  # fmt: skip
    return {
        **found,
        **what_ran(asset, adapter, quantization, double_quant, chosen),
        "data": f"{loaded_data.name}, test split",
        "stand_in_for": loaded_data.stand_in_for,
        "protocol": f"greedy answers of at most {answer_tokens} tokens; {found['protocol']}",
        "prompts_cut": prompts_cut,
    }


def whole_prompt(example: Example) -> str:
    """All that was said before the answer: of one turn, the instruction."""
    return "\n\n".join(m.content for m in example.prompt)


def read_outputs(path: Path, instructions: list[str]) -> list[str | None]:
    """Answers of an AlpacaEval file (a JSON list of {"instruction", "output"}) to these instructions; None where it has none."""
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "no regular file")
        rows = json.loads(path.read_text(encoding="utf-8"))
        known = {row["instruction"]: row["output"] for row in rows}
        if not all(isinstance(text, str) for pair in known.items() for text in pair):
            raise TypeError("an answer is no text")
    except OSError as e:
        raise UsageError(
            f"no baseline '{path}': {e.strerror}", "Give base, reference, or a JSON file of answers in AlpacaEval's format"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise QloraError(
            f"{path} holds no answers in AlpacaEval's format ({type(e).__name__}: {e!s:.80})",
            'Expected a JSON list like [{"instruction": "...", "output": "..."}]',
        ) from None
    found = [known.get(text) for text in instructions]
    if all(answer is None for answer in found):
        raise QloraError(f"{path} answers none of the {len(instructions)} instructions", "Give the answers to these very instructions")
    return found


class _Kept:
    """Answers that are written as they come, and read again by a later run of the same model."""

    def __init__(self, path: Path | None, generator: str) -> None:
        self.path, self.generator, self.rows = path, generator, []  # rows of other generators stay in the file
        self.known: dict[str, str] = {}
        if path is not None and path.is_file():
            try:
                self.rows = json.loads(path.read_text(encoding="utf-8"))
                ours = [row for row in self.rows if row["generator"] == generator and isinstance(row["output"], str)]
                self.known = {row["instruction"]: row["output"] for row in ours}
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                raise UsageError(f"{path} holds no answers in AlpacaEval's format", "Move it away, or give another folder with --out") from None

    def add(self, instruction: str, output: str, dataset: str) -> None:
        self.rows.append({"instruction": instruction, "output": output, "generator": self.generator, "dataset": dataset})
        self.known[instruction] = output
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(self.rows, indent=1, ensure_ascii=False) + "\n")


def _digest(adapter: Path) -> str:
    return sha256_of(Path(adapter) / "adapter_model.safetensors")[:12]
