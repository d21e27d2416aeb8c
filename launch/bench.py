"""`fedsim bench`: client steps a second of the engine against a bare training loop, in rounds that alternate."""

import json
import resource
import statistics
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.errors import ConfigurationError, unknown_name
from fedsim.reporting import peak_memory_bytes, write_atomically
from launch.arguments import Arguments
from launch.benchmarks.table import print_table

if TYPE_CHECKING:
    from launch.benchmarks.works import Work


def main(argv: Sequence[str]) -> int:
    """Measures, prints the table, and writes it as JSON where asked."""
    arguments = _read_options(argv)
    if arguments.install_peers:
        return _install_peers()
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.memory_rounds is not None:
        return _memory(arguments.memory_rounds)
    if arguments.payload:
        return _payload(arguments.repeats)
    if arguments.population is not None:
        return _population(arguments.population, arguments.repeats)
    if arguments.server is not None:
        return _server(arguments.server, arguments.repeats)
    if arguments.scaling is not None:
        return _scaling(arguments.scaling)
    if arguments.features:
        return _features(arguments.work, arguments.repeats)
    if arguments.slots:
        return _slots(_works(arguments.work, arguments.clients), arguments.repeats, arguments.threads)
    if arguments.methods:
        return _methods(_works(arguments.work, arguments.clients), arguments.repeats)
    if arguments.overhead:
        return _overhead(_works(arguments.work, arguments.clients), arguments.repeats, arguments.threads)
    if arguments.only is not None:
        return _once(arguments.only, arguments.clients)
    from launch.benchmarks.rounds import measure

    rows = measure(
        _works(arguments.work, arguments.clients), arguments.repeats, arguments.threads, _contestants(arguments.who)
    )
    print_table(rows, arguments.repeats, arguments.threads)
    if arguments.json is not None:
        write_atomically(arguments.json, json.dumps(rows, indent=2) + "\n")
    return 0


