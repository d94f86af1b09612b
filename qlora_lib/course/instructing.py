"""Pictures of what training on instructions reads: which tokens are learned, and where padding stands.

How it works: an encoded example (qlora_lib.tasks.chat) is shown token by token, the learned ones on a ground and
underlined, so that colour is not the only cue. Batches are drawn position by position: prompt, response, padding.
"""

import html
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.patches import Patch

from qlora_lib import style
from qlora_lib.config import Profile, Settings
from qlora_lib.errors import UsageError
from qlora_lib.notebooks.shown import Shown
from qlora_lib.tasks.chat import IGNORED, Encoded
from qlora_lib.tasks.load import is_task

ARM = "task-instructions"
LEARNED = f"background:#cfe6f5;border-bottom:2px solid {style.BLUE};color:{style.INK}"
NOT_LEARNED = f"color:{style.SOFT}"
PARTS = (  # of a batch: name, colour, hatch
    ("prompt, not learned", style.FAINT, ""),
    ("response, learned", style.BLUE, ""),
    ("padding", style.ORANGE, "////"),
)


def instruction_arm(profile: Profile) -> tuple[str, Settings]:
    """(name, settings) of a profile's arm on instructions: `task-instructions`, else its first QLoRA arm on a task's data."""
    for arm in sorted(profile.arms, key=lambda a: a.name != ARM):
        settings = profile.settings(arm)
        if arm.name == ARM or (arm.method == "qlora" and is_task(settings.data.name)):
            return arm.name, settings
    raise UsageError(f"profile '{profile.name}' has no arm that is tuned on instructions", "Open this lesson on the profile demo or smoke")


# --- tokens ----------------------------------------------------------------------------------------


def show_tokens(ids: Sequence[int], labels: Sequence[int], tokenizer) -> Shown:
    """The example as the model reads it: learned tokens on blue ground, underlined (in plain text between brackets).

    A line break is shown as ↵, and a token that is a part of a letter's bytes as ▯.
    """
    page, text = [], []
    for token, label in zip(ids, labels, strict=True):
        piece = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False).replace("\N{REPLACEMENT CHARACTER}", "▯")
        learned = label != IGNORED
        shown = html.escape(piece.replace("\n", "↵"))
        page.append(f'<span style="{LEARNED if learned else NOT_LEARNED};margin-right:1px">{shown}</span>' + "<br>" * piece.count("\n"))
        text.append(f"[{piece}]" if learned else piece)
    legend = (
        f'<p style="font-size:90%"><span style="{LEARNED}">learned</span> · <span style="{NOT_LEARNED}">not learned</span>: '
        f"{sum(x != IGNORED for x in labels)} of {len(ids)} tokens</p>"
    )
    return Shown(f'<div style="font-family:monospace;white-space:pre-wrap;line-height:1.7">{"".join(page)}</div>{legend}', "".join(text))


# --- batches ---------------------------------------------------------------------------------------


def draw_batches(
    examples: Sequence[Encoded], orders: Mapping[str, Sequence[int]], batch_size: int, batches: int = 6
) -> tuple[style.Figure, str]:
    """The first few batches of each order: one row an example, one column a position.

    orders: title -> indices of `examples`.
    """
    longest = max(len(examples[i].ids) for order in orders.values() for i in order[: batch_size * batches])
    words = []
    with style.page_style():
        figure = style.new_figure(6.4)
        panels = figure.subplots(1, len(orders), sharex=True, squeeze=False)[0]
        for axes, (title, order) in zip(panels, orders.items()):
            spent, real, y = 0, 0, 0.0
            for start in range(0, min(len(order), batch_size * batches), batch_size):
                rows = [examples[i] for i in order[start : start + batch_size]]
                widest = max(len(e.ids) for e in rows)
                for e in rows:
                    learned = sum(label != IGNORED for label in e.labels)
                    sizes = (len(e.ids) - learned, learned, widest - len(e.ids))
                    for left, size, (_, color, hatch) in zip(np.cumsum((0, *sizes)), sizes, PARTS):
                        axes.barh([y], [size], left=left, height=1.0, color=color, hatch=hatch, edgecolor="white", linewidth=0.3)
                    spent, real, y = spent + widest, real + len(e.ids), y + 1
                y += 0.8
            share = 1 - real / spent
            axes.set_title(f"{title}: {share:.0%} padding here")
            axes.set_xlim(0, longest * 1.02)
            axes.set_ylim(y, -1)
            axes.set_yticks([])
            axes.set_xlabel("position in the row, tokens")
            words.append(f"{title}: {share:.0%} of the positions drawn are padding")
        panels[0].set_ylabel(f"examples, in batches of {batch_size}")
        handles = [Patch(facecolor=c, hatch=h, edgecolor="white", label=name) for name, c, h in PARTS]
        figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure, f"Batches of {batch_size} examples, one row each, padded to the longest of the batch. {'; '.join(words)}."


def draw_label_strips(tokens: Sequence[str], rows: Mapping[str, Sequence[bool]]) -> tuple[style.Figure, str]:
    """The same tokens in several ways of labelling: a filled cell is learned, an empty one is not."""
    with style.page_style():
        figure = style.new_figure(1.6 + 0.9 * len(rows))
        axes = figure.subplots()
        for y, learned in enumerate(rows.values()):
            for x, (token, on) in enumerate(zip(tokens, learned, strict=True)):
                axes.barh([y], [0.96], left=x, height=0.8, color=style.BLUE if on else "white", edgecolor=style.BLUE if on else style.SOFT)
                axes.text(x + 0.48, y, token, ha="center", va="center", size=6, color="white" if on else style.SOFT)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, len(tokens))
        axes.set_xticks([])
        axes.set_xlabel("tokens of one example; filled: learned")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    told = "; ".join(f"{name}: learned are {', '.join(t for t, on in zip(tokens, learned) if on) or 'none'}" for name, learned in rows.items())
    return figure, f"Tokens of one example and which are learned. {told}."
