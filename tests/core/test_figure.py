"""What all charts share: the ways out of a figure, and that nothing of the host's is touched."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from dco_core.drawing.figure import new_figure, save, style, to_array, to_svg
from dco_core.errors import DCOError

ROOT = Path(__file__).parents[2]


def chart():
    figure = new_figure(2.0)
    axes = figure.subplots()
    style(axes, "steps", "$loss")
    axes.plot([0, 1], [0, 1])
    return figure


def test_a_figure_is_an_array_a_document_and_files(tmp_path):
    picture = to_array(chart())
    assert picture.dtype == np.uint8 and picture.shape == (300, 1050, 3)
    assert (picture[0, 0] == 255).all()  # light background
    assert ElementTree.fromstring(to_svg(chart())).tag == "{http://www.w3.org/2000/svg}svg"
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for suffix, start in starts.items():
        save(chart(), tmp_path / f"new folder/chart{suffix}")
        assert (tmp_path / f"new folder/chart{suffix}").read_bytes().startswith(start)
    assert len(list((tmp_path / "new folder").iterdir())) == 3  # and no temporary file


def test_a_file_that_no_chart_can_be_is_refused_and_nothing_is_lost(tmp_path):
    for name in ("chart.txt", "chart", "chart.jpg"):
        with pytest.raises(DCOError, match=r"ends in \.png, \.svg, \.pdf"):
            save(chart(), tmp_path / name)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DCOError, match="Cannot write"):
        save(chart(), tmp_path / "file" / "chart.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_the_look_does_not_depend_on_settings_of_others():
    import matplotlib
    from matplotlib import style as styles

    plain = to_array(chart())
    with matplotlib.rc_context():
        styles.use("dark_background")
        matplotlib.rcParams.update({"savefig.bbox": "tight", "font.family": "monospace", "figure.dpi": 30})
        before = dict(matplotlib.rcParams)
        dark = to_array(chart())
        document = ElementTree.fromstring(to_svg(chart()))
        assert dict(matplotlib.rcParams) == before
    # the colour of the line itself comes from whoever draws it
    assert dark.shape == plain.shape and (np.abs(dark.astype(int) - plain) > 80).any(-1).mean() < 0.02
    assert (document.get("width"), document.get("height")) == ("504pt", "144pt")


DRAWING = """
import sys
from dco_core.drawing import compatibility_plot, pareto_plot, training_plot
from dco_core.evidence import figures, score_table
assert "matplotlib" not in sys.modules, "imported before it is needed"
from dco_core.drawing.figure import save, to_array
from pathlib import Path
figure = pareto_plot.pareto_figure([pareto_plot.Curve("a", [(0, 1), (1, 0)], None, ["0", "1"])], "t", "x", "y")
to_array(figure)
for suffix in ("png", "svg", "pdf"):
    save(figure, Path(sys.argv[1]) / f"a.{suffix}")
assert "matplotlib.pyplot" not in sys.modules, "pyplot belongs to the host"
"""


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", DRAWING, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_missing_matplotlib_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DCOError, match="need matplotlib .*pip install -r requirements.txt"):
        new_figure(1.0)
