"""What the gateway costs beside its peers in the same run: make bench."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench import binding, crosstalk, history, memory
from bench.comparisons import COMPARISONS, Setting, compare
from bench.jobs import contest, report
from bench.machines import compiled, install
from bench.media import peers as media_peers
from bench.media import report as media
from bench.peers import PEERS

# Answers that cross between callers make every other figure worthless, so that comes first.
NAMES = ("crosstalk", *COMPARISONS, "memory", "history", "binding", "jobs", "media")
_ALONE = {"binding": binding.report, "history": history.report}
# These need none of the C programs.
_BARE = {*_ALONE, "jobs", "media"}
_ALL_PEERS = (*PEERS, *contest.PEERS, *media_peers.PEERS)
_LANES = {"auto": ["auto"], "off": ["off"], "both": ["auto", "off"]}


def main() -> None:
    given = _parser().parse_args()
    names = given.only or (["crosstalk", "plain"] if given.quick else list(NAMES))
    unknown = set(given.peers) - set(_ALL_PEERS)
    if unknown:
        known = ", ".join(_ALL_PEERS)
        raise SystemExit(f"There is no peer {', '.join(unknown)}; there are {known}, or none.")
    if given.quick:
        given.rounds, given.seconds, given.calls, given.peers = 1, 1.0, 5000, ["nginx"]
    loads = set(names) - _BARE
    install(*(["gcc"] if loads else []), *(["nginx", "wrk"] if loads & set(COMPARISONS) else []))
    done: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if loads:
            compiled(Path(folder))
        for name in names:
            done[name] = run(name, given, Path(folder))
            if given.json:
                given.json.write_text(json.dumps(done, indent=1) + "\n")


def run(name: str, given: argparse.Namespace, folder: Path) -> Any:
    lanes = _LANES[given.lane]
    if name == "crosstalk":
        return [crosstalk.check(given.calls, folder, lane=lane) for lane in lanes]
    if name == "memory":
        return [memory.measure(folder, lane=lane) for lane in lanes]
    if name in _ALONE:
        return _ALONE[name]()
    if name == "jobs":
        scale = report.Scale(given.archived, given.queued, given.idle)
        peers = [peer for peer in given.peers if peer in contest.PEERS]
        return report.run(contest.Setting(given.rounds, given.seconds, peers), scale, folder)
    if name == "media":
        peers = [peer for peer in given.peers if peer in media_peers.PEERS]
        clip, large = given.clip, given.large
        return media.run(media.Setting(given.rounds, given.seconds, peers, clip, large), folder)
    peers = [peer for peer in given.peers if peer in PEERS]
    setting = Setting(given.rounds, given.seconds, peers, lanes)
    return compare(name, setting, folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=NAMES, help="may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of load, a server and round")
    parser.add_argument("--peers", type=_names, default=list(_ALL_PEERS), help="a,b or none")
    parser.add_argument("--lane", choices=_LANES, default="auto", help="the gateway's HOT_LANE")
    parser.add_argument("--calls", type=int, default=100_000, help="of the cross-talk run")
    parser.add_argument("--archived", type=int, default=1_000_000, help="jobs in the archive")
    parser.add_argument("--queued", type=int, default=200_000, help="jobs in the long queue")
    parser.add_argument("--idle", type=float, default=30, help="seconds of rest to be measured")
    parser.add_argument("--clip", type=int, default=30, help="seconds of the video to work on")
    parser.add_argument("--large", type=int, default=10**9, help="bytes of the large file")
    parser.add_argument("--quick", action="store_true", help="a minute's smoke run beside nginx")
    parser.add_argument("--json", type=Path, metavar="FILE", help="puts the figures there too")
    return parser


def _names(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


if __name__ == "__main__":
    main()
