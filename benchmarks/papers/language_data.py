"""Text as numbers of words: WikiText-2's files, any text, or the help topics of Python itself."""

import collections
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Corpus:
    """Numbers of words, int64 [N] each, and what they mean."""

    words: list
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor
    description: str


def wikitext(folder):
    """Return three lists of words; the files hold one paragraph per line, words apart."""
    texts = []
    for part in ("train", "valid", "test"):
        path = Path(folder) / f"wiki.{part}.tokens"
        if not path.exists():
            raise SystemExit(f"there is no {path}: --data-dir takes WikiText-2's folder")
        lines = path.read_text(encoding="utf-8").splitlines()
        texts.append([word for line in lines if line.split() for word in [*line.split(), "<eos>"]])
    return texts


def split(words):
    """Return the first 80, the next 10 and the last 10 % of them."""
    a, b = 8 * len(words) // 10, 9 * len(words) // 10
    return words[:a], words[a:b], words[b:]


def tokens(text):
    """Return words and signs, in lower case; a ruled line is one sign."""
    return [match.group() for match in re.finditer(r"\w+|([^\w\s])\1*", text.lower())]


def help_topics():
    """Return every paragraph once: some topics repeat parts of others."""
    from pydoc_data.topics import topics

    paragraphs = (p.strip() for name in sorted(topics) for p in topics[name].split("\n\n"))
    return "\n".join(dict.fromkeys(paragraphs))


def corpus(args):
    """Return the text that --data-dir, --text, --tokens and --vocabulary ask for."""
    if args.data_dir:
        texts, source = wikitext(args.data_dir), f"{args.data_dir}/wiki.*.tokens"
    elif args.text:
        texts, source = split(tokens(Path(args.text).read_text(encoding="utf-8"))), args.text
    else:
        texts = split(tokens(help_topics()))
        source = f"the help topics of Python {platform.python_version()}"
    train = texts[0][: args.tokens or None]
    frequent = collections.Counter(train).most_common(args.vocabulary - 1)
    words = [UNKNOWN, *(word for word, _ in frequent if word != UNKNOWN)]
    number = {word: i for i, word in enumerate(words)}
    parts = [torch.tensor([number.get(w, 0) for w in t]) for t in (train, *texts[1:])]
    unknown = float((parts[1] == 0).float().mean())
    description = (
        f"{source}: {len(parts[0])} words to train on, {len(parts[1])} to validate, "
        f"{len(parts[2])} to test; a vocabulary of {len(words)} ({unknown:.1%} unknown)"
    )
    return Corpus(words, *parts, description)


def streams(numbers, count):
    """Return [T, count]: `count` equally long pieces of the text, side by side."""
    T = len(numbers) // count
    if T < 2:
        raise SystemExit(f"{len(numbers)} words are too few for {count} streams on all ranks")
    return numbers[: T * count].view(count, T).t().contiguous()
