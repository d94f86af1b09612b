"""The protocol of AlpacaEval 2's judge `weighted_alpaca_eval_gpt4_turbo`: its prompt, its parsing, its random order.

How it works: the judge is asked to name the better of the models "m" (the first answer) and "M" (the second) and nothing
else. The preference is not the name that it writes but the weight of both names among the likeliest first tokens:
2 - P(m) / (P(m) + P(M)). A name that is not among them has probability 0.

Source: github.com/tatsu-lab/alpaca_eval 0.6.6, Apache-2.0, Copyright the Alpaca team: the prompt from
evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt, unchanged; parsing after completion_parsers.py, order after
processors.py. One thing differs: the answers are put into the prompt at once, so one that holds "{output_2}" or a chat
marker stays as it is.
"""

import math
import random
import re

SYSTEM = (
    "You are a highly efficient assistant, who evaluates and selects the best large language model (LLMs) based on the "
    "quality of their responses to a given instruction. This process will be used to create a leaderboard reflecting the "
    "most accurate and human-preferred answers."
)
USER = '''\
I require a leaderboard for various large language models. I'll provide you with prompts given to these models and their \
corresponding outputs. Your task is to assess these responses, and select the model that produces the best output from a \
human perspective.

## Instruction

{
    "instruction": """{instruction}""",
}

## Model Outputs

Here are the unordered outputs from the models. Each output is associated with a specific model, identified by a unique \
model identifier.

{
    {
        "model_identifier": "m",
        "output": """{output_1}"""
    },
    {
        "model_identifier": "M",
        "output": """{output_2}"""
    }
}

## Task

Evaluate the models based on the quality and relevance of their outputs, and select the model that generated the best \
output. Answer by providing the model identifier of the best model. We will use your output as the name of the best model, \
so make sure your output only contains one of the following model identifiers and nothing else (no quotes, no spaces, no \
new lines, ...): m or M.

## Best Model Identifier'''
FIRST, SECOND = "m", "M"
PUBLISHED_JUDGE = "gpt-4-1106-preview"  # the judge of the leaderboard


def messages(instruction: str, output_1: str, output_2: str) -> list[dict]:
    """What the judge is asked, as chat messages."""
    texts = {"instruction": instruction, "output_1": output_1, "output_2": output_2}
    asked = re.sub(r"\{(instruction|output_1|output_2)\}", lambda found: texts[found[1]], USER)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


def weighted_preference(log_probabilities: dict[str, float]) -> float | None:
    """1 to 2 from the log-probabilities of the likeliest first tokens, or None where neither name is among them."""
    first, second = (log_probabilities.get(name, -math.inf) for name in (FIRST, SECOND))
    largest = max(first, second)
    if not math.isfinite(largest):
        return None
    first, second = math.exp(first - largest), math.exp(second - largest)
    return 1 + second / (first + second)


def is_swapped(instruction: str, seed: int) -> bool:
    """Whether the judge sees the second answer first: a coin that depends on the instruction and the seed alone."""
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True])[0]
