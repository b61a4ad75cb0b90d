"""Faults: what goes wrong in a study, a detection or an audit; how often tried, and survived.

A fault is survived if nothing wrong enters a result: what was finished is kept, the same command
goes on to the tables of a run that was never disturbed, and what cannot be used is refused with a
message. The oracle stands in for the network, so that hundreds of faults take minutes.

Every campaign is a function of how many faults to try; the test suite calls them with few.

Contents: `Tally`, the campaigns in `CAMPAIGNS`, `main`.
"""

import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mnemoscope import Study, detect, load_model, open_run, report, run
from mnemoscope.data.images import load_image
from mnemoscope.data.prompts import read_prompts
from mnemoscope.errors import MnemoscopeError
from mnemoscope.flows.audit import Audit, audit
from mnemoscope.runs import records
from mnemoscope.runs.verify import runs_in, verify

PROMPTS = ("target 0", "target 1", "never seen", "target 2")
STUDY = ("samples", "gram", "convergence", "similarities", "severity", "scores", "prompts")
DETECTION = ("scores", "prompts")
AUDIT = ("items", "suspects", "funnel", "audited", "statistics")
CONFIRMATION = ("samples", "similarities", "severity", "references", "prompts")
NAMES = ("gap_norm", "consensus_energy")


@dataclass
class Tally:
    """How often a fault was tried, and what was not survived."""

    tried: int = 0
    failed: list[str] = field(default_factory=list[str])

    @property
    def survived(self) -> int:
        """Return how many were survived."""
        return self.tried - len(self.failed)

    def note(self, held: bool, what: str) -> None:
        """Count one fault."""
        self.tried += 1
        if not held:
            self.failed.append(what)


@dataclass(frozen=True)
class Flow:
    """A command that leaves a run folder.

    Attributes:
        name: What it is called.
        tables: The tables that are compared, by the folder of a stage within; "" is the run itself.
        work: Does it, into a folder.
    """

    name: str
    tables: Mapping[str, tuple[str, ...]]
    work: Callable[[Path], object]

    def content(self, at: Path) -> dict[str, Any]:
        """Return what a run says, times aside."""
        told: dict[str, Any] = {}
        for stage, tables in self.tables.items():
            held = open_run(at / stage)
            for name in tables:
                rows = held.table(name)
                kept = [column for column in rows.column_names if column != "seconds"]
                # A text knows that NaN equals NaN.
                told[f"{stage}/{name}"] = repr(rows.select(kept).to_pylist())
            for name, values in sorted(held.constants.items()):
                told[f"{stage}/{name}"] = values.numpy().tobytes()
            told[f"{stage}/status"] = held.manifest.status
        return told


def whole_as_told(at: Path) -> bool:
    """Tell whether every file of a run and of its stages is what was written."""
    return all(verify(folder).ok for folder in runs_in(at))


