"""How far apart two computations of the same may end that differ in rounding alone."""

from __future__ import annotations

# Of probabilities, and of features in the unit of the largest of them. oneDNN, which convolves in PyTorch on x86 processors,
# and MKL, which multiplies matrices, add up the sums of an image by where in its batch it lies and by how many lie beside it, on
# some processors and not on others. A float32 has 24 bits, 6e-8 of itself; a network of 50 layers loses a few of them.
ROUNDING = 1e-5
