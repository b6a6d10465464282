"""The flags of ecd_resnet.py, and what they choose: compressor, topology, algorithm.

An option that a family has, some of whose members take it, is one line in a table here.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import datasets
import decentral
import decentral_topologies
import paths
import resnet
import shards


def number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # whether it is a word that means something, the algorithm says


Table = dict[str, tuple[Callable[[str], Any] | None, str]]

# Option -> type, None for a switch, and help; which members take it, their registry knows.
ALGORITHM: Table = {
    "exchange": (str, "auto, all-gather, reduce-scatter, two-level"),
    "published": (None, "the published form, see docs/ecd-psgd.md"),
    "horizon": (int, "where t stops"),
    "gamma": (number_or_word, "consensus step size; theorem: the proven one of choco-sgd"),
    "beta": (float, "the quasi-global momentum, instead of --momentum"),
}
TOPOLOGY: Table = {
    "planes": (int, "how many planes; without it, sides are as equal as can be"),
    "rows": (int, "how many rows; without it, sides are as equal as can be"),
    "columns": (int, "how many columns; without it, sides are as equal as can be"),
    "degree": (int, "neighbors of every rank"),
    "edges": (str, "file of a cluster's wiring: a line 'i j' or 'i j weight' per edge"),
}
COMPRESSOR: Table = {
    "bits": (int, "per coordinate; by default the compressor's, 4 for nuqsgd"),
    "block_size": (int, "coordinates that share a scale; 8192 for nuqsgd"),
    "coding": (str, "auto, fixed, narrow, elias, huffman"),
    "rounding": (str, "random, deterministic"),
}
# What a result is reproduced with, besides the options above.
REPRODUCING = (
    *("dataset", "model", "epochs", "batch_size", "lr", "momentum", "weight_decay", "seed"),
    *("local_steps", "average_every", "partition", "alpha"),
)
# Words that a flag may be; names of a registry are checked there.
WORDS = {
    "on_failure": ("stop", "continue"),
    "evaluate": ("averaged", "each"),
    "device": ("auto", "cpu", "cuda"),
}


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False
        return action.help if nothing else super()._get_help_string(action)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a ResNet data-parallel: mpirun -n 8 python examples/ecd_resnet.py",
        formatter_class=Help,
    )
    # Names are checked where they are used, so that the mistake is reported once, not n times.
    add = parser.add_argument
    topologies = decentral_topologies.available(from_size=None)
    add("--algorithm", default="ecd-psgd", help=", ".join(decentral.algorithms.available()))
    _add_options(add, ALGORITHM, decentral.algorithms)
    add("--local-steps", type=int, default=1, help="steps between two exchanges")
    add("--average-every", type=int, default=0, help="of gossip: steps between full averages")
    add("--topology", default="ring", help=", ".join(topologies))
    _add_options(add, TOPOLOGY, decentral_topologies, topologies)
    add("--compressor", default="nuqsgd", help=", ".join(decentral.compressors.available()))
    _add_options(add, COMPRESSOR, decentral.compressors)
    add("--dataset", default="digits", help=", ".join(datasets.DATASETS))
    add("--data-dir", default="data", help="where cifar10 or the image folders lie")
    add("--partition", default="iid", help=f"who gets which images: {', '.join(shards.PARTITIONS)}")
    add("--alpha", type=float, help="of dirichlet: 0.1 for a few labels a rank, 100 for all")
    add("--model", default="resnet20", help=", ".join(resnet.MODELS))
    add("--epochs", type=int, default=20)
    add("--batch-size", type=int, default=16, help="per rank")
    add("--lr", type=float, default=0.1, help="peak of the one-cycle schedule")
    add("--momentum", type=float, default=0.9, help="of each rank's own optimizer")
    add("--weight-decay", type=float, default=1e-4)
    add("--evaluate", default="averaged", help="averaged; each: every rank's own model, too")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add("--json", metavar="FILE", help="rank 0 writes the results here")
    add("--log-dir", metavar="DIR", help="TensorBoard scalars, and a PNG of loss and accuracy")
    add("--checkpoint-dir", metavar="DIR", help="whole checkpoints, the last three, one a step")
    add("--checkpoint-every", type=int, metavar="STEPS", help="instead of after every epoch")
    add("--max-steps", type=int, metavar="STEPS", help="stop after so many in all, and save")
    add("--resume", action="store_true", help="go on from --checkpoint-dir, on any number of ranks")
    add("--on-failure", default="stop", help="of a rank: stop; continue with the others (ULFM)")
    add("--timeout", type=float, default=600.0, help="seconds that one wait for a rank may take")
    return parser.parse_args()


def _add_options(
    add: Callable[..., Any], table: Table, family: Any, names: Iterable[str] | None = None
) -> None:
    names = family.available() if names is None else names
    for option, (kind, text) in table.items():
        takers = ", ".join(name for name in names if option in family.options_of(name))
        how: dict[str, Any] = {"type": kind} if kind else {"action": "store_true", "default": None}
        add(dashed(option), help=f"of {takers}: {text}", **how)


def dashed(name: str) -> str:
    """Return a flag as it is written."""
    return f"--{name.replace('_', '-')}"


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return what was set of these flags, or has a default."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def rounds(args: argparse.Namespace) -> dict[str, Any]:
    """Return how often ranks exchange, as DistributedOptimizer takes it."""
    return given(args, ("local_steps", "average_every"))


def reproducing(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that a run like this one needs, besides those that every result names."""
    return given(args, (*ALGORITHM, *TOPOLOGY, "rounding", *REPRODUCING))


