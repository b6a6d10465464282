"""An LSTM language model whose draws are its own: ranks may be threads of one process."""

import itertools
import math

import torch
from torch import nn


class Dropout(nn.Module):
    """torch's dropout, with a generator of its own instead of the process's."""

    def __init__(self, p, generator):
        super().__init__()
        self.p, self.generator = p, generator

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        mask = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * mask / (1 - self.p)


class LanguageModel(nn.Module):
    """Words [T, B] -> scores of the next word [T, B, V]; the output is tied if the sizes allow it.

    Parameters are drawn from seed[0], so that they are equal on all ranks; dropout from both
    numbers of the seed.
    """

    def __init__(self, V, embedding, hidden, layers, dropout, seed):
        super().__init__()
        self.embedding = nn.Embedding(V, embedding)
        widths = [embedding] + [hidden] * layers
        self.layers = nn.ModuleList(nn.LSTM(a, b) for a, b in itertools.pairwise(widths))
        self.output = nn.Linear(hidden, V)
        if embedding == hidden:
            self.output.weight = self.embedding.weight
        rng = torch.Generator().manual_seed(seed[0])
        bound = 1 / math.sqrt(hidden)
        with torch.no_grad():
            for p in self.parameters():
                p.uniform_(-bound, bound, generator=rng)
            self.embedding.weight.uniform_(-0.5, 0.5, generator=rng)
            self.output.bias.zero_()
        own = torch.Generator().manual_seed(1000 * seed[0] + seed[1] + 1)
        self.dropout = Dropout(dropout, own)

    def forward(self, words, state=None):
        """Return the scores, and the state to go on from, detached."""
        x, after = self.dropout(self.embedding(words)), []
        for i, layer in enumerate(self.layers):
            x, (h, c) = layer(x, None if state is None else state[i])
            x = self.dropout(x)
            after.append((h.detach(), c.detach()))
        return self.output(x), after
