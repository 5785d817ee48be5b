"""Freed memory is kept: a block that was freed and asked for again costs no page faults."""

import platform
import subprocess
import sys

import pytest
from tests_support import ROOT

PROGRAM = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import tests_support
tests_support.make_importable()
import torch
from adadistill.core.host_memory import keep_freed_memory
print(keep_freed_memory())
for _ in range(8):  # until the heap has found its shape
    torch.ones(64 << 20, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(64 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose allocator this speaks to")
def test_freed_blocks_are_reused_without_page_faults():
    # A process of its own: the setting lasts as long as the process.
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "tests")]
    taken, faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert taken == "True"
    assert int(faults) < 4 * 16384, "16 blocks of 16,384 pages; nearly all must be old ones"
