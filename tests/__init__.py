"""Tests; their threads sleep while they wait, as several processes of tests share the cores."""

import os

# read when torch is imported; by default OpenMP's threads spin, which takes the cores from those they wait for
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
