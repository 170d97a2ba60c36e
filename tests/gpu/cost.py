"""What the kernels of one layer must cost on an H100, counted from their source: ``python -m tests.gpu.cost``.

Rates as GPU.md's: 28e12 lane operations and 3.6e12 exponentials a second, 600e12 in bfloat16 products, 3e12 bytes.
"""

from mwork_lens.experiments.planning import LANES as EACH

LANES, EXPONENTIALS, PRODUCTS, BYTES = 28e12, 3.6e12, 600e12, 3e12
HEADS, GROUPS, D_HEAD, D_MODEL, D_MLP = 32, 8, 128, 4096, 14336
FIRST_PASS = 2
"""Multiply-adds by row, key and neuron: the means of a coordinate and of its partner."""
SECOND_PASS = 2 + 2 + 6 + 4 + 4
"""x; its largest, and a limit; a polynomial of degree five; the exponential's scaling, minus one, and which of the two;
the weight and three sums."""
KEYS, BLOCKS = 8, 4
"""Of a program's tile, and blocks of neurons in a head, each of which reads the pattern twice for each site."""


def main() -> None:
    """Print a table."""
    names = ("tokens", "exponentials", "their ms", "lane operations", "their ms", "MB", "their ms", "forward ms")
    print(*(f"{name:>15}" for name in names))
    assert EACH == FIRST_PASS + SECOND_PASS  # what a plan counts
    weights = 2 * D_MODEL * D_HEAD * (HEADS + GROUPS) + 3 * D_MODEL * D_MLP
    for length in (128, 256, 512, 1024, 2048):
        elements = HEADS * D_HEAD * length * (length + KEYS)  # half of all pairs, and two sites
        lanes = elements * (FIRST_PASS + SECOND_PASS)
        tables = 4 * length * D_HEAD * 3 * (HEADS + GROUPS)
        pattern = (
            HEADS * length**2 * (2 + 4 + 4 + 4 * 2 * 2 * BLOCKS / 2)
        )  # read, widened, with scores, and by programs
        forward = max(2 * weights * length / PRODUCTS, 2 * weights / BYTES)
        times = (elements / EXPONENTIALS, lanes / LANES, (tables + pattern) / BYTES, forward)
        ms = [f"{1000 * time:.2f}" for time in times]
        row = (length, f"{elements:.3g}", ms[0], f"{lanes:.3g}", ms[1], round((tables + pattern) / 1e6), ms[2], ms[3])
        print(*(f"{value:>15}" for value in row))


if __name__ == "__main__":
    main()
