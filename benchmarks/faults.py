"""Faults: what goes wrong in a study, a detection or an audit; how often tried, and survived.

A fault is survived if nothing wrong enters a result: what was finished is kept, the same command
goes on to the tables of a run that was never disturbed, and what cannot be used is refused with a
message. The oracle stands in for the network, so that hundreds of faults take minutes.

Every campaign is a function of a flow and of how many faults to try; the test suite calls them with
few.

    python -m benchmarks.faults --only killed --flow audit

Contents: `Tally`; `Flow` and `flows`; the campaigns in `CAMPAIGNS`; `main`.
"""

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence, Set
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
from mnemoscope.data.sets import read_set
from mnemoscope.errors import MnemoscopeError
from mnemoscope.flows.audit import Audit, audit
from mnemoscope.lab.dataset import METADATA
from mnemoscope.reporting.audit import found_of, write
from mnemoscope.runs import records
from mnemoscope.runs.verify import runs_in, verify

PROMPTS = ("target 0", "target 1", "never seen", "target 2")
TARGETS = tuple(f"target {at}" for at in range(4))
"""Captions of the data set whose pictures come back."""
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
        work: Does it, into a folder; with another model or other options where given.
    """

    name: str
    work: Callable[..., object]

    def content(self, at: Path) -> dict[str, Any]:
        """Return what a run says, and each of its stages, times aside."""
        told: dict[str, Any] = {}
        for folder in runs_in(at):
            held, stage = open_run(folder), folder.relative_to(at)
            for name in sorted(held.manifest.rows):
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


def flows(at: Path, texts: Sequence[str] = PROMPTS, others: int = 8) -> dict[str, Flow]:
    """Return a study, a detection and an audit of a few units each.

    Args:
        at: Folder of what they read.
        texts: Prompts of the study and the detection.
        others: Captions of the audit that give nothing back, beside four that do.
    """
    listed, pictured = at / "prompts.txt", captioned(at / "set", others=others)
    listed.write_text("\n".join(texts) + "\n")
    shared: dict[str, Any] = {"seeds": 2, "device": "cpu"}
    closeness = shared | {"similarity": ("l2",)}

    def study(out: Path, model: Any = None, **options: Any) -> object:
        asked = closeness | {"steps": 3, "guidance": (1.0,), "batch": 4, "out": out} | options
        return run(Study(model="oracle:memorizer", prompts=listed, **asked), model=model)

    def detection(out: Path, model: Any = "oracle:memorizer", **options: Any) -> object:
        # What is loaded already is on its device.
        of_name = shared if isinstance(model, str) else {"seeds": 2}
        asked = of_name | {"detectors": NAMES, "steps": 3, "batch": 4, "out": out} | options
        return detect(model, listed, **asked)

    def audited(out: Path, model: Any = None, **options: Any) -> object:
        asked = closeness | {"screening_seeds": 2, "steps": 2, "guidance": 1.0, "batch": 16}
        return audit(
            Audit(model="oracle:memorizer", dataset=pictured, **asked | {"out": out} | options),
            model=model,
        )

    found = Flow("study", study), Flow("detect", detection), Flow("audit", audited)
    return {flow.name: flow for flow in found}


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


def kills(at: Path, flow: Flow, most: int) -> Tally:
    """Kill the process at a boundary of a write, then give the same command again."""
    tally = Tally()
    with boundaries(lambda number, what: None) as count:
        flow.work(at / "whole")
    expected = flow.content(at / "whole")
    for number in spread(count[0], most):
        out = at / f"{number}"

        def struck(out: Path = out, number: int = number) -> None:
            def strike(now: int, what: str) -> None:
                if now == number + 1:
                    os.kill(os.getpid(), signal.SIGKILL)

            with boundaries(strike):
                flow.work(out)

        ended = in_child(struck)
        flow.work(out)
        held = ended == -signal.SIGKILL and flow.content(out) == expected
        tally.note(held, f"boundary {number}: ended {ended}")
        shutil.rmtree(out)
    return tally


def moments(at: Path, flow: Flow, most: int) -> Tally:
    """Kill the process at a random moment, wherever it is; then give the same command again."""
    tally, chance = Tally(), random.Random(0)
    flow.work(at / "whole")
    expected = flow.content(at / "whole")
    # The first one pays for what is imported late.
    begun = time.perf_counter()
    flow.work(at / "timed")
    seconds = time.perf_counter() - begun
    left = most
    while left:
        out, moment = at / f"{left}", chance.random() * seconds

        def struck(out: Path = out, moment: float = moment) -> None:
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
        tally.note(held, f"after {moment:.3f} s: ended {ended}")
        shutil.rmtree(out)
        left -= 1
    return tally


class Lost(BaseException):
    """The power is gone."""


def power_cuts(at: Path, flow: Flow, most: int) -> Tally:
    """Lose what was not synced at a boundary of a write, then give the same command again."""
    tally = Tally()
    with boundaries(lambda number, what: None) as count:
        flow.work(at / "whole")
    expected = flow.content(at / "whole")
    for number in spread(count[0], most):
        out = at / f"{number}"

        def strike(now: int, what: str, number: int = number) -> None:
            if now == number + 1:
                raise Lost

        with suppress(Lost), boundaries(strike, power=True):
            flow.work(out)
        for torn in out.rglob(".*.tmp"):
            data = torn.read_bytes()
            torn.write_bytes(data[: len(data) // 2])
        flow.work(out)
        tally.note(flow.content(out) == expected, f"boundary {number}")
        shutil.rmtree(out)
    return tally


def damage(at: Path, flow: Flow, most: int) -> Tally:
    """Flip a bit of a file, or tear it, and read; then give the same command again."""
    tally, chance = Tally(), random.Random(0)
    whole = at / "whole"
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
            tally.note(held, f"{file.name}: {how}")
    return tally


def disk_errors(at: Path, flow: Flow, most: int) -> Tally:
    """Let a call of the disk fail, then give the same command again."""
    tally = Tally()
    with boundaries(lambda number, what: None) as count:
        flow.work(at / "whole")
    expected = flow.content(at / "whole")
    for code in (errno.ENOSPC, errno.EIO, errno.EACCES):
        for number in spread(count[0], most):
            out = at / f"{code}-{number}"

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
            tally.note(held, f"{errno.errorcode[code]} at {number}: {told}")
            shutil.rmtree(out)
    return tally


def processes(at: Path, flow: Flow, most: int) -> Tally:
    """Start several processes on one folder at once; then give the same command again."""
    tally = Tally()
    flow.work(at / "whole")
    expected = flow.content(at / "whole")
    for number in range(most):
        out = at / f"{number}"
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
        tally.note(held, f"ended {ended}")
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
UNMET = {("detect", "decode"), ("detect", "token_counts"), ("audit", "token_counts")}
"""What decodes nothing, or counts words for its tables alone and does without."""


def numbers(at: Path, flow: Flow, most: int) -> Tally:
    """Let a number of the network or the decoder be NaN or infinite."""

    def filled(value: float) -> Callable[[Any], Any]:
        return lambda out: torch.full_like(out, value)

    values = (float("nan"), float("inf"), float("-inf"))
    faults = [(f"{value} of {place}", place, filled(value))
              for value in values for place in ("denoiser", "decode")]  # fmt: skip
    return struck(at, flow, faults[:most], "nonfinite")


def errors(at: Path, flow: Flow, most: int) -> Tally:
    """Raise in one prompt, wherever a model is called."""

    def raising(kind: type[Exception]) -> Callable[[Any], Any]:
        def strike(out: Any) -> Any:
            raise kind("struck")

        return strike

    faults = [(f"{kind.__name__} in {place}", place, raising(kind))
              for kind in ERRORS for place in PLACES]  # fmt: skip
    return struck(at, flow, [faults[number] for number in spread(len(faults), most)], "error")


def struck(
    at: Path, flow: Flow, faults: list[tuple[str, str, Callable[[Any], Any]]], status: str
) -> Tally:
    """Do the work with a model a part of which strikes at one prompt; then retry that one."""
    tally = Tally()
    flow.work(at / "whole")
    plain, expected = seen(at / "whole"), flow.content(at / "whole")
    for number, (what, place, strike) in enumerate(faults):
        met = (flow.name, place) not in UNMET
        try:
            flow.work(at / f"{number}", model=Faulty(place, strike))
            marks = marked(at / f"{number}")
            held = marks == ({(PROMPTS[1], status)} if met else set())
            held = held and alike(seen(at / f"{number}"), plain, {PROMPTS[1]} if met else set())
            flow.work(at / f"{number}", retry=True)
            held = held and alike(seen(at / f"{number}"), plain) and not marked(at / f"{number}")
            # How many words a prompt has is told once, and null stays null.
            counted = place == "token_counts"
            held = held and (counted or flow.content(at / f"{number}") == expected)
        except Exception as error:
            held, what = False, f"{what}: {error!r}"
        tally.note(held, what)
    return tally


def texts_of(held: Any) -> dict[str, str]:
    """Return the text of every prompt of a run."""
    return {row["prompt_id"]: row["prompt"] for row in held.table("prompts").to_pylist()}


def marked(at: Path) -> set[tuple[str, str]]:
    """Return the prompts with samples that are not ok, in any stage, and their status."""
    found: set[tuple[str, str]] = set()
    for held in map(open_run, runs_in(at)):
        if held.manifest.rows.get("samples"):
            rows, texts = held.table("samples").to_pylist(), texts_of(held)
            found |= {(texts[row["prompt_id"]], row["status"]) for row in rows}
    return {(text, status) for text, status in found if status != "ok"}


def seen(at: Path) -> dict[str, np.ndarray]:
    """Return the numbers that a run has of each prompt, in an order of their own.

    A unit that was halved, or of another size, has the same rows in another order.
    """
    held = open_run(at)
    table, keys = {
        "study": ("gram", ("law", "seed", "call")),
        "detection": ("scores", ("detector",)),
        "audit": ("audited", ()),
    }[held.manifest.flow]
    rows = held.table(table).sort_by([(key, "ascending") for key in ("prompt_id", *keys)])
    wanted = ("score", "share", "share_elsewhere", "samples")
    columns = [name for name in rows.column_names if "·" in name or name in wanted]
    texts = {} if table == "audited" else texts_of(held)
    names = [texts.get(row["prompt_id"]) or row["prompt"] for row in rows.to_pylist()]
    values = np.stack([rows[name].to_numpy().astype(np.float64) for name in columns], axis=1)
    return {name: values[[at for at, n in enumerate(names) if n == name]] for name in set(names)}


def alike(ours: Mapping[str, Any], theirs: Mapping[str, Any], but: Set[str] = frozenset()) -> bool:
    """Tell whether two runs have the same numbers of all prompts but some, as batches allow."""
    return ours.keys() - but == theirs.keys() - but and all(
        np.allclose(ours[name], theirs[name], rtol=5e-6, atol=5e-4, equal_nan=True)
        for name in ours.keys() - but
    )


def lists(at: Path, flow: Flow, most: int) -> Tally:
    """Read prompt files, or lists of pictures, that are broken, or good with a byte changed."""
    tally, chance = Tally(), random.Random(0)
    good = b'{"prompt": "a red house", "prompt_id": "a"}\n{"prompt": "two birds"}\n'
    pictured = list((at / "set").iterdir())
    if flow.name == "audit":
        good = good.replace(b'"a red house"', b'"a red house", "image": "set/000.png"')
        good = good.replace(b'"two birds"', b'"two birds", "image": "set/001.png"')
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
            if flow.name == "audit":
                items = list(read_set(path))
                held = 1 <= len(items) <= 4 and all(
                    item.reason or item.image in pictured for item in items
                )
            else:
                held = 1 <= len(list(read_prompts(path))) <= 2 and number >= len(broken)
        except MnemoscopeError as error:
            held = str(path) in str(error)
        except Exception:
            held = False
        tally.note(held, f"{bytes(data[:40])!r}")
    return tally


def batches(at: Path, flow: Flow, most: int) -> Tally:
    """Change the batch."""
    tally = Tally()
    flow.work(at / "whole")
    for batch in range(1, most + 1):
        flow.work(at / f"{batch}", batch=batch)
        tally.note(alike(seen(at / f"{batch}"), seen(at / "whole")), f"batch {batch}")
    return tally


def pictures(at: Path, flow: Flow, most: int) -> Tally:
    """Read pictures with a byte changed, torn, or of another kind than their name says."""
    tally, chance, folder = Tally(), random.Random(0), at / "set"
    paths = [folder / f"{number}.{('png', 'jpeg', 'webp')[number % 3]}" for number in range(most)]
    for number, path in enumerate(paths):
        tiles = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(tiles.repeat(3, axis=0).repeat(3, axis=1)).save(path)
        data = bytearray(path.read_bytes())
        if number % 4 == 3:
            del data[chance.randrange(len(data)) :]
        else:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    names = [named_picture(path) for path in paths]
    if flow.name == "audit":
        with (folder / METADATA).open("a") as file:
            for path in paths:
                file.write(json.dumps({"file_name": path.name, "text": path.stem}) + "\n")
        flow.work(at / "run")
        held = open_run(at / "run")
        back = {row["prompt"] for row in held.table("audited").to_pylist() if row["references"]}
        rows = {row["name"]: row for row in held.table("items").to_pylist()}
        for path, name in zip(paths, names, strict=True):
            row = rows[path.name]
            held_here = row["reference_id"] == name and (name is None) == bool(row["reason"])
            tally.note(held_here and back >= set(TARGETS), path.name)
    else:
        for path, name in zip(paths, names, strict=True):
            tally.note(name != "", path.name)
    return tally


def named_picture(path: Path) -> str | None:
    """Return what a picture is called; None where it is refused, "" where it is neither."""
    try:
        found = load_image(path)
        held = bool(((found.pixels >= 0) & (found.pixels <= 1)).all())
        return found.reference_id if held else ""
    except MnemoscopeError:
        return None
    except Exception:
        return ""


def strangers(at: Path, flow: Flow, most: int) -> Tally:
    """Open what a stranger wrote: records too deep, too large, or with names that lead outside."""
    tally = Tally()
    victim = at / "victim.parquet"
    victim.write_bytes(b"precious")
    digest = {"sha256": "0" * 64, "rows": 1}
    texts = [b"[" * 10**5, b'{"a":' * 900 + b"1" + b"}" * 900, b" " * 2**21, b"", b"{}", b"null",
             *(json.dumps({name: digest}).encode() for name in ("../victim", "..", "/etc", "x")),
             *(records.sealed({"unit": "x", "parts": {name: digest}})
               for name in ("../victim", "samples/../../victim", "constants"))]  # fmt: skip
    flow.work(at / "run")
    for number, text in enumerate(texts[:most]):
        for name in ("commits/x.json", "manifest.json"):
            target = at / "run" / name
            before = target.read_bytes() if target.exists() else None
            target.write_bytes(text)
            try:
                open_run(at / "run").table("scores")
                held = False
            except MnemoscopeError:
                held = True
            flow.work(at / "run")
            held = held and victim.read_bytes() == b"precious" and verify(at / "run").ok
            if before is not None:
                target.write_bytes(before)
            tally.note(held, f"{name}, text {number}")
    return tally


def pages(at: Path, flow: Flow, most: int) -> Tally:
    """Build a page twice."""
    tally = Tally()
    flow.work(at / "whole")

    def page(number: int) -> bytes:
        held, out = open_run(at / "whole"), at / f"{number}"
        return (
            write(found_of(held), out) if flow.name == "audit" else report(held, out)
        ).read_bytes()

    first = page(0)
    for number in range(1, most + 1):
        tally.note(page(number) == first, f"page {number}")
    return tally


@dataclass(frozen=True)
class Campaign:
    """Faults of one kind.

    Attributes:
        run: Tries so many of them on a flow, which has a folder of its own.
        most: How many there are.
        flows: The flows that can meet them.
    """

    run: Callable[[Path, Flow, int], Tally]
    most: int
    flows: tuple[str, ...] = ("study", "detect", "audit")


READING = ("study", "audit")
"""A detection reads what a study does, by the same code."""

CAMPAIGNS: Mapping[str, Campaign] = {
    "1 killed at a write": Campaign(kills, 150),
    "1 killed at a random moment": Campaign(moments, 40),
    "1 power lost at a write": Campaign(power_cuts, 150),
    "2 damaged files": Campaign(damage, 60),
    "3 errors of the disk": Campaign(disk_errors, 40),
    "4 processes on one folder": Campaign(processes, 6),
    "5 numbers that are not finite": Campaign(numbers, 6),
    "6 errors in one prompt": Campaign(errors, 32),
    "7 lists": Campaign(lists, 300, READING),
    "8 batch sizes": Campaign(batches, 8),
    "14 pictures": Campaign(pictures, 300, READING),
    "14 records of strangers": Campaign(strangers, 13),
    "20 pages built twice": Campaign(pages, 2, READING),
}
"""Campaigns by their row in the plan."""

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


def main(share: float = 1.0, only: str = "", flow: str = "") -> bool:
    """Run campaigns, print the table, and return whether every fault was survived.

    Args:
        share: Which part of the faults to try.
        only: Campaigns whose name holds this.
        flow: The flow to try them on; every one if left.
    """
    torch.set_num_threads(1)
    kept = True
    print(f"{'fault':30} {'flow':8} {'tried':>6} {'survived':>9} {'s':>6}", flush=True)
    for name, campaign in CAMPAIGNS.items():
        for kind in campaign.flows:
            if only not in name or flow not in ("", kind):
                continue
            begun = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="mnemoscope-faults-") as folder:
                at = Path(folder)
                tally = campaign.run(at, flows(at)[kind], max(1, round(campaign.most * share)))
            seconds = time.perf_counter() - begun
            told = f"{tally.tried:6} {tally.survived:9} {seconds:6.0f}"
            print(f"{name:30} {kind:8} {told}", flush=True)
            for what in tally.failed[:5]:
                print(f"    failed: {what}"[:300], flush=True)
            kept = kept and not tally.failed
    for name, where in ELSEWHERE.items():
        if only in name:
            print(f"{name:36} {where}")
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=1.0, help="which part of the faults to try")
    parser.add_argument("--only", default="", help="campaigns whose name holds this")
    parser.add_argument("--flow", default="", help="study, detect or audit; all if left")
    given = parser.parse_args()
    sys.exit(not main(given.share, given.only, given.flow))
