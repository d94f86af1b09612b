"""This library against the stock stack and against what the machine allows: `qlora bench`.

How it works: `run.py` goes through the parts (`training`, `numerics`, `decoding`, `scoring`, `scaling` with
`scaling_decoding`, `causes`) and the limits of the `machine`. Each part measures the stock way and ours in turns, in one
process on one machine; `record.py` is what comes out, `ratios.py` says which of the measurements are compared, and
`fits.py` how they grow. Everything is fp32 on the CPU, with equal models, text,
seeds, batches and threads.
"""
