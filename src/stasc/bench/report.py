"""Writes the tables for the terminal and for BENCHMARKS.md, from the same rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table as RichTable

from stasc.bench.figures import Spread, figures, flops, spread
from stasc.bench.limit import ROWS
from stasc.bench.race import LIMIT, OURS, Outcome
from stasc.units import size_text

NOTES = f"""\
- **tokens/s**: sampling counts useful tokens, up to and including an answer's stop token, without padding. Training
  counts the tokens of the trained examples with their whole prompts.
- Speeds, seconds and memory are medians. **ours / peer** is the ratio of speeds of consecutive repetitions: the
  contenders took turns (ours, peer, ours, peer, ...). It is given as median [minimum, maximum].
- **peak**: resident memory of the process and its children in a repetition (VmHWM, reset before each).
- **peak / theirs**: our peak over the peer's. **loss**: the mean loss of the first repetition, equal up to the order of
  examples.
- **loading**: from the start of the process's own work to a model in memory, including a peer's imports.
- All contenders sample in bfloat16 where the processor has instructions for it, and train in float32.
- **limit**: the speed of matrix products of the model's own shapes with {ROWS} rows in this dtype, measured in every
  round for layers and output matrix. **share of limit**: the seconds that the necessary products would take at this
  speed, over the seconds of the work. Necessary are, once each: the common prefix of a stage's prompts, the remainder
  of each distinct prompt, each distinct answer prefix that a token is sampled after, and logits only for tokens that
  are sampled or trained; in training, each distinct prompt once an epoch. A forward pass costs two FLOPs per parameter,
  training three times as much. Attention, sampling and optimizer are not counted. Redundant work lowers the share.
- **trl** is `SFTTrainer` with its defaults, which is what a user gets. **trl_tuned** adds the process settings of this
  project (`machine/processor.py`), which anyone could set: float32 products by oneDNN, freed memory kept.
- Every contender trains on the same examples, in batches of 8 at the same learning rate, and samples from the same
  prompts with the same temperature and top-p. Corrections are sampled for the same initial answers. Each contender
  warms up on a part of the work before the first repetition.
"""


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich__(self) -> RichTable:
        """Returns the table for the terminal."""
        table = RichTable(title=self.title, box=box.SIMPLE_HEAD)
        for column, head in enumerate(self.heads):
            table.add_column(head, justify="left" if column < 2 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Returns the table for a file."""
        lines = [self.heads, ["---"] * len(self.heads), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"## {self.title}\n\n{body}\n"


def tables(outcomes: Sequence[Outcome], grown: Sequence[Outcome], left_out: Mapping[str, str]) -> list[Table]:
    """Returns the tables that have rows. `left_out` gives the reasons why works were not run."""
    made = [_speeds(outcomes), _left_out(outcomes, left_out), _limits(outcomes), _growth(grown)]
    return [table for table in [*made, _settings([*outcomes, *grown])] if table.rows]


def _left_out(outcomes: Sequence[Outcome], works: Mapping[str, str]) -> Table:
    rows = [[name, "", why] for name, why in works.items()]
    rows += [[outcome.work.name, name, why] for outcome in outcomes for name, why in outcome.left_out.items()]
    return Table("Left out", ("work", "contender", "why"), rows)


def _speeds(outcomes: Sequence[Outcome]) -> Table:
    rows = [
        [
            outcome.work.name,
            row.name,
            f"{row.speed.median:.1f}",
            _spread(row.ratio, "x"),
            f"{row.seconds.median:.2f}",
            f"{row.tokens:.0f}",
            f"{row.share.median:.0%}" if row.share else "",
            size_text(int(row.peak_bytes)),
            f"{row.memory_ratio:.2f}x" if row.memory_ratio else "",
            f"{row.loading_s:.1f}",
            f"{row.loss:.3f}" if row.loss is not None else "",
        ]
        for outcome in outcomes
        for row in figures(outcome, OURS)
    ]
    heads = ("work", "contender", "tokens/s", "ours / peer", "seconds", "tokens", "share of limit", "peak")
    return Table("Speed", (*heads, "peak / theirs", "loading, s", "loss"), rows)


def _spread(values: Spread | None, unit: str = "") -> str:
    return f"{values.median:.2f}{unit} [{values.low:.2f}, {values.high:.2f}]" if values else ""


def _limits(outcomes: Sequence[Outcome]) -> Table:
    rows = []
    for outcome in outcomes:
        rates = {name: spread([reply.rates[name] for reply in outcome.limits]) for name in outcome.limits[0].rates}
        sizes = rates["layers_parameters"].median, rates["head_parameters"].median
        needs = [flops(outcome.work, match.ours.followed, *sizes) for match in outcome.matches]
        layers, head = (statistics.median(part) / 1e9 for part in zip(*needs, strict=True))
        speeds = [
            f"{speed.median / 1e9:.0f} [{speed.low / 1e9:.0f}, {speed.high / 1e9:.0f}]"
            for speed in (rates["layers_flops_per_s"], rates["head_flops_per_s"])
        ]
        rows.append([outcome.work.name, outcome.work.title, *speeds, f"{layers:.0f}", f"{head:.0f}"])
    heads = ("work", "what it is", "layers, GFLOP/s", "output matrix, GFLOP/s")
    return Table("Limit of the machine", (*heads, "layers, GFLOP needed", "output matrix, GFLOP needed"), rows)


def _growth(grown: Sequence[Outcome]) -> Table:
    rows, base = [], 0.0
    for outcome in grown:
        questions = len(outcome.work.stages[0].prompts)
        each = spread([match.ours.seconds / questions for match in outcome.matches])
        base = base or each.median
        row = figures(outcome, OURS)[0]
        times = f"{each.median * 1e3:.1f} [{each.low * 1e3:.1f}, {each.high * 1e3:.1f}]"
        peak = size_text(int(row.peak_bytes))
        rows.append([str(questions), outcome.work.title, times, f"{each.median / base:.2f}x", _spread(row.speed), peak])
    heads = ("questions", "what it is", "ms per question", "against the fewest", "tokens/s", "peak")
    return Table("Growth", heads, rows)


def _settings(outcomes: Sequence[Outcome]) -> Table:
    seen: dict[tuple[str, str, str], list[str]] = {}
    for outcome in outcomes:
        for name, hello in outcome.hellos.items():
            if name != LIMIT:
                versions = ", ".join(f"{library} {version}" for library, version in hello.versions.items())
                seen.setdefault((name, hello.setting, versions), []).append(outcome.work.name)
    rows = [[name, ", ".join(works), setting, versions] for (name, setting, versions), works in seen.items()]
    return Table("Settings", ("contender", "works", "setting", "versions"), rows)


def page(made: Sequence[Table], facts: Mapping[str, str]) -> str:
    """Returns the text of BENCHMARKS.md."""
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    body = "\n".join(table.markdown() for table in made)
    begin = "# Benchmarks\n\nWritten by `make bench`: this project against others on the same work."
    return f"{begin}\n\n{listed}\n\n{body}\n## Notes\n\n{NOTES}"