def begun_with(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that a run keeps for good."""
    return {name: getattr(args, name) for name in REPRODUCING}


def check_resumed(args: argparse.Namespace, begun: Mapping[str, Any]) -> None:
    """Raise ValueError if the run to be resumed was begun with other flags; see begun_with()."""
    other = [name for name, value in begun.items() if getattr(args, name) != value]
    if other:
        raise ValueError(
            f"{_written(vars(args), other)}: the run in {args.checkpoint_dir} was begun with "
            f"{_written(begun, other)}, which its schedule is laid out for; resume with that, or "
            "begin anew in another --checkpoint-dir"
        )


def _written(values: Mapping[str, Any], names: Iterable[str]) -> str:
    texts = ((dashed(name), values[name]) for name in names)
    return ", ".join(f"no {flag}" if value is None else f"{flag} {value}" for flag, value in texts)


def is_gossip(args: argparse.Namespace) -> bool:
    """Return whether --algorithm takes the --topology."""
    return "topology" in decentral.algorithms.options_of(args.algorithm)


def check(args: argparse.Namespace) -> None:
    """Raise ValueError on a mistake that can be seen before MPI starts and data is read."""
    if args.epochs < 1 or args.batch_size < 2:
        raise ValueError("expected --epochs of at least 1 and --batch-size of at least 2")
    if args.resume and not args.checkpoint_dir:
        raise ValueError("--resume needs the --checkpoint-dir to resume from")
    if args.checkpoint_every is not None and not args.checkpoint_dir:
        raise ValueError("--checkpoint-every needs the --checkpoint-dir to write to")
    for flag in ("checkpoint_every", "max_steps", "timeout"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise ValueError(f"{dashed(flag)} must be above 0, got {value}")
    for flag, words in WORDS.items():
        if (word := getattr(args, flag)) not in words:
            known = f"{', '.join(words[:-1])} or {words[-1]}"
            raise ValueError(f"{dashed(flag)} must be {known}, got {word!r}")
    if args.average_every and not is_gossip(args):
        raise ValueError(f"--average-every is of gossip, and {args.algorithm} averages always")
    if args.published and args.horizon is not None:
        raise ValueError(
            f"--horizon {args.horizon}: with --published t goes on for ever; take one of the two"
        )
    shards.check(args.partition, args.alpha)


def warn(args: argparse.Namespace, comm: decentral.communicators.Communicator) -> None:
    """Say what a flag cannot do here."""
    if args.on_failure == "continue" and comm.size > 1 and not comm.survives:
        logging.getLogger("decentral").warning(
            "--on-failure continue: this MPI ends the job when a rank dies; use Open MPI 5 and "
            "`mpirun --with-ft ulfm`"
        )


def make_algorithm(args: argparse.Namespace) -> decentral.algorithms.Algorithm:
    """Return what --algorithm, --topology, --compressor and their options choose.

    Raises:
        ValueError: a name or a value is not known, an algorithm does not take an option, or what
            was chosen does not go together.
    """
    # A job script may set bits and block size whatever the compressor; some have none.
    known = {*decentral.compressors.options_of(args.compressor), "coding", "rounding"}
    options = {k: v for k, v in given(args, COMPRESSOR).items() if k in known}
    compressor = decentral.compressors.from_name(args.compressor, **options)
    shape = given(args, TOPOLOGY)
    decentral_topologies.options_of(args.topology)  # an unknown name is said before MPI starts

    def topology(size: int) -> decentral_topologies.Topology:
        return make_topology(args.topology, size, shape)

    own = given(args, ALGORITHM)
    return decentral.algorithms.from_name(args.algorithm, topology, compressor, **own)


def make_topology(
    name: str, size: int, options: Mapping[str, Any]
) -> decentral_topologies.Topology:
    """Return the topology of that name over `size` ranks.

    Raises:
        ValueError: it takes no such option, or it has no graph of so many ranks: others have.
        OSError: the file of --edges cannot be read.
    """
    try:
        with paths.of_flag("--edges", options.get("edges", ""), "a file that can be read"):
            return decentral_topologies.from_name(name, size, **options)
    except ValueError as error:
        if name in decentral_topologies.available(size, from_size=None):
            raise
        others = ", ".join(decentral_topologies.available(size))
        raise ValueError(f"{error}; with {size} ranks: {others}") from None
