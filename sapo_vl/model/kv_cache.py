"""Keys and values while responses are sampled: a prompt's once for its whole group, each response's own apart.

The queries of a group, of all its responses and heads, meet their prompt in one product; every response meets its
own tokens in another, and one softmax runs over both. Nothing is spread over responses and no head is repeated.

All responses draw in step. Own tokens lie by step, not by place in the response: what is fed at a step goes into the
same column for every response (keys carry their positions, so the order of columns means nothing), and a response
that came later does not see the columns before it was `born`.

Letters: n prompts, P tokens of the longest, B responses, W responses of the largest group, C columns; h heads of keys,
r queries to each, d values a head. Numbers of rows live on the host, as numpy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FIRST_COLUMNS = 32  # room for so many own tokens at first; it doubles


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What a step needs to know of prompts and responses; it changes only when they do."""

    width: int  # W
    grid: Tensor | None  # [n * W] int64, the response at each place of its group; None: all places taken, in order
    places: Tensor | None  # [B] int64, the place of each response
    prompt_bias: Tensor | None  # [n, 1, P], -inf behind the end of a prompt; None: all prompts are as long
    born: Tensor | None  # [B, 1]; None: all responses see all columns


@dataclass(slots=True)
class KVCache:
    """Of n prompts and B responses to them, those of a prompt in a row and in the order of the prompts.

    A `Prefill` pass fills the prompts, `Decode` passes the rest. Before each of those, `advance` makes room.
    """

    prompt_lengths: np.ndarray  # [n]
    prompt_of: np.ndarray  # [B] int64, ascending; every prompt has a response
    device: torch.device | str = "cpu"
    born: np.ndarray = field(init=False)  # [B] int64, the column of a response's first token
    columns: int = 0  # C, with that of the pass under way
    capacity: int = 0
    prompt_keys: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by layer, key and value [n, h, P, d]
    own_keys: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # key and value [B, h, capacity, d]
    _rows: _Rows = field(init=False)
    _own_bias: Tensor | None = None  # [B, 1, C] of the pass under way

    def __post_init__(self) -> None:
        self.born = np.zeros(len(self.prompt_of), np.int64)
        self._rows = self._look()

    @property
    def full(self) -> bool:
        """Whether `advance` would have to make the buffers larger."""
        return self.columns == self.capacity

    def store_prompts(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Takes the flat row's key and value, [1, h, T, d]."""
        lengths = self.prompt_lengths
        starts = np.cumsum(lengths) - lengths
        # Padding repeats the first token: finite, and never seen.
        places = np.arange(int(lengths.max()))
        index = torch.from_numpy(starts[:, None] + np.where(places < lengths[:, None], places, 0)).to(key.device)
        n, p = index.shape
        key, value = (
            x[0].index_select(1, index.flatten()).unflatten(1, (n, p)).transpose(0, 1).contiguous()
            for x in (key, value)
        )
        self.prompt_keys[layer] = (key, value)

    def advance(self, most: int) -> None:
        """Room for one more token of every response; buffers grow to at most `most` columns, if that is enough."""
        if self.full:
            self._lay(np.arange(len(self.prompt_of)), _grown(self.columns - int(self.born.min()), most))
        self.columns += 1
        born = self._rows.born
        if born is None:
            self._own_bias = None
        else:
            unseen = torch.arange(self.columns, device=self.device)[None] < born
            self._own_bias = torch.zeros(unseen.shape, device=self.device).masked_fill_(unseen, -torch.inf)[:, None]

    def keep(self, rows: np.ndarray, most: int) -> None:
        """Drops the responses where `rows` ([B] bool) is False, and what no other one needs. One at least is kept."""
        kept = np.flatnonzero(rows)
        self._lay(kept, _grown(self.columns - int(self.born[kept].min()), most))

    def forget(self) -> None:
        """Every response begins anew."""
        self.columns, self.born = 0, np.zeros_like(self.born)
        self._rows = self._look()

    def join(self, other: KVCache) -> None:
        """Takes over the prompts and responses of another cache, that no `Decode` pass has used."""
        longest = int(max(self.prompt_lengths.max(), other.prompt_lengths.max()))
        for layer, theirs in other.prompt_keys.items():
            both = zip(self.prompt_keys[layer], theirs, strict=True)
            key, value = (torch.cat([_padded(a, longest), _padded(b, longest)]) for a, b in both)
            self.prompt_keys[layer] = (key, value)
        for layer, mine in self.own_keys.items():
            # Zeros, since what is not seen is multiplied by 0.
            key, value = (torch.cat([x, x.new_zeros(len(other.prompt_of), *x.shape[1:])]) for x in mine)
            self.own_keys[layer] = (key, value)
        self.prompt_of = np.concatenate([self.prompt_of, other.prompt_of + len(self.prompt_lengths)])
        self.prompt_lengths = np.concatenate([self.prompt_lengths, other.prompt_lengths])
        self.born = np.concatenate([self.born, np.full(len(other.born), self.columns)])
        self._rows = self._look()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """One token of every response: query [B, h * r, 1, d], key and value [B, h, 1, d] -> [B, 1, h * r, d]."""
        (b, heads, _, d), h = query.shape, key.shape[1]
        prompt_key, prompt_value = self.prompt_keys[layer]
        own_key, own_value = self._store(layer, key, value)
        n, w, r, rows = len(prompt_key), self._rows.width, heads // h, self._rows
        q = (query * (d**-0.5 if scaling is None else scaling)).reshape(b, h, r, d)

        of_prompt = _scores(_by_group(q, rows, n), prompt_key.flatten(0, 1))  # [n * h, W * r, P]
        if rows.prompt_bias is not None:
            of_prompt.view(n, h * w * r, -1).add_(rows.prompt_bias)
        own = _scores(q.flatten(0, 1), own_key.flatten(0, 1)).view(b, h, r, -1)
        if self._own_bias is not None:
            own.view(b, h * r, -1).add_(self._own_bias)
        weights = torch.cat([of_prompt, _by_group(own, rows, n)], dim=-1).softmax(-1).to(value.dtype)
        p = prompt_key.shape[2]
        out = _by_response(torch.bmm(weights[..., :p], prompt_value.flatten(0, 1)), rows, h, r)
        own = _by_response(weights[..., p:], rows, h, r)
        out = out + torch.bmm(own.flatten(0, 1), own_value.flatten(0, 1)).view(b, h, r, d)
        return out.reshape(b, 1, heads, d)  # its strides are whatever those products chose

    def _store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self.own_keys:
            shape = (key.shape[0], key.shape[1], self.capacity, key.shape[3])
            self.own_keys[layer] = (key.new_zeros(shape), value.new_zeros(shape))
        for store, new in zip(self.own_keys[layer], (key, value), strict=True):
            store[:, :, self.columns - 1] = new[:, :, 0]
        all_keys, all_values = self.own_keys[layer]
        return all_keys[:, :, : self.columns], all_values[:, :, : self.columns]

    def _lay(self, kept: np.ndarray, capacity: int) -> None:
        """Copies the `kept` responses into buffers of `capacity` columns, without columns that none of them sees."""
        first = int(self.born[kept].min())
        used = self.columns - first
        prompts, prompt_of = np.unique(self.prompt_of[kept], return_inverse=True)
        everyone = len(kept) == len(self.prompt_of)
        rows = torch.from_numpy(kept).to(self.device)
        for layer, pair in self.own_keys.items():
            new = []
            for old in pair:
                buffer = old.new_empty(len(kept), old.shape[1], capacity, old.shape[3])
                seen = old[:, :, first : self.columns]
                buffer[:, :, :used] = seen if everyone else seen[rows]
                new.append(buffer)
            self.own_keys[layer] = (new[0], new[1])
        if len(prompts) < len(self.prompt_lengths):
            self.prompt_lengths = self.prompt_lengths[prompts]
            longest = int(self.prompt_lengths.max())
            index = torch.from_numpy(prompts).to(self.device)
            for layer, (key, value) in self.prompt_keys.items():
                self.prompt_keys[layer] = (key[:, :, :longest][index], value[:, :, :longest][index])
        self.prompt_of, self.born = prompt_of.astype(np.int64), self.born[kept] - first
        self.columns, self.capacity = used, capacity
        self._rows = self._look()

    def _look(self) -> _Rows:
        n, b = len(self.prompt_lengths), len(self.prompt_of)
        sizes = np.bincount(self.prompt_of, minlength=n)
        width = int(sizes.max())
        grid = places = bias = None
        if n * width > b:
            starts = np.cumsum(sizes) - sizes
            at = np.arange(width)
            # An empty place repeats the first response of its group.
            index = (starts[:, None] + np.where(at < sizes[:, None], at, 0)).flatten()
            grid = torch.from_numpy(index).to(self.device)
            within = np.arange(b) - starts[self.prompt_of]
            places = torch.from_numpy(self.prompt_of * width + within).to(self.device)
        longest = int(self.prompt_lengths.max())
        if int(self.prompt_lengths.min()) < longest:
            behind = torch.from_numpy(np.arange(longest) >= self.prompt_lengths[:, None]).to(self.device)
            bias = torch.zeros(behind.shape, device=self.device).masked_fill_(behind, -torch.inf)[:, None]
        born = torch.from_numpy(self.born).to(self.device)[:, None] if self.born.any() else None
        return _Rows(width=width, grid=grid, places=places, prompt_bias=bias, born=born)


def key_bytes_per_token(layers: int, heads: int, head_size: int, value_bytes: int) -> int:
    """Of the keys and values of a token in all layers."""
    return 2 * layers * heads * head_size * value_bytes


def _grown(used: int, most: int) -> int:
    """A capacity for one more column than are used: twice as many, at most `most` if that is enough."""
    return max(used + 1, min(most, max(FIRST_COLUMNS, 2 * used)))


def _padded(x: Tensor, length: int) -> Tensor:
    """[n, h, P, d] -> [n, h, length, d], with zeros."""
    return F.pad(x, (0, 0, 0, length - x.shape[2]))


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """[b, m, d], [b, s, d] -> [b, m, s] in float32."""
    key = key.transpose(1, 2)
    if query.dtype == torch.float32:
        return torch.bmm(query, key)
    if query.is_cuda:
        return torch.bmm(query, key, out_dtype=torch.float32)
    return torch.bmm(query.float(), key.float())


def _by_group(x: Tensor, rows: _Rows, n: int) -> Tensor:
    """[B, h, r, m] -> [n * h, W * r, m]."""
    taken = x if rows.grid is None else x[rows.grid]
    h, r, m = x.shape[1:]
    return taken.view(n, rows.width, h, r, m).transpose(1, 2).reshape(n * h, rows.width * r, m)


def _by_response(x: Tensor, rows: _Rows, h: int, r: int) -> Tensor:
    """[n * h, W * r, m] -> [B, h, r, m]."""
    m = x.shape[-1]
    places = x.view(-1, h, rows.width, r, m).transpose(1, 2).reshape(-1, h, r, m)
    return places if rows.places is None else places[rows.places]
