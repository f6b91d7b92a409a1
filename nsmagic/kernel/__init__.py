"""The "Isolated Python" kernel: a whole notebook in one container.

``supervisor`` is the kernel that Jupyter starts, on the host; the inner kernel is a real ipykernel in a
container (``launcher/kernel.py``).  Start reading at ``supervisor``.
"""
