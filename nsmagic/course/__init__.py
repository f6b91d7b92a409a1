"""The course's own instruments: checks of exercises, hints, pictures; the notebooks call them by magics.

A check looks at the kernel's state from outside (namespace links, id maps, mounts, control groups of the
student's processes), never at what a cell printed.  ``exercise`` is where to start reading; each lesson's
exercises and picture are in ``lessons``.  Nothing here is imported before one of the course's magics is used.
"""
