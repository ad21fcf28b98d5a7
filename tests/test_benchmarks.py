"""The comparison with the peers: the exported graphs are the same functions, and one command writes the report."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

pytest.importorskip("tqdm")

import jaxq8 as q8
from benchmarks import files, machine, modes, native_tables, picture, report, tracing
from benchmarks.__main__ import main
from benchmarks.contenders import CONTENDERS, Contender, UnavailableError
from benchmarks.measure import Row, prepare_all, relative_error
from benchmarks.models import MODELS, Model
from benchmarks.regions import Regions
from jaxq8.native import library
from tests.zoo import TINY

needs_native = pytest.mark.skipif(
    not library.status().available, reason=f"no native regions: {library.status().reason}"
)
EXPORTED = [name for name in TINY if name != "tiny_nnx"]


def _row(contender, side, times, error=0.01):
    return Row("net", 1, contender, contender.upper(), side, times, error, 4_000_000, 1.5)


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_graph_is_the_same_function(name):
    pytest.importorskip("onnxruntime")
    model = MODELS[name](2)
    outputs = CONTENDERS["ort"].prepare(model).outputs()
    expected = jax.tree_util.tree_leaves(jax.jit(model.apply)(model.variables, *model.inputs))
    assert len(outputs) == len(expected)
    # float32 sums in another order: a few units in the last place for each of some dozens of layers
    for got, want in zip(outputs, expected, strict=True):
        assert got.shape == want.shape
        assert relative_error([got], [np.asarray(want)]) < 64 * np.finfo(np.float32).eps


def test_graph_has_whole_layers():
    pytest.importorskip("onnx")
    from benchmarks.onnx_export import export

    model = MODELS["tiny_cnn"](1)
    kinds = [node.op_type for node in export(model.module, model.variables, model.inputs).graph.node]
    assert kinds.count("Conv") == kinds.count("BatchNormalization") == 5
    assert {"MaxPool", "AveragePool", "Concat", "GlobalAveragePool", "Gemm"} <= set(kinds)
    assert "Transpose" not in kinds


def test_table_of_modes():
    rng = np.random.default_rng(0)
    v = {"w": rng.standard_normal((64, 32), np.float32), "v": rng.standard_normal((32, 10), np.float32)}
    x = rng.standard_normal((3, 64), np.float32)

    def apply(v, x):
        return jax.nn.relu(x @ v["w"]) @ v["v"]

    exact = modes.Form("float", v, jax.jit(apply), 1000)
    forms = [
        exact,
        *(modes.form(name, modes.MODES[name], apply, v, x[:1]) for name in ("weights", "weights_rounded")),
    ]
    modes.measure(forms, x, rounds=2)
    rows = [modes.row(f, exact, 1000).strip("| ").split(" | ") for f in forms]
    assert [r[0] for r in rows] == ["float", "weights", "weights_rounded"]
    assert rows[0][1:2] + rows[0][3:] == ["100.0%", "1.0x", "none", "3 of 3"]
    assert "after gzip" in rows[2][1]
    assert all(25 < float(r[4].removesuffix(" dB")) < 60 for r in rows[1:])


def test_table_of_files():
    figures = {"way": "q8", "program": "cached", "memory": [24_000_000, 25_000_000, 50_000_000, 51_000_000],
               "seconds": 1.26, "peak": 300_000_000}  # fmt: skip
    found = {
        "model": "net",
        "bytes": {"float": 8000, "q8": 2000, "4 bits": 1000, "q8x": 2400},
        "rows": [figures],
        "native": "none: no compiler",
    }
    text = files.show(found)
    assert ".q8 of 8 bits 25.0%, of 4 bits 12.5%; .q8x 30.0%; native regions of" in text
    assert "none: no compiler" in text
    assert text.endswith("| q8 | cached | 0.0 | 24 (25) | 50 (51) | 1.3 | 300 |")


class Sorting(nn.Module):
    """An operation between layers that the exporter does not know."""

    def __call__(self, x):
        return jax.numpy.sort(x)


class Cropping(nn.Module):
    """A transposed convolution whose result is smaller than the padding SAME makes it."""

    @nn.compact
    def __call__(self, x):
        return nn.ConvTranspose(2, (3, 3), strides=(2, 2), padding="VALID")(x)


@pytest.mark.parametrize(
    ("module", "text"),
    [(Sorting(), "no ONNX form for the JAX primitive sort"), (Cropping(), "only with padding SAME")],
)
def test_unknown_operation_is_named(module, text):
    pytest.importorskip("onnx")
    from benchmarks.onnx_export import UnsupportedModelError, export

    x = np.ones((1, 4, 4, 3), np.float32)
    variables = module.init(jax.random.key(0), x)
    with pytest.raises(UnsupportedModelError, match=text):
        export(module, variables, (x,))


@pytest.mark.parametrize(("kernel", "strides"), [(2, 2), (3, 2), (4, 2), (3, 1), (2, 3), (5, 3)])
def test_transposed_convolution_is_exported(kernel, strides):
    pytest.importorskip("onnxruntime")
    module = nn.ConvTranspose(6, (kernel, 3), strides=(strides, 2))
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 3), np.float32)
    variables = module.init(jax.random.key(0), x)
    found = CONTENDERS["ort"].prepare(Model("up", module, variables, (x,), [])).outputs()
    assert relative_error(found, [np.asarray(module.apply(variables, x))]) < 1e-5


def test_command_writes_all_three_reports(tmp_path, capsys):
    options = [
        "--models",
        "tiny_mlp",
        "--contenders",
        "jaxq8-dynamic",
        "--repeats",
        "1",
        "--seconds",
        "0.001",
    ]
    assert main([*options, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["contender"] for row in results["rows"]] == ["xla", "jaxq8-dynamic"]
    assert results["rows"][0]["relative_error"] == 0
    assert 0 < results["rows"][1]["relative_error"] < 0.1
    assert "tiny_mlp, batch 1" in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "benchmark.png").stat().st_size > 0
    assert results["machine"]["processor"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--models", "resnet51"], "unknown: resnet51; choose among resnet50"),
        (["--contenders", ""], "choose among xla"),
        (["--repeats", "0"], "must be above 0, got 0"),
        (["--batch", "1,0"], "batch sizes must be at least 1, got 1,0"),
    ],
)
def test_bad_options_are_explained(options, text, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert text in capsys.readouterr().err


def test_missing_and_failing_contenders_are_reported_and_left_out():
    def missing(model):
        raise UnavailableError("not installed")

    def failing(model):
        raise KeyError("shape")

    notes = []
    model = MODELS["tiny_mlp"](1)
    contenders = [Contender("a", "A", "peer", missing), Contender("b", "B", "peer", failing)]
    assert prepare_all(model, contenders, notes.append) == {}
    assert notes == ["skipped: A on tiny_mlp: not installed", "failed: B on tiny_mlp: KeyError: 'shape'"]


def test_ratios_are_of_the_minima():
    rows = [
        _row("xla", "self", [8.0, 9.0], 0),
        _row("mine", "self", [3.0, 2.0]),
        _row("ort", "peer", [4.0, 7.0]),
    ]
    assert report.speedup(rows[1], rows) == 4
    assert report.against_best_peer(rows[1], rows) == 2
    assert report.against_best_peer(rows[2], rows) is None
    assert rows[1].median == 2.5
    assert rows[1].sqnr_db == pytest.approx(40)
    table = report.model_table(rows)
    assert "| MINE | 2.00 | 2.50 | 4.00x | 2.00x | 0.01 | 40.0 | 4.0 | 1.5 |" in table
    assert "peak MB" not in table


def test_results_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"returns shape \(2,\) where XLA's float32 returns \(3,\)"):
        relative_error([np.ones(2)], [np.ones(3)])


def test_compile_times_of_a_model(capsys):
    tracing.main(["tiny_cnn", "--rounds", "1"])
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("tiny_cnn: seconds of processor time")
    assert [row.split()[0].strip(":") for row in rows] == ["float", "dynamic", "static", "native"]
    assert "(  1.0x)" in rows[0]


def test_compile_times_without_native_regions(capsys, monkeypatch):
    monkeypatch.setattr(library, "status", lambda: q8.NativeStatus(False, "no compiler"))
    monkeypatch.setattr(q8, "native_status", library.status)
    tracing.main(["tiny_cnn", "--rounds", "1"])
    assert capsys.readouterr().out.splitlines()[-1] == "  native: none: no compiler"


def test_compile_times_of_no_model(capsys):
    with pytest.raises(SystemExit, match="2"):
        tracing.main(["tiny_mpl"])
    assert "tiny_mpl; there are" in capsys.readouterr().err


TABLED = {"jaxq8-dynamic": "jaxq8 dynamic", "jaxq8-static": "jaxq8 static", "jaxq8-float": "jaxq8 float",
          "qwix": "Qwix int8", "ort": "ONNX Runtime float32", "ort-static": "ONNX Runtime static"}  # fmt: skip
DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_picture_shows_the_figures_of_the_table():
    """docs/pictures/speed.json holds what docs/PERFORMANCE.md prints, and nothing else."""
    text = (DOCS / "PERFORMANCE.md").read_text()
    results = picture.read(DOCS / "pictures" / "speed.json")
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    header = next(line for line in lines if "jaxq8 dynamic" in line)
    shown = 0
    for line in (dict(zip(header, line, strict=True)) for line in lines if len(line) == len(header)):
        if not line["batch"].isdigit():
            continue
        panel = picture.speeds(results, int(line["batch"]), [line["model"]])[line["model"]]
        for name, (_, ratio) in panel.items():
            if name in TABLED:
                assert f"{ratio:.2f}x" == line[TABLED[name]], (line["model"], name)
            else:
                assert name == "xla" or f"{ratio:.1f}x" in text
        shown += len(panel)
    assert shown == len(results["rows"])


def test_the_picture_is_drawn_from_results_of_the_command(tmp_path, capsys):
    rows = [
        _row("xla", "self", [4.0, 2.0], 0),
        _row("jaxq8-static", "self", [0.5]),
        _row("ort", "peer", [1.0]),
    ]
    file, drawn = tmp_path / "benchmark.json", tmp_path / "speed.svg"
    file.write_text(
        report.as_json(rows, {"processor": "P", "cores": "2", "features": "amx_int8"}, [], "command")
    )
    found = picture.speeds(picture.read(file), 1)["net"]
    assert {name: ratio for name, (_, ratio) in found.items()} == {"xla": 1, "jaxq8-static": 4, "ort": 2}
    assert picture.main([str(file), str(drawn)]) == 0
    first = drawn.read_text()
    assert "<svg" in first
    assert picture.main([str(file), str(drawn)]) == 0
    assert drawn.read_text() == first  # nothing of the day or of chance
    assert picture.main([str(file), str(drawn), "--models", "resnet"]) == 1
    assert "no results of resnet at batch 1" in capsys.readouterr().err
    file.write_text("[]")
    assert picture.main([str(file), str(drawn)]) == 1
    assert "holds no results" in capsys.readouterr().err


def _measured(model, batch, regions=None):
    """Rows of a model: native is twice as fast as ONNX Runtime's best by minimum, 1.5 times by median."""
    rows = [
        _row("xla", "self", [8.0, 9.0], 0),
        _row("jaxq8-static", "self", [4.0, 5.0]),
        _row("jaxq8-native", "self", [1.0, 3.0]),
        _row("ort", "peer", [2.0, 5.0]),
        _row("ort-static", "peer", [2.5, 3.5]),
    ]
    for row, seconds in zip(rows, (2.0, 5.0, 2.5), strict=False):
        row.lower_seconds = seconds
    for row in rows:
        row.model, row.batch = model, batch
    rows[2].regions = regions
    return rows


