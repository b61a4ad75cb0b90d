"""A table is a set of rows of one kind; this module says what every column of every table means.

A run folder holds one sub-folder a table, and the pyarrow schemas in use derive from the columns
here, so a column exists only with its name, its type, its unit and its meaning. A change of a
column's *meaning* changes `SCHEMA`.

Contents: `Column`, `Table`, the tables by name in `TABLES`, and `DERIVED`, the tables that can
always be rebuilt from the others without a model.

Keys: a sample is named by `prompt_id`, `seed` and `recipe`, alike in all tables. A view of a table
(`Run.table`) has the guidance scale of the recipe beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from mnemoscope.core.gram import PAIRS
from mnemoscope.errors import RunError, did_you_mean

SCHEMA = 3
"""Version of the run folder."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its name.
        type: Its pyarrow type.
        about: What a value means, and when it is null.
        unit: Its unit; "1" for a pure number, "" for text.
        nullable: Whether a row may lack it.
    """

    name: str
    type: pa.DataType
    about: str
    unit: str = ""
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: Its name, and that of its folder.
        row: What one row is.
        columns: Its columns, in order.
    """

    name: str
    row: str
    columns: tuple[Column, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """Return the pyarrow schema; each field carries its unit and meaning as metadata."""
        return pa.schema(
            [
                pa.field(c.name, c.type, c.nullable, {"unit": c.unit, "about": c.about})
                for c in self.columns
            ],
            {"table": self.name, "schema": str(SCHEMA)},
        )

    def of(self, columns: Mapping[str, Any]) -> pa.Table:
        """Build rows of this table.

        Args:
            columns: Values by column name: a sequence or array, one value a row. A nullable column
                may be left out and is then null.

        Returns:
            A pyarrow table with exactly this table's schema.

        Raises:
            RunError: If a column is unknown or missing, lengths differ, or a value does not fit.
        """
        names = [column.name for column in self.columns]
        for given in columns:
            if given not in names:
                raise RunError(did_you_mean(given, names, f"column of table {self.name!r}"))
        rows = {len(values) for values in columns.values()}
        if len(rows) > 1:
            raise RunError(f"columns of table {self.name!r} differ in length: {sorted(rows)}")
        count = rows.pop() if rows else 0
        arrays: list[Any] = []
        for column in self.columns:
            if column.name not in columns:
                if not column.nullable:
                    raise RunError(f"table {self.name!r} needs the column {column.name!r}")
                arrays.append(pa.nulls(count, column.type))
                continue
            try:
                array = pa.array(columns[column.name], column.type)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                raise RunError(
                    f"column {column.name!r} of table {self.name!r} takes {column.type}: {error}"
                ) from error
            if array.null_count and not column.nullable:
                raise RunError(f"column {column.name!r} of table {self.name!r} may not be null")
            arrays.append(array)
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def of_rows(self, rows: list[dict[str, Any]]) -> pa.Table:
        """Build rows of this table from one mapping a row.

        Raises:
            RunError: As `of`.
        """
        given = dict.fromkeys(name for row in rows for name in row)
        if not rows:
            return self.schema.empty_table()
        return self.of({name: [row.get(name) for row in rows] for name in given})


_PROMPT = Column("prompt_id", pa.string(), "name of the prompt, unique in the run")
_SEED = Column("seed", pa.int32(), "index of the sample among its prompt's, from 0", "1")
_RECIPE = Column("recipe", pa.string(), "how it was sampled, a row of table recipes")
_CALL = Column("call", pa.int16(), "index of the network call on the path, from 0", "1")
_ALPHA = Column("alpha", pa.float64(), "weight of the clean image, with alpha² + sigma² = 1", "1")
_SIGMA = Column("sigma", pa.float64(), "weight of the noise, with alpha² + sigma² = 1", "1")
_MEASURE = Column("measure", pa.string(), 'similarity measure and preset, e.g. "l2"')
_ANALYSIS = Column("analysis", pa.string(), "name of the analysis that wrote the row")
_THRESHOLD = Column(
    "threshold", pa.float64(), "similarity above which two images count as the same", "similarity"
)


def _across_seeds(vector: str, prose: str) -> tuple[Column, ...]:
    return (
        Column(
            f"{vector}_variance",
            pa.float64(),
            f"mean over coordinates of the unbiased variance of the {prose} across seeds",
            "latent²",
            nullable=True,
        ),
        Column(
            f"{vector}_variance_odd",
            pa.float64(),
            f"the variance of the {prose} across the seeds with odd numbers alone; null where "
            "there are fewer than two",
            "latent²",
            nullable=True,
        ),
        Column(
            f"{vector}_distance",
            pa.float64(),
            f"mean over pairs of seeds of the L2 distance of the {prose}, divided by sqrt(d)",
            "latent",
            nullable=True,
        ),
        Column(
            f"{vector}_cosine",
            pa.float64(),
            f"mean over pairs of seeds of the cosine of the {prose}",
            "1",
            nullable=True,
        ),
        Column(
            f"{vector}_rank",
            pa.float64(),
            f"participation ratio (sum l)² / sum l² of the centred seed Gram matrix of the {prose}",
            "1",
            nullable=True,
        ),
    )


_ALL = (
    Table(
        "recipes",
        "one way of sampling",
        (
            _RECIPE,
            Column("guidance", pa.float64(), "guidance scale g; 1 is unguided", "1"),
            Column("scheduler", pa.string(), "sampler"),
            Column("steps", pa.int32(), "sampler updates", "1"),
            Column("eta", pa.float64(), "multiplier of injected noise", "1"),
            Column("seed", pa.int64(), "seed that all noise derives from", "1"),
            Column(
                "noise",
                pa.string(),
                '"independent", "shared", "fresh", or "given" with the digest of the file',
            ),
            Column("intervention", pa.string(), "what steers, with its settings", nullable=True),
        ),
    ),
    Table(
        "prompts",
        "one prompt",
        (
            _PROMPT,
            Column("prompt", pa.string(), "the text, as given"),
            Column("group", pa.string(), "label the prompt file gives", nullable=True),
            Column("kind", pa.string(), "kind of caption (lab)", nullable=True),
            Column("family", pa.string(), "planted family (lab)", nullable=True),
            Column("level", pa.int32(), "planted repetition level", "1", nullable=True),
            Column(
                "repetitions",
                pa.int32(),
                "how many times as often as an ordinary image its images were trained on",
                "1",
                nullable=True,
            ),
            Column("overfit_type", pa.string(), "Webster's label", nullable=True),
            Column(
                "tokens",
                pa.int32(),
                "length in tokens, with the first and last marks; null where it has none",
                "token",
                nullable=True,
            ),
            Column(
                "truncated",
                pa.bool_(),
                "whether the text exceeds the model's window; null where it has no length",
                nullable=True,
            ),
            Column(
                "references",
                pa.list_(pa.string()),
                "reference_id of each training image; the first is the target of the record",
            ),
            Column(
                "other",
                pa.string(),
                "reference_id of another prompt's image, which the prompt is judged with as a null",
                nullable=True,
            ),
        ),
    ),
    Table(
        "references",
        "one training image",
        (
            Column("reference_id", pa.string(), "first 16 hex digits of the SHA-256 of its pixels"),
            Column("prompt_ids", pa.list_(pa.string()), "prompts it belongs to"),
            Column("digest", pa.string(), "SHA-256 of the file"),
            Column("width", pa.int32(), "width of the file's image", "pixel"),
            Column("height", pa.int32(), "height of the file's image", "pixel"),
            Column(
                "image",
                pa.binary(),
                "WebP thumbnail of at most 256 pixels a side, lossless up to 128",
            ),
            Column("masked", pa.bool_(), "whether a mask marks the part that repeats"),
        ),
    ),
    Table(
        "samples",
        "one sample",
        (
            _PROMPT,
            _SEED,
            _RECIPE,
            Column("status", pa.string(), '"ok", "nonfinite" or "error"'),
            Column("reason", pa.string(), "why the status is not ok", nullable=True),
            Column(
                "network_calls",
                pa.int32(),
                "evaluations of the network, all branches; before the path a gradient counts two",
                "1",
            ),
            Column("seconds", pa.float64(), "share of its batch's time in the sampling loop", "s"),
            Column(
                "image",
                pa.binary(),
                "WebP of at most 256 pixels a side, lossless up to 128; null unless ok",
                nullable=True,
            ),
        ),
    ),
    Table(
        "gram",
        "one network call of one sample, or of one off-path probe",
        (
            _PROMPT,
            _SEED,
            Column(
                _RECIPE.name,
                _RECIPE.type,
                "as elsewhere; null for probes, which depend on no guidance",
                nullable=True,
            ),
            Column(
                "law",
                pa.string(),
                'where the state comes from: "path" (the sampler), "forward" (the training image '
                'with the sample\'s noise), "noise" (the noise alone)',
            ),
            _CALL,
            _ALPHA,
            _SIGMA,
            *(
                Column(
                    f"{a}·{b}",
                    pa.float64(),
                    f"inner product <{a}, {b}> over the latent; null where one does not exist",
                    "latent²",
                    nullable=True,
                )
                for a, b in PAIRS
            ),
        ),
    ),
    Table(
        "convergence",
        "one network call of one prompt at one guidance, across its ok seeds",
        (
            _PROMPT,
            _RECIPE,
            _CALL,
            _ALPHA,
            _SIGMA,
            *_across_seeds("x", "state"),
            *_across_seeds("x0_g", "guided clean estimate"),
            Column("seeds", pa.int32(), "number of seeds", "1"),
        ),
    ),
    Table(
        "filmstrips",
        "one sample, where filmstrips were asked for",
        (
            _PROMPT,
            _SEED,
            _RECIPE,
            Column("calls", pa.list_(pa.int16()), "call of each column of the picture, from 0"),
            Column(
                "branches",
                pa.list_(pa.string()),
                'branch of each row of the picture: "unconditional", "conditional", "guided"',
            ),
            Column("side", pa.int16(), "side of a frame", "pixel"),
            Column("image", pa.binary(), "WebP of the decoded clean estimates, at most 32 KiB"),
        ),
    ),
    Table(
        "similarities",
        "one generated image against one training image, by one measure",
        (
            _PROMPT,
            _SEED,
            _RECIPE,
            _MEASURE,
            Column("reference_id", pa.string(), "the training image"),
            Column(
                "relation",
                pa.string(),
                '"own" (an image of the prompt), "nearest" (the closest other that the study '
                'knows), "typical" (that of median similarity among the unrelated) or "other" (the '
                "image of another prompt, for a null)",
            ),
            Column("value", pa.float64(), "similarity; larger is closer", "similarity"),
        ),
    ),
    Table(
        "severity",
        "one prompt at one guidance, by one measure",
        (
            _PROMPT,
            _RECIPE,
            _MEASURE,
            Column("mean", pa.float64(), "mean over ok seeds", "similarity", nullable=True),
            Column("max", pa.float64(), "maximum over ok seeds", "similarity", nullable=True),
            Column("share", pa.float64(), "share of ok seeds above threshold", "1", nullable=True),
            Column(
                "share_elsewhere",
                pa.float64(),
                "share of ok seeds that copy another training image and not an own one",
                "1",
                nullable=True,
            ),
            Column(
                "share_clear",
                pa.float64(),
                "share of ok seeds nearer to an own image than the closest unrelated pair",
                "1",
                nullable=True,
            ),
            Column(
                "own_seeds",
                pa.list_(pa.int32()),
                "seeds whose sample copies an own image; null where there is no threshold or image",
                nullable=True,
            ),
            Column(
                "elsewhere_seeds",
                pa.list_(pa.int32()),
                "seeds whose sample copies another image; null where there is no threshold",
                nullable=True,
            ),
            Column("n", pa.int32(), "number of ok seeds", "1"),
            Column("excluded", pa.int32(), "number of seeds that are not ok", "1", nullable=True),
            Column(
                _THRESHOLD.name, _THRESHOLD.type, _THRESHOLD.about, _THRESHOLD.unit, nullable=True
            ),
            Column(
                "grade",
                pa.string(),
                '"matching verbatim", "retrieved verbatim", "template verbatim" or "none"',
                nullable=True,
            ),
            Column(
                "nearest_reference_id",
                pa.string(),
                "training image nearest to the prompt's samples",
                nullable=True,
            ),
        ),
    ),
    Table(
        "null",
        "one measure's distribution over unrelated pairs",
        (
            _MEASURE,
            Column(
                "relation",
                pa.string(),
                '"own" (pairs of training images), "nearest" (the nearest unrelated image of each) '
                'or "generated" (samples and images unrelated to their prompt)',
                nullable=True,
            ),
            Column("n", pa.int64(), "number of unrelated pairs", "1"),
            *(
                Column(name, pa.float64(), about, "similarity", nullable=True)
                for name, about in (
                    ("q50", "median"),
                    ("q95", "95 % quantile"),
                    ("q99", "99 % quantile"),
                    ("q999", "99.9 % quantile"),
                    ("max", "maximum"),
                )
            ),
            Column(
                _THRESHOLD.name, _THRESHOLD.type, _THRESHOLD.about, _THRESHOLD.unit, nullable=True
            ),
            Column(
                "rate",
                pa.float64(),
                "share of unrelated pairs the threshold was chosen to pass",
                "1",
                nullable=True,
            ),
            Column("method", pa.string(), "how the threshold comes about", nullable=True),
            Column("reason", pa.string(), "why it was not chosen as asked", nullable=True),
            Column("recipe", pa.string(), "recipe of generated pictures", nullable=True),
            Column(
                "typical",
                pa.float64(),
                "median over training images of their median similarity to unrelated ones",
                "similarity",
                nullable=True,
            ),
            Column("copies", pa.int64(), "pairs left out as copies", "1", nullable=True),
        ),
    ),
    Table(
        "scores",
        "one prompt by one detector",
        (
            _PROMPT,
            _RECIPE,
            Column("detector", pa.string(), "name of the detector, variant included"),
            Column(
                "kind",
                pa.string(),
                '"prompt" (no image needed) or "pair" (takes the first training image)',
            ),
            Column(
                "score",
                pa.float64(),
                "larger is more memorized; the unit is the detector's own",
                "score",
                nullable=True,
            ),
            Column("reason", pa.string(), "why there is no score", nullable=True),
            Column("seeds", pa.int32(), "samples it rests on", "1"),
            Column(
                "network_calls",
                pa.int32(),
                "price of this detector alone for this prompt, what prompts share apart: "
                "evaluations + forward-mode derivatives + twice the reverse-mode ones",
                "1",
            ),
            Column(
                "seconds",
                pa.float64(),
                "time of this detector alone, mean over the prompts of its unit",
                "s",
            ),
        ),
    ),
    Table(
        "words",
        "one word of an explained prompt",
        (
            _PROMPT,
            _RECIPE,
            Column("text", pa.string(), "the word"),
            Column("start", pa.int32(), "where it begins in the prompt", "character"),
            Column(
                "change",
                pa.float64(),
                "how much of what the prompt does to the noise estimate at the first call leaving "
                "it out changes, mean over seeds",
                "1",
            ),
            Column("low", pa.float64(), "16 % quantile over seeds", "1"),
            Column("high", pa.float64(), "84 % quantile", "1"),
        ),
    ),
    Table(
        "tokens",
        "one position of the text encoder's window, of an explained prompt",
        (
            _PROMPT,
            _RECIPE,
            Column("position", pa.int32(), "the position, from 0", "1"),
            Column("text", pa.string(), "the token; empty where the model does not tell"),
            Column("part", pa.string(), '"begin", "text", "end" or "padding"'),
            Column(
                "attribution",
                pa.float64(),
                "length of the gradient of the gap norm in the text encoder's state there, first "
                "call, mean over seeds",
                "latent",
            ),
            *(
                Column(
                    f"attention_{when}",
                    pa.float64(),
                    f"cross-attention to it at the {when} call, mean over queries, heads, layers "
                    "and seeds",
                    "1",
                    nullable=True,
                )
                for when in ("first", "last")
            ),
        ),
    ),
    Table(
        "maps",
        "one map of one sample of an explained prompt",
        (
            _PROMPT,
            _SEED,
            _RECIPE,
            Column("map", pa.string(), '"squared gap", "curvature" or "bright ending"'),
            Column("width", pa.int32(), "width of the map", "1"),
            Column("values", pa.list_(pa.float32()), "the map, row by row"),
        ),
    ),
    Table(
        "missing",
        "one part that an explanation lacks",
        (
            _PROMPT,
            _RECIPE,
            Column("what", pa.string(), '"words", "positions", or the name of a map'),
            Column("reason", pa.string(), "why"),
        ),
    ),
    Table(
        "ranking",
        "one metric of one detector over one population, written by `mnemoscope bench`",
        (
            Column("detector", pa.string(), "name of the detector, variant included"),
            Column("kind", pa.string(), '"prompt", "pair" or "calibrated"'),
            Column(
                "metric",
                pa.string(),
                '"auc", "tpr" (at a false positive rate of 1 %), "auc_matched" (pairs of like '
                'length), "severity" (Spearman), "held_tpr" and "held_fpr" (threshold set on the '
                "other half)",
            ),
            Column("population", pa.string(), "the prompts it is over"),
            Column("value", pa.float64(), "value; null where withheld", "1", nullable=True),
            Column("low", pa.float64(), "lower end of its interval", "1", nullable=True),
            Column("high", pa.float64(), "upper end of its interval", "1", nullable=True),
            Column("memorized", pa.int64(), "memorized prompts among them", "1"),
            Column("others", pa.int64(), "other prompts among them", "1"),
            Column("method", pa.string(), "how value and interval come about"),
            Column("reason", pa.string(), "why a number is missing", nullable=True),
            Column("network_calls", pa.float64(), "price a prompt, alone", "1", nullable=True),
            Column("seconds", pa.float64(), "time a prompt, alone", "s", nullable=True),
        ),
    ),
    Table(
        "agreement",
        "two detectors, written by `mnemoscope bench`",
        (
            Column("detector", pa.string(), "one detector"),
            Column("other", pa.string(), "another"),
            Column(
                "rho",
                pa.float64(),
                "Spearman correlation of their scores over the prompts that both score",
                "1",
                nullable=True,
            ),
        ),
    ),
    Table(
        "items",
        "one item of a data set, written by `mnemoscope audit`",
        (
            Column("item", pa.int64(), "its place in the set, from 0", "1"),
            Column("name", pa.string(), "where it stands in the set"),
            Column("prompt_id", pa.string(), "name of its caption", nullable=True),
            Column("reference_id", pa.string(), "name of its picture", nullable=True),
            Column(
                "print",
                pa.binary(),
                "means of its picture over 8 x 8 blocks, RGB of 8 bits, channel by channel",
                nullable=True,
            ),
            Column(
                "descriptor",
                pa.binary(),
                "descriptor of its picture by the embedding asked for, float16, of length 1",
                nullable=True,
            ),
            Column("reason", pa.string(), "why a part of it cannot be used", nullable=True),
        ),
    ),
    Table(
        "suspects",
        "one caption of a data set that stands out before the model is asked",
        (
            _PROMPT,
            Column("item", pa.int64(), "the first item that has it", "1"),
            Column(
                "reasons",
                pa.list_(pa.string()),
                'why: more items have the same "captions", the same words in other "wordings", the '
                'same "pictures", ones that are all but "alike", alike once "recoloured" or '
                'mirrored, or "edited" copies by an embedding; or its picture lies "alone"',
            ),
            Column("repeats", pa.int64(), "items that have it or its picture, or one like it", "1"),
            Column(
                "twin",
                pa.int64(),
                "the first item whose picture is nearest, where one is alike, recoloured or edited",
                "1",
                nullable=True,
            ),
            Column(
                "alone",
                pa.float64(),
                "distance of its print to the fifth nearest of a sample, RGB from 0 to 1",
                "1",
                nullable=True,
            ),
            Column("image", pa.binary(), "its picture, WebP, of the first few", nullable=True),
            Column("twin_image", pa.binary(), "that of its twin, likewise", nullable=True),
        ),
    ),
    Table(
        "funnel",
        "one stage of an audit",
        (
            Column("stage", pa.string(), "the stage"),
            Column("items", pa.int64(), "items or captions that went in", "1"),
            Column("kept", pa.int64(), "those that went on", "1"),
            Column("network_calls", pa.int64(), "evaluations of the network, all branches", "1"),
        ),
    ),
    Table(
        "audited",
        "one caption that an audit sampled in full",
        (
            _PROMPT,
            Column("prompt", pa.string(), "the caption"),
            Column(
                "chosen",
                pa.string(),
                'why: "score", "repeats", "alone", drawn from the stratum "nearest" or "others" of '
                'what was dropped, or "ordinary"',
            ),
            Column(
                "tail",
                pa.float64(),
                "share of captions that are at least as suspicious, all detectors together",
                "1",
                nullable=True,
            ),
            Column(
                "repeats", pa.int64(), "items with this caption or its picture, or one like it", "1"
            ),
            Column("state", pa.string(), "what is known of it, in the words of a study"),
            Column("share", pa.float64(), "share of samples that copy an own image", "1", True),
            Column(
                "share_elsewhere",
                pa.float64(),
                "share of samples that copy another image of the set",
                "1",
                nullable=True,
            ),
            Column(
                "samples",
                pa.int64(),
                "samples behind these shares; no more than settle what it is",
                "1",
                nullable=True,
            ),
            Column(
                "similarity",
                pa.float64(),
                "largest similarity of a sample and a picture that it copies",
                "1",
                nullable=True,
            ),
            Column("references", pa.list_(pa.string()), "pictures that any of its samples copies"),
            Column("items", pa.list_(pa.string()), "items that show them, by name"),
        ),
    ),
    Table(
        "scales",
        "one caption at one scale of a LoRA, in an audit of one",
        (
            _PROMPT,
            Column("lora_scale", pa.float64(), "how much of the LoRA is merged; 0 is none", "1"),
            Column("state", pa.string(), "what is known of it, in the words of a study"),
            Column("share", pa.float64(), "share of samples that copy an own image", "1", True),
            Column(
                "share_elsewhere",
                pa.float64(),
                "share of samples that copy another image of the set",
                "1",
                nullable=True,
            ),
        ),
    ),
    Table(
        "statistics",
        "one named statistic",
        (
            _ANALYSIS,
            Column("name", pa.string(), "the statistic"),
            Column("population", pa.string(), "the prompts or samples it is over"),
            Column("guidance", pa.float64(), "guidance scale g, where one", "1", nullable=True),
            Column(
                "reference",
                pa.string(),
                'what stands for x: "target" or "final sample"',
                nullable=True,
            ),
            Column("window", pa.string(), "calls it is over", nullable=True),
            Column("value", pa.float64(), "value; null where it is undefined", "", nullable=True),
            Column("low", pa.float64(), "lower end of its interval", "", nullable=True),
            Column("high", pa.float64(), "upper end of its interval", "", nullable=True),
            Column("n", pa.int64(), "number of prompts or samples", "1"),
            Column("method", pa.string(), "how value and interval come about", nullable=True),
        ),
    ),
    Table(
        "curves",
        "one quantity at one call, over one group",
        (
            _ANALYSIS,
            Column("quantity", pa.string(), "the quantity"),
            Column("group", pa.string(), "the prompts it is over"),
            Column("guidance", pa.float64(), "guidance scale g, where one", "1", nullable=True),
            Column("law", pa.string(), "input law, as in table gram", nullable=True),
            Column(
                "reference",
                pa.string(),
                'what stands for x: "target" or "final sample"',
                nullable=True,
            ),
            _CALL,
            Column("log_snr", pa.float64(), "2·log(alpha / sigma)", "1"),
            Column("median", pa.float64(), "median over the group", "", nullable=True),
            Column("low", pa.float64(), "16 % quantile over the group", "", nullable=True),
            Column("high", pa.float64(), "84 % quantile over the group", "", nullable=True),
            Column("n", pa.int64(), "number of samples or prompts", "1"),
        ),
    ),
    Table(
        "effects",
        "one sample under one intervention, written by `mnemoscope bench mitigations`",
        (
            _PROMPT,
            _SEED,
            _RECIPE,
            Column(
                "score",
                pa.float64(),
                "root mean square of x0_c - x0_u at the first call",
                "latent",
                nullable=True,
            ),
            Column(
                "k",
                pa.float64(),
                "weight of the training image in the guided clean estimate at the first call",
                "1",
                nullable=True,
            ),
            Column(
                "w0",
                pa.float64(),
                "largest excess of the training image's weight in a state over the schedule",
                "1",
                nullable=True,
            ),
            Column(
                "wT",
                pa.float64(),
                "largest fall of the initial noise's weight in a state below the schedule",
                "1",
                nullable=True,
            ),
        ),
    ),
    Table(
        "mitigations",
        "one metric of one mitigation over some prompts, written by `mnemoscope bench mitigations`",
        (
            Column("setting", pa.string(), "the mitigation with its settings; empty for none"),
            Column("method", pa.string(), 'its name; "plain" for none'),
            Column(
                "strength", pa.float64(), "its strength; null for none", "strength", nullable=True
            ),
            Column("gated", pa.bool_(), "whether only suspicious prompts are mitigated"),
            Column("population", pa.string(), '"memorized" or "others"'),
            Column("metric", pa.string(), "the metric, as the module `ranking.outcomes` has it"),
            Column("value", pa.float64(), "value; null where withheld", "metric", nullable=True),
            Column("low", pa.float64(), "lower end of its interval", "metric", nullable=True),
            Column("high", pa.float64(), "upper end of its interval", "metric", nullable=True),
            Column(
                "change", pa.float64(), "value less that of none, paired", "metric", nullable=True
            ),
            Column(
                "change_low", pa.float64(), "lower end of its interval", "metric", nullable=True
            ),
            Column(
                "change_high", pa.float64(), "upper end of its interval", "metric", nullable=True
            ),
            Column("prompts", pa.int64(), "prompts it rests on", "1"),
            Column("method_of_interval", pa.string(), "how value and interval come about"),
            Column("reason", pa.string(), "why a number is missing", nullable=True),
        ),
    ),
    Table(
        "pairs",
        "one sample beside the one of the same seed under a mitigation, written by "
        "`mnemoscope bench mitigations`",
        (
            Column("prompt_id", pa.string(), "name of the prompt, memorized"),
            Column("prompt", pa.string(), "the prompt itself"),
            Column("seed", pa.int32(), "index of the sample among its prompt's, from 0", "1"),
            Column("setting", pa.string(), "the mitigation with its settings"),
            Column("before", pa.binary(), "WebP of the sample without mitigation"),
            Column("after", pa.binary(), "WebP of the sample with it"),
            Column("copied", pa.bool_(), "whether the first copies a training image"),
            Column("copies", pa.bool_(), "whether the second does"),
            Column(
                "right",
                pa.bool_(),
                "whether the second shows what the prompt names; null where nobody can tell",
                nullable=True,
            ),
        ),
    ),
    Table(
        "adversary",
        "what one search brings back under one mitigation, written by `mnemoscope bench adversary`",
        (
            Column("setting", pa.string(), "the mitigation with its settings; empty for none"),
            Column("space", pa.string(), '"condition" or "noise"; "none" without perturbation'),
            Column("search", pa.string(), '"random", "hide" or "recall"; "none" likewise'),
            Column("radius", pa.float64(), "largest change, relative to what is changed", "1"),
            Column(
                "metric",
                pa.string(),
                '"samples": share of samples that copy a training image; and shares of prompts '
                'for which some try does it: "back": a sample copies; "hidden": the prompt passes '
                'the detector; "both": the prompt passes and a sample copies',
            ),
            Column("value", pa.float64(), "value; null where withheld", "1", nullable=True),
            Column("low", pa.float64(), "lower end of its interval", "1", nullable=True),
            Column("high", pa.float64(), "upper end of its interval", "1", nullable=True),
            Column("prompts", pa.int64(), "memorized prompts it rests on", "1"),
            Column("tries", pa.int64(), "tries the adversary had", "1"),
            Column("reason", pa.string(), "why a number is missing", nullable=True),
        ),
    ),
    Table(
        "checks",
        "one claim of the founding paper, against this run",
        (
            _ANALYSIS,
            Column("claim", pa.string(), "the claim"),
            Column("measured", pa.string(), "what this run measures, in words"),
            Column(
                "holds", pa.bool_(), "whether it holds; null where it cannot be told", nullable=True
            ),
            Column("reason", pa.string(), "why it cannot be told", nullable=True),
            Column(
                "kind",
                pa.string(),
                '"evidence" (has to beat its null) or "sanity" (true of any model)',
                nullable=True,
            ),
            Column(
                "null_kind",
                pa.string(),
                'what the null is: "swapped images" or "permuted labels"',
                nullable=True,
            ),
            *(
                Column(name, pa.float64(), about, "", nullable=True)
                for name, about in (
                    ("value", "statistic of the claim"),
                    ("low", "lower end of its 95 % interval"),
                    ("high", "upper end of its 95 % interval"),
                    ("null", "the statistic under the null"),
                    ("null_low", "lower end of its 95 % interval"),
                    ("null_high", "upper end of its 95 % interval"),
                    ("difference", "statistic less null"),
                    ("difference_low", "lower end of its 95 % interval"),
                    ("difference_high", "upper end of its 95 % interval"),
                )
            ),
        ),
    ),
)

TABLES: dict[str, Table] = {table.name: table for table in _ALL}
"""Every table of a run folder, by name."""

DERIVED = ("severity", "null", "statistics", "curves", "checks")
"""Tables that are arithmetic on the others."""


def table_named(name: str) -> Table:
    """Return a table by its name.

    Raises:
        RunError: If there is none of that name.
    """
    if name not in TABLES:
        raise RunError(did_you_mean(name, TABLES, "table"))
    return TABLES[name]
