"""What the comparisons have in common."""

import contextlib
import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "../.."))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))


def note(text):
    print(text, file=sys.stderr, flush=True)


class Ending:
    """A signal that came while something was removed or ended, which is done first."""

    depth, number = 0, None


def ends_in_order():
    """Ctrl-C and SIGTERM, once: whoever is waited for is ended first, and what was made is removed."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def end(number, _frame):
        for other in numbers:
            signal.signal(other, lambda *_: None)
        if Ending.depth:
            Ending.number = number
        else:
            sys.exit(128 + number)

    for number in numbers:
        signal.signal(number, end)


@contextlib.contextmanager
def undisturbed():
    """While something is removed or ended."""
    Ending.depth += 1
    try:
        yield
    finally:
        Ending.depth -= 1
        if Ending.number and not Ending.depth:
            sys.exit(128 + Ending.number)


def output(command, seconds=900, **kwargs):
    """The command's standard output; None, and a note, if it fails or takes longer."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=seconds, **kwargs)
    except (OSError, subprocess.TimeoutExpired) as error:
        note(f"{command[0]}: {error}")
        return None
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-3:]
        note(f"{' '.join(command)}: exit code {done.returncode}: {' / '.join(tail)}")
        return None
    return done.stdout


def settle(transparent):
    """In a contestant before it starts: the core that `vswitch bench` takes, and no transparent huge pages if there are to be none."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pr_set_thp_disable = 41
    if not transparent:
        ctypes.CDLL(None).prctl(pr_set_thp_disable, 1, 0, 0, 0)


def ours(vswitch):
    """The vswitch that is measured: the one named, else a release build made here."""
    if vswitch is None:
        if output(["cargo", "build", "--release", "--bin", "vswitch"], 3600, cwd=ROOT) is None:
            sys.exit("no vswitch to compare")
        vswitch = os.path.join(TARGET, "release/vswitch")
    return os.path.abspath(vswitch)


def built():
    """Where what is built of peers goes."""
    out = os.path.join(TARGET, "peers")
    os.makedirs(out, exist_ok=True)
    return out


def with_dpdk(source):
    """The program made of a C file that uses DPDK; None if it cannot be built."""
    binary = os.path.join(built(), os.path.basename(source).removesuffix(".c"))
    flags = [output(["pkg-config", which, "libdpdk"]) for which in ("--cflags", "--libs")]
    if None in flags or output(["gcc", "-O3", "-march=native", *flags[0].split(), source, "-o", binary, *flags[1].split()]) is None:
        return None
    return binary


def reserve(pages, who):
    """Reserves so many huge pages, if there are fewer; never gives any back."""
    path = "/proc/sys/vm/nr_hugepages"
    try:
        with open(path, "r+", encoding="ascii") as file:
            if int(file.read()) < pages:
                file.seek(0)
                file.write(str(pages))
    except OSError as error:
        note(f"{path}: {error}; with too few reserved huge pages, {who} has no result")


def spread(values, digits):
    """Median, lowest and highest of those that are there; "no result" of none."""
    values = [value for value in values if value is not None]
    if not values:
        return "no result"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def ratios(these, those, digits=2):
    """`spread` of one by the other, turn by turn."""
    return spread([this / that for this, that in zip(these, those) if this and that], digits)


def bound(reports):
    """The mark of a figure that the generator limited, as most of these reports say."""
    limited = [report["generator_bound"] for report in reports if report]
    return " g" if 2 * sum(limited) > len(limited) else ""


def markdown(head, rows):
    """A table."""
    lines = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in [head, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def write(path, results):
    """Everything measured, if a file for it was named."""
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(results, file)