def test_each_measure_has_a_best_form_of_its_own():
    rows = _measured("net", 1, Regions(2, 8, 9))
    assert native_tables.ratio(rows, "jaxq8-native", "minimum") == 2
    assert native_tables.ratio(rows, "jaxq8-native", "median") == 1.5
    assert native_tables.ratio(rows, "jaxq8-static", "minimum") == 0.5
    assert native_tables.ratio(rows[:3], "jaxq8-native", "minimum") is None
    assert "| 2.00x | 1.50x | 0.50x | 0.67x | 2 (8 of 9 contractions) |" in native_tables.speed_table(rows)
    assert "| net | 1 | 2.00 | 5.00 | 2.50 | 2.50x | 1.25x |" in native_tables.compile_table(rows)
    assert "## Native regions beside ONNX Runtime" in report.markdown(rows, {}, [], "command")
    assert native_tables.sections(rows[:2]) == []


def test_tables_are_written_into_a_document(tmp_path, capsys):
    rows = [*_measured("net", 1, Regions(2, 8, 9)), *_measured("net", 8, Regions(2, 8, 9))]
    facts = {
        "processor": "P",
        "cores": "2",
        "threads": "XLA 2",
        "native regions": "oneDNN 3.2.0, ISA, 2 threads",
    }
    file, document = tmp_path / "benchmark.json", tmp_path / "DOC.md"
    file.write_text(report.as_json(rows, facts, [], "the command"))
    document.write_text(f"before\n\n{native_tables.BEGIN}\nold\n{native_tables.END}\n\nafter\n")
    assert native_tables.main([str(file), str(document)]) == 0
    first = document.read_text()
    assert "old" not in first
    assert first.startswith("before\n")
    assert first.endswith("\nafter\n")
    assert "`the command`: P; 2 cores, threads: XLA 2; native regions: oneDNN 3.2.0, ISA, 2 threads." in first
    assert first.count("2 (8 of 9 contractions)") == 2
    assert native_tables.main([str(file), str(document)]) == 0
    assert document.read_text() == first
    assert native_tables.main([str(file)]) == 0
    assert "| net | 8 | ORT |" in capsys.readouterr().out
    document.write_text("nothing")
    assert native_tables.main([str(file), str(document)]) == 1
    assert "the document has no place for the tables" in capsys.readouterr().err
    file.write_text(report.as_json(rows[:2], facts, ["skipped: jaxq8 native: no compiler"], "command"))
    assert native_tables.main([str(file)]) == 1
    assert "no row of jaxq8 native: skipped: jaxq8 native: no compiler" in capsys.readouterr().err


