"""The course: exercises that explain and draw what is wrong, controls, and the fault lab.

How it works: notebooks call `check` and `control`; everything here may use the whole library, and
nothing of the library uses it.
"""