def captioned(folder: Path, known: int = 4, others: int = 8) -> Path:
    """Make a data set of which `oracle:memorizer` gives the first few pictures back."""
    folder.mkdir(exist_ok=True)
    model: Any = load_model("oracle:memorizer")
    targets = (model.denoiser.means[:known].permute(0, 2, 3, 1) + 1) * 127.5
    rest = np.random.default_rng(0).integers(0, 256, (others, *targets.shape[1:]), dtype=np.uint8)
    pictures = [*targets.round().byte().numpy(), *rest]
    lines: list[str] = []
    for at, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{at:03d}.png")
        text = f"target {at}" if at < known else f"thing {at}"
        lines.append(json.dumps({"file_name": f"{at:03d}.png", "text": text}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def flows(at: Path) -> tuple[Flow, Flow, Flow]:
    """Return a study, a detection and an audit of a few units each."""
    listed = at / "prompts.txt"
    listed.write_text("\n".join(PROMPTS) + "\n")

    def study(out: Path) -> object:
        return run(
            Study(
                model="oracle:memorizer", prompts=listed, seeds=2, steps=3, guidance=(1.0,),
                batch=4, similarity=("l2",), device="cpu", out=out,
            )
        )  # fmt: skip

    def detection(out: Path) -> object:
        return detect(
            "oracle:memorizer", listed, detectors=NAMES, seeds=2, steps=3, batch=4, device="cpu",
            out=out,
        )  # fmt: skip

    pictured = captioned(at / "set")

    def audited(out: Path) -> object:
        return audit(
            Audit(
                model="oracle:memorizer", dataset=pictured, seeds=2, screening_seeds=2, steps=2,
                guidance=1.0, batch=16, similarity=("l2",), device="cpu", out=out,
            )
        )  # fmt: skip

    return (
        Flow("study", {"": STUDY}, study),
        Flow("detect", {"": DETECTION}, detection),
        Flow(
            "audit",
            {
                "": AUDIT,
                "screen": DETECTION,
                "confirm": CONFIRMATION,
                "confirm-2": CONFIRMATION,
            },
            audited,
        ),
    )


def spread(total: int, most: int) -> list[int]:
    """Return at most so many numbers below a total, evenly spread, each amid its share."""
    count = min(most, total)
    return [(2 * at + 1) * total // (2 * count) for at in range(count)]


@contextmanager
def boundaries(strike: Callable[[int, str], None], *, power: bool = False) -> Generator[list[int]]:
    """Call `strike` at every step of every write: before it, before its sync, around its rename.

    With `power`, a rename that was not synced yet is undone before the strike.
    """
    sync, rename, count = os.fsync, os.replace, [0]
    undone: list[tuple[Path, bytes | None]] = []

    def at(what: str) -> None:
        count[0] += 1
        strike(count[0], what)

    def fsync(handle: int) -> None:
        at("before a sync")
        sync(handle)
        undone.clear()

    def replace(source: Any, target: Any) -> None:
        at("before a rename")
        before = Path(target).read_bytes() if power and Path(target).exists() else None
        rename(source, target)
        if power:
            undone.append((Path(target), before))
        at("after a rename")

    records.os.fsync, records.os.replace = fsync, replace
    try:
        yield count
    finally:
        records.os.fsync, records.os.replace = sync, rename
        for target, before in undone:
            if before is None:
                target.unlink(missing_ok=True)
            else:
                target.write_bytes(before)


def in_child(work: Callable[[], object]) -> int:
    """Do work in a copy of this process; return how it ended, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kills(at: Path, most: int) -> Tally:
    """Kill the process at a boundary of a write, then give the same command again."""
    tally = Tally()
    for flow in flows(at):
        with boundaries(lambda number, what: None) as count:
            flow.work(at / f"{flow.name}-whole")
        expected = flow.content(at / f"{flow.name}-whole")
        for number in spread(count[0], most):
            out = at / f"{flow.name}-{number}"

            def struck(out: Path = out, number: int = number, flow: Flow = flow) -> None:
                def strike(now: int, what: str) -> None:
                    if now == number + 1:
                        os.kill(os.getpid(), signal.SIGKILL)

                with boundaries(strike):
                    flow.work(out)

            ended = in_child(struck)
            flow.work(out)
            held = ended == -signal.SIGKILL and flow.content(out) == expected
            tally.note(held, f"{flow.name}, boundary {number}: ended {ended}")
            shutil.rmtree(out)
    return tally


def moments(at: Path, most: int) -> Tally:
    """Kill the process at a random moment, wherever it is; then give the same command again."""
    tally, chance = Tally(), random.Random(0)
    for flow in flows(at):
        begun = time.perf_counter()
        flow.work(at / f"{flow.name}-whole")
        seconds = time.perf_counter() - begun
        expected = flow.content(at / f"{flow.name}-whole")
        left = most
        while left:
            out, moment = at / f"{flow.name}-{left}", chance.random() * seconds

            def struck(out: Path = out, moment: float = moment, flow: Flow = flow) -> None:
                # What this alarm does by default is what SIGKILL does, and nobody handles it.
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, max(moment, 1e-3))
                flow.work(out)

            ended = in_child(struck)
            if ended == 0:
                # It was done by then.
                shutil.rmtree(out)
                continue
            flow.work(out)
            held = flow.content(out) == expected and whole_as_told(out)
            tally.note(held, f"{flow.name} after {moment:.3f} s: ended {ended}")
            shutil.rmtree(out)
            left -= 1
    return tally


class Lost(BaseException):
    """The power is gone."""


def power_cuts(at: Path, most: int) -> Tally:
    """Lose what was not synced at a boundary of a write, then give the same command again."""
    tally = Tally()
    for flow in flows(at):
        with boundaries(lambda number, what: None) as count:
            flow.work(at / f"{flow.name}-whole")
        expected = flow.content(at / f"{flow.name}-whole")
        for number in spread(count[0], most):
            out = at / f"{flow.name}-{number}"

            def strike(now: int, what: str, number: int = number) -> None:
                if now == number + 1:
                    raise Lost

            with suppress(Lost), boundaries(strike, power=True):
                flow.work(out)
            for torn in out.rglob(".*.tmp"):
                data = torn.read_bytes()
                torn.write_bytes(data[: len(data) // 2])
            flow.work(out)
            tally.note(flow.content(out) == expected, f"{flow.name}, boundary {number}")
            shutil.rmtree(out)
    return tally


def damage(at: Path, most: int) -> Tally:
    """Flip a bit of a file, or tear it, and read; then give the same command again."""
    tally, chance = Tally(), random.Random(0)
    for flow in flows(at):
        whole = at / f"{flow.name}-whole"
        flow.work(whole)
        expected = flow.content(whole)
        kinds = ("manifest.json", "manifest.copy.json", "constants.safetensors", "commits/*.json",
                 "*/*.parquet")  # fmt: skip
        for kind in kinds:
            for number in range(most):
                # What could not be repaired may be gone.
                if not (files := sorted(whole.rglob(kind))):
                    break
                file = chance.choice(files)
                data = bytearray(file.read_bytes())
                if number % 5 == 4:
                    del data[chance.randrange(len(data)) :]
                else:
                    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                before = file.read_bytes()
                file.write_bytes(data)
                try:
                    held, how = flow.content(whole) == expected, "wrong rows were read"
                except MnemoscopeError:
                    held, how = True, ""
                if number % 5 == 0 and held:
                    try:
                        flow.work(whole)
                        held = flow.content(whole) == expected and whole_as_told(whole)
                    except MnemoscopeError:
                        held = False
                    how = "not repaired on resume"
                for corrupt in whole.rglob("*.corrupt"):
                    corrupt.unlink()
                if number % 5:
                    file.write_bytes(before)
                tally.note(held, f"{flow.name}, {file.name}: {how}")
    return tally


def disk_errors(at: Path, most: int) -> Tally:
    """Let a call of the disk fail, then give the same command again."""
    tally = Tally()
    for flow in flows(at):
        with boundaries(lambda number, what: None) as count:
            flow.work(at / f"{flow.name}-whole")
        expected = flow.content(at / f"{flow.name}-whole")
        for code in (errno.ENOSPC, errno.EIO, errno.EACCES):
            for number in spread(count[0], most):
                out = at / f"{flow.name}-{code}-{number}"

                def strike(now: int, what: str, code: int = code, number: int = number) -> None:
                    if now == number + 1:
                        raise OSError(code, os.strerror(code))

                told = "nothing was said"
                try:
                    with boundaries(strike):
                        flow.work(out)
                except MnemoscopeError as error:
                    told = str(error)
                except OSError as error:
                    told = f"a traceback: {error}"
                flow.work(out)
                held = os.strerror(code) in told and str(out) in told
                held = held and flow.content(out) == expected
                tally.note(held, f"{flow.name}, {errno.errorcode[code]} at {number}: {told}")
                shutil.rmtree(out)
    return tally


def processes(at: Path, most: int) -> Tally:
    """Start several processes on one folder at once; then give the same command again."""
    tally = Tally()
    for flow in flows(at):
        flow.work(at / f"{flow.name}-whole")
        expected = flow.content(at / f"{flow.name}-whole")
        for number in range(most):
            out = at / f"{flow.name}-{number}"
            children: list[int] = []
            for _ in range(2 + number % 2):
                child = os.fork()
                if child == 0:
                    status = 2
                    with suppress(MnemoscopeError):
                        flow.work(out)
                        status = 0
                    os._exit(status)
                children.append(child)
            ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            flow.work(out)
            held = 0 in ended and set(ended) <= {0, 2} and flow.content(out) == expected
            tally.note(held, f"{flow.name}: ended {ended}")
    return tally


class Faulty:
    """A model one part of which does something else for one prompt."""

    def __init__(self, place: str, strike: Callable[[Any], Any]) -> None:
        self.inner: Any = load_model("oracle:memorizer")
        self.place, self.strike = place, strike
        self.kind = self.inner.denoiser.kind
        self.victim = self.inner.encode_prompts([PROMPTS[1]]).parts["log_weights"][0]
        self.target = self.inner.denoiser.means[1].flatten().double()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def denoiser(self) -> Any:
        """Return the network, or what stands in its place."""
        return self if self.place == "denoiser" else self.inner.denoiser

    def __call__(self, x: Any, timestep: Any, condition: Any) -> Any:
        """Call the network."""
        out = self.inner.denoiser(x, timestep, condition)
        here = (condition.parts["log_weights"] == self.victim).all(dim=1)
        return self._struck(out, here)

    def encode_prompts(self, texts: Any, guidance: float = 1.0) -> Any:
        """Encode."""
        if self.place == "encode_prompts" and PROMPTS[1] in texts:
            self.strike(None)
        return self.inner.encode_prompts(texts, guidance)

    def token_counts(self, texts: Any) -> Any:
        """Count."""
        if self.place == "token_counts" and PROMPTS[1] in texts:
            self.strike(None)
        return self.inner.token_counts(texts)

    def decode(self, latents: Any) -> Any:
        """Decode."""
        near = (latents.flatten(1).double() - self.target).norm(dim=1) < 2
        images = self.inner.decode(latents)
        return self._struck(images, near) if self.place == "decode" else images

    def _struck(self, out: Any, here: Any) -> Any:
        if not bool(here.any()):
            return out
        told = self.strike(out[here])
        out = out.clone()
        out[here] = told
        return out


ERRORS = (RuntimeError, torch.OutOfMemoryError, MemoryError, ValueError, KeyError, AssertionError,
          TypeError, OSError)  # fmt: skip
PLACES = ("encode_prompts", "denoiser", "decode", "token_counts")


def numbers(at: Path, most: int) -> Tally:
    """Let a number of the network or the decoder be NaN or infinite."""

    def filled(value: float) -> Callable[[Any], Any]:
        return lambda out: torch.full_like(out, value)

    values = (float("nan"), float("inf"), float("-inf"))
    faults = [(f"{value} of {place}", place, filled(value))
              for value in values for place in ("denoiser", "decode")]  # fmt: skip
    return struck(at, faults[:most], "nonfinite")


def errors(at: Path, most: int) -> Tally:
    """Raise in one prompt, wherever a model is called."""

    def raising(kind: type[Exception]) -> Callable[[Any], Any]:
        def strike(out: Any) -> Any:
            raise kind("struck")

        return strike

    faults = [(f"{kind.__name__} in {place}", place, raising(kind))
              for kind in ERRORS for place in PLACES]  # fmt: skip
    return struck(at, [faults[number] for number in spread(len(faults), most)], "error")


def struck(at: Path, faults: list[tuple[str, str, Callable[[Any], Any]]], status: str) -> Tally:
    """Run a study and a detection in which a part of the model strikes at one prompt."""
    tally = Tally()
    listed, (study, *_) = at / "prompts.txt", flows(at)
    study.work(at / "whole")
    plain = record(open_run(at / "whole"))
    asked: dict[str, Any] = {"detectors": NAMES, "seeds": 2, "steps": 3, "batch": 4}
    scores = detect("oracle:memorizer", listed, **asked)
    for number, (what, place, strike) in enumerate(faults):
        model: Any = Faulty(place, strike)
        marked = 0 if place == "token_counts" else 2
        told = Study(
            model="oracle:memorizer", prompts=listed, seeds=2, steps=3, guidance=(1.0,), batch=4,
            similarity=("l2",), device="cpu", detectors=NAMES, out=at / f"{number}",
        )  # fmt: skip
        try:
            found = run(told, model=model)
            held = found.manifest.samples.get(status, 0) == marked
            held = held and np.allclose(record(found), plain, rtol=5e-6, atol=5e-4, equal_nan=True)
        except Exception:
            held = False
        tally.note(held, f"study, {what}")
        if place == "decode":
            continue
        try:
            ours = detect(model, listed, **asked)
            others = [0, 2, 3]
            held = all(
                np.allclose(ours.of(name)[others], scores.of(name)[others], rtol=1e-4)
                and bool(np.isnan(ours.of(name)[1])) == bool(marked)
                for name in NAMES
            )
        except Exception:
            held = False
        tally.note(held, f"detect, {what}")
    return tally


def record(found: Any) -> np.ndarray:
    """Return the record of the prompts at which nothing strikes."""
    names = {row["prompt"]: row["prompt_id"] for row in found.table("prompts").to_pylist()}
    # A unit that was halved has the same rows in another order.
    keys = ("prompt_id", "law", "seed", "call")
    rows = found.table("gram").sort_by([(key, "ascending") for key in keys])
    here = rows["prompt_id"].to_numpy() != names[PROMPTS[1]]
    columns = [name for name in rows.column_names if "·" in name]
    return np.stack([rows[name].to_numpy()[here] for name in columns])


def lists(at: Path, most: int) -> Tally:
    """Read prompt files that are broken, and good ones with a byte changed."""
    tally, chance = Tally(), random.Random(0)
    good = b'{"prompt": "a red house", "prompt_id": "a"}\n{"prompt": "two birds"}\n'
    broken = [b"", b"\xef\xbb\xbf", b"\xff\xfe\x00", b"{", b"[1]\n", b"null\n", b'{"prompt": 3}\n',
              b'{"caption_": "x"}\n', b'{"prompt": "a", "prompt_id": "../x"}\n', good + good,
              b'{"prompt": "' + b"x" * 2**20 + b'"}\n', b"[" * 10**5, b'{"prompt": "\x00"}\n',
              b'{"prompt": "a", "images": ["../../etc/passwd"]}\n']  # fmt: skip
    for number in range(most):
        data = bytearray(good)
        if number < len(broken):
            data = bytearray(broken[number])
        else:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path = at / f"{number}.jsonl"
        path.write_bytes(data)
        try:
            known = list(read_prompts(path))
            held = number >= len(broken) and 1 <= len(known) <= 2
        except MnemoscopeError as error:
            held = str(path) in str(error)
        except Exception:
            held = False
        tally.note(held, f"{bytes(data[:40])!r}")
    return tally


def batches(at: Path, most: int) -> Tally:
    """Change the batch, and take up a run that was begun with another."""
    tally = Tally()
    study, *_ = flows(at)
    study.work(at / "whole")
    plain = record(open_run(at / "whole"))
    for batch in range(1, most + 1):
        told = Study(
            model="oracle:memorizer", prompts=at / "prompts.txt", seeds=2, steps=3,
            guidance=(1.0,), batch=batch, similarity=("l2",), device="cpu", out=at / f"{batch}",
        )  # fmt: skip
        held = np.allclose(record(run(told)), plain, rtol=5e-6, atol=5e-4, equal_nan=True)
        tally.note(held, f"batch {batch}")
    return tally


def pictures(at: Path, most: int) -> Tally:
    """Read pictures with a byte changed, torn, or of another kind than their name says."""
    tally, chance = Tally(), random.Random(0)
    for number in range(most):
        kind = ("png", "jpeg", "webp")[number % 3]
        path = at / f"{number}.{kind}"
        pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        data = bytearray(path.read_bytes())
        if number % 4 == 3:
            del data[chance.randrange(len(data)) :]
        else:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            found = load_image(path).pixels
            held = bool(((found >= 0) & (found <= 1)).all())
        except MnemoscopeError:
            held = True
        except Exception:
            held = False
        tally.note(held, path.name)
    return tally


def strangers(at: Path, most: int) -> Tally:
    """Open what a stranger wrote: records too deep, too large, or with names that lead outside."""
    tally = Tally()
    victim = at / "victim.parquet"
    victim.write_bytes(b"precious")
    digest = {"sha256": "0" * 64, "rows": 1}
    texts = [b"[" * 10**5, b'{"a":' * 900 + b"1" + b"}" * 900, b" " * 2**21, b"", b"{}", b"null",
             *(json.dumps({name: digest}).encode() for name in ("../victim", "..", "/etc", "x")),
             *(records.sealed({"unit": "x", "parts": {name: digest}})
               for name in ("../victim", "samples/../../victim", "constants"))]  # fmt: skip
    for flow in flows(at):
        flow.work(at / flow.name)
        for number, text in enumerate(texts[:most]):
            for name in ("commits/x.json", "manifest.json"):
                target = at / flow.name / name
                before = target.read_bytes() if target.exists() else None
                target.write_bytes(text)
                try:
                    open_run(at / flow.name).table("scores")
                    held = False
                except MnemoscopeError:
                    held = True
                flow.work(at / flow.name)
                held = held and victim.read_bytes() == b"precious" and verify(at / flow.name).ok
                if before is not None:
                    target.write_bytes(before)
                tally.note(held, f"{flow.name}, {name}, text {number}")
    return tally


def pages(at: Path, most: int) -> Tally:
    """Build a page twice."""
    tally = Tally()
    study, *_ = flows(at)
    study.work(at / "whole")
    first = report(open_run(at / "whole"), at / "0").read_bytes()
    for number in range(1, most + 1):
        again = report(open_run(at / "whole"), at / f"{number}").read_bytes()
        tally.note(again == first, f"page {number}")
    return tally


CAMPAIGNS: Mapping[str, tuple[Callable[[Path, int], Tally], int]] = {
    "1 killed at a write": (kills, 150),
    "1 killed at a random moment": (moments, 40),
    "1 power lost at a write": (power_cuts, 150),
    "2 damaged files": (damage, 60),
    "3 errors of the disk": (disk_errors, 40),
    "4 processes on one folder": (processes, 6),
    "5 numbers that are not finite": (numbers, 6),
    "6 errors in one prompt": (errors, 32),
    "7 prompt files": (lists, 300),
    "8 batch sizes": (batches, 8),
    "14 pictures": (pictures, 300),
    "14 records of strangers": (strangers, 13),
    "20 pages built twice": (pages, 2),
}
"""Campaigns by their row in the plan, each with how many faults it tries."""

ELSEWHERE = {
    "9 another device": "needs a GPU",
    "10, 11 hooks, order of branches": "tests/sampling/test_attach.py, test_hooks.py",
    "12 damaged models": "tests/models/test_load.py, test_digest.py",
    "13 hostile prompts in pages": "tests/reporting/test_browser.py",
    "15 schedulers": "tests/core, tests/sampling/test_loop.py",
    "16 released code": "tests/test_released.py, benchmarks/released.py",
    "17 statistics": "tests/severity, tests/mechanism",
    "18 older folders": "tests/runs/test_older.py, test_damage.py",
    "19 workers that are killed": "benchmarks/chaos.py, tests/runs/test_crew.py, test_processes.py",
}
"""Rows of the plan that are held by tests alone."""


def main(share: float = 1.0) -> bool:
    """Run every campaign, print the table, and return whether every fault was survived.

    Args:
        share: Which part of the faults to try.
    """
    torch.set_num_threads(1)
    kept = True
    print(f"{'fault':36} {'tried':>6} {'survived':>9} {'s':>6}", flush=True)
    for name, (campaign, most) in CAMPAIGNS.items():
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="mnemoscope-faults-") as folder:
            tally = campaign(Path(folder), max(1, round(most * share)))
        seconds = time.perf_counter() - begun
        print(f"{name:36} {tally.tried:6} {tally.survived:9} {seconds:6.0f}", flush=True)
        for what in tally.failed[:5]:
            print(f"    failed: {what}"[:300], flush=True)
        kept = kept and not tally.failed
    for name, where in ELSEWHERE.items():
        print(f"{name:36} {where}")
    return kept


if __name__ == "__main__":
    sys.exit(not main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0))
