"""Reads files that a coverage-guided fuzzer (atheris, which is libFuzzer) makes, until one does harm:

    .venv/bin/python tests/fuzz/long_run.py FORMAT [--runs 200000] [--seed 0]

FORMAT: rec, idx, property, lst, bin or recipe. What does harm is kept in a file crash-*, hang in timeout-*; an input takes
at most 10 seconds and 1 GiB. The exit code is 0 where nothing was found.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

with atheris.instrument_imports(include=["partialfc", "yaml", "pickle"]):
    import formats

MEMORY = 1 << 30  # bytes beyond what the process starts with


def limit_memory() -> None:
    """An allocation beyond it is a MemoryError, which no reader may raise."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


def fuzz(which: formats.Format, runs: int, seed: int, folder: Path) -> None:
    """Does not return: libFuzzer ends the process."""
    warnings.simplefilter("error")
    which.surroundings(folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for place, example in enumerate(which.examples()):
        (corpus / str(place)).write_bytes(example)
    limit_memory()
    flags = [f"-runs={runs}", f"-seed={seed + 1}", "-timeout=10", "-max_len=8192", "-rss_limit_mb=4096"]
    flags += ["-print_final_stats=1", str(corpus)]
    atheris.Setup([sys.argv[0], *flags], lambda data: formats.void(formats.attempt(which, data, folder)))
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("format", choices=formats.FORMATS)
    parser.add_argument("--runs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        fuzz(formats.FORMATS[options.format], options.runs, options.seed, options.folder)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # which libFuzzer would leave behind
        sys.exit(subprocess.run([sys.executable, *sys.argv, "--folder", folder], check=False).returncode)


if __name__ == "__main__":
    main()
