"""A causal language model on this machine as judge: "AlpacaEval-style, local judge", never AlpacaEval.

How it works: the model reads the prompt of `judges.alpaca_eval` through its own chat template; the preference is the weight of its
probabilities of "m" and "M" as the next token. Nothing is generated and nothing leaves the machine. A small model hardly
reads the answers: look at `position_bias` before its win rate.
"""

from qlora_lib.errors import UsageError
from qlora_lib.judges import alpaca_eval
from qlora_lib.judges.base import Verdict


class LocalJudge:
    """Args: a causal LM of transformers and its tokenizer, and a name to report.

    Raises:
        UsageError: where the tokenizer does not tell "m" from "M".
    """

    needs_reference = False
    parallel = 1

    def __init__(self, model, tokenizer, name: str):
        self.model, self.tokenizer, self.model_name = model.eval(), tokenizer, name
        self.name = f"alpaca_eval_style_local_{name}"
        self.protocol = (
            f"AlpacaEval-style, local judge {name}: prompt of weighted_alpaca_eval_gpt4_turbo, "
            "weighted by the likelihoods of m and M"
        )
        self.limit = getattr(model.config, "max_position_embeddings", None)
        prompt = self._prompt("", "", "")
        self.tokens = [self._next_token(prompt, name) for name in (alpaca_eval.FIRST, alpaca_eval.SECOND)]
        if self.tokens[0] == self.tokens[1]:
            raise UsageError(f"the tokenizer of {name} has one token for m and M; a judge needs two", "Use another judge")

    def compare(self, instruction: str, output_1: str, output_2: str, reference: str | None = None) -> Verdict:
        import torch

        ids = self._ids(self._prompt(instruction, output_1, output_2))
        if self.limit is not None and len(ids) > self.limit:
            return Verdict(None, "longer than the judge's context", detail=f"{len(ids)} tokens of {self.limit}")
        with torch.no_grad():
            given = torch.tensor([ids], device=self.model.device)
            logits = self.model(input_ids=given, logits_to_keep=1, use_cache=False).logits[0, -1].float()
        likely = torch.log_softmax(logits, dim=-1)[self.tokens].tolist()
        found = alpaca_eval.weighted_preference(dict(zip((alpaca_eval.FIRST, alpaca_eval.SECOND), likely, strict=True)))
        why = "" if found is not None else "no likelihoods"  # a model that overflows
        return Verdict(
            found, why, prompt_tokens=len(ids), completion_tokens=0, raw={"log_likelihoods": likely} if found else None
        )

    def describe(self) -> dict:
        return {"kind": "local", "name": self.name, "model": self.model_name}

    def _prompt(self, *texts: str) -> str:
        system, user = alpaca_eval.messages(*texts)
        if not getattr(self.tokenizer, "chat_template", None):
            return f"{system['content']}\n\n{user['content']}\n"
        try:
            return self.tokenizer.apply_chat_template([system, user], tokenize=False, add_generation_prompt=True)
        except Exception as e:  # a template may refuse a system message, with an error of its own kind
            if "system" not in str(e).lower():
                raise
            joined = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
            return self.tokenizer.apply_chat_template([joined], tokenize=False, add_generation_prompt=True)

    def _ids(self, text: str) -> list[int]:
        """The template writes the special tokens itself."""
        plain = not getattr(self.tokenizer, "chat_template", None)
        return self.tokenizer(text, add_special_tokens=plain)["input_ids"]

    def _next_token(self, prompt: str, name: str) -> int:
        """The token that begins `name` after the prompt: some tokenizers join it with what stands before."""
        before, after = self._ids(prompt), self._ids(prompt + name)
        if after[: len(before)] == before and len(after) > len(before):
            return after[len(before)]
        return self.tokenizer(name, add_special_tokens=False)["input_ids"][0]
