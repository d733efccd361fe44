"""Times one step of plain decoding and of verification on this CPU, by rows and positions, with Numba and without.

    python scripts/cpu_step.py --model smollm2 --rows 1 4 8 --positions 16 1024 4096 7000

The table has the shortest times in ms, and the processor time of all threads. The bound is a roofline: each part takes
its bytes at the speed at which two threads read memory here, or its operations at that of XLA's square product.
"""

import argparse
import os

import jax

import tokenswift_jax as ts
from tokenswift_jax.hardware.clock import product_rate, read_bandwidth
from tokenswift_jax.hardware.cpu_step import cpu_steps, numpy_products

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", help="checkpoint directory, name or hub id; the bundled demo without")
parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8])
parser.add_argument("--positions", type=int, nargs="+", default=[16, 1024, 4096, 7000])
parser.add_argument("--seconds", type=float, default=120.0, help="of measuring")
options = parser.parse_args()
model = ts.load(options.model)
one, two = (read_bandwidth(threads, 5) for threads in (1, 2))
speed, load = product_rate(2048, "float32"), os.getloadavg()[0]
print(f"reads {one / 1e9:.1f} GB/s with one thread, {two / 1e9:.1f} with two; computes {speed / 1e9:.0f} GFLOP/s")
for rows, seconds in numpy_products(model.config, options.rows).items():
    print(f"NumPy's products with the weights alone, {rows} rows: {1e3 * seconds:.1f} ms", flush=True)
print("positions rows  numba: ms (processor)  xla: ms (processor)  bound ms")
for step in cpu_steps(model, options.positions, options.rows, options.seconds):
    numba, xla = (f"{1e3 * wall:8.1f} ({1e3 * used:6.1f})" for wall, used in (step.numba, step.xla))
    print(f"{step.positions:9,} {step.rows:4}  {numba}  {xla:>21}  {1e3 * step.cost.floor(two, speed):14.1f}")
print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after; jax {jax.__version__}")
