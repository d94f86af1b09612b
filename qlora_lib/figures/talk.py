"""Figures worth keeping in a talk: of plain arrays, each readable from the back of a room.

How it works: a lesson computes the numbers and calls one of these; `Lesson.keep` shows the figure and
saves it. Nothing here reads a record or loads torch.
"""

import numpy as np

from qlora_lib import style
