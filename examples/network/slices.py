"""Write a dataset of four slices. Each has the float32 tensor `x` with three samples of two values."""

from array import array
from pathlib import Path

from hypha_executor.safetensors import write_file

directory = Path("numbers")
directory.mkdir(exist_ok=True)
for number in range(4):
    values = array("f", range(number, number + 6))
    write_file(directory / f"{number}.safetensors", [("x", "F32", (3, 2))], [memoryview(values).cast("B")], {})
