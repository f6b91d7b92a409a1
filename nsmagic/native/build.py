"""Writes the C source of the cffi extension: called by CMake, never by users."""

import sys
from pathlib import Path

from cffi import FFI

here = Path(__file__).parent
ffi = FFI()
ffi.cdef((here / "_ffi.cdef.txt").read_text())
ffi.set_source("nsmagic.native._runtime", (here / "_ffi.csrc.c").read_text())
ffi.emit_c_code(sys.argv[1])