def _read_options(argv: Sequence[str]) -> Namespace:
    """Reads the options.

    Raises:
        ConfigurationError: one is unknown, or out of its range.
    """
    parser = Arguments("bench", "Measures client steps a second, against a bare training loop in the same process.")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--work", help="only works whose names contain this, such as DeiT (default: all, an hour)")
    parser.add_argument(
        "--who", help="only these contestants, such as pfl,fedsim_packed, and the bare loop (default: all)"
    )
    parser.add_argument("--clients", type=int, help="clients a round (default: of the work, 10)")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds of each, alternating (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each worker (default 1)")
    parser.add_argument("--memory_rounds", type=int, help="instead: memory over so many rounds of digits")
    parser.add_argument("--payload", action="store_true", help="instead: milliseconds of top-k, encode and decode")
    parser.add_argument("--population", type=int, help="instead: a round of 100 of so many clients against 100 of 1000")
    parser.add_argument("--server", help="instead: time and memory of a METHOD's aggregation, such as FLoRANA")
    parser.add_argument("--methods", action="store_true", help="instead: rounds of sparse methods beside LoRA's")
    parser.add_argument("--scaling", type=int, help="instead: how rounds spread over so many workers, by cohort size")
    parser.add_argument("--features", action="store_true", help="instead: what each speed feature is worth")
    parser.add_argument("--slots", action="store_true", help="instead: numbers of packed clients, and what auto takes")
    parser.add_argument("--overhead", action="store_true", help="instead: what two workers do beside training")
    parser.add_argument("--install_peers", action="store_true", help="instead: install the other simulators, apart")
    parser.add_argument("--only", help="instead: one round of WORK/WHO, such as 0/bare, to see its peak memory")
    arguments = parser.parse_args(argv)
    if min(arguments.repeats, arguments.threads, 1 if arguments.clients is None else arguments.clients) < 1:
        raise ConfigurationError("--repeats, --threads and --clients are whole numbers of 1 or more")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise ConfigurationError(f"--json is {arguments.json}, but there is no folder {arguments.json.parent}; make it")
    return arguments


def _works(part: str | None, clients: int | None) -> dict[int, "Work"]:
    """The works whose names contain a text, whatever its case, by their numbers, with so many clients a round."""
    from launch.benchmarks.works import WORKS

    found = {n: work for n, work in enumerate(WORKS) if (part or "").lower() in work.name.lower()}
    if not found:
        names = "; ".join(work.name for work in WORKS)
        raise ConfigurationError(f"--work is {part!r}, which is in no name of a work; give a part of one of: {names}")
    return {number: replace(work, clients=clients or work.clients) for number, work in found.items()}


def _contestants(names: str | None) -> list[str]:
    """Those that are named, in the order of the table, and the bare loop."""
    from launch.benchmarks.contestants import CONTESTANTS

    asked = list(CONTESTANTS) if names is None else names.split(",")
    for name in asked:
        if name not in CONTESTANTS:
            raise unknown_name("contestant", name, CONTESTANTS)
    return [name for name in CONTESTANTS if name in asked or name == "bare"]


def _once(only: str, clients: int | None) -> int:
    from launch.benchmarks.contestants import CONTESTANTS
    from launch.benchmarks.local_work import Arena
    from launch.benchmarks.peers.environments import not_installed
    from launch.benchmarks.slots import BY_SLOTS
    from launch.benchmarks.works import WORKS

    work, _, who = only.partition("/")
    contestants = {**CONTESTANTS, **BY_SLOTS}
    if work not in map(str, range(len(WORKS))) or who not in contestants:
        raise ConfigurationError(
            f"--only is {only!r}; expected 0/bare: a work below {len(WORKS)}, then {', '.join(contestants)}"
        )
    chosen = contestants[who]
    if chosen.peer and (reason := not_installed(chosen.peer)):
        raise ConfigurationError(f"--only is {only!r}, but {who} is {reason}")
    size = WORKS[int(work)]
    with Arena(replace(size, clients=clients or size.clients)) as arena:
        chosen.make(arena)(1)
    workers_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # of the largest that has ended
    print(max(peak_memory_bytes(), workers_bytes))
    return 0


def _install_peers() -> int:
    """Installs every peer that is not there yet, whatever becomes of the others."""
    from launch.benchmarks.peers.environments import PEERS, install, not_installed

    failed = False
    for who in PEERS:
        if not not_installed(who):
            print(f"{who}: installed")
            continue
        try:
            install(who)
        except ConfigurationError as error:
            print(f"fedsim: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def _memory(rounds: int) -> int:
    from launch.benchmarks.memory import growth, memory_over

    readings = memory_over(rounds)
    for one in readings[:: max(1, len(readings) // 10)]:
        print(f"round {one.round:>6}  {one.resident_bytes / 1e6:8.1f} MB resident  {one.open_files:>4} open files")
    percent, files = growth(readings)
    print(f"growth after warm-up: {percent:+.2f}% of memory, {files:+d} open files")
    return 0


def _payload(repeats: int) -> int:
    from launch.benchmarks.payload import payload_times

    for row in payload_times(600_000, repeats):
        print("  ".join(f"{name} {value:g}" for name, value in row.items()))
    return 0


def _server(name: str, repeats: int) -> int:
    from launch.benchmarks.server_work import METHODS, Size, server_time

    if name not in METHODS:
        raise unknown_name("method to measure", name, METHODS)
    spent, size = server_time(METHODS[name](), repeats), Size()
    whole = 4 * size.modules * size.width**2
    print(
        f"{name}, {size.clients} clients, {size.modules} modules of {size.width} by {size.width}: "
        f"{spent.cpu_seconds * 1e3:.0f} ms of CPU time, {spent.seconds * 1e3:.0f} ms by the clock, each the least of "
        f"{repeats}; {spent.peak_bytes / 1e6:.0f} MB beyond the {spent.upload_bytes / 1e6:.0f} MB that arrived; "
        f"{spent.whole_matrices} matrices of {size.width} by {size.width} made (all modules: {whole / 1e6:.0f} MB); "
        f"product error {spent.product_error:.2e}"
    )
    return 0


def _scaling(workers: int) -> int:
    from launch.benchmarks.scaling import COHORTS, scaling_rows

    if workers < 2:
        raise ConfigurationError(f"--scaling is {workers}, expected 2 or more workers, as one shares with nobody")
    for row in scaling_rows(workers, COHORTS):
        print(
            f"{row.workers} workers, {row.cohort_size:>5} clients: longest worker over mean {row.even_imbalance:.3f}, "
            f"of very unequal clients {row.skewed_imbalance:.3f}; {row.upload_bytes / 1e6:.2f} MB of uploads, "
            f"{row.carried_bytes / 1e6:.2f} MB brought to each worker, gathered here in {row.seconds * 1e3:.0f} ms"
        )
    return 0


def _features(part: str | None, repeats: int) -> int:
    from launch.benchmarks.features import FEATURES, gains

    chosen = [feature for feature in FEATURES if (part or "").lower() in feature.on.name.lower()]
    if not chosen:
        names = "; ".join(dict.fromkeys(feature.on.name for feature in FEATURES))
        raise ConfigurationError(f"--work is {part!r}, on which no feature is measured; give a part of one of: {names}")
    for found in gains(chosen, repeats):
        equal = "other batches" if found.difference is None else f"equal to {found.difference:.1e}"
        print(
            f"{found.feature} ({found.work}): off {found.off_ms:.1f} ms, on {found.on_ms:.1f} ms, "
            f"gain {found.gain:.3f}, {equal}"
        )
    return 0


def _slots(works: Mapping[int, "Work"], repeats: int, threads: int) -> int:
    from launch.benchmarks.rounds import peak_memory
    from launch.benchmarks.slots import BY_SLOTS, packings

    # First, as a process's peak counts from that of the one that started it, which is small only now.
    peaks = {(n, who): peak_memory(n, who, threads, work.clients) for n, work in works.items() for who in BY_SLOTS}
    for number, work in works.items():
        rows, chosen = packings(work, repeats)
        best = max(row.client_steps_per_second for row in rows)
        for row in rows:
            peak = peaks.get((number, f"slots_{row.slots}"))
            held = f", peak memory {peak / 1e6:.0f} MB" if peak else ""
            taken = f", what auto takes: {row.client_steps_per_second / best:.3f} of the best"
            print(
                f"{work.name}, {row.slots:>2} slots: {row.client_steps_per_second:.1f} client steps/s, "
                f"{row.ratio_to_one:.3f} times one after another{held}{taken if row.slots == chosen else ''}"
            )
    return 0


def _methods(works: Mapping[int, "Work"], repeats: int) -> int:
    from launch.benchmarks.method_rounds import method_costs

    for work in works.values():
        for slots in (1, work.clients):
            for cost in method_costs(work, slots, repeats):
                print(
                    f"{work.name}, {slots} slot(s), {cost.method}: {cost.milliseconds:.1f} ms a round, "
                    f"{cost.ratio:.3f} of LoRA's, {cost.cpu_ratio:.3f} of its CPU time"
                )
    return 0


def _overhead(works: Mapping[int, "Work"], repeats: int, threads: int) -> int:
    from launch.benchmarks.overhead import overhead

    for work in works.values():
        for slots in (1, 5):
            found = overhead(work, slots, repeats, threads)
            print(
                f"{work.name}, two workers, {slots} slot(s) each: round {found.round_ms:.1f} ms, training "
                f"{found.training_ms:.1f} ms, all else {100 * found.share:.1f}% of a round"
            )
    return 0


def _population(population: int, repeats: int) -> int:
    from launch.benchmarks.population import COHORT, EXAMPLES, population_times
    from launch.benchmarks.rounds import median_ratio

    if population < COHORT:
        raise ConfigurationError(f"--population is {population}, expected at least {COHORT}, as so many train a round")
    few, many = population_times(population, repeats)
    for times in (few, many):
        rows, milliseconds = times.clients * EXAMPLES, statistics.median(times.seconds) * 1e3
        print(f"{COHORT} of {times.clients:>9,} clients, {rows:>10,} rows: {milliseconds:8.1f} ms a round")
    for clock, slow, fast in (("", many.seconds, few.seconds), (" of CPU time", many.cpu_seconds, few.cpu_seconds)):
        ratio = statistics.median(slow) / statistics.median(fast)
        print(f"ratio{clock} {ratio:.3f} of medians, {median_ratio(slow, fast):.3f} the median of {repeats} neighbours")
    return 0
