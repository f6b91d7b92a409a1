"""The native runtime: it builds containers, in C; read `spawn.c` first."""
