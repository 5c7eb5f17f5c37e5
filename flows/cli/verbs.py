"""The verbs without a group: init, plan, retrain, predict, up, deploy, doctor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.cli import data, deploy, doctor, features, models, screen, works
from flows.cli.options import AsJson, Endpoint, Workspace, settings_of
from flows.errors import AskedWrongly

app = typer.Typer(
    name="headstart",
    help="Retrain models of images and texts every night; promote a new one only when it is provably better.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(features.app, name="features")
app.add_typer(works.app, name="works")
app.command()(deploy.deploy)
app.command()(doctor.doctor)

PLAN = typer.Argument(metavar="PLAN", help="A plan: a YAML file such as flows/plans/demo.yaml.")
PlanFile = Annotated[Path, PLAN]
Texts = Annotated[list[str] | None, typer.Option(help="A text itself, for a model of texts; may be given several times.")]
MaskFolder = Annotated[
    Path | None,
    typer.Option("--output", "--masks", help="The folder for masks, PNG of the images' size; --csv and --json may do without."),
]
COLUMN = "The column of a CSV with paths, relative to the CSV, or with texts; left out: `file`, `text`, or the only one."
Column = Annotated[str | None, typer.Option(help=COLUMN)]
Source = Annotated[str | None, typer.Option(help="A folder or s3:// prefix to bring new samples in from first.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make; an existing git repository becomes a workspace.")],
    remote: Annotated[str | None, typer.Option(help="s3://bucket/prefix for data, instead of .headstart/remote.")] = None,
    endpoint: Endpoint = None,
) -> None:
    """Make a workspace: a git repository with DVC in it, and a remote for data, under .headstart/ or in an object store.

    Example: headstart init pets && cd pets && headstart data ingest ~/pictures/pets
    """
    from flows import dataset

    if endpoint is not None and remote is None:
        raise AskedWrongly("--endpoint was given without --remote; write --remote s3://bucket/prefix --endpoint URL")
    settings_of(folder)
    dataset.init_workspace(folder, None if remote is None else dataset.parse_remote(remote, endpoint))
    screen.note(f"{folder} is a workspace. Next: cd {folder} && headstart data ingest FOLDER")


@app.command()
def plan(
    plan_file: Annotated[Path | None, PLAN] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
    backbones: Annotated[bool, typer.Option("--backbones", help="List the backbones that a plan may name.")] = False,
    no_calibrate: Annotated[
        bool,
        typer.Option("--no-calibrate", help="Estimate by stated rates; time nothing and read no samples, which takes seconds."),
    ] = False,
) -> None:
    """Say what a plan would run, what is done already, what is left and what it costs; touches nothing.

    Variants that share a frozen trunk run it once a sample: the table of trunks says who shares what, what is stored, and
    what is left to forward. FLOPs are multiply-adds of backbones.

    Without a plan: headstart plan --backbones
    """
    from flows.cli import planning
    from flows.cli.backbones import show
    from flows.plan import read_plan
    from flows.stages.preview import plan_preview

    if backbones:
        return show(as_json)
    if plan_file is None:
        raise AskedWrongly("no plan was named; give the path of a YAML file, or --backbones for what a plan may name")
    asked = read_plan(plan_file)
    preview = plan_preview.preview(settings_of(workspace), asked, calibrate=not no_calibrate)
    if as_json:
        return screen.show_json(asdict(preview))
    return planning.show(preview, plan_file)


@app.command()
def retrain(
    plan_file: PlanFile,
    workspace: Workspace = None,
    source: Source = None,
    require_promotion: Annotated[
        bool, typer.Option("--require-promotion", help="Exit with status 3 when nothing was promoted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train what is left of a plan, judge the best variant, and promote it if the evidence allows it.

    Killed half-way, the same command goes on where it was. Run again, it finds everything done.
    """
    from flows.cli import retraining
    from flows.plan import read_plan
    from flows.stages.reporting.report import report_json

    asked = read_plan(plan_file)
    report = retraining.run(settings_of(workspace), asked, source)
    if as_json:
        screen.show_json(report_json(report))
    else:
        retraining.show(report)
    if require_promotion and not report.verdict.promoted:
        raise typer.Exit(3)


@app.command()
def predict(
    model: Annotated[
        str, typer.Argument(metavar="BUNDLE_OR_MODEL", help="A pulled bundle's folder, or NAME@champion, or NAME@3.")
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Images or texts, folders of them, or CSV files with a column of paths, or of texts."),
    ] = None,
    text: Texts = None,
    output: MaskFolder = None,
    column: Column = None,
    csv: Annotated[Path | None, typer.Option(help="A CSV file to write the answers to.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Read images or texts with a bundle or a registered model.

    Those of a folder or a CSV that do not decode are left out with a warning, and the exit status is then 1.

    Example: headstart predict digits@champion picture.png

    Example: headstart predict camvid@champion street/ --output masks/

    Example: headstart predict banking77@champion --text "My card has not arrived."
    """
    from flows.cli import answers
    from flows.stages.predicting import prediction

    if csv is not None:
        answers.refuse_existing(csv)
    with screen.progress_bars() as bars:
        bar = bars.add_task("samples", total=None, state="")
        readings = prediction.predict(
            settings_of(workspace),
            model,
            files or [],
            output,
            texts=text or [],
            column=column,
            without_masks=csv is not None or as_json,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    if csv is not None:
        answers.write_csv(readings, csv)
    answers.show(readings, model, as_json=as_json)
    if readings.unread:
        raise typer.Exit(1)


@app.command()
def up(
    plan_files: Annotated[list[Path], typer.Argument(metavar="PLAN...", help="The plans to serve.")],
    workspace: Workspace = None,
    cron: Annotated[str, typer.Option(help="When the nightly deployments run, in local time.")] = "0 2 * * *",
    source: Source = None,
) -> None:
    """Start the local stack and serve the plans, until Ctrl-C.

    Prefect and MLflow with their UIs and a Ray head, on 127.0.0.1 alone; two deployments a plan: nightly and on-demand.
    """
    from flows import stack
    from flows.plan import read_plan
    from flows.stages.planning import find_mismatches

    settings, plans = settings_of(workspace), [read_plan(file) for file in plan_files]
    for mismatch in find_mismatches(settings, plans):
        screen.warn(mismatch)
    stack.run(settings, plans, cron=cron, source=source, say=screen.note)
