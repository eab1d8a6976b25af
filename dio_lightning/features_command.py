"""`dio-lightning features`: what a method compares, channel by channel."""

from collections.abc import Sequence
from pathlib import Path

from dio_lightning.files import expect_free, write_all
from dio_lightning.usage import CommandParser


def features(argv: Sequence[str]) -> None:
    """Run the command."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    parser = CommandParser(
        "dio-lightning features",
        description="Feature channels of a test pair at every level, and their principal components: of the fixed, the "
        "moving and the warped moving image.",
        epilog="What stands behind -- overrides the model's and data's settings, as `dio-lightning test` takes them.",
        allow_abbrev=False,
    )
    parser.add_argument("weights", metavar="WEIGHTS", help="checkpoint, weights, model by name, or config")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where pictures and numbers go")
    parser.add_argument("--pair", type=int, default=0, metavar="N", help="which test pair, from 0 (default: 0)")
    parser.add_argument("--channels", type=int, default=8, metavar="N", help="how many are drawn (default: 8)")
    about = "axis of the body that a volume is cut across: 0 sagittal, 1 coronal, 2 axial (default: 1)"
    parser.add_argument("--axis", type=int, default=1, choices=(0, 1, 2), help=about)
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    asked = parser.parse_args(argv[:place])
    if asked.pair < 0 or asked.channels < 1:
        raise ValueError(f"pair is {asked.pair} and channels {asked.channels}, expected at least 0 and 1")
    expect_free([asked.out / "features.csv"], asked.overwrite)
    _write(asked.weights, [*argv[place + 1 :]], asked.out, (asked.pair, asked.channels, asked.axis), asked.overwrite)


def _write(weights: str, options: Sequence[str], out: Path, shown: tuple[int, int, int], overwrite: bool) -> None:
    from dio_lightning.feature_maps import COMPONENTS, draw, feature_maps
    from dio_lightning.fields import on_one_grid
    from dio_lightning.files import Picture
    from dio_lightning.loaded import load
    from dio_lightning.studies.rendering import Value, table, to_csv

    index, channels, axis = shown
    loaded = load(weights, [*options, "--data.batch_size", "1"])
    batches = [batch for i, batch in enumerate(loaded.batches(index + 1, labels=False)) if i == index]
    if not batches:
        raise ValueError(f"pair is {index}, expected one of the test pairs, which are counted from 0")
    ids, pair = batches[0]
    files: dict[Path, str | Picture] = {}
    rows: list[dict[str, Value]] = []
    lines = []
    for maps in feature_maps(loaded.module, on_one_grid(pair)):
        before, after = (x.tolist() for x in maps.distances)
        for channel, (first, last) in enumerate(zip(before, after, strict=True)):
            rows.append(dict(level=maps.factor, channel=channel, distance_before=first, distance_after=last))
        share = 100 * float(maps.principal[1][:COMPONENTS].sum())
        means = [f"{sum(x) / len(x):.3f}" for x in (before, after)]
        lines.append([str(maps.factor), str(len(before)), f"{share:.0f} %", *means])
        files[out / f"features_level{maps.factor}.png"] = draw(maps, pair, axis, channels)
    expect_free([*files], overwrite)
    head = ["level", "channels", f"variance in {COMPONENTS} components", "distance before", "after"]
    files[out / "features.md"] = text = table(head, lines) + "\n"
    write_all({**files, out / "features.csv": to_csv(rows)})
    print(f"{loaded.name}, {ids[0][1]} onto {ids[0][0]}\n\n{text}wrote {out}")
