"""The fast path: the same arithmetic as the stock stack in fewer passes over memory."""
