"""The console command `fedsim`, the same as `python -m launch`: finds the command and answers mistakes in one line."""

import importlib
import os
import sys
import time
import traceback
from collections.abc import Sequence

from data_partitions.errors import DataError
from fedsim.disk import what_to_do
from fedsim.errors import ConfigurationError, RunStopped, TrainingError, WorkerLost, unknown_name
from launch.stopping import INTERRUPTED, status_of

COMMANDS = {
    "run": ("launch.run", "run one experiment; without --config, FLASC on handwritten digits"),
    "submit": ("launch.submit", "hand a run to SLURM, on as many nodes as asked for"),
    "sweep": ("launch.sweep", "run a grid, a list, seeds, over any key; one table at the end"),
    "search": ("launch.search", "FLASC-Search: tune rank and density, and count what that uploads"),
    "demo": ("launch.demo", "compare LoRA and FLASC on handwritten digits, with table and figure"),
    "report": ("launch.report", "tables and figures of finished runs: accuracy against uploaded bytes"),
    "export": ("launch.export", "write the adapter of a run, or the backbone with it merged in"),
    "partition": ("launch.partition", "make a partition, or load one: describe and draw who holds which labels"),
    "list": ("launch.listing", "what there is: methods, datasets, partitioners, presets, sweeps"),
    "bench": ("launch.bench", "measure client steps a second against a bare training loop"),
}

BAD_CONFIGURATION, FAILED = 2, 1
LONGEST_LINE = 2000
"""Characters of a message that are shown."""
SERVER_SPEAKS_SECONDS = 30
"""How long a worker with nothing new to say waits for the one that has: all workers meet the same bad configuration,
and who lost another worker was not the first to stop. The launcher ends who waits; who is still there then speaks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: what stands behind `fedsim`; None reads the command line.

    Returns:
        The exit status: 0; 1 for a run that failed; 2 for bad configuration or data; 85 for a run that a signal asked
        to stop; 130 for one that Ctrl-C stopped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    command, *rest = arguments
    debug = "--debug" in rest
    try:
        if command not in COMMANDS:
            raise unknown_name("command", command, COMMANDS)
        status: int = importlib.import_module(COMMANDS[command][0]).main(rest)
        return status
    except (ConfigurationError, DataError) as error:
        if not _speaks():
            time.sleep(SERVER_SPEAKS_SECONDS)
        return _fail(error, BAD_CONFIGURATION, debug)
    except TrainingError as error:
        return _fail(error, FAILED, debug)
    except BrokenPipeError:  # whoever read along has enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes at its end
        return FAILED
    except OSError as error:
        return _fail(error, FAILED, debug, what_to_do(error, command == "run"))
    except WorkerLost as error:
        time.sleep(SERVER_SPEAKS_SECONDS)
        return _fail(error, FAILED, debug)
    except RunStopped as stopped:
        if _speaks():
            print(f"fedsim: {stopped}", file=sys.stderr)
        return status_of(stopped.by)
    except KeyboardInterrupt:
        if _speaks():
            print("fedsim: interrupted", file=sys.stderr)
        return INTERRUPTED


def _fail(error: Exception, status: int, debug: bool, line: str = "") -> int:
    if debug:
        traceback.print_exception(error)
    said = " ".join((line or str(error)).split())
    if len(said) > LONGEST_LINE:  # what was given may be of any length
        said = f"{said[: LONGEST_LINE // 2]} ... {said[-LONGEST_LINE // 2 :]}"
    where = f" ({'; '.join(notes)})" if (notes := getattr(error, "__notes__", [])) else ""
    print(f"fedsim: {said}{where}", file=sys.stderr)
    return status


def _speaks() -> bool:
    """Whether this process is the server worker."""
    from launch.environment import global_rank

    return global_rank() == 0


def _usage() -> str:
    lines = [f"  {name:<9} {phrase}" for name, (_, phrase) in COMMANDS.items()]
    return "\n".join(["usage: fedsim COMMAND ...", "", *lines, "", "fedsim COMMAND --help shows a command's options."])


if __name__ == "__main__":
    sys.exit(main())
