"""What a start costs: ``import batchramp`` over ``import torch``, and ``batchramp --help``.

Every figure is the median over fresh processes; the last two are taken inside them.

    python benchmarks/start.py
"""

import statistics
import subprocess
import sys
import time

EVERYTHING = "import batchramp; [getattr(batchramp, name) for name in batchramp.__all__]"
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import batchramp": [sys.executable, "-c", "import batchramp"],
    "batchramp --help": [sys.executable, "-m", "batchramp.cli", "--help"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    for command in COMMANDS.values():
        seconds(command)
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(9)]
    median = {name: statistics.median(one[name] for one in rounds) for name in COMMANDS}
    for name, value in median.items():
        print(f"{value:7.3f} s  {name}")
    for what, names in (("batchramp", ""), ("every public name", EVERYTHING)):
        code = f"import time, torch; t = time.perf_counter(); import batchramp; {names}"
        command = [sys.executable, "-c", code + "\nprint(time.perf_counter() - t)"]
        found = [float(subprocess.check_output(command)) for _ in range(9)]
        print(f"{statistics.median(found):7.3f} s  import {what}, once torch is imported")


if __name__ == "__main__":
    main()
