"""Tables, drawings and the page: well-formed, honest about what is missing, and the documents' tables are generated."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from seedmp.benchmarks import command, paper, report
from seedmp.benchmarks.questions import table1
from seedmp.benchmarks.svg import Bar, Series, bar_chart, line_chart, nice_ceiling
from seedmp.benchmarks.tables import Column, fill, read_report, table
from seedmp.commands.main import main
from seedmp.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))
LABELS: dict[str, dict[str, Any]] = {
    "schedules": {"n": 3}, "scale": {"n": 4}, "acceptance": {"draft_noise": 0.5},
    "table1": {"task": "gsm8k", "temperature": 0.2, "k_config": [1, 1, 1]},
    "sequoia": {"data": "c4 <x>", "temperature": 0.6}, "accepted": {"task": "gsm8k", "temperature": 0.0},
}  # fmt: skip
BASES = {"peers": "generate", "schedules": "serial-ar", "acceptance": "serial-ar", "scale": "ar-batch"}


def made(name: str, **changes: Any) -> dict[str, Any]:
    """A report of a benchmark, with a row that ran and one that did not."""
    figures = {
        "tokens_per_s": 20.0, "tokens_per_s_min": 18.0, "tokens_per_s_max": 23.0, "speedup": 2.0, "speedup_min": 1.8,
        "speedup_max": 2.3, "speedup_notch": 0.05, "wall_s": 3.0, "acceptance_rate": 0.5,
        "mean_accepted_len": 2.5, "overlap_s": 0.1,
        "verifier_busy": 0.8, "draft_round_ms": 2.0, "verify_ms": 20.0, "queue_wait_ms": 0.1, "first_token_s": 0.2,
        "latency_s": 1.0, "latency_max_s": 2.0, "kept": 0.9, "ms_per_round": 22.0, "repeats": [18.0, 20.0, 23.0],
        "text_equals_base": False, "agreement": 0.75, "memory_mib": {"verifier-0": 500.0, "draft-0": 90.0},
    }  # fmt: skip
    head = {"cell": "cell", **LABELS.get(name, {})}
    rows = [
        {"name": BASES.get(name, "ar"), **head, **figures}, {"name": "mcsd", **head, **figures},
        {"name": "<absent>", **head, "not_run": "needs <much> memory"},
    ]  # fmt: skip
    settings = {"size": "quick", "seed": 0, "shape": "134m", "data": "our own"}
    node = {"cores": 2, "machine": "x86_64", "memory_gib": 8, "gpus": [], "commit": "abc+"}
    entries = {"benchmark": name, "complete": True, "rows": rows, "settings": settings, "node": node, "took_s": 1.0}
    return entries | {"model": "bundled target, inflated to 134m", "threads": {"target": 2}} | changes


@pytest.mark.parametrize("name", command.NAMES)
def test_every_benchmark_has_tables_and_drawings(name: str) -> None:
    tables = report.tables_of(made(name))
    assert all(len(row) == len(table.heads) for table in tables for row in table.rows)
    cells = [cell for table in tables for row in table.rows for cell in row]
    assert "not run: needs <much> memory" in cells and "75 %" in cells
    assert any("20.0 (18.0..23.0)" in cell for cell in cells)
    figures = report.figures_of(made(name))
    assert figures
    for figure in figures:
        ElementTree.fromstring(figure.svg)
    assert report.figures_of(made(name, rows=[])) == []
    assert report.tables_of(made(name, rows=[]))[0].rows == ()


def test_the_page_is_well_formed_and_self_contained() -> None:
    reports = {name: made(name) for name in command.NAMES}
    reports["scale"]["complete"] = False
    page = report.render(reports)
    ElementTree.fromstring(page.partition("\n")[2])
    assert page.count("Interrupted") == 1 and "<strong>inflated</strong>" in page and "--quick" in page
    assert "needs &lt;much&gt; memory" in page and "c4 &lt;x&gt;" in page
    for outside in ("src=", "href=http", "@import", "url("):
        assert outside not in page


@pytest.mark.parametrize("name", command.NAMES)
def test_no_text_of_a_report_is_obeyed(name: str) -> None:
    evil = "</td><script>alert('x')</script>\" & 'more'"
    report_made = made(name, model=evil)
    report_made["settings"]["data"] = report_made["settings"]["more"] = evil
    report_made["node"]["gpus"] = [evil]
    for row in report_made["rows"]:
        row |= {"name": f"{row['name']}{evil}", "cell": evil}
    root = ElementTree.fromstring(report.render({name: report_made}).partition("\n")[2])
    assert root.find(".//script") is None
    shown = "".join(root.itertext())
    assert shown.count(evil) >= 4, "the text itself is on the page"


def test_a_page_says_nothing_of_inflation_where_there_is_none() -> None:
    page = report.render({"peers": made("peers", settings={"shape": "none", "size": "full"})})
    assert "inflated</strong>" not in page and "--full" not in page


def test_write_report_needs_a_result(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no result"):
        report.write_report(tmp_path)
    (tmp_path / "peers.json").write_text(json.dumps(made("peers")))
    assert report.write_report(tmp_path).name == "report.html"
    assert (tmp_path / "peers.svg").read_text().startswith("<svg")


def test_all_benchmarks_are_known() -> None:
    assert tuple(report.BENCHMARKS) == command.NAMES
    for module in report.BENCHMARKS.values():
        assert (module.__doc__ or "").startswith("Question: ") and module.SHOWS and module.SHOWS_NOT


def test_charts_survive_strange_values() -> None:
    empty, one = Series("empty"), Series("<one> & only")
    one.add(0.0, 0.0)
    for figure in (
        line_chart("k", "a < b", "x", "y", [empty, one]),
        line_chart("k", "t", "x", "y", []),
        line_chart("k", "t", "n", "y", [one_point(4)], log_x=True),
        bar_chart("k", "t", "y", {"": [Bar("a", 0.0)], "g h i": [Bar("b", 2.0, 1.0, 3.0, mark=9.0)]}, baseline=1.0),
        bar_chart("k", "t", "y", {}),
    ):
        ElementTree.fromstring(figure.svg)


def one_point(x: float) -> Series:
    series = Series("one")
    series.add(x, 5.0, 4.0, 6.0)
    return series


@pytest.mark.parametrize(("value", "top"), [(0.0, 1.0), (0.9, 1.0), (1.01, 1.2), (170.0, 200.0), (7.0, 8.0)])
def test_axes_end_at_round_numbers(value: float, top: float) -> None:
    assert nice_ceiling(value) == pytest.approx(top)


# --- tables of pages ---------------------------------------------------------------------------------


def test_cells_without_a_figure_are_dashes() -> None:
    shown = table(
        "k", "t", [{"name": "a|b", "x": 1.234}, {"name": "c"}], [Column("n", "name"), Column("x", "x", ".1f")]
    )
    assert shown.markdown() == "| n | x |\n| --- | --- |\n| a\\|b | 1.2 |\n| c | – |\n"


def test_fill_replaces_what_is_between_the_marks(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(made("peers")))
    page = "before\n<!-- table: a.json peers -->\ntyped 99\n<!-- end -->\nafter\n"
    filled = fill(page, tmp_path, report.tables_of)
    assert "typed" not in filled and "| `generate` |" in filled
    assert filled.startswith("before\n") and filled.endswith("<!-- end -->\nafter\n")
    assert fill(filled, tmp_path, report.tables_of) == filled
    with pytest.raises(ConfigError, match=r"no table 'scale'; it has peers"):
        fill(page.replace(" peers ", " scale "), tmp_path, report.tables_of)


def test_fill_compares_two_runs(tmp_path: Path) -> None:
    first, second = made("peers"), made("peers")
    for one in (first, second):
        one["rows"][0] |= {"speedup": 1.0, "speedup_min": 1.0, "speedup_max": 1.0}
    second["rows"][1]["speedup"] *= 1.1
    for name, one in {"a.json": first, "b.json": second}.items():
        (tmp_path / name).write_text(json.dumps(one))
    page = "<!-- compare: a.json b.json a.json a.json -->\n<!-- end -->\n"
    filled = fill(page, tmp_path, report.tables_of)
    assert "| `a` | `b` | 0 of 1 (median 10.0 %, largest 10.0 %) | 1 of 1 |" in filled
    assert "| `a` | `a` | 1 of 1 " in filled and fill(filled, tmp_path, report.tables_of) == filled
    with pytest.raises(ConfigError, match="needs two reports"):
        fill("<!-- compare: a.json -->\n<!-- end -->\n", tmp_path, report.tables_of)


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md", "docs/methods.md"])
def test_tables_of_our_pages_are_generated(name: str) -> None:
    page = (ROOT / name).read_text()
    assert fill(page, ROOT / "benchmarks", report.tables_of) == page, f"run: seedmp bench tables {name}"


def test_the_picture_of_the_readme_is_generated() -> None:
    (figure,) = report.figures_of(read_report(ROOT / "benchmarks/results/peers-cpu-134m.json"))
    assert (ROOT / "docs/peers.svg").read_text() == figure.svg, "run: seedmp bench report DIR, and copy peers.svg"


@pytest.mark.parametrize("text", ["no json", "[]", '{"rows": 3}', '{"rows": [{"x": 1}]}'])
def test_files_that_are_no_report_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json"):
        read_report(tmp_path / "x.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_report(tmp_path / "none.json")


# --- the paper's figures -----------------------------------------------------------------------------


def test_the_papers_table_is_whole() -> None:
    assert set(paper.TABLE_1) == {(t, k) for t in (0.2, 1.0) for k in ((1, 1, 1), (2, 2, 1))}
    cells = [cell for table in paper.TABLE_1.values() for method in paper.METHODS for cell in table[method]]
    assert len(cells) == 48 and all(1 < cell < 1.6 for cell in cells)
    assert paper.speedup("gsm8k", 1.0, (2, 2, 1), "mcsd-scheduled") == 1.557
    assert (
        paper.speedup("gsm8k", 1.0, (2, 2, 1), "mcsd-batch") is None
        and paper.speedup("x", 1.0, (2, 2, 1), "sd") is None
    )
    (shown,) = table1.tables(made("table1"))
    assert shown.heads[shown.heads.index("speed-up") + 1] == "paper's speed-up"
    assert shown.rows[1][shown.heads.index("paper's speed-up")] == "1.24"


# --- the command, before any model -------------------------------------------------------------------


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting an engine or a peer fails the test."""

    def start(self: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("seedmp.measuring.engines.EngineSubject.start", start)
    monkeypatch.setattr("seedmp.benchmarks.peers.transformers.PeerSubject.start", start)


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no benchmark 'nothing'"),
        (["peers", "--data", "{wrong}"], "is no GSM8K problem: field 'question' is missing"),
        (["sequoia", "--data", "{wrong}"], "field 'text' is missing"),
        (["mtbench", "--data", "{wrong}"], "field 'turns' is None"),
        (["table1", "--data", "{wrong}"], "give the folder"),
        (["accepted", "--data", "{wrong}"], "give the folder"),
        (["accepted", "--nodes", "0"], "nodes=0"),
        (["accepted", "--head", "{folder}"], "has no config.json"),
        (["table1", "--data", "{folder}"], "has no blocksworld/step_4.jsonl"),
        (["all", "--data", "{folder}/none"], "no such file or folder"),
        (["peers", "--out", "{wrong}"], "cannot be written"),
        (["peers", "--shape", "9m"], "shape='9m'"),
        (["peers", "--repeats", "0"], "repeats=0"),
        (["peers", "--precision", "0.1"], "precision=0.1: must be a finite number from 0.5 to 100"),
        (["peers", "--precision", "nan"], "precision=nan"),
        (["peers", "--precision", "2", "--repeats", "3"], "a spread needs 5 or more"),
        (["peers", "--target", "{folder}"], "give --draft too"),
        (["peers", "{wrong}"], "takes no file"),
        (["compare", "{wrong}"], "needs two reports, 1 given"),
        (["compare", "{wrong}", "{wrong}"], "no report of seedmp bench"),
        (["report", "{folder}"], "no result"),
        (["tables"], "needs the pages"),
    ],
)
def test_bad_input_is_refused_before_any_model(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"answer": "#### 3"}\n')
    (tmp_path / "folder").mkdir()
    given = [text.format(wrong=wrong, folder=tmp_path / "folder") for text in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path / "out")]
    assert main(["bench", "--smoke", *given, *out]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_compare_prints_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    slower, faster = made("peers"), made("peers")
    for report_made in (slower, faster):
        report_made["rows"][0] |= {"speedup": 1.0, "speedup_min": 1.0, "speedup_max": 1.0}
    before.write_text(json.dumps(slower))
    faster["rows"][1] |= {"tokens_per_s": 60.0, "tokens_per_s_min": 59.0, "tokens_per_s_max": 61.0}
    after.write_text(json.dumps(faster))
    assert main(["bench", "compare", str(before), str(after)]) == 0
    printed = capsys.readouterr().out
    assert "3.00" in printed and "faster" in printed and "1 of 2 rows changed" in printed
    assert "speed-ups within 5 %: 1 of 1 (median 0.0 %" in printed and "further apart than their ±: 0 of 1" in printed


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_results_can_be_read(path: Path) -> None:
    data = json.loads(path.read_text())
    if "benchmark" in data or path.name.startswith("schedules"):
        assert report.tables_of(read_report(path))
