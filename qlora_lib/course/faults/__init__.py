"""The fault lab: one healthy fine-tuning and eight that fail without an error.

How it works: `task` makes a small task, `settings` says what each run does differently, `training` and
`deployment` do it with transformers and PEFT, `run` collects the symptoms, and `signatures` decides from
them. `drawing` and `advice` are what a reader sees. Nothing here is used outside the course.
"""
