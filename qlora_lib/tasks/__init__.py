"""Tasks beside plain language modelling: instructions, classification, questions about a text, chats of one's own.

How it works: `examples` is the one schema; `published` reads the formats that the data sets are published in, `stand_ins`
makes what needs no hub, `load` gives a data set in splits by its name or its file, and `chat` turns an example into tokens
of which only the response is learned.
"""
