"""The parts of the benchmark and the arms of each."""

from dataclasses import dataclass, replace

from . import home, peers, pictures, stock
from .arm import Job

OURS, AGAIN = "diptych", "diptych again"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One competitor of a part, or one limit."""

    name: str
    module: str
    """The program, below `arms/`."""
    pixels: str
    peer: str = ""
    """Whose environment and whose form of the set; empty for ours."""
    route: str = ""
    limit: bool = False
    """A limit of the machine, timed from its first batch; nothing of it is compared."""
    local: bool = False
    """Reads from this disk instead of the bucket."""
    first: float = 0.0
    """Where in the epoch to start, as a share of it."""
    samples: int | None = None
    """Stop after as many samples."""
    between: str = ""
    """What stands between the arm and the server; see `wire.between`."""
    data: str = ""
    """A set other than the part's."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Arms that are compared with each other on one set."""

    title: str
    data: str
    arms: tuple[Arm, ...]
    control: bool = True
    """Whether our arm is run twice a round, to see what the machine's noise is."""

    @property
    def names(self) -> list[str]:
        """The arms, in the order of the even rounds."""
        return [arm.name for arm in self.arms]

    def arm(self, name: str) -> Arm:
        """An arm by name."""
        return next(arm for arm in self.arms if arm.name == name)


def job(part: Part, arm: Arm, *, cache: str, out: str, limit_s: float) -> Job:
    """What the program of an arm is told."""
    name = arm.data or part.data
    url = stock.form(arm.peer, name) if arm.peer in peers.PEERS else home.remote(name)
    kind = pictures.KINDS[name]
    return Job(
        pixels=arm.pixels,
        size=kind.size,
        remote=str(home.shards(name)) if arm.local else url,
        local=str(home.loose(name).parent),
        cache=cache,
        out=out,
        route=arm.route,
        limit_s=limit_s,
        first=int(arm.first * kind.samples),
        samples=arm.samples,
    )


def _peers(pixels: str, label: str = "") -> tuple[Arm, ...]:
    arms = (
        Arm(name="litdata", module="lit", pixels=pixels, peer="litdata"),
        Arm(name="webdataset s3fs", module="web", pixels=pixels, route="s3fs"),
        Arm(name="webdataset curl", module="web", pixels=pixels, route="curl"),
        Arm(name="Energon", module="energon", pixels=pixels, peer="energon"),
        Arm(name="mosaicml-streaming", module="mosaic", pixels=pixels, peer="mosaic"),
        Arm(name="torch loose files", module="loose", pixels=pixels),
    )
    # Once more with our decoder, the two routes of webdataset would differ by little.
    return tuple(
        replace(arm, name=arm.name + label) for arm in arms if not (label and arm.route == "curl")
    )


def _limit(route: str) -> Arm:
    return Arm(name=f"limit: {route}", module="limits", pixels="same", route=route, limit=True)


def _between(pixels: str, *others: Arm) -> tuple[Arm, ...]:
    """Ours, the others, and ours again: first and last in turns."""
    ours = Arm(name=OURS, module="ours", pixels=pixels)
    return (ours, *others, replace(ours, name=AGAIN))


SAME = ", our decoder"
BARE = ", nothing read ahead"
_STARTS = {"1 %": 0.01, "50 %": 0.5, "99 %": 0.99}
_READ = Arm(name="limit: read", module="limits", pixels="raw", route="file", limit=True)
_GET = replace(_READ, name="limit: ranged GET", route="s3")
_FETCH = (
    _READ,
    replace(_READ, name="limit: read, new memory", route="file new"),
    Arm(name="fetch file", module="ours", pixels="fetch", local=True),
    _GET,
    replace(_GET, name="limit: ranged GET, new memory", route="s3 new"),
    Arm(name="fetch S3", module="ours", pixels="fetch"),
    Arm(name="fetch S3 again", module="ours", pixels="fetch"),
)
_PROXY = Arm(
    name="proxy without faults", module="ours", pixels="same", samples=8000, between="faults 0"
)
_FAULTS = (
    _PROXY,
    replace(_PROXY, name="proxy with 1 % faults", between="faults 0.01"),
    replace(_PROXY, name="no proxy", between=""),
    replace(_PROXY, name="proxy without faults again"),
)
_FIRST = Arm(name="first batch", module="ours", pixels="same", samples=1, between="count")

PARTS = {
    "raw": Part(
        title="Bytes of every sample from S3, a cold epoch of 20,000",
        data="a",
        arms=_between("raw", *_peers("raw")),
    ),
    "decoded": Part(
        title="Decoded to 224 px from S3, a cold epoch of 20,000 pictures of 256 px",
        data="a",
        arms=_between("same", *_peers("shipped"), *_peers("same", SAME), _limit("full")),
    ),
    "large": Part(
        title="Decoded to 256 px from S3, a cold epoch of 4,000 pictures of 512 px",
        data="b",
        arms=_between("same", *_peers("shipped"), *_peers("same", SAME), _limit("scaled")),
    ),
    "fetch": Part(title="CPU-seconds per GB", data="a", arms=_FETCH),
    "faults": Part(
        title="Decoded to 224 px through a proxy that fails 1 % of all requests in some way",
        data="a",
        arms=_FAULTS,
    ),
    "growth": Part(
        title="Ten times the shards: start to the first batch",
        data="g20",
        arms=tuple(
            replace(_FIRST, name=f"{n} shards", data=f"g{n}", between="") for n in (20, 200, 2000)
        ),
    ),
    "resume": Part(
        title="Resume in the middle of an epoch: start to the first batch",
        data="a",
        arms=tuple(
            replace(_FIRST, name=name + label, first=at, route=route)
            for label, route in (("", ""), (BARE, "bare"))
            for name, at in _STARTS.items()
        ),
    ),
    "seen": Part(
        title="Resume after 10^4 and 10^8 samples of a synthetic index: the plan alone",
        data="a",
        arms=tuple(
            Arm(name=f"10^{power} seen", module="seen", pixels="raw", route=str(power))
            for power in (4, 6, 8)
        ),
    ),
}