def test_the_document_has_a_place_for_the_tables():
    assert native_tables.put((DOCS / "PERFORMANCE.md").read_text(), "tables").count("tables") > 0


@needs_native
def test_native_contender_runs_in_regions():
    model = MODELS["tiny_cnn"](1)
    native, static = (CONTENDERS[name].prepare(model) for name in ("jaxq8-native", "jaxq8-static"))
    assert native.regions.calls > 0
    assert 0 < native.regions.contractions <= native.regions.all_contractions == 6
    assert static.regions is None
    assert 0 < native.lower_seconds <= native.compile_seconds
    assert relative_error(native.outputs(), static.outputs()) < 0.05  # codes on a rounding boundary
    assert "oneDNN" in machine.native()
    assert "native regions" in machine.describe()["threads"]


@needs_native
def test_native_contender_is_absent_where_nothing_is_packed():
    notes = []
    assert prepare_all(MODELS["tiny_lstm"](1), [CONTENDERS["jaxq8-native"]], notes.append) == {}
    assert notes == [
        "skipped: jaxq8 native on tiny_lstm: pack finds no weights that a native region can read"
    ]


def test_native_contender_is_absent_without_native_regions(monkeypatch):
    monkeypatch.setattr(q8, "native_status", lambda: q8.NativeStatus(False, "no compiler"))
    notes = []
    assert prepare_all(MODELS["tiny_mlp"](1), [CONTENDERS["jaxq8-native"]], notes.append) == {}
    assert notes == ["skipped: jaxq8 native on tiny_mlp: no native regions on this machine: no compiler"]
    assert machine.native() == "none: no compiler"
    assert machine.describe()["threads"].count(",") == 1
