"""This library against the stock stack and against what the machine allows: `qlora bench`.

How it works: `run.py` goes through the parts (`training`, `decoding`, `scoring`, `numerics`, `machine`), each of
which measures the stock way and ours in turns, in one process on one machine; `record.py` is what comes out, and
`ratios.py` says which of the measurements are compared. Everything is fp32 on the CPU, with equal models, text,
seeds, batches and threads.
"""
