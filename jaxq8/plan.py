"""The `Plan` of a quantized function: what runs in eight bits, which kernel runs it, and why the rest runs in float."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxq8.display.html.content import Page
from jaxq8.display.html.fragments import fragment
from jaxq8.display.html.page import write_page
from jaxq8.display.html.photos import photos
from jaxq8.display.text_table import table
from jaxq8.errors import QuantizationError
from jaxq8.plan_native import NativeRegion, kernel_texts, native_line
from jaxq8.plan_page import plan_figures, plan_sites

PLAN_VERSION = 1
LISTED = 4  # how many site names a warning spells out
COLUMNS = (
    "site", "op", "shapes", "weights", "activations", "range", "reads", "joined parts", "macs", "runs in",
    "kernel, or why float",
)  # fmt: skip
# `SiteRecord.joined` ends with SHARED where the parts of a joined value have no ranges of their own; the warning about such
# sites explains itself with ONE_RANGE.
SHARED = "parts share a range"
ONE_RANGE = "a part that is much smaller than the others keeps few codes; calibrate gives such parts ranges of their own"


class Reason(enum.Enum):
    """Why a site runs in float; the values are the texts that `explain` prints and the documentation lists.

    Example:
      >>> config = q8.Config(overrides=(("*/Dense_1/*", {"mode": "off"}),))
      >>> plan = q8.explain(model.apply, variables, images, config=config)
      >>> [site.name for site in plan.sites if site.reason is q8.Reason.OFF]
      ['params/Dense_1/kernel:dot']
    """

    EIGHT_BIT = "runs in eight bits"
    MODE = "the mode computes in float"
    OFF = "switched off by the configuration or an override"
    DTYPE = "operands are not floating-point numbers"
    BATCH_GROUPS = "batch-grouped convolution has no eight-bit form"
    ATTENTION = "product of two activations; quantize it with Config(attention=True)"
    NOT_FASTER = "no eight-bit form beats float here"
    UNSUPPORTED = "no kernel supports this form"
    NO_RULE = "no eight-bit rule for this operation"
    PER_CHANNEL = "the operation mixes values of different scales"
    DTYPE_REQUEST = "the result dtype asked for is not the operands' float dtype"
    EMPTY = "an operand is empty"


@dataclasses.dataclass(frozen=True)
class SiteRecord:
    """One site of a plan. Everything that a printed plan says of a site is one of these fields.

    Attributes:
      name: Site name; overrides and ranges address the site by it.
      op: Operation: dot, conv, gather, concatenate, max_pool, ..., or the primitive that had to run in float.
      eight_bit: Whether the site computes on codes.
      reason: Why the site runs in float, a `Reason`; `Reason.EIGHT_BIT` if it does not.
      detail: Numbers or names that complete the reason.
      kernel: The kernel, and its form, that runs the site.
      refused: ``((kernel, reason), ...)`` for the candidate kernels that were not taken.
      shapes: Shapes of operands and result, as text.
      weights: Representation of the weight, as text.
      activations: Representation of the activation, as text.
      range: Where the activation's range comes from.
      macs: Number of multiply-adds.
      source: ``file.py:line`` in the user's code.
      reads: The form in which a contraction finds its activation: "codes"; "int32" for the accumulator of the contraction
        before it; "int32, with elementwise arithmetic" where a residual sum or an activation function is computed in the
        same pass that makes the codes; or "float: ..." followed by the operation that made the float value.
      joined: How a contraction treats the parts of a joined value: one product for each scale, or one range for all parts.
      weight_bytes: Bytes in memory of the weight that the site reads, with scales and zero points if it is codes. A weight
        that several sites read is counted at the first of them; 0 where a site reads no weight that is an argument.
      float_bytes: Bytes of the same weight in its float dtype.

    Example:
      >>> site = q8.explain(model.apply, variables, images).sites[0]
      >>> site.name, site.op, site.shapes, site.range
      ('params/Dense_0/kernel:dot', 'dot', '4x256, 256x128 -> 4x128', 'this run')
    """

    name: str
    op: str
    eight_bit: bool
    reason: Reason = Reason.EIGHT_BIT
    detail: str = ""
    kernel: str = ""
    refused: tuple[tuple[str, str], ...] = ()
    shapes: str = ""
    weights: str = ""
    activations: str = ""
    range: str = ""
    macs: int = 0
    source: str = ""
    reads: str = ""
    joined: str = ""
    weight_bytes: int = 0
    float_bytes: int = 0

    @property
    def encoded(self) -> bool:
        """Whether the site's weight is held as codes, which is also so where the arithmetic is float (mode "weights")."""
        return self.weight_bytes < self.float_bytes

    @property
    def why(self) -> str:
        """The reason and its detail as one text."""
        return self.reason.value + (f" ({self.detail})" if self.detail else "")


class Recorder:
    """Collects the site records of a function while it is evaluated; tracing a site again replaces its record."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], SiteRecord] = {}
        self._weights: dict[str, tuple[int, int]] = {}
        self.blocks = 1
        self.native: tuple[NativeRegion, ...] = ()
        # Asked only if there is to be a plan, because the answer may need to look for a library.
        self.why_not_native: Callable[[], str] = str

    def add(self, record: SiteRecord) -> None:
        self._records[record.name, record.op] = record

    def add_weights(self, site: str, held: int, real: int) -> None:
        """Notes how many bytes a site's weight has as it is held, and in float."""
        self._weights[site] = (held, real)

    def plan(self, unused: Iterable[str] = ()) -> Plan:
        weights, native = dict(self._weights), kernel_texts(self.native)
        records = []
        for record in self._records.values():
            held, real = weights.pop(record.name, (0, 0))
            kernel = native.get(record.name, record.kernel) if record.macs else record.kernel
            records.append(dataclasses.replace(record, kernel=kernel, weight_bytes=held, float_bytes=real))
        reason = "" if self.native else self.why_not_native()
        return Plan(tuple(records), tuple(unused), self.blocks, self.native, reason)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `jaxq8.explain` returns; ``print(plan)`` shows it as a table, and so does a notebook.

    Attributes:
      sites: A `SiteRecord` for each contraction, table look-up, pooling and concatenation, and for each operation that
        had to leave eight bits.
      unused_overrides: Patterns of `Config.overrides` that matched no site.
      blocks: The number of blocks that a large batch runs in (`Config.batch_blocks`); shapes are those of one block.
      native: A `NativeRegion` for each part that runs in one call into oneDNN, because its weights are packed (`pack`).
      not_native: Why there is none; empty where nothing was packed and nothing could be.

    Example:
      >>> plan = q8.explain(model.apply, variables, images)
      >>> plan.summary()
      '100.0% of 0.1 million multiply-adds in eight bits (2 of 2 contractions)'
      >>> plan.regions
      (('params/Dense_0/kernel:dot', 'params/Dense_1/kernel:dot'),)
    """

    sites: tuple[SiteRecord, ...]
    unused_overrides: tuple[str, ...] = ()
    blocks: int = 1
    native: tuple[NativeRegion, ...] = ()
    not_native: str = ""

    @property
    def macs(self) -> int:
        """Number of multiply-adds of all contractions together."""
        return sum(site.macs for site in self.sites)

    @property
    def eight_bit_share(self) -> float:
        """Share of the multiply-adds that run on eight-bit integers; 1.0 if the function has no multiply-adds."""
        eight = sum(site.macs for site in self.sites if site.eight_bit)
        return eight / self.macs if self.macs else 1.0

    @property
    def weight_bytes(self) -> int:
        """Bytes in memory of the weights of all sites; vectors such as biases belong to no site."""
        return sum(site.weight_bytes for site in self.sites)

    @property
    def float_bytes(self) -> int:
        """Bytes of the same weights in float."""
        return sum(site.float_bytes for site in self.sites)

    @property
    def encoded_share(self) -> float:
        """Share of the weights, counted by their bytes in float, that are held as codes; 1.0 if there are no weights."""
        encoded = sum(site.float_bytes for site in self.sites if site.encoded)
        return encoded / self.float_bytes if self.float_bytes else 1.0

    @property
    def entries(self) -> tuple[SiteRecord, ...]:
        """The eight-bit contractions whose activation arrives in float, so that it becomes codes right before them."""
        return tuple(s for s in self.sites if s.eight_bit and s.reads.startswith("float"))

    @property
    def regions(self) -> tuple[tuple[str, ...], ...]:
        """The eight-bit regions in program order, each as the names of its contractions.

        A region begins at an entry (see `entries`); between the contractions of one region no activation is in float.
        """
        found: list[list[str]] = []
        for site in self.sites:
            if not site.macs or not site.eight_bit:
                continue
            if not found or site in self.entries:
                found.append([])
            found[-1].append(site.name)
        return tuple(map(tuple, found))

    def __getitem__(self, name: str) -> SiteRecord:
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)

    def summary(self) -> str:
        """One line: the share of multiply-adds in eight bits, and how many contractions stay float for which reason."""
        contractions = [s for s in self.sites if s.macs]
        eight = sum(s.eight_bit for s in contractions)
        reasons = collections.Counter(s.reason.value for s in contractions if not s.eight_bit)
        floats = "".join(f"; {count} float: {text}" for text, count in reasons.most_common())
        blocks = f"; the batch runs in {self.blocks} blocks" if self.blocks > 1 else ""
        return (
            f"{self.eight_bit_share:.1%} of {self.macs / 1e6:.1f} million multiply-adds in eight bits "
            f"({eight} of {len(contractions)} contractions{floats}){blocks}"
        )

    def __str__(self) -> str:
        sites = table(COLUMNS, self._rows())
        return "\n".join([*self._head(), "", *sites, *self._unused()])

    def _repr_html_(self) -> str:
        """What a notebook shows: the lines of the text, and the first 40 sites of its table."""
        lines = [*self._head(), *self._unused()]
        return fragment(lines, COLUMNS, self._rows())

    def html(
        self, path: str | os.PathLike[str], *, title: str = "Plan", images: Sequence[Any] | None = None,
        labels: Sequence[str | Mapping[str, str]] | None = None,
    ) -> None:  # fmt: skip
        """Writes a page for a browser: the sites with their shares of arithmetic and weights, and the reasons for float.

        The page is one file and needs no network. Its list of sites can be sorted and filtered; a click on a site shows
        shapes, representation, range and kernel.

        Args:
          path: The file to write, such as "plan.html"; an existing file is replaced in one step.
          title: What stands above everything: the model's name.
          images: Photos to show: paths, PIL images, or uint8 arrays (height, width, 3); at most 100 are shown. Needs Pillow.
          labels: What is said of each image: a text, or a mapping such as ``{"float": "cat", "eight bits": "cat"}``.

        Raises:
          ArgumentError: The file cannot be written, Pillow is not installed, an image cannot be read, or there are not as
            many labels as images.

        Example:
          >>> q8.explain(model.apply, variables, images).html("plan.html", title="SqueezeNet")
        """
        shown, unshown = photos("Plan.html", images, labels)
        remarks = (*self._head()[1:], *self._unused())
        page = Page(title, plan_figures(self), remarks, plan_sites(self), shown, unshown)
        write_page("Plan.html", path, page)

    def _head(self) -> list[str]:
        """The lines above the table."""
        contractions = sum(1 for site in self.sites if site.macs)
        native = native_line(self.native, contractions, self.not_native)
        return [self.summary(), self._entered(), *native, *self._warnings()]

    def _rows(self) -> list[tuple[str, ...]]:
        """The rows of the table: contractions first, among them those in float, then those with the most multiply-adds."""
        ordered = sorted(self.sites, key=lambda s: (s.macs == 0, s.eight_bit, -s.macs))
        return [self._row(site) for site in ordered]

    def _unused(self) -> list[str]:
        return [f"override {pattern!r} matched no site" for pattern in self.unused_overrides]

    def _row(self, site: SiteRecord) -> tuple[str, ...]:
        """What the table says of one site, in the order of `COLUMNS`."""
        share = f"{site.macs / self.macs:.1%}" if site.macs and self.macs else ""
        runs_in, how = ("8 bit", site.kernel) if site.eight_bit else ("float", site.why)
        return (
            site.name, site.op, site.shapes, site.weights, site.activations, site.range, site.reads, site.joined, share,
            runs_in, how,
        )  # fmt: skip

    def _warnings(self) -> list[str]:
        """Lines about sites that may lose more accuracy than rounding alone costs."""
        shared = [s.name for s in self.sites if s.joined.endswith(SHARED)]
        if not shared:
            return []
        more = f" and {len(shared) - LISTED} more" if len(shared) > LISTED else ""
        return [f"joined parts share a range at {', '.join(shared[:LISTED])}{more}: {ONE_RANGE}"]

    def _entered(self) -> str:
        """One line: how many eight-bit regions there are, and after which operations float becomes codes."""
        makers = collections.Counter(s.reads.removeprefix("float: ").split(" at ")[0] for s in self.entries)
        made = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in makers.most_common())
        count = len(self.regions)
        regions = f"{count} eight-bit region{'s' if count != 1 else ''}"
        return f"{regions}; float becomes codes after: {made}" if made else regions

    def to_json(self) -> str:
        """All fields of all sites as JSON, with a version number."""
        document = {
            "version": PLAN_VERSION,
            "blocks": self.blocks,
            "sites": [{**dataclasses.asdict(s), "reason": s.reason.name} for s in self.sites],
            "unused_overrides": self.unused_overrides,
            "native": [dataclasses.asdict(region) for region in self.native],
            "not_native": self.not_native,
        }
        return json.dumps(document, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads what `to_json` wrote.

        Raises:
          QuantizationError: The text is not such a document.
        """
        try:
            document = json.loads(text)
            if document["version"] != PLAN_VERSION:
                raise ValueError(f"version {document['version']!r}")
            sites = tuple(_read_site(entry) for entry in document["sites"])
            # Documents that were written before there were native regions do not name them.
            native = tuple(NativeRegion.read(entry) for entry in document.get("native", ()))
            unused, reason = tuple(document["unused_overrides"]), str(document.get("not_native", ""))
            return cls(sites, unused, int(document["blocks"]), native, reason)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise QuantizationError(
                f"plan: not a document of Plan.to_json() version {PLAN_VERSION} ({error})"
            ) from error


def _read_site(entry: dict[str, Any]) -> SiteRecord:
    refused = tuple((str(a), str(b)) for a, b in entry["refused"])
    return SiteRecord(**{**entry, "reason": Reason[entry["reason"]], "refused": refused})
